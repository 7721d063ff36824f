//! OLMo 2: norms stand after each part, not before it, and over all heads of query and key together.

use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, LayerNorms, MlpOptions, NormKind, QkNorm};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "olmo2",
    architectures: &["Olmo2ForCausalLM"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "attention_bias": false, "eos_token_id": 50279
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let options = DecoderOptions { layer_norms: LayerNorms::AFTER, ..DecoderOptions::USUAL };
    Decoder::dense(c, loader, FAMILY.name, &options, |_, usual| {
        (AttentionOptions { qk_norm: QkNorm::Whole(NormKind::RMS), ..usual }, MlpOptions::of(c))
    })
}
