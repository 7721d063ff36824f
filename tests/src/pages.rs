//! Owns sequences in a paged cache, each with a state slot of its own, and turns what is to be computed next into a batch. A small stand-in for the
//! engine's scheduler: it never frees and hands out blocks in random order.

use dualgauge_kernels::{Batch, BatchShape, Limits};

use crate::Random;

pub struct Pages {
    pub block_tokens: usize,
    /// As `ModelSpec::long_after`.
    pub long_after: Option<usize>,
    free: Vec<u32>,
    sequences: Vec<Sequence>,
}

#[derive(Clone, Debug)]
struct Sequence {
    tokens: Vec<u32>,
    computed: usize,
    blocks: Vec<u32>,
}

impl Pages {
    /// A cache of `blocks` blocks, of which block 0 is never lent.
    pub fn new(block_tokens: usize, blocks: usize, random: &mut Random) -> Self {
        let mut free: Vec<u32> = (1..blocks as u32).collect();
        random.shuffle(&mut free);
        Self { block_tokens, long_after: None, free, sequences: vec![] }
    }

    /// Adds a sequence of known tokens, none computed; returns its number.
    pub fn add(&mut self, tokens: Vec<u32>) -> usize {
        self.sequences.push(Sequence { tokens, computed: 0, blocks: vec![] });
        self.sequences.len() - 1
    }

    /// Adds a token to the known ones.
    pub fn push(&mut self, sequence: usize, token: u32) {
        self.sequences[sequence].tokens.push(token);
    }

    /// Tokens of the sequence that are known and not computed.
    pub fn pending(&self, sequence: usize) -> usize {
        self.sequences[sequence].tokens.len() - self.sequences[sequence].computed
    }

    /// Cuts `work` into what a device of these limits runs in one step each: all of it, or, where prefill and decode do
    /// not mix, every longer chunk alone and all single tokens together.
    pub fn parts(limits: &Limits, work: &[(usize, usize)]) -> Vec<Vec<(usize, usize)>> {
        if limits.mixed {
            return vec![work.to_vec()];
        }
        let (chunks, single): (Vec<_>, Vec<_>) = work.iter().partition(|(_, count)| *count > 1);
        let decode = single.chunks(limits.max_seqs).map(<[(usize, usize)]>::to_vec);
        chunks.into_iter().map(|chunk| vec![chunk]).chain(decode).collect()
    }

    /// The step that computes `count` next tokens of each sequence in `work`, with a row for every token.
    ///
    /// Panics when a sequence has fewer pending tokens, or no block is left.
    pub fn step(&mut self, work: &[(usize, usize)]) -> Batch {
        let mut batch = Batch { query_start: vec![0], ..Batch::default() };
        let mut tables: Vec<Vec<u32>> = vec![];
        for (number, count) in work {
            assert!(*count <= self.pending(*number), "sequence {number} has fewer than {count} pending tokens");
            let sequence = &mut self.sequences[*number];
            let end = sequence.computed + count;
            while sequence.blocks.len() * self.block_tokens < end {
                sequence.blocks.push(self.free.pop().expect("the test's cache is large enough"));
            }
            for position in sequence.computed..end {
                let block = sequence.blocks[position / self.block_tokens] as usize;
                batch.tokens.push(sequence.tokens[position]);
                batch.positions.push(position as u32);
                batch.long.push(self.long_after.is_some_and(|most| sequence.tokens.len() > most).into());
                batch.slots.push((block * self.block_tokens + position % self.block_tokens) as u32);
            }
            batch.query_start.push(batch.tokens.len() as u32);
            batch.context.push(end as u32);
            batch.states.push(*number as u32 + 1);
            tables.push(sequence.blocks.clone());
            sequence.computed = end;
        }
        let blocks = tables.iter().map(Vec::len).max().unwrap_or(0);
        for mut table in tables {
            table.resize(blocks, 0);
            batch.block_table.extend(table);
        }
        batch.rows = (0..batch.tokens.len() as u32).collect();
        batch.shape = BatchShape {
            tokens: batch.tokens.len(),
            seqs: work.len(),
            query: work.iter().map(|w| w.1).max().unwrap_or(0),
            blocks,
            rows: batch.rows.len(),
        };
        batch
    }
}
