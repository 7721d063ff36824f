//! Llama 4, text: layers that look at pieces of the context beside layers that see all of it without positions, and
//! experts whose input is weighed by a sigmoid, beside one that every token visits.

use dualgauge_kernels::{RopeSpec, RouterScore, RouterSpec, Temperature};

use super::mixtral::options;
use super::smollm3::rotated;
use crate::blocks::{
    AttentionOptions, Decoder, DecoderOptions, ExpertsStored, FeedOptions, MlpOptions, MoeOptions, QkNorm, SharedExpert,
};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "llama4_text",
    architectures: &["Llama4ForCausalLM"],
    gguf: &["llama4"],
    gguf_interleaved: true,
    defaults: r#"{
        "vocab_size": 202048, "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
        "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
        "hidden_act": "silu", "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "tie_word_embeddings": false, "attention_bias": false, "num_experts_per_tok": 1, "num_local_experts": 16,
        "interleave_moe_layer_step": 1, "use_qk_norm": true, "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192, "attn_temperature_tuning": true, "floor_scale": 8192, "attn_scale": 0.1,
        "eos_token_id": 2
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let usual = options(c, "num_local_experts", false)?;
    let moe = MoeOptions {
        router: RouterSpec { score: RouterScore::Sigmoid, ..usual.router },
        gate: "router",
        stored: ExpertsStored::Turned {
            gate_up: "experts.gate_up_proj",
            down: "experts.down_proj",
            alternating: false,
        },
        shared: Some(SharedExpert { name: "shared_expert", inner: usual.inner, gate: None }),
        weigh_input: true,
        ..usual
    };
    let mlp = MlpOptions::gated(c.hidden, c.keys.size("intermediate_size_mlp")?, c.act);
    let (rotated, sparse) = (rotated(c)?, sparse_layers(c)?);
    let chunked: Vec<bool> = match c.keys.texts("layer_types")? {
        Some(types) if types.len() == c.layers => types.into_iter().map(|kind| kind == "chunked_attention").collect(),
        Some(types) => {
            return Err(c.keys.fail("layer_types", format!("{} entries for {} layers", types.len(), c.layers)));
        }
        None => rotated.clone(),
    };
    let chunk = c.keys.maybe_size("attention_chunk_size")?;
    let tuned = c.keys.flag("attn_temperature_tuning")?;
    let temperature = Temperature { every: c.keys.size("floor_scale")?, scale: c.keys.number("attn_scale")? as f32 };
    // GGUF files do not say whether heads are normed: those of 128 experts are not.
    let normed = if c.keys.is_gguf() { usual.experts == 16 } else { c.keys.flag("use_qk_norm")? };
    let qk_norm = if normed { QkNorm::Last } else { QkNorm::None };
    Decoder::sparse(c, loader, FAMILY.name, &DecoderOptions::USUAL, |layer, usual| {
        let with_positions = rotated[layer];
        let attention = AttentionOptions {
            rope: usual.rope.filter(|_| with_positions).map(|rope| RopeSpec { interleaved: true, ..rope }),
            qk_norm: if with_positions { qk_norm } else { QkNorm::None },
            chunk: chunk.filter(|_| chunked[layer]),
            temperature: (tuned && !with_positions).then_some(temperature),
            ..usual
        };
        let feed = match sparse[layer] {
            true => FeedOptions::Moe("feed_forward", &moe),
            false => FeedOptions::Mlp("feed_forward", mlp),
        };
        (attention, feed)
    })
}

/// Which layers have experts: those in `moe_layers`, else every `interleave_moe_layer_step`th.
fn sparse_layers(c: &Config) -> Result<Vec<bool>> {
    let every = c.keys.size("interleave_moe_layer_step")?;
    let stated = c.keys.numbers("moe_layers")?;
    let sparse = |layer: usize| match &stated {
        Some(stated) => stated.contains(&(layer as f64)),
        None => (layer + 1).is_multiple_of(every),
    };
    Ok((0..c.layers).map(sparse).collect())
}
