//! Owns what the engine sees of a model: numbers to plan with and a function that records a step.

use dualgauge_kernels::{KvLayer, Recorder, StateLayer, Value};

use crate::Config;
use crate::loader::Loader;

/// A loaded model: its weights are on a device, its structure is here.
pub trait Model: Send {
    fn spec(&self) -> &ModelSpec;

    /// Records one step on `g`: from `g.tokens()` to logits `[rows, vocab]`.
    fn forward(&self, g: &Recorder) -> Value;
}

#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Name of the family in the registry: `llama`.
    pub family: &'static str,
    pub vocab: usize,
    /// Most positions the model was made for.
    pub context: usize,
    /// Sequences of more tokens than this are long ones to [`dualgauge_kernels::RopeSpec::long`]: what was computed of a
    /// sequence before it grew beyond is of no use to it.
    pub long_after: Option<usize>,
    /// The K/V cache layers, in the order of `AttnSpec::layer`.
    pub kv_layers: Vec<KvLayer>,
    /// What is kept of each sequence beside them, in the order of the recurrent operations' `state`.
    pub state_layers: Vec<StateLayer>,
    /// Tokens that end an answer (`generation_config.json`, else `config.json`, else the tokenizer's).
    pub eos: Vec<u32>,
    /// Parameters, tied ones once.
    pub parameters: u64,
    /// Bytes the weights take on the device.
    pub weight_bytes: u64,
    /// What the start-up log should say of the way the weights were loaded.
    pub notes: Vec<String>,
}

impl ModelSpec {
    /// The numbers of a decoder whose layers all cache alike, after `loader` has uploaded it.
    pub fn of(config: &Config, family: &'static str, loader: &Loader<'_>) -> Self {
        let layer = KvLayer { kv_heads: config.kv_heads, k_dim: config.head_dim, v_dim: config.head_dim };
        let (parameters, weight_bytes) = loader.uploaded();
        Self {
            family,
            vocab: config.vocab,
            context: config.context,
            long_after: config.rope.long_after(),
            kv_layers: vec![layer; config.layers],
            state_layers: vec![],
            eos: config.eos.clone(),
            parameters,
            weight_bytes,
            notes: loader.notes(),
        }
    }
}
