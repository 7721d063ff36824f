//! Seed-OSS: Llama with biases on query, key and value.

use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, MlpOptions};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "seed_oss",
    architectures: &["SeedOssForCausalLM"],
    gguf: &["seed_oss"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 155136, "hidden_size": 4096, "intermediate_size": 27648, "num_hidden_layers": 64,
        "num_attention_heads": 80, "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu",
        "max_position_embeddings": 524288, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "attention_bias": true, "attention_out_bias": false, "mlp_bias": false, "eos_token_id": 2
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let out_bias = c.keys.flag("attention_out_bias")?;
    Decoder::dense(c, loader, FAMILY.name, &DecoderOptions::USUAL, |_, usual| {
        (AttentionOptions { out_bias, ..usual }, MlpOptions::of(c))
    })
}
