//! Qwen 3 Next and Qwen 3.5: three layers in four mix tokens by a gated delta net, the others by attention whose heads have
//! gates; with experts and one that every token visits through a gate, or a plain feed-forward part.

use super::mixtral::options;
use super::qwen2_moe::sparse_layers;
use crate::blocks::{
    Attention, AttentionOptions, Decoder, DecoderOptions, DeltaNet, DeltaNetOptions, DeltaStored, FeedOptions,
    MlpOptions, MoeOptions, NormKind, Part, QkNorm, SharedExpert, rope,
};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const NEXT: Family = Family {
    name: "qwen3_next",
    architectures: &["Qwen3NextForCausalLM"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 48,
        "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "hidden_act": "silu",
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
        "tie_word_embeddings": false, "attention_bias": false, "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32, "full_attention_interval": 4, "decoder_sparse_step": 1,
        "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "num_experts_per_tok": 10,
        "num_experts": 512, "norm_topk_prob": true
    }"#,
    build: next,
};

pub(crate) const QWEN3_5: Family = Family {
    name: "qwen3_5_text",
    architectures: &["Qwen3_5ForCausalLM"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 248320, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32,
        "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256, "hidden_act": "silu",
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
        "tie_word_embeddings": false, "attention_bias": false, "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32, "full_attention_interval": 4
    }"#,
    build: qwen3_5,
};

fn next(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let inner = c.keys.size("shared_expert_intermediate_size")?;
    let shared = SharedExpert { name: "shared_expert", inner, gate: Some("shared_expert_gate") };
    let usual = options(c, "num_experts", c.keys.flag("norm_topk_prob")?)?;
    let moe = MoeOptions { shared: Some(shared), ..usual };
    let sparse = sparse_layers(c)?;
    build(c, loader, NEXT.name, DeltaStored::ByHead, |layer| match sparse[layer] {
        true => FeedOptions::Moe("mlp", &moe),
        false => FeedOptions::Mlp("mlp", MlpOptions::of(c)),
    })
}

fn qwen3_5(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    build(c, loader, QWEN3_5.name, DeltaStored::Split, |_| FeedOptions::Mlp("mlp", MlpOptions::of(c)))
}

fn build<'o>(
    c: &Config,
    loader: &mut Loader<'_>,
    family: &'static str,
    stored: DeltaStored,
    feed: impl Fn(usize) -> FeedOptions<'o>,
) -> Result<Box<dyn Model>> {
    // Gains are stored less 1.
    let norm = NormKind::Rms { offset: 1.0 };
    let usual = AttentionOptions::of(c, rope(loader, &c.rope)?);
    let attention = AttentionOptions { gated: true, qk_norm: QkNorm::Head(norm), ..usual };
    let delta = DeltaNetOptions::of(c, stored)?;
    let attends = attends(c)?;
    let (mut kv, mut state) = (0, 0);
    Decoder::load(c, loader, family, &DecoderOptions { norm, ..DecoderOptions::USUAL }, |loader, layer, at| {
        let mixer: Box<dyn Part> = if attends[layer] {
            kv += 1;
            Box::new(Attention::load(loader, &format!("{at}.self_attn"), kv - 1, &attention)?)
        } else {
            state += 2;
            Box::new(DeltaNet::load(loader, &format!("{at}.linear_attn"), state - 2, &delta)?)
        };
        Ok((mixer, feed(layer).load(loader, at)?))
    })
}

/// Which layers attend: by `layer_types`, else every `full_attention_interval`th.
fn attends(c: &Config) -> Result<Vec<bool>> {
    match c.keys.texts("layer_types")? {
        Some(types) if types.len() != c.layers => {
            Err(c.keys.fail("layer_types", format!("{} entries for {} layers", types.len(), c.layers)))
        }
        Some(types) => Ok(types.into_iter().map(|kind| kind == "full_attention").collect()),
        None => {
            let every = c.keys.size("full_attention_interval")?;
            Ok((0..c.layers).map(|layer| (layer + 1).is_multiple_of(every)).collect())
        }
    }
}
