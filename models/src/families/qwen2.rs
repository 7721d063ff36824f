//! Qwen 2 and 2.5: Llama with biases on query, key and value, and a window in the upper layers where it is switched on.

use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, MlpOptions};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "qwen2",
    architectures: &["Qwen2ForCausalLM"],
    gguf: &["qwen2"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false, "use_sliding_window": false,
        "sliding_window": 4096, "max_window_layers": 28
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let windows = windows(c)?;
    Decoder::dense(c, loader, FAMILY.name, &DecoderOptions::USUAL, |layer, usual| {
        (AttentionOptions { window: windows[layer], bias: true, out_bias: false, ..usual }, MlpOptions::of(c))
    })
}

/// The window of each layer: by `layer_types` where the file states them, else above `max_window_layers`.
pub(super) fn windows(c: &Config) -> Result<Vec<Option<usize>>> {
    if !c.keys.flag("use_sliding_window")? {
        return Ok(vec![None; c.layers]);
    }
    let full = c.keys.maybe_size("max_window_layers")?.unwrap_or(c.layers);
    Ok(c.slides(|layer| layer >= full)?.into_iter().map(|slides| c.window.filter(|_| slides)).collect())
}
