//! Mixtral and Qwen 3 MoE: Llama's attention, experts in place of the feed-forward part.

use dualgauge_kernels::RouterSpec;

use super::qwen2::windows;
use super::qwen2_moe::sparse_layers;
use crate::blocks::{
    AttentionOptions, Decoder, DecoderOptions, ExpertsStored, FeedOptions, MlpOptions, MoeOptions, NormKind, QkNorm,
};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const MIXTRAL: Family = Family {
    name: "mixtral",
    architectures: &["MixtralForCausalLM"],
    gguf: &[],
    gguf_interleaved: true,
    defaults: r#"{
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "tie_word_embeddings": false, "num_experts_per_tok": 2,
        "num_local_experts": 8, "eos_token_id": 2
    }"#,
    build: mixtral,
};

pub(crate) const QWEN3_MOE: Family = Family {
    name: "qwen3_moe",
    architectures: &["Qwen3MoeForCausalLM"],
    gguf: &["qwen3moe"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24,
        "num_attention_heads": 32, "num_key_value_heads": 4, "hidden_act": "silu", "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false, "attention_bias": false,
        "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28, "decoder_sparse_step": 1,
        "moe_intermediate_size": 768, "num_experts_per_tok": 8, "num_experts": 128, "norm_topk_prob": false
    }"#,
    build: qwen3_moe,
};

fn mixtral(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let stored = ExpertsStored::Single(["w1", "w3", "w2"]);
    let moe = MoeOptions { inner: c.inner, stored, ..options(c, "num_local_experts", true)? };
    Decoder::sparse(c, loader, MIXTRAL.name, &DecoderOptions::USUAL, |_, usual| {
        (AttentionOptions { window: c.window, ..usual }, FeedOptions::Moe("block_sparse_moe", &moe))
    })
}

fn qwen3_moe(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    // GGUF files do not say it: the models they are made of all do.
    let normalise = c.keys.is_gguf() || c.keys.flag("norm_topk_prob")?;
    let moe = options(c, "num_experts", normalise)?;
    let (windows, sparse, qk_norm) = (windows(c)?, sparse_layers(c)?, QkNorm::Head(NormKind::RMS));
    Decoder::sparse(c, loader, QWEN3_MOE.name, &DecoderOptions::USUAL, |layer, usual| {
        let feed = match sparse[layer] {
            true => FeedOptions::Moe("mlp", &moe),
            false => FeedOptions::Mlp("mlp", MlpOptions::of(c)),
        };
        (AttentionOptions { window: windows[layer], qk_norm, ..usual }, feed)
    })
}

/// Softmax over all experts; sizes under the usual keys.
pub(super) fn options(c: &Config, experts_key: &str, normalise: bool) -> Result<MoeOptions> {
    let top_k_key = if c.keys.value("moe_k").is_some() { "moe_k" } else { "num_experts_per_tok" };
    let (experts, top_k) = (c.keys.size(experts_key)?, c.keys.size(top_k_key)?);
    if top_k > experts || experts > 4096 {
        return Err(c.keys.fail(experts_key, format!("{experts} experts, of which a token has {top_k}")));
    }
    let inner = c.keys.maybe_size("moe_intermediate_size")?.unwrap_or(c.inner);
    let usual = MoeOptions::new(c.hidden, inner, experts, top_k, c.act);
    Ok(MoeOptions { router: RouterSpec { normalise, ..usual.router }, ..usual })
}
