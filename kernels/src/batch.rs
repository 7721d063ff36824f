//! Owns what crosses to the device each step: flat tokens, and the sequence structure beside them.

use crate::{DType, Shape};

/// The shape a program is recorded for. Every dimension is concrete; a batch may be padded up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct BatchShape {
    /// Tokens of all sequences together.
    pub tokens: usize,
    /// Sequences.
    pub seqs: usize,
    /// Most tokens of one sequence in this step.
    pub query: usize,
    /// Entries a sequence has in the block table.
    pub blocks: usize,
    /// Tokens whose logits are wanted.
    pub rows: usize,
}

/// One step's input. All vectors have exactly the lengths that `shape` says; padding tokens have slot below
/// `block_tokens` (block 0, which is never lent) and belong to no sequence's query range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub shape: BatchShape,
    /// `[tokens]` token ids.
    pub tokens: Vec<u32>,
    /// `[tokens]` position of each token in its sequence.
    pub positions: Vec<u32>,
    /// `[tokens]`: 1 for tokens of sequences that [`crate::RopeSpec::long`] rotates, else 0; or empty: all 0. A sequence
    /// is of one kind as long as its K/V is cached.
    pub long: Vec<u32>,
    /// `[tokens]` where each token's K/V goes: `block * block_tokens + position % block_tokens`.
    pub slots: Vec<u32>,
    /// `[seqs + 1]` first token of each sequence; the last entry is where padding begins.
    pub query_start: Vec<u32>,
    /// `[seqs]` tokens each sequence has after this step: what its last query sees. 0 for a padding sequence.
    pub context: Vec<u32>,
    /// `[seqs, blocks]` block ids, in order of position; 0 beyond the context.
    pub block_table: Vec<u32>,
    /// `[seqs]` the state slot of each sequence, 0 (which is never lent) for a padding sequence; empty when the model
    /// keeps no state. A sequence whose first token in the step is at position 0 begins from a state of zeros.
    pub states: Vec<u32>,
    /// `[rows]` indices into `tokens`; padding rows repeat row 0.
    pub rows: Vec<u32>,
    /// Empty, or `[rows, ceil(vocab / 32)]`: bit set = token allowed.
    pub masks: Vec<u32>,
}

impl Batch {
    /// Pads up to `shape` with tokens that write to block 0 and sequences of no queries.
    ///
    /// Panics when `shape` is smaller in any dimension.
    pub fn pad_to(&mut self, shape: BatchShape, block_tokens: usize) {
        let from = self.shape;
        assert!(
            shape.tokens >= from.tokens && shape.seqs >= from.seqs && shape.rows >= from.rows,
            "a batch is padded up, never cut: this is a bug"
        );
        assert!(shape.blocks >= from.blocks && shape.query >= from.query, "padded shape is smaller: this is a bug");
        let end = *self.query_start.last().expect("query_start has seqs + 1 entries: this is a bug");
        self.tokens.resize(shape.tokens, 0);
        self.positions.resize(shape.tokens, 0);
        if !self.long.is_empty() {
            self.long.resize(shape.tokens, 0);
        }
        let padding = (from.tokens..shape.tokens).map(|i| (i % block_tokens) as u32);
        self.slots.extend(padding);
        self.query_start.resize(shape.seqs + 1, end);
        self.context.resize(shape.seqs, 0);
        let mut table = vec![0; shape.seqs * shape.blocks];
        for (row, old) in self.block_table.chunks_exact(from.blocks.max(1)).enumerate().take(from.seqs) {
            table[row * shape.blocks..][..old.len()].copy_from_slice(old);
        }
        self.block_table = table;
        if !self.states.is_empty() {
            self.states.resize(shape.seqs, 0);
        }
        let first = self.rows.first().copied().unwrap_or(0);
        self.rows.resize(shape.rows, first);
        if !self.masks.is_empty() {
            let words = self.masks.len() / from.rows.max(1);
            self.masks.resize(shape.rows * words, u32::MAX);
        }
        self.shape = shape;
    }

    /// Whether [`crate::RopeSpec::long`] rotates token `token`.
    pub fn is_long(&self, token: usize) -> bool {
        self.long.get(token).is_some_and(|long| *long != 0)
    }

    /// The tokens of sequence `seq`, as a range of indices.
    pub fn query(&self, seq: usize) -> std::ops::Range<usize> {
        self.query_start[seq] as usize..self.query_start[seq + 1] as usize
    }

    /// The blocks of sequence `seq`.
    pub fn blocks(&self, seq: usize) -> &[u32] {
        &self.block_table[seq * self.shape.blocks..][..self.shape.blocks]
    }

    /// True when sequence `seq` begins in this step: its state is that of no token.
    pub fn begins(&self, seq: usize) -> bool {
        self.context[seq] as usize == self.query(seq).len()
    }

    /// Checks the state slots of a batch that is otherwise verified, for a device with `slots` of them, slot 0 included.
    ///
    /// # Errors
    /// One line naming what is off.
    pub fn verify_states(&self, slots: usize) -> Result<(), String> {
        if self.states.len() != self.shape.seqs {
            return Err(format!("states has {} entries, the shape says {}", self.states.len(), self.shape.seqs));
        }
        let mut used: Vec<u32> =
            (0..self.shape.seqs).filter(|s| !self.query(*s).is_empty()).map(|s| self.states[s]).collect();
        used.sort_unstable();
        if used.first() == Some(&0) {
            return Err("a sequence has state slot 0, which is never lent".into());
        }
        if let Some(twice) = used.windows(2).find(|w| w[0] == w[1]) {
            return Err(format!("two sequences have state slot {}", twice[0]));
        }
        match self.states.iter().find(|s| **s as usize >= slots) {
            Some(slot) => Err(format!("state slot {slot} does not exist")),
            None => Ok(()),
        }
    }

    /// Checks every length and index against the shape: what a device may rely on.
    ///
    /// # Errors
    /// One line naming the field that is off.
    pub fn verify(&self, block_tokens: usize, kv_blocks: usize) -> Result<(), String> {
        let s = self.shape;
        let lengths = [
            ("tokens", self.tokens.len(), s.tokens),
            ("positions", self.positions.len(), s.tokens),
            ("slots", self.slots.len(), s.tokens),
            ("query_start", self.query_start.len(), s.seqs + 1),
            ("context", self.context.len(), s.seqs),
            ("block_table", self.block_table.len(), s.seqs * s.blocks),
            ("rows", self.rows.len(), s.rows),
        ];
        let long = ("long", self.long.len(), if self.long.is_empty() { 0 } else { s.tokens });
        for (name, held, wanted) in lengths.into_iter().chain([long]) {
            if held != wanted {
                return Err(format!("{name} has {held} entries, the shape says {wanted}"));
            }
        }
        let end = *self.query_start.last().expect("its length was checked: this is a bug") as usize;
        if !self.query_start.is_sorted() || self.query_start[0] != 0 || end > s.tokens {
            return Err("query_start does not ascend from 0 within the tokens".into());
        }
        if self.rows.iter().any(|r| *r as usize >= end.max(1)) {
            return Err("rows points beyond the sequences' tokens".into());
        }
        if self.slots.iter().any(|x| *x as usize >= kv_blocks.saturating_mul(block_tokens)) {
            return Err("slots points beyond the cache".into());
        }
        if self.slots[end..].iter().any(|x| *x as usize >= block_tokens) {
            return Err("slots of padding tokens lie outside of block 0".into());
        }
        if self.block_table.iter().any(|b| *b as usize >= kv_blocks) {
            return Err("block_table names a block that does not exist".into());
        }
        for seq in 0..s.seqs {
            let (query, context) = (self.query(seq), self.context[seq] as usize);
            if query.len() > s.query || context > s.blocks * block_tokens || query.len() > context {
                return Err(format!("sequence {seq}: {} queries, context {context} do not fit the shape", query.len()));
            }
            if self.blocks(seq)[..context.div_ceil(block_tokens)].contains(&0) {
                return Err(format!(
                    "sequence {seq}: block 0, which is never lent, is within its context of {context}"
                ));
            }
            for (i, token) in query.clone().enumerate() {
                let position = context - query.len() + i;
                if self.positions[token] as usize != position {
                    return Err(format!("sequence {seq}: token {token} is not at position {position}"));
                }
                let block = self.blocks(seq)[position / block_tokens];
                if self.slots[token] as usize != block as usize * block_tokens + position % block_tokens {
                    return Err(format!("sequence {seq}: the slot of token {token} is not in its block table"));
                }
            }
        }
        Ok(())
    }
}

/// The K/V cache a model needs, decided before any program is compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvSpec {
    pub layers: Vec<KvLayer>,
    /// Tokens a block holds.
    pub block_tokens: usize,
    /// Element type of the cache.
    pub dtype: DType,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayer {
    pub kv_heads: usize,
    pub k_dim: usize,
    pub v_dim: usize,
}

/// What a recurrent layer keeps of each sequence: f32 values of this shape, in a slot of its own. Which shape is said
/// beside each operation's spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateLayer {
    pub shape: Shape,
}

impl StateLayer {
    /// Bytes of one slot of all `layers` together.
    pub fn slot_bytes(layers: &[Self]) -> u64 {
        layers.iter().map(|l| l.shape.elements() as u64 * 4).sum()
    }
}

impl KvSpec {
    /// Bytes one token takes in all layers together.
    pub fn token_bytes(&self) -> u64 {
        let values: usize = self.layers.iter().map(|l| l.kv_heads * (l.k_dim + l.v_dim)).sum();
        (values * self.dtype.bytes()) as u64
    }

    /// Bytes one block takes in all layers together.
    pub fn block_bytes(&self) -> u64 {
        self.token_bytes() * self.block_tokens as u64
    }
}
