//! SmolLM 3: Llama in which every fourth layer has no positions.

use super::qwen2::windows;
use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, MlpOptions};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "smollm3",
    architectures: &["SmolLM3ForCausalLM"],
    gguf: &["smollm3"],
    gguf_interleaved: true,
    defaults: r#"{
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 4, "hidden_act": "silu", "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "rope_theta": 2000000.0, "tie_word_embeddings": true, "use_sliding_window": false,
        "no_rope_layer_interval": 4, "eos_token_id": 128001
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let windows = windows(c)?;
    let rotated = rotated(c)?;
    Decoder::dense(c, loader, FAMILY.name, &DecoderOptions::USUAL, |layer, usual| {
        let rope = usual.rope.filter(|_| rotated[layer]);
        (AttentionOptions { rope, window: windows[layer], ..usual }, MlpOptions::of(c))
    })
}

/// Which layers have positions: 1 in `no_rope_layers`, else all but every `no_rope_layer_interval`th.
pub(super) fn rotated(c: &Config) -> Result<Vec<bool>> {
    if let Some(list) = c.keys.numbers("no_rope_layers")? {
        if list.len() != c.layers {
            return Err(c.keys.fail("no_rope_layers", format!("{} entries for {} layers", list.len(), c.layers)));
        }
        return Ok(list.into_iter().map(|v| v != 0.0).collect());
    }
    let every = c.keys.size("no_rope_layer_interval")?;
    Ok((0..c.layers).map(|layer| !(layer + 1).is_multiple_of(every)).collect())
}
