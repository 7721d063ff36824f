//! Llama 2 and 3, SmolLM 2, and all that are built as they are: a norm before each part, rotary attention with grouped
//! heads, gated feed-forward.

use crate::blocks::{Decoder, DecoderOptions, MlpOptions};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "llama",
    architectures: &["LlamaForCausalLM"],
    gguf: &["llama"],
    gguf_interleaved: true,
    defaults: r#"{
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "eos_token_id": 2
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    if c.keys.value("num_local_experts").is_some() {
        return Err(c.keys.fail("num_local_experts", "experts in a Llama file are not supported"));
    }
    Decoder::dense(c, loader, FAMILY.name, &DecoderOptions::USUAL, |_, usual| (usual, MlpOptions::of(c)))
}
