//! Owns the rules of the tail: masks, the largest logit, the best candidates, the normaliser.
//!
//! The device's compiler refuses `sort`, and its own top-k breaks ties as it likes, so candidates are found in rounds:
//! the largest value, the lowest id that has it, strike it out. To keep rounds cheap, only the chunks of the vocabulary
//! with the k largest maxima are searched: every one of the k best (value, then id) lies in one of them, since a chunk
//! that is not chosen stands behind k chunks whose maxima come before all of its values.

use super::{Binary, Lowered, Lowering, Node, Value};
use crate::neuron::hlo::{Compare, Reduce, Unary};

/// Columns of a chunk that is searched as one.
const CHUNK: usize = 32;

impl Lowering<'_> {
    /// Bit `i % 32` of word `i / 32` allows token `i`.
    pub(super) fn mask_logits(&mut self, x: Value) -> Node {
        let x = self.float(x);
        let (rows, vocab, words) = (self.b.dims(x)[0], self.b.dims(x)[1], self.step.mask_words);
        let masks = self.field(self.step.masks.clone(), &[rows, words]);
        let dims = [rows, words, 32];
        let masks = self.b.broadcast(masks, &dims, &[0, 1]);
        let bit = self.b.iota(&dims, 2);
        let shifted = self.b.binary(Binary::ShiftRightLogical, masks, bit);
        let one = self.b.full_s32(1, &dims);
        let low = self.b.binary(Binary::And, shifted, one);
        let low = self.b.reshape(low, &[rows, words * 32]);
        let low = self.b.slice(low, 1, 0, vocab);
        let zero = self.b.full_s32(0, &[rows, vocab]);
        let allowed = self.b.compare(Compare::Ne, low, zero);
        let never = self.b.full_f32(f32::NEG_INFINITY, &[rows, vocab]);
        self.b.select(allowed, x, never)
    }

    pub(super) fn argmax(&mut self, x: Value) -> Node {
        let x = self.float(x);
        let dims = self.b.dims(x);
        let ids = self.b.iota(&dims, dims.len() - 1);
        self.best(x, ids).1
    }

    pub(super) fn top_k(&mut self, x: Value, k: usize) -> Lowered {
        let x = self.float(x);
        let (rows, vocab) = (self.b.dims(x)[0], self.b.dims(x)[1]);
        let chunks = vocab.div_ceil(CHUNK);
        let (ids, values) =
            if k < chunks { self.best_chunks(x, rows, vocab, k) } else { (self.b.iota(&[rows, vocab], 1), x) };
        let (ids, values) = self.rounds(ids, values, k);
        Lowered::Pairs(ids, values)
    }

    pub(super) fn log_sum_exp(&mut self, x: Value) -> Node {
        let x = self.float(x);
        let dims = self.b.dims(x);
        let last = dims.len() - 1;
        let most = self.b.reduce(Reduce::Max, x, last);
        // A row whose tokens are all forbidden has -inf everywhere; less itself that would be no number.
        let rows = self.b.dims(most);
        let finite = self.b.full_f32(f32::MIN, &rows);
        let most = self.b.binary(Binary::Maximum, most, finite);
        let wide = self.along_rows(most, &dims);
        let below = self.b.binary(Binary::Subtract, x, wide);
        let parts = self.b.unary(Unary::Exponential, below);
        let sum = self.b.reduce(Reduce::Add, parts, last);
        let log = self.b.unary(Unary::Log, sum);
        self.b.binary(Binary::Add, log, most)
    }

    /// The k best of each row of `values`, best first, ties to the lowest of `ids`: `[rows, k]` ids and values.
    pub(super) fn rounds(&mut self, mut ids: Node, mut values: Node, k: usize) -> (Node, Node) {
        let dims = self.b.dims(values);
        let gone = self.b.full_s32(i32::MAX, &dims);
        let least = self.b.full_f32(f32::NEG_INFINITY, &dims);
        let (mut best_ids, mut best_values) = (vec![], vec![]);
        for round in 0..k {
            let (value, id) = self.best(values, ids);
            best_ids.push(self.b.reshape(id, &[dims[0], 1]));
            best_values.push(self.b.reshape(value, &[dims[0], 1]));
            if round + 1 < k {
                let wide = self.along_rows(id, &dims);
                let taken = self.b.compare(Compare::Eq, ids, wide);
                ids = self.b.select(taken, gone, ids);
                values = self.b.select(taken, least, values);
            }
        }
        (self.b.concatenate(&best_ids, 1), self.b.concatenate(&best_values, 1))
    }

    /// The largest value of each row and the lowest id that has it.
    pub(super) fn best(&mut self, values: Node, ids: Node) -> (Node, Node) {
        let dims = self.b.dims(values);
        let last = dims.len() - 1;
        let most = self.b.reduce(Reduce::Max, values, last);
        let wide = self.along_rows(most, &dims);
        let same = self.b.compare(Compare::Eq, values, wide);
        let beyond = self.b.full_s32(i32::MAX, &dims);
        let ids = self.b.select(same, ids, beyond);
        (most, self.b.reduce(Reduce::Min, ids, last))
    }

    /// Ids and values `[rows, k * CHUNK]` of the k chunks with the largest maxima.
    fn best_chunks(&mut self, x: Node, rows: usize, vocab: usize, k: usize) -> (Node, Node) {
        let chunks = vocab.div_ceil(CHUNK);
        let x = if vocab.is_multiple_of(CHUNK) {
            x
        } else {
            let rest = self.b.full_f32(f32::NEG_INFINITY, &[rows, chunks * CHUNK - vocab]);
            self.b.concatenate(&[x, rest], 1)
        };
        let cut = self.b.reshape(x, &[rows, chunks, CHUNK]);
        let most = self.b.reduce(Reduce::Max, cut, 2);
        let number = self.b.iota(&[rows, chunks], 1);
        let (chosen, _) = self.rounds(number, most, k); // [rows, k]
        let row = self.b.iota(&[rows, k], 0);
        let per_row = self.b.full_s32(chunks as i32, &[rows, k]);
        let first = self.b.binary(Binary::Multiply, row, per_row);
        let flat = self.b.binary(Binary::Add, first, chosen);
        let flat = self.b.reshape(flat, &[rows * k]);
        let all = self.b.reshape(cut, &[rows * chunks, CHUNK]);
        let values = self.b.gather_rows(all, flat);
        let dims = [rows, k, CHUNK];
        let width = self.b.full_s32(CHUNK as i32, &[rows, k]);
        let start = self.b.binary(Binary::Multiply, chosen, width);
        let start = self.b.broadcast(start, &dims, &[0, 1]);
        let lane = self.b.iota(&dims, 2);
        let ids = self.b.binary(Binary::Add, start, lane);
        (self.b.reshape(ids, &[rows, k * CHUNK]), self.b.reshape(values, &[rows, k * CHUNK]))
    }
}
