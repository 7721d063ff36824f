//! OLMo 2 and 3: norms stand after each part, not before it, and over all heads of query and key together. OLMo 3 looks
//! through a window in three layers of four, whose rotation is not stretched.

use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, LayerNorms, MlpOptions, NormKind, QkNorm, rope};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result, RopeConfig};

pub(crate) const OLMO2: Family = Family {
    name: "olmo2",
    architectures: &["Olmo2ForCausalLM"],
    gguf: &["olmo2"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "attention_bias": false, "eos_token_id": 50279
    }"#,
    build: olmo2,
};

pub(crate) const OLMO3: Family = Family {
    name: "olmo3",
    architectures: &["Olmo3ForCausalLM"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "attention_bias": false, "sliding_window": 4096,
        "sliding_window_pattern": 4, "eos_token_id": 50279
    }"#,
    build: olmo3,
};

/// GGUF files of OLMo 3 call themselves OLMo 2, and state a window.
fn olmo2(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    if c.window.is_some() {
        return olmo3(c, loader);
    }
    Decoder::dense(c, loader, OLMO2.name, &FRAME, |_, usual| {
        (AttentionOptions { qk_norm: QK_NORM, ..usual }, MlpOptions::of(c))
    })
}

fn olmo3(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let slides = match c.keys.value("sliding_window_pattern") {
        Some(_) => c.slides_but_every()?,
        None => c.slides(|layer| !(layer + 1).is_multiple_of(4))?,
    };
    let near = rope(loader, &RopeConfig::plain(c.rope.theta, c.head_dim))?;
    Decoder::dense(c, loader, OLMO3.name, &FRAME, |layer, usual| {
        let rope = if slides[layer] { Some(near) } else { usual.rope };
        let window = c.window.filter(|_| slides[layer]);
        (AttentionOptions { qk_norm: QK_NORM, window, rope, ..usual }, MlpOptions::of(c))
    })
}

const FRAME: DecoderOptions = DecoderOptions { layer_norms: LayerNorms::AFTER, ..DecoderOptions::USUAL };
const QK_NORM: QkNorm = QkNorm::Whole(NormKind::RMS);
