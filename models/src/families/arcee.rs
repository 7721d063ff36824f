//! Arcee (AFM): Llama with a feed-forward part of a squared ReLU, without a gate.

use crate::blocks::{Decoder, DecoderOptions, MlpOptions, MlpShape};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "arcee",
    architectures: &["ArceeForCausalLM"],
    gguf: &["arcee"],
    gguf_interleaved: true,
    defaults: r#"{
        "vocab_size": 32000, "hidden_size": 2560, "intermediate_size": 18432, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "relu2", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false,
        "eos_token_id": 128001
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let shape = MlpShape::Plain { up: "up_proj", down: "down_proj" };
    Decoder::dense(c, loader, FAMILY.name, &DecoderOptions::USUAL, |_, usual| {
        (usual, MlpOptions { shape, ..MlpOptions::of(c) })
    })
}
