//! Nemotron 3 and 4 (Minitron): norms of mean and variance that store gain - 1, a feed-forward part of a squared ReLU
//! without a gate; a part of each head is rotated.

use crate::blocks::{Decoder, DecoderOptions, MlpOptions, MlpShape, NormKind};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "nemotron",
    architectures: &["NemotronForCausalLM"],
    gguf: &["nemotron"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 256000, "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 32,
        "num_attention_heads": 48, "hidden_act": "relu2", "max_position_embeddings": 4096, "norm_eps": 1e-5,
        "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "tie_word_embeddings": false, "attention_bias": false,
        "mlp_bias": false, "eos_token_id": 3
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    // GGUF files store the gain itself.
    let norm = NormKind::Layer { bias: true, offset: if c.keys.is_gguf() { 0.0 } else { 1.0 } };
    let options = DecoderOptions { norm, ..DecoderOptions::USUAL };
    let shape = MlpShape::Plain { up: "up_proj", down: "down_proj" };
    Decoder::dense(c, loader, FAMILY.name, &options, |_, usual| (usual, MlpOptions { shape, ..MlpOptions::of(c) }))
}
