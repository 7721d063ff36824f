//! Qwen 3, dense: Llama with a norm on each head of query and key.

use super::qwen2::windows;
use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, MlpOptions, NormKind, QkNorm};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "qwen3",
    architectures: &["Qwen3ForCausalLM"],
    gguf: &["qwen3"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "hidden_act": "silu",
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "attention_bias": false, "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28
    }"#,
    build,
};

/// Qwen 3 Embedding: the same, whose last row is the text's vector.
pub(crate) const EMBEDDING: Family =
    Family { architectures: &["Qwen3Model", "Qwen3ForCausalLM"], build: embedding, ..FAMILY };

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    layers(c, loader, &DecoderOptions::USUAL)
}

fn embedding(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    layers(c, loader, &DecoderOptions { headless: true, ..DecoderOptions::USUAL })
}

fn layers(c: &Config, loader: &mut Loader<'_>, options: &DecoderOptions) -> Result<Box<dyn Model>> {
    let windows = windows(c)?;
    Decoder::dense(c, loader, FAMILY.name, options, |layer, usual| {
        let qk_norm = QkNorm::Head(NormKind::RMS);
        (AttentionOptions { window: windows[layer], qk_norm, ..usual }, MlpOptions::of(c))
    })
}
