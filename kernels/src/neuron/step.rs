//! Owns how a step's integers travel: one s32 tensor, its fields one after another at places that the program's shape
//! fixes. Knows no device.

use std::ops::Range;

use crate::{Batch, BatchShape};

/// Where each field lies in the packed tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StepLayout {
    pub tokens: Range<usize>,
    pub positions: Range<usize>,
    pub long: Range<usize>,
    pub slots: Range<usize>,
    pub block_table: Range<usize>,
    pub rows: Range<usize>,
    /// `[rows, mask_words]`; empty for programs without masks.
    pub masks: Range<usize>,
    pub mask_words: usize,
}

impl StepLayout {
    /// `vocab` is given for programs whose rows carry token masks.
    pub fn new(shape: &BatchShape, masked_vocab: Option<usize>) -> Self {
        let mut end = 0;
        let mut next = |len: usize| {
            end += len;
            end - len..end
        };
        let mask_words = masked_vocab.map_or(0, |v| v.div_ceil(32));
        Self {
            tokens: next(shape.tokens),
            positions: next(shape.tokens),
            long: next(shape.tokens),
            slots: next(shape.tokens),
            block_table: next(shape.seqs * shape.blocks),
            rows: next(shape.rows),
            masks: next(shape.rows * mask_words),
            mask_words,
        }
    }

    /// Integers in all.
    pub fn len(&self) -> usize {
        self.masks.end
    }

    /// The batch as the device reads it; a batch without masks allows every token.
    pub fn pack(&self, batch: &Batch) -> Vec<i32> {
        let mut out = vec![0; self.len()];
        let mut put = |range: &Range<usize>, values: &[u32]| {
            out[range.clone()].iter_mut().zip(values).for_each(|(o, v)| *o = *v as i32);
        };
        put(&self.tokens, &batch.tokens);
        put(&self.positions, &batch.positions);
        put(&self.long, &batch.long);
        put(&self.slots, &batch.slots);
        put(&self.block_table, &batch.block_table);
        put(&self.rows, &batch.rows);
        if batch.masks.is_empty() {
            out[self.masks.clone()].fill(-1);
        } else {
            put(&self.masks, &batch.masks);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_follow_one_another_and_missing_masks_allow_all() {
        let shape = BatchShape { tokens: 2, seqs: 2, query: 1, blocks: 3, rows: 2 };
        let layout = StepLayout::new(&shape, Some(40));
        let batch = Batch {
            shape,
            tokens: vec![10, 11],
            positions: vec![5, 6],
            long: vec![0, 1],
            slots: vec![20, 21],
            query_start: vec![0, 1, 2],
            context: vec![6, 7],
            block_table: vec![1, 2, 0, 3, 4, 0],
            rows: vec![0, 1],
            ..Batch::default()
        };
        let want = [10, 11, 5, 6, 0, 1, 20, 21, 1, 2, 0, 3, 4, 0, 0, 1, -1, -1, -1, -1];
        assert_eq!(layout.pack(&batch), want);
        let masked = Batch { masks: vec![7, 8, 9, 10], ..batch };
        assert_eq!(layout.pack(&masked)[16..], [7, 8, 9, 10]);
    }
}
