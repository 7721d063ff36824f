//! Owns one sequence's list of blocks, in order of position. Grows at the end; an entry never changes what it means.

use std::ops::Deref;

/// Block ids; entry `i` holds the positions from `i * block_tokens`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BlockTable(Vec<u32>);

impl BlockTable {
    pub(super) fn push(&mut self, block: u32) {
        self.0.push(block);
    }

    pub(super) fn pop(&mut self) -> Option<u32> {
        self.0.pop()
    }

    /// Another block of the same content.
    pub(super) fn replace(&mut self, index: usize, block: u32) {
        self.0[index] = block;
    }
}

impl Deref for BlockTable {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.0
    }
}
