//! Granite 3 and its MoE: Llama with four multipliers, on embeddings, on scores, on what each part adds and under the
//! logits.

use dualgauge_kernels::{RouterScore, RouterSpec};

use super::mixtral::options;
use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, ExpertsStored, FeedOptions, MlpOptions, MoeOptions};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "granite",
    architectures: &["GraniteForCausalLM"],
    gguf: &["granite"],
    gguf_interleaved: true,
    defaults: r#"{
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false,
        "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0,
        "eos_token_id": 2
    }"#,
    build,
};

pub(crate) const MOE: Family = Family {
    name: "granitemoe",
    architectures: &["GraniteMoeForCausalLM"],
    gguf: &["granitemoe"],
    gguf_interleaved: true,
    defaults: r#"{
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "attention_bias": false, "embedding_multiplier": 1.0,
        "logits_scaling": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0, "num_local_experts": 8,
        "num_experts_per_tok": 2, "eos_token_id": 2
    }"#,
    build: moe,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let scale = c.keys.positive("attention_multiplier")? as f32;
    Decoder::dense(c, loader, FAMILY.name, &multipliers(c)?, |_, usual| {
        (AttentionOptions { scale, ..usual }, MlpOptions::of(c))
    })
}

fn moe(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let scale = c.keys.positive("attention_multiplier")? as f32;
    let usual = options(c, "num_local_experts", false)?;
    let moe = MoeOptions {
        router: RouterSpec { score: RouterScore::SoftmaxChosen, ..usual.router },
        gate: "router.layer",
        stored: ExpertsStored::Stacked { gate_up: "input_linear.weight", down: "output_linear.weight" },
        ..usual
    };
    Decoder::sparse(c, loader, MOE.name, &multipliers(c)?, |_, usual| {
        (AttentionOptions { scale, ..usual }, FeedOptions::Moe("block_sparse_moe", &moe))
    })
}

pub(super) fn multipliers(c: &Config) -> Result<DecoderOptions> {
    let scale = |key: &str| Ok::<_, crate::Error>(c.keys.positive(key)? as f32);
    Ok(DecoderOptions {
        embed_scale: scale("embedding_multiplier")?,
        residual_scale: scale("residual_multiplier")?,
        logits_scale: scale("logits_scaling")?.recip(),
        ..DecoderOptions::USUAL
    })
}
