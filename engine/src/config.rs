//! Owns what an operator may choose about an engine. Knows no device: what fits is found at start.

use crate::Error;

/// How an engine is sized. The default suits one machine and a small model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Most tokens of a prompt and its answer together; `None`: what the model was made for, or less when the cache
    /// does not hold as much.
    pub max_model_len: Option<usize>,
    /// Most sequences in one step.
    pub max_num_seqs: usize,
    /// Most tokens in one step: longer prompts are computed in chunks.
    pub max_num_batched_tokens: usize,
    /// Most requests that wait for a place beside those that run.
    pub max_queue: usize,
    /// Size of the K/V cache in blocks, the reserved one included. Takes precedence over `kv_bytes`.
    pub kv_blocks: Option<usize>,
    /// Size of the K/V cache; `None`: room for `max_num_seqs` sequences of full length, or what the device has free.
    pub kv_bytes: Option<u64>,
    /// Keep computed blocks for later requests with the same beginning.
    pub prefix_caching: bool,
    /// Compiled programs kept; the least recently used is released beyond that.
    pub max_programs: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_model_len: None,
            max_num_seqs: 128,
            max_num_batched_tokens: 512,
            max_queue: 1024,
            kv_blocks: None,
            kv_bytes: None,
            prefix_caching: true,
            max_programs: 256,
        }
    }
}

impl EngineConfig {
    /// # Errors
    /// [`Error::Config`] naming the first field that is out of range.
    pub fn check(&self) -> Result<(), Error> {
        if self.max_num_seqs == 0 {
            return Err(Error::config("max_num_seqs", "must be at least 1"));
        }
        if self.max_num_batched_tokens < self.max_num_seqs {
            let message = format!(
                "{} is less than max_num_seqs ({}): every running sequence needs a token a step",
                self.max_num_batched_tokens, self.max_num_seqs
            );
            return Err(Error::config("max_num_batched_tokens", message));
        }
        if self.max_model_len.is_some_and(|len| len < 2) {
            return Err(Error::config("max_model_len", "must be at least 2: a token of prompt and a token of answer"));
        }
        if self.kv_blocks.is_some_and(|blocks| blocks < 2) {
            return Err(Error::config("kv_blocks", "must be at least 2: block 0 is reserved"));
        }
        if self.max_programs == 0 {
            return Err(Error::config("max_programs", "must be at least 1"));
        }
        Ok(())
    }
}
