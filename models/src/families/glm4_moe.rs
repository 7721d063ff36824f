//! GLM 4.5 and 4.6: partly rotated heads, a few dense layers first, then experts chosen by biased sigmoids beside one that
//! every token visits.

use super::deepseek::{chosen_by_sigmoid, first_dense};
use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, NormKind, QkNorm};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "glm4_moe",
    architectures: &["Glm4MoeForCausalLM"],
    gguf: &["glm4moe"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 10944, "num_hidden_layers": 46,
        "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu",
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
        "tie_word_embeddings": false, "attention_bias": false, "use_qk_norm": false, "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8, "n_routed_experts": 128, "n_shared_experts": 1, "routed_scaling_factor": 1.0,
        "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "norm_topk_prob": true
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let (moe, dense) = (chosen_by_sigmoid(c)?, c.keys.count("first_k_dense_replace")?);
    // GGUF files do not say it, but have the norms.
    let normed = match c.keys.is_gguf() {
        true => loader.has("model.layers.0.self_attn.q_norm.weight"),
        false => c.keys.flag("use_qk_norm")?,
    };
    let qk_norm = if normed { QkNorm::Head(NormKind::RMS) } else { QkNorm::None };
    Decoder::sparse(c, loader, FAMILY.name, &DecoderOptions::USUAL, |layer, usual| {
        (AttentionOptions { out_bias: false, qk_norm, ..usual }, first_dense(c, layer, dense, &moe))
    })
}
