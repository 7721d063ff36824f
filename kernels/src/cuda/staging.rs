//! Owns the layout of what crosses to the device each step: all of a batch in one buffer of 32-bit words, so that a
//! step is one copy and every kernel's addresses are fixed.

use crate::{Batch, BatchShape};

/// Word offsets of a batch's parts, for one shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Staging {
    pub tokens: usize,
    pub positions: usize,
    pub long: usize,
    pub slots: usize,
    /// `[tokens]` i32: the sequence of each token, -1 for padding.
    pub sequence: usize,
    pub table: usize,
    pub rows: usize,
    pub masks: usize,
    /// Words of mask a row has.
    pub mask_words: usize,
    pub words: usize,
}

impl Staging {
    pub fn new(shape: BatchShape, vocab: usize, masked: bool) -> Self {
        let mut end = 0;
        let mut part = |words: usize| {
            let at = end;
            end += words.next_multiple_of(4); // 16-byte aligned
            at
        };
        let mask_words = if masked { vocab.div_ceil(32) } else { 0 };
        let (tokens, positions) = (part(shape.tokens), part(shape.tokens));
        let long = part(shape.tokens);
        let (slots, sequence) = (part(shape.tokens), part(shape.tokens));
        let (table, rows) = (part(shape.seqs * shape.blocks), part(shape.rows));
        let masks = part(shape.rows * mask_words);
        Self { tokens, positions, long, slots, sequence, table, rows, masks, mask_words, words: end }
    }

    /// The batch in this layout. A batch without masks in a masked program allows everything.
    pub fn pack(&self, batch: &Batch) -> Vec<u32> {
        let mut words = vec![0; self.words];
        let mut put = |at: usize, from: &[u32]| words[at..at + from.len()].copy_from_slice(from);
        put(self.tokens, &batch.tokens);
        put(self.positions, &batch.positions);
        put(self.long, &batch.long);
        put(self.slots, &batch.slots);
        put(self.table, &batch.block_table);
        put(self.rows, &batch.rows);
        if self.mask_words > 0 {
            let all = vec![u32::MAX; batch.shape.rows * self.mask_words];
            put(self.masks, if batch.masks.is_empty() { &all } else { &batch.masks });
        }
        let sequence = &mut words[self.sequence..][..batch.shape.tokens];
        sequence.fill(u32::MAX);
        for seq in 0..batch.shape.seqs {
            sequence[batch.query(seq)].fill(seq as u32);
        }
        words
    }
}
