//! Owns the slots of state: one for each running sequence of a model that keeps one. Knows no contents; a sequence begins
//! from zeros whatever its slot held, so nothing is cleared.

/// Slots by number; slot 0 is never lent.
pub struct StateSlots {
    total: usize,
    /// Last in, first out: memory that was touched is touched again.
    free: Vec<u32>,
}

impl StateSlots {
    /// `slots` counts slot 0; 0 for a model without state.
    pub fn new(slots: usize) -> Self {
        Self { total: slots.saturating_sub(1), free: (1..slots as u32).rev().collect() }
    }

    /// True when every running sequence needs a slot.
    pub fn are_needed(&self) -> bool {
        self.total > 0
    }

    pub fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    pub fn give(&mut self, slot: u32) {
        self.free.push(slot);
    }

    /// Checks that every slot is free or in one of `held`, and none is twice.
    pub fn verify(&self, held: impl Iterator<Item = u32>) -> Result<(), String> {
        let mut seen = vec![false; self.total + 1];
        for slot in self.free.iter().copied().chain(held) {
            if slot == 0 || std::mem::replace(&mut seen[slot as usize], true) {
                return Err(format!("state slot {slot} is lent twice, or free and lent, or 0"));
            }
        }
        match seen.iter().skip(1).position(|seen| !seen) {
            Some(lost) => Err(format!("state slot {} is neither free nor held", lost + 1)),
            None => Ok(()),
        }
    }
}
