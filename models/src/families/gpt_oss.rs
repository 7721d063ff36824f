//! gpt-oss: learned sinks in attention, a window in every other layer, biases everywhere, and experts behind a clamped
//! SwiGLU: the best few by logit, weighed by a softmax over those.

use dualgauge_kernels::{Act, RouterScore, RouterSpec};

use super::mixtral::options;
use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, ExpertsStored, FeedOptions, MoeOptions};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result, RopeScaling};

pub(crate) const FAMILY: Family = Family {
    name: "gpt_oss",
    architectures: &["GptOssForCausalLM"],
    gguf: &["gpt-oss"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "hidden_act": "silu",
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "attention_bias": true,
        "sliding_window": 128, "num_local_experts": 128, "num_experts_per_tok": 4, "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0, "tie_word_embeddings": false, "rope_scaling": {
            "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
            "original_max_position_embeddings": 4096
        }
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let number = |key: &str| Ok::<_, crate::Error>(c.keys.positive(key)? as f32);
    let usual = options(c, "num_local_experts", false)?;
    let moe = MoeOptions {
        act: Act::ClampedSwiglu { alpha: number("swiglu_alpha")?, limit: number("swiglu_limit")? },
        router: RouterSpec { score: RouterScore::SoftmaxChosen, ..usual.router },
        gate: "router",
        gate_bias: true,
        stored: ExpertsStored::Turned { gate_up: "experts.gate_up_proj", down: "experts.down_proj", alternating: true },
        ..usual
    };
    let slides = c.slides(|layer| layer.is_multiple_of(2))?;
    // GGUF files cannot say that the borders of YaRN's ramp are not rounded.
    let mut c = c.clone();
    if let (true, RopeScaling::Yarn { truncate, .. }) = (c.keys.is_gguf(), &mut c.rope.scaling) {
        *truncate = false;
    }
    let c = &c;
    Decoder::sparse(c, loader, FAMILY.name, &DecoderOptions::USUAL, |layer, usual| {
        let attention = AttentionOptions { window: c.window.filter(|_| slides[layer]), sinks: true, ..usual };
        (attention, FeedOptions::Moe("mlp", &moe))
    })
}
