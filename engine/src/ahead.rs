//! Owns the list of programs that an engine can meet on a device that compiles ahead of time: every bucket its steps round
//! up to, with the tails they ask for. Arithmetic and recording; nothing runs.

use dualgauge_kernels::{Backend, BatchShape, Program, Tail};
use dualgauge_models::Model;

use crate::Error;
use crate::runner::{CANDIDATES, record, rounded};
use crate::sizing::StartPlan;

impl StartPlan {
    /// Every shape that a step of this plan runs in, prompts first, shortest context first. For devices on which prefill
    /// and decode do not mix; rows that only the log-probabilities of prompts need are not among them.
    pub fn shapes(&self, backend: &dyn Backend) -> Vec<BatchShape> {
        let most_blocks = self.max_model_len.div_ceil(self.block_tokens);
        let mut shapes = vec![];
        let mut add = |want: BatchShape| {
            if let Some(shape) = rounded(backend, want)
                && !shapes.contains(&shape)
            {
                shapes.push(shape);
            }
        };
        // Contexts are rounded up to powers of two before anything else.
        let contexts: Vec<usize> =
            (0..usize::BITS).map(|i| 1 << i).take_while(|b| *b < most_blocks).chain([most_blocks]).collect();
        for tokens in 2..=self.max_num_batched_tokens {
            for &blocks in &contexts {
                add(BatchShape { tokens, seqs: 1, query: tokens, blocks, rows: 1 });
            }
        }
        for seqs in 1..=self.max_num_seqs {
            for &blocks in &contexts {
                add(BatchShape { tokens: seqs, seqs, query: 1, blocks, rows: seqs });
            }
        }
        shapes.sort_by_key(|s| (s.query == 1, s.blocks, s.tokens));
        shapes
    }

    /// The programs of all [`Self::shapes`]: greedy, with candidates, and with all logits when `logits` says so
    /// (penalties, bias, constrained answers and many log-probabilities ask for them).
    ///
    /// # Errors
    /// The first shape rule that the model breaks.
    pub fn programs(&self, backend: &dyn Backend, model: &dyn Model, logits: bool) -> Result<Vec<Program>, Error> {
        let top_k = CANDIDATES.min(backend.limits().max_top_k).min(model.spec().vocab);
        let greedy = Tail::default();
        let mut tails = vec![greedy, Tail { top_k, ..greedy }];
        if logits {
            tails.push(Tail { logits: true, ..greedy });
        }
        let mut programs = vec![];
        for shape in self.shapes(backend) {
            for tail in &tails {
                programs.push(record(model, shape, *tail, self.block_tokens)?);
            }
        }
        Ok(programs)
    }
}
