//! Granite 4: Granite's multipliers; most layers mix tokens by Mamba 2, the others by attention, mostly without positions;
//! experts, where there are any, beside one feed-forward part that every token visits.

use dualgauge_kernels::{Recorder, RouterScore, RouterSpec, Value};

use super::granite::multipliers;
use super::mixtral::options;
use crate::blocks::{
    Attention, AttentionOptions, Decoder, ExpertsStored, Mamba, MambaOptions, Mlp, MlpOptions, MlpShape, Moe,
    MoeOptions, Part, rope,
};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "granitemoehybrid",
    architectures: &["GraniteMoeHybridForCausalLM"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "attention_bias": false, "embedding_multiplier": 1.0,
        "logits_scaling": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0, "num_local_experts": 8,
        "num_experts_per_tok": 2, "shared_intermediate_size": 1024, "position_embedding_type": "nope",
        "mamba_n_heads": 128, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_head": 64, "mamba_d_conv": 4,
        "mamba_conv_bias": true, "mamba_proj_bias": false, "eos_token_id": 2
    }"#,
    build,
};

/// The part that every token visits, and its experts.
struct Feed {
    shared: Mlp,
    experts: Option<Moe>,
}

impl Part for Feed {
    fn forward(&self, g: &Recorder, x: Value) -> Value {
        let shared = self.shared.forward(g, x);
        self.experts.as_ref().map_or(shared, |experts| g.add(experts.forward(g, x), shared))
    }
}

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let types = c.keys.texts("layer_types")?.unwrap_or_default();
    if types.len() != c.layers {
        return Err(c.keys.fail("layer_types", format!("{} entries for {} layers", types.len(), c.layers)));
    }
    let usual = AttentionOptions::of(c, rope(loader, &c.rope)?);
    let positions = c.keys.text("position_embedding_type")?;
    let rope = usual.rope.filter(|_| positions == Some("rope"));
    let attention = AttentionOptions { scale: c.keys.positive("attention_multiplier")? as f32, rope, ..usual };
    let mamba = MambaOptions::of(c)?;
    let shared = MlpOptions {
        inner: c.keys.size("shared_intermediate_size")?,
        shape: MlpShape::Fused { gate_up: "input_linear", down: "output_linear" },
        ..MlpOptions::of(c)
    };
    let moe = match c.keys.count("num_local_experts")? {
        0 => None,
        _ => Some(experts(c)?),
    };
    let (mut kv, mut state) = (0, 0);
    Decoder::load(c, loader, FAMILY.name, &multipliers(c)?, |loader, layer, at| {
        let mixer: Box<dyn Part> = if types[layer].ends_with("attention") && types[layer] != "linear_attention" {
            kv += 1;
            Box::new(Attention::load(loader, &format!("{at}.self_attn"), kv - 1, &attention)?)
        } else {
            state += 2;
            Box::new(Mamba::load(loader, &format!("{at}.mamba"), state - 2, &mamba)?)
        };
        let shared = Mlp::load(loader, &format!("{at}.shared_mlp"), &shared)?;
        let experts = match &moe {
            Some(moe) => Some(Moe::load(loader, &format!("{at}.block_sparse_moe"), moe)?),
            None => None,
        };
        Ok((mixer, Box::new(Feed { shared, experts })))
    })
}

fn experts(c: &Config) -> Result<MoeOptions> {
    let usual = options(c, "num_local_experts", false)?;
    Ok(MoeOptions {
        router: RouterSpec { score: RouterScore::SoftmaxChosen, ..usual.router },
        gate: "router.layer",
        stored: ExpertsStored::Stacked { gate_up: "input_linear.weight", down: "output_linear.weight" },
        ..usual
    })
}
