//! Owns the states of sequences: one block of memory, a slot after another, the layers of a slot one after another, the
//! last dimension of each padded to whole vectors. Knows no sequence and no arithmetic.

use super::buffer::Buffer;
use super::lanes::LANES;
use crate::{Error, Result, StateLayer};

/// The states of all layers.
pub(crate) struct States {
    data: Buffer,
    pub(crate) layers: Vec<StateLayer>,
    /// First value of each layer within a slot.
    offsets: Vec<usize>,
    slot_values: usize,
    pub(crate) slots: usize,
}

impl States {
    /// Reserves addresses for `slots` slots; touches none of them.
    ///
    /// # Errors
    /// No such memory.
    pub(crate) fn reserve(layers: &[StateLayer], slots: usize) -> Result<Self> {
        let (mut offsets, mut slot_values) = (vec![], 0usize);
        for l in layers {
            offsets.push(slot_values);
            let last = l.shape.last();
            slot_values += l.shape.elements() / last.max(1) * last.next_multiple_of(LANES);
        }
        let bytes = slot_values.checked_mul(4 * slots);
        let data = bytes.and_then(Buffer::try_zeroed).ok_or_else(|| Error::OutOfMemory {
            what: format!("the states of {slots} sequences"),
            needed: bytes.map_or(u64::MAX, |b| b as u64),
            free: super::machine::available_bytes(),
        })?;
        Ok(Self { data, layers: layers.to_vec(), offsets, slot_values, slots })
    }

    /// One layer, to write and to read. Whoever writes through it holds the states alone.
    pub(crate) fn layer(&mut self, layer: usize) -> Cells {
        Cells { base: self.data.as_mut_ptr().cast::<f32>().wrapping_add(self.offsets[layer]), stride: self.slot_values }
    }
}

/// One layer of the states, as threads share it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cells {
    base: *mut f32,
    stride: usize,
}

// SAFETY: only a pointer; every use is unsafe, and says why threads write apart.
unsafe impl Send for Cells {}
// SAFETY: as above.
unsafe impl Sync for Cells {}

impl Cells {
    /// The first value of a slot, which must be below the count; the rest of the layer follows.
    pub(crate) fn slot(self, slot: usize) -> *mut f32 {
        self.base.wrapping_add(slot * self.stride)
    }
}
