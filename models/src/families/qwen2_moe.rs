//! Qwen 1.5 and 2 MoE: Qwen 2's attention, small experts, and a large one that every token visits through a gate.

use super::mixtral::options;
use super::qwen2::windows;
use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, FeedOptions, MlpOptions, MoeOptions, SharedExpert};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "qwen2_moe",
    architectures: &["Qwen2MoeForCausalLM"],
    gguf: &["qwen2moe"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16, "hidden_act": "silu", "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false, "qkv_bias": true,
        "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28, "decoder_sparse_step": 1,
        "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "num_experts_per_tok": 4,
        "num_experts": 60, "norm_topk_prob": false
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let inner = c.keys.size("shared_expert_intermediate_size")?;
    let shared = SharedExpert { name: "shared_expert", inner, gate: Some("shared_expert_gate") };
    let usual = options(c, "num_experts", c.keys.flag("norm_topk_prob")?)?;
    let moe = MoeOptions { shared: Some(shared), ..usual };
    let (windows, sparse_layers, bias) = (windows(c)?, sparse_layers(c)?, c.keys.flag("qkv_bias")?);
    Decoder::sparse(c, loader, FAMILY.name, &DecoderOptions::USUAL, |layer, usual| {
        let attention = AttentionOptions { window: windows[layer], bias, out_bias: false, ..usual };
        let feed = match sparse_layers[layer] {
            true => FeedOptions::Moe("mlp", &moe),
            false => FeedOptions::Mlp("mlp", MlpOptions::of(c)),
        };
        (attention, feed)
    })
}

/// Which layers have experts: every `decoder_sparse_step`th but those in `mlp_only_layers`.
pub(super) fn sparse_layers(c: &Config) -> Result<Vec<bool>> {
    let (every, dense) = (c.keys.size("decoder_sparse_step")?, c.keys.numbers("mlp_only_layers")?.unwrap_or_default());
    Ok((0..c.layers).map(|layer| (layer + 1).is_multiple_of(every) && !dense.contains(&(layer as f64))).collect())
}
