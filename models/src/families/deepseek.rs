//! DeepSeek V2 and V3: attention over a latent cache, a few dense layers first, then small experts in groups beside some
//! that every token visits.

use dualgauge_kernels::{RopeSpec, RouterGroups, RouterScore, RouterSpec};

use super::mixtral::options;
use crate::blocks::{
    Decoder, DecoderOptions, FeedOptions, LatentAttention, LatentOptions, MlpOptions, MoeOptions, SharedExpert, rope,
};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result, RopeScaling};

pub(crate) const V2: Family = Family {
    name: "deepseek_v2",
    architectures: &["DeepseekV2ForCausalLM"],
    gguf: &["deepseek2"],
    gguf_interleaved: true,
    defaults: r#"{
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "attention_bias": false, "first_k_dense_replace": 0,
        "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 64, "n_shared_experts": 2, "routed_scaling_factor": 1.0, "topk_method": "greedy",
        "norm_topk_prob": false, "moe_intermediate_size": 1407, "moe_layer_freq": 1, "eos_token_id": 2
    }"#,
    build: v2,
};

pub(crate) const V3: Family = Family {
    name: "deepseek_v3",
    architectures: &["DeepseekV3ForCausalLM"],
    gguf: &[],
    gguf_interleaved: true,
    defaults: r#"{
        "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
        "num_attention_heads": 128, "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "attention_bias": false, "first_k_dense_replace": 3,
        "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 256, "n_shared_experts": 1, "routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4,
        "num_experts_per_tok": 8, "norm_topk_prob": true, "moe_intermediate_size": 2048, "moe_layer_freq": 1,
        "eos_token_id": 1
    }"#,
    build: v3,
};

fn v2(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    // GGUF files of both go by one name.
    if c.keys.text("scoring_func")? == Some("sigmoid") {
        return v3(c, loader);
    }
    let method = c.keys.text("topk_method")?.unwrap_or("greedy");
    let summed = match method {
        "greedy" => None,
        "group_limited_greedy" => Some(1),
        other => return Err(c.keys.fail("topk_method", format!("{other:?} is not known"))),
    };
    let usual = options(c, "n_routed_experts", false)?;
    let groups = summed.map(|summed| groups(c, summed)).transpose()?;
    let scale = c.keys.positive("routed_scaling_factor")? as f32;
    let moe = MoeOptions { router: RouterSpec { scale, groups, ..usual.router }, shared: shared(c)?, ..usual };
    build(c, loader, V2.name, moe)
}

fn v3(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    build(c, loader, V3.name, chosen_by_sigmoid(c)?)
}

/// Experts chosen by sigmoids with a correction, from the best groups.
pub(super) fn chosen_by_sigmoid(c: &Config) -> Result<MoeOptions> {
    let usual = options(c, "n_routed_experts", c.keys.flag("norm_topk_prob")?)?;
    let grouped = c.keys.maybe_size("n_group")?.is_some_and(|groups| groups > 1);
    let groups = if grouped { Some(groups(c, 2)?) } else { None };
    let scale = c.keys.positive("routed_scaling_factor")? as f32;
    let router = RouterSpec { score: RouterScore::Sigmoid, scale, groups, ..usual.router };
    Ok(MoeOptions { router, correction: Some("gate.e_score_correction_bias"), shared: shared(c)?, ..usual })
}

/// A dense part in the first layers, experts in the others.
pub(super) fn first_dense<'o>(c: &Config, layer: usize, dense: usize, moe: &'o MoeOptions) -> FeedOptions<'o> {
    match layer < dense {
        true => FeedOptions::Mlp("mlp", MlpOptions::of(c)),
        false => FeedOptions::Moe("mlp", moe),
    }
}

fn groups(c: &Config, summed: usize) -> Result<RouterGroups> {
    let (groups, kept, experts) =
        (c.keys.size("n_group")?, c.keys.size("topk_group")?, c.keys.size("n_routed_experts")?);
    if !experts.is_multiple_of(groups) || kept > groups {
        return Err(c.keys.fail("n_group", format!("{experts} experts in {groups} groups, {kept} kept")));
    }
    Ok(RouterGroups { groups, kept, summed })
}

/// The experts that every token visits are one, as wide as all.
fn shared(c: &Config) -> Result<Option<SharedExpert>> {
    let inner = c.keys.count("n_shared_experts")? * c.keys.size("moe_intermediate_size")?;
    Ok((inner > 0).then_some(SharedExpert { name: "shared_experts", inner, gate: None }))
}

fn latent(c: &Config, loader: &mut Loader<'_>) -> Result<LatentOptions> {
    let size = |key: &str| c.keys.size(key);
    let (plain, rotated) = (size("qk_nope_head_dim")?, size("qk_rope_head_dim")?);
    let turn = rope(loader, &c.rope)?;
    let mut scale = ((plain + rotated) as f32).sqrt().recip();
    // The stretch of YaRN makes scores larger; how much so is stated beside it.
    if let RopeScaling::Yarn { factor, all_dims: Some(all), .. } = c.rope.scaling {
        let by = if factor > 1.0 { 0.1 * all * factor.ln() + 1.0 } else { 1.0 };
        scale *= (by * by) as f32;
    }
    Ok(LatentOptions {
        hidden: c.hidden,
        heads: c.heads,
        query_rank: c.keys.maybe_size("q_lora_rank")?,
        rank: size("kv_lora_rank")?,
        plain,
        rotated,
        value: size("v_head_dim")?,
        bias: c.attention_bias,
        norm_eps: 1e-6,
        rope: RopeSpec { interleaved: true, ..turn },
        scale,
    })
}

fn build(c: &Config, loader: &mut Loader<'_>, family: &'static str, moe: MoeOptions) -> Result<Box<dyn Model>> {
    if c.keys.size("moe_layer_freq")? != 1 {
        return Err(c.keys.fail("moe_layer_freq", "experts in every nth layer are not supported"));
    }
    let dense = c.keys.count("first_k_dense_replace")?;
    let options = latent(c, loader)?;
    Decoder::load(c, loader, family, &DecoderOptions::USUAL, |loader, i, at| {
        let attention = LatentAttention::load(loader, &format!("{at}.self_attn"), i, &options)?;
        Ok((Box::new(attention), first_dense(c, i, dense, &moe).load(loader, at)?))
    })
}
