//! LFM 2: most layers mix tokens by a short convolution between two gates, the others by attention. With experts, all but
//! the first layers have them.

use dualgauge_kernels::{RouterScore, RouterSpec};

use super::mixtral::options;
use crate::blocks::{
    Attention, AttentionNames, AttentionOptions, ConvOptions, Decoder, DecoderNames, DecoderOptions, ExpertsStored,
    FeedOptions, LayerNorms, MlpOptions, MlpShape, MoeOptions, NormKind, Part, QkNorm, ShortConv, rope,
};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const LFM2: Family = Family {
    name: "lfm2",
    architectures: &["Lfm2ForCausalLM"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 65536, "hidden_size": 2560, "intermediate_size": 12288, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 128000,
        "norm_eps": 1e-5, "rope_theta": 1000000.0, "tie_word_embeddings": true, "conv_bias": false, "conv_L_cache": 3,
        "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": true, "eos_token_id": 2
    }"#,
    build: lfm2,
};

pub(crate) const MOE: Family = Family {
    name: "lfm2_moe",
    architectures: &["Lfm2MoeForCausalLM"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 65536, "hidden_size": 2048, "intermediate_size": 7168, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 128000,
        "norm_eps": 1e-5, "rope_theta": 1000000.0, "tie_word_embeddings": true, "conv_bias": false, "conv_L_cache": 3,
        "moe_intermediate_size": 1792, "num_dense_layers": 2, "num_experts_per_tok": 4, "num_experts": 32,
        "use_expert_bias": true, "routed_scaling_factor": 1.0, "norm_topk_prob": true, "eos_token_id": 2
    }"#,
    build: moe,
};

const PARTS: [&str; 3] = ["w1", "w3", "w2"];

fn lfm2(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let mlp = MlpOptions { inner: inner(c)?, ..plain(c) };
    build(c, loader, LFM2.name, |_| FeedOptions::Mlp("feed_forward", mlp))
}

fn moe(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let (mlp, dense) = (plain(c), c.keys.count("num_dense_layers")?);
    let usual = options(c, "num_experts", c.keys.flag("norm_topk_prob")?)?;
    let scale = c.keys.positive("routed_scaling_factor")? as f32;
    let moe = MoeOptions {
        router: RouterSpec { score: RouterScore::Sigmoid, scale, ..usual.router },
        correction: c.keys.flag("use_expert_bias")?.then_some("expert_bias"),
        stored: ExpertsStored::Single(PARTS),
        ..usual
    };
    build(c, loader, MOE.name, |layer| match layer < dense {
        true => FeedOptions::Mlp("feed_forward", mlp),
        false => FeedOptions::Moe("feed_forward", &moe),
    })
}

fn plain(c: &Config) -> MlpOptions {
    let [gate, up, down] = PARTS;
    MlpOptions { shape: MlpShape::Gated { gate, up, down }, ..MlpOptions::of(c) }
}

/// The width of the feed-forward part, which the file may state before it is adjusted.
fn inner(c: &Config) -> Result<usize> {
    let stated = c.keys.maybe_size("block_ff_dim")?.unwrap_or(c.inner);
    if !c.keys.flag("block_auto_adjust_ff_dim")? {
        return Ok(stated);
    }
    let by = c.keys.maybe_positive("block_ffn_dim_multiplier")?;
    let two_thirds = 2 * stated / 3;
    Ok(match by {
        Some(by) => ((by * two_thirds as f64) as usize).next_multiple_of(c.keys.size("block_multiple_of")?),
        None => two_thirds,
    })
}

fn build<'o>(
    c: &Config,
    loader: &mut Loader<'_>,
    family: &'static str,
    feed: impl Fn(usize) -> FeedOptions<'o>,
) -> Result<Box<dyn Model>> {
    let attends = attends(c)?;
    let conv = ConvOptions {
        channels: c.hidden,
        taps: c.keys.size("conv_L_cache")?,
        bias: c.keys.flag("conv_bias")?,
        act: None,
    };
    if conv.taps < 2 {
        return Err(c.keys.fail("conv_L_cache", "a convolution needs 2 tokens at least"));
    }
    let names =
        AttentionNames { out: "out_proj", q_norm: "q_layernorm", k_norm: "k_layernorm", ..AttentionNames::USUAL };
    let usual = AttentionOptions::of(c, rope(loader, &c.rope)?);
    let attention = AttentionOptions { names, qk_norm: QkNorm::Head(NormKind::RMS), ..usual };
    let norms =
        LayerNorms { before_attention: Some("operator_norm"), before_feed: Some("ffn_norm"), ..LayerNorms::BEFORE };
    let names = DecoderNames { norm: "model.embedding_norm", ..DecoderNames::USUAL };
    let options = DecoderOptions { names, layer_norms: norms, ..DecoderOptions::USUAL };
    let (mut kv, mut state) = (0, 0);
    Decoder::load(c, loader, family, &options, |loader, layer, at| {
        let mixer: Box<dyn Part> = if attends[layer] {
            kv += 1;
            Box::new(Attention::load(loader, &format!("{at}.self_attn"), kv - 1, &attention)?)
        } else {
            state += 1;
            Box::new(ShortConv::load(loader, &format!("{at}.conv"), state - 1, &conv)?)
        };
        Ok((mixer, feed(layer).load(loader, at)?))
    })
}

/// Which layers attend: by `layer_types`, or by `full_attn_idxs` in older files; all, where neither is stated.
fn attends(c: &Config) -> Result<Vec<bool>> {
    if let Some(types) = c.keys.texts("layer_types")? {
        return match types.len() == c.layers {
            true => Ok(types.into_iter().map(|kind| kind == "full_attention").collect()),
            false => Err(c.keys.fail("layer_types", format!("{} entries for {} layers", types.len(), c.layers))),
        };
    }
    let listed = c.keys.numbers("full_attn_idxs")?;
    Ok((0..c.layers).map(|layer| listed.as_ref().is_none_or(|l| l.contains(&(layer as f64)))).collect())
}
