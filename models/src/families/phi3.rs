//! Phi 3, 3.5 and 4: Llama with fused matrices. Those of long contexts rotate long sequences by other frequencies.

use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, MlpOptions, MlpShape, Projections};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "phi3",
    architectures: &["Phi3ForCausalLM"],
    gguf: &["phi3"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "eos_token_id": 32000
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let projections = Projections::Fused("qkv_proj");
    let shape = MlpShape::Fused { gate_up: "gate_up_proj", down: "down_proj" };
    Decoder::dense(c, loader, FAMILY.name, &DecoderOptions::USUAL, |_, usual| {
        (AttentionOptions { projections, window: c.window, ..usual }, MlpOptions { shape, ..MlpOptions::of(c) })
    })
}
