//! Mixtral and Qwen 3 MoE: Llama's attention, experts in place of the feed-forward part.

use dualgauge_kernels::{RouterScore, RouterSpec};

use super::qwen2::windows;
use crate::blocks::{Attention, AttentionOptions, Decoder, DecoderOptions, Moe, MoeOptions, NormKind, QkNorm, rope};
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
    gguf: &[],
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
    let parts = ["w1", "w3", "w2"];
    let moe = MoeOptions { inner: c.inner, parts, ..options(c, "num_local_experts", true)? };
    build(c, loader, MIXTRAL.name, "block_sparse_moe", &moe, |_, usual| AttentionOptions { window: c.window, ..usual })
}

fn qwen3_moe(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let dense = c.keys.numbers("mlp_only_layers")?.is_some_and(|layers| !layers.is_empty());
    if dense || c.keys.size("decoder_sparse_step")? != 1 {
        return Err(c.keys.fail("decoder_sparse_step", "layers without experts are not supported"));
    }
    let moe = options(c, "num_experts", c.keys.flag("norm_topk_prob")?)?;
    let (windows, qk_norm) = (windows(c)?, QkNorm::Head(NormKind::RMS));
    build(c, loader, QWEN3_MOE.name, "mlp", &moe, |layer, usual| AttentionOptions {
        window: windows[layer],
        qk_norm,
        ..usual
    })
}

fn options(c: &Config, experts_key: &str, normalise: bool) -> Result<MoeOptions> {
    let (experts, top_k) = (c.keys.size(experts_key)?, c.keys.size("num_experts_per_tok")?);
    if top_k > experts || experts > 4096 {
        return Err(c.keys.fail(experts_key, format!("{experts} experts, of which a token has {top_k}")));
    }
    let router = RouterSpec { top_k, score: RouterScore::Softmax, normalise, scale: 1.0, bias: None, groups: None };
    Ok(MoeOptions {
        hidden: c.hidden,
        inner: c.keys.maybe_size("moe_intermediate_size")?.unwrap_or(c.inner),
        experts,
        act: c.act,
        router,
        parts: ["gate_proj", "up_proj", "down_proj"],
    })
}

fn build(
    c: &Config,
    loader: &mut Loader<'_>,
    family: &'static str,
    part: &str,
    moe: &MoeOptions,
    attention: impl Fn(usize, AttentionOptions) -> AttentionOptions,
) -> Result<Box<dyn Model>> {
    let usual = AttentionOptions::of(c, rope(loader, &c.rope)?);
    Decoder::load(c, loader, family, &DecoderOptions::USUAL, |loader, i, at| {
        let attention = Attention::load(loader, &format!("{at}.self_attn"), i, &attention(i, usual))?;
        let moe = Moe::load(loader, &format!("{at}.{part}"), moe)?;
        Ok((Box::new(attention), Box::new(moe)))
    })
}
