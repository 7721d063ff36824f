//! OLMoE: Llama with norms over all heads of query and key together, and experts whose weights are left as the softmax
//! gives them.

use super::mixtral::options;
use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, FeedOptions, NormKind, QkNorm};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "olmoe",
    architectures: &["OlmoeForCausalLM"],
    gguf: &["olmoe"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 16,
        "num_attention_heads": 16, "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "attention_bias": false, "num_experts_per_tok": 8,
        "num_experts": 64, "norm_topk_prob": false, "eos_token_id": 50279
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    if c.keys.value("clip_qkv").is_some() {
        return Err(c.keys.fail("clip_qkv", "clipped queries, keys and values are not supported"));
    }
    let moe = options(c, "num_experts", c.keys.flag("norm_topk_prob")?)?;
    Decoder::sparse(c, loader, FAMILY.name, &DecoderOptions::USUAL, |_, usual| {
        let attention = AttentionOptions { qk_norm: QkNorm::Whole(NormKind::RMS), ..usual };
        (attention, FeedOptions::Moe("mlp", &moe))
    })
}
