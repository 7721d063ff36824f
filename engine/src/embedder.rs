//! Owns the way of one text through an encoder: all of its tokens in one step, its rows made one vector. Knows no queue.

use dualgauge_kernels::{Backend, Batch, BatchShape, KvSpec, Recorder, Tail};
use dualgauge_models::{Model, Pool, Pooling};

use crate::Error;

/// An embedding model, or a scorer of pairs, on a device. The cache holds one text while it is computed, and nothing after.
pub struct Embedder {
    backend: Box<dyn Backend>,
    model: Box<dyn Model>,
    pooling: Pooling,
    context: usize,
}

impl Embedder {
    /// # Errors
    /// When the device has no room for one text of full length.
    pub fn new(mut backend: Box<dyn Backend>, model: Box<dyn Model>, pooling: Pooling) -> Result<Self, Error> {
        let limits = backend.limits();
        let (block_tokens, dtype) = (limits.block_tokens, limits.kv_dtype);
        let context = model.spec().context.min(limits.max_tokens);
        let spec = KvSpec { layers: model.spec().kv_layers.clone(), block_tokens, dtype };
        backend.reserve_kv(&spec, context.div_ceil(block_tokens) + 1)?;
        Ok(Self { backend, model, pooling, context })
    }

    /// Most tokens of a text.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The vector of a text, as its model pools it.
    ///
    /// # Errors
    /// [`Error::Input`] for no tokens, too many, or one that does not exist; when the device fails.
    pub fn embed(&mut self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        let rows = match self.pooling.pool {
            Pool::Mean => 0..tokens.len(),
            Pool::First => 0..tokens.len().min(1),
            Pool::Last => tokens.len().saturating_sub(1)..tokens.len(),
        };
        let values = self.rows(tokens, rows.clone())?;
        let width = values.len() / rows.len();
        let mut vector: Vec<f32> = (0..width)
            .map(|i| values[i..].iter().step_by(width).map(|v| f64::from(*v)).sum::<f64>() / rows.len() as f64)
            .map(|mean| mean as f32)
            .collect();
        if self.pooling.normalise {
            let length = vector.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
            vector.iter_mut().for_each(|v| *v = (f64::from(*v) / length.max(1e-12)) as f32);
        }
        Ok(vector)
    }

    /// The score of a pair of texts: a logit. Tokens from `second` on are of the second text.
    ///
    /// # Errors
    /// As [`Self::embed`].
    pub fn score(&mut self, tokens: &[u32], second: usize) -> Result<f32, Error> {
        // The rows of the second type stand behind those of the first.
        let words = (self.model.spec().vocab / 2) as u32;
        if let Some(id) = tokens.iter().find(|id| **id >= words) {
            return Err(Error::Input(format!("token {id} does not exist: the vocabulary has {words}")));
        }
        let typed = tokens.iter().enumerate().map(|(i, id)| if i < second { *id } else { id + words });
        let scores = self.rows(&typed.collect::<Vec<_>>(), 0..1)?;
        Ok(scores[0])
    }

    /// What the model makes of these rows, one after another.
    fn rows(&mut self, tokens: &[u32], rows: std::ops::Range<usize>) -> Result<Vec<f32>, Error> {
        let (count, vocab) = (tokens.len(), self.model.spec().vocab);
        if count == 0 || count > self.context {
            return Err(Error::Input(format!("a text of {count} tokens: 1 to {} are computed", self.context)));
        }
        if let Some(id) = tokens.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::Input(format!("token {id} does not exist: the vocabulary has {vocab}")));
        }
        let block_tokens = self.backend.limits().block_tokens;
        let blocks = count.div_ceil(block_tokens);
        let shape = BatchShape { tokens: count, seqs: 1, query: count, blocks, rows: rows.len() };
        let positions: Vec<u32> = (0..count as u32).collect();
        let mut batch = Batch {
            shape,
            tokens: tokens.to_vec(),
            // Block 0 is never lent.
            slots: positions.iter().map(|p| p + block_tokens as u32).collect(),
            positions,
            query_start: vec![0, count as u32],
            context: vec![count as u32],
            block_table: (1..=blocks as u32).collect(),
            rows: rows.clone().map(|row| row as u32).collect(),
            ..Batch::default()
        };
        let rounded = self.backend.round_up(shape).unwrap_or(shape);
        batch.pad_to(rounded, block_tokens);
        let g = Recorder::new(rounded, block_tokens);
        let made = self.model.forward(&g);
        let width = g.shape_of(made).last();
        let program = g.finish(made, Tail { top_k: 0, logits: true, masked: false })?;
        let id = self.backend.compile(&program)?;
        let output = self.backend.launch(id, &batch).and_then(|ticket| self.backend.wait(ticket));
        self.backend.release(id);
        let mut values = output?.logits.expect("the tail asks for logits: this is a bug");
        values.truncate(rows.len() * width);
        Ok(values)
    }
}
