//! Owns what the engine sees of a model: numbers to plan with and a function that records a step.

use dualgauge_kernels::{KvLayer, Recorder, Value};

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
    /// The K/V cache layers, in the order of `AttnSpec::layer`.
    pub kv_layers: Vec<KvLayer>,
    /// Tokens that end an answer (`generation_config.json`, else `config.json`, else the tokenizer's).
    pub eos: Vec<u32>,
    /// Parameters, tied ones once.
    pub parameters: u64,
    /// Bytes the weights take on the device.
    pub weight_bytes: u64,
}
