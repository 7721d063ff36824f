//! EXAONE 4: norms stand after each part and on each head; where some layers have a window, the others have no positions.

use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, LayerNorms, MlpOptions, NormKind, QkNorm};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "exaone4",
    architectures: &["Exaone4ForCausalLM"],
    gguf: &["exaone4"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false, "sliding_window": 4096,
        "sliding_window_pattern": 4, "eos_token_id": 2
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let options = DecoderOptions { layer_norms: LayerNorms::AFTER, ..DecoderOptions::USUAL };
    let slides = slides(c)?;
    Decoder::dense(c, loader, FAMILY.name, &options, |layer, usual| {
        let window = c.window.filter(|_| slides[layer]);
        let rope = usual.rope.filter(|_| c.window.is_none() || slides[layer]);
        (AttentionOptions { qk_norm: QkNorm::Head(NormKind::RMS), window, rope, ..usual }, MlpOptions::of(c))
    })
}

/// The pattern is a word of L (a window) and G (none), or a number.
fn slides(c: &Config) -> Result<Vec<bool>> {
    match c.keys.value("sliding_window_pattern").and_then(|v| v.as_str()).map(str::as_bytes) {
        Some(word) if !word.is_empty() => c.slides(|layer| word[layer % word.len()] == b'L'),
        _ => c.slides_but_every(),
    }
}
