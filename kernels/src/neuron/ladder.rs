//! Owns which shapes are compiled: buckets of prefill tokens, decode sequences and context. Each pair is one compiled
//! program, minutes of compilation each, so the steps are coarse. Pure arithmetic.

use std::fmt;

use crate::BatchShape;

/// The buckets, ascending. A step runs in the smallest that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder {
    /// Tokens of a prefill chunk; the last is the longest chunk.
    pub prefill_tokens: Vec<usize>,
    /// Sequences of a decode step; the last is the largest batch.
    pub decode_seqs: Vec<usize>,
    /// Tokens of context a sequence may have. Beyond the last, context doubles.
    pub context_tokens: Vec<usize>,
}

impl Default for Ladder {
    fn default() -> Self {
        Self {
            prefill_tokens: vec![64, 512],
            decode_seqs: vec![1, 4, 16, 64],
            context_tokens: vec![512, 2048, 8192, 32768],
        }
    }
}

impl Ladder {
    /// # Errors
    /// One line, when a list is empty, holds a zero or does not ascend.
    pub fn verify(&self) -> Result<(), String> {
        let lists =
            [("prefill", &self.prefill_tokens), ("decode", &self.decode_seqs), ("context", &self.context_tokens)];
        for (name, list) in lists {
            if list.is_empty() || list[0] == 0 || !list.is_sorted_by(|a, b| a < b) {
                return Err(format!("the {name} buckets {list:?} are not an ascending list of positive numbers"));
            }
        }
        Ok(())
    }

    pub fn max_tokens(&self) -> usize {
        *self.prefill_tokens.last().expect("ladders are verified: this is a bug")
    }

    pub fn max_seqs(&self) -> usize {
        *self.decode_seqs.last().expect("ladders are verified: this is a bug")
    }

    /// The bucket that holds `want`: one sequence of many tokens (prefill), or sequences of one token each (decode).
    /// `None` for a mix, and for what is beyond the largest bucket.
    pub(super) fn round_up(&self, want: BatchShape, block_tokens: usize) -> Option<BatchShape> {
        let blocks = self.context(want.blocks * block_tokens)?.div_ceil(block_tokens);
        if want.query <= 1 {
            let seqs = fit(&self.decode_seqs, want.seqs.max(want.tokens).max(want.rows))?;
            return Some(BatchShape { tokens: seqs, seqs, query: 1, blocks, rows: seqs });
        }
        if want.seqs > 1 {
            return None;
        }
        let tokens = fit(&self.prefill_tokens, want.tokens.max(want.query))?;
        // One row is what a prefill is for; all rows are for log-probabilities of the prompt.
        let rows = if want.rows <= 1 { 1 } else { tokens };
        (want.rows <= tokens).then_some(BatchShape { tokens, seqs: 1, query: tokens, blocks, rows })
    }

    fn context(&self, tokens: usize) -> Option<usize> {
        fit(&self.context_tokens, tokens.max(1)).or_else(|| tokens.checked_next_power_of_two())
    }
}

/// A line for each kind of bucket. A program is compiled for each prefill and decode bucket in each context bucket.
impl fmt::Display for Ladder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = [
            ("prefill tokens", &self.prefill_tokens),
            ("decode sequences", &self.decode_seqs),
            ("context tokens", &self.context_tokens),
        ];
        for (i, (name, list)) in lists.into_iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{name:<17}")?;
            list.iter().try_for_each(|bucket| write!(f, "{bucket:>8}"))?;
        }
        Ok(())
    }
}

fn fit(buckets: &[usize], want: usize) -> Option<usize> {
    buckets.iter().copied().find(|b| *b >= want)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(tokens: usize, seqs: usize, query: usize, blocks: usize, rows: usize) -> BatchShape {
        BatchShape { tokens, seqs, query, blocks, rows }
    }

    #[test]
    fn the_smallest_bucket_that_holds_a_step() {
        let ladder = Ladder::default();
        let up = |want| ladder.round_up(want, 16);
        assert_eq!(up(shape(65, 1, 65, 5, 1)), Some(shape(512, 1, 512, 32, 1)));
        assert_eq!(up(shape(64, 1, 64, 33, 1)), Some(shape(64, 1, 64, 128, 1)));
        assert_eq!(up(shape(3, 1, 3, 1, 2)), Some(shape(64, 1, 64, 32, 64)));
        assert_eq!(up(shape(5, 5, 1, 7, 5)), Some(shape(16, 16, 1, 32, 16)));
        assert_eq!(up(shape(1, 1, 1, 4096, 1)), Some(shape(1, 1, 1, 4096, 1)));
        assert_eq!(up(shape(513, 1, 513, 40, 1)), None, "longer than the longest chunk");
        assert_eq!(up(shape(65, 65, 1, 1, 65)), None, "more than the largest batch");
        assert_eq!(up(shape(9, 2, 8, 1, 2)), None, "prefill and decode do not mix");
    }

    #[test]
    fn every_step_that_fits_is_held() {
        let ladder = Ladder { prefill_tokens: vec![8, 32], decode_seqs: vec![1, 2, 4], context_tokens: vec![16, 64] };
        for blocks in 1..20 {
            for tokens in 2..=32 {
                let want = shape(tokens, 1, tokens, blocks, 1);
                let got = ladder.round_up(want, 16).expect("fits");
                assert!(got.tokens >= tokens && got.blocks >= blocks && got.tokens == got.query);
            }
            for seqs in 1..=4 {
                let got = ladder.round_up(shape(seqs, seqs, 1, blocks, seqs), 16).expect("fits");
                assert!(got.seqs >= seqs && got.blocks >= blocks && got.tokens == got.seqs);
            }
        }
    }

    #[test]
    fn prints_a_small_table() {
        let text = Ladder { prefill_tokens: vec![64], ..Ladder::default() }.to_string();
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["prefill", "tokens", "64"]);
        assert_eq!(lines[1], ["decode", "sequences", "1", "4", "16", "64"]);
        assert_eq!(lines[2], ["context", "tokens", "512", "2048", "8192", "32768"]);
    }

    #[test]
    fn a_broken_ladder_is_named() {
        let ladder = Ladder { decode_seqs: vec![4, 2], ..Ladder::default() };
        assert!(ladder.verify().is_err_and(|e| e.contains("decode")));
        assert!(Ladder::default().verify().is_ok());
    }
}
