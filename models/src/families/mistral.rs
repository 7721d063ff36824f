//! Mistral: Llama with a sliding window in every layer.

use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, MlpOptions};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

/// GGUF files of Mistral models call themselves llama.
pub(crate) const FAMILY: Family = Family {
    name: "mistral",
    architectures: &["MistralForCausalLM"],
    gguf: &[],
    gguf_interleaved: true,
    defaults: r#"{
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false, "sliding_window": 4096,
        "eos_token_id": 2
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    Decoder::dense(c, loader, FAMILY.name, &DecoderOptions::USUAL, |_, usual| {
        (AttentionOptions { window: c.window, bias: false, out_bias: false, ..usual }, MlpOptions::of(c))
    })
}
