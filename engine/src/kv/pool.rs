//! Owns reference counts and the free list. Knows no contents.

pub struct BlockPool {
    /// Tables that hold each block.
    refs: Vec<u32>,
    /// Last in, first out: memory that was touched is touched again.
    free: Vec<u32>,
    held: usize,
}

impl BlockPool {
    pub fn new(blocks: usize) -> Self {
        Self { refs: vec![0; blocks], free: (1..blocks as u32).rev().collect(), held: 0 }
    }

    /// Blocks that can be lent at all.
    pub fn total(&self) -> usize {
        self.refs.len() - 1
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    pub fn held(&self) -> usize {
        self.held
    }

    /// A free block, now held once.
    pub fn take(&mut self) -> Option<u32> {
        let block = self.free.pop()?;
        self.hold(block);
        Some(block)
    }

    /// One more holder. True when it is the first.
    pub fn hold(&mut self, block: u32) -> bool {
        let refs = &mut self.refs[block as usize];
        *refs += 1;
        self.held += usize::from(*refs == 1);
        *refs == 1
    }

    /// One holder less. True when it was the last: the block now belongs to the caller, to keep or to [`Self::give`].
    pub fn let_go(&mut self, block: u32) -> bool {
        let refs = &mut self.refs[block as usize];
        *refs = refs.checked_sub(1).expect("only held blocks are let go: this is a bug");
        self.held -= usize::from(*refs == 0);
        *refs == 0
    }

    /// Back to the free list.
    pub fn give(&mut self, block: u32) {
        debug_assert_eq!(self.refs[block as usize], 0);
        self.free.push(block);
    }

    pub fn verify(&self, holders: &[u32]) -> Result<(), String> {
        if let Some(block) = (0..holders.len()).find(|b| holders[*b] != self.refs[*b]) {
            return Err(format!("block {block} is in {} tables but counts {}", holders[block], self.refs[block]));
        }
        let mut seen = vec![false; self.refs.len()];
        for block in &self.free {
            if *block == 0 || holders[*block as usize] > 0 || std::mem::replace(&mut seen[*block as usize], true) {
                return Err(format!("block {block} is wrongly in the free list"));
            }
        }
        if holders[0] > 0 {
            return Err("block 0 was lent".into());
        }
        Ok(())
    }
}
