//! Owns one sequence's list of blocks, in order of position, and its state slot. Grows at the end; an entry never changes
//! what it means.

use std::ops::Deref;

/// Block ids; entry `i` holds the positions from `i * block_tokens`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BlockTable {
    blocks: Vec<u32>,
    /// 0 for none.
    state: u32,
}

impl BlockTable {
    /// The slot of the sequence's state; 0 when it has none.
    pub fn state(&self) -> u32 {
        self.state
    }

    pub(super) fn set_state(&mut self, slot: u32) {
        self.state = slot;
    }

    pub(super) fn push(&mut self, block: u32) {
        self.blocks.push(block);
    }

    pub(super) fn pop(&mut self) -> Option<u32> {
        self.blocks.pop()
    }

    /// Another block of the same content.
    pub(super) fn replace(&mut self, index: usize, block: u32) {
        self.blocks[index] = block;
    }
}

impl Deref for BlockTable {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.blocks
    }
}
