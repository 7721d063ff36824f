//! Nemotron H: every layer is one norm and one part: Mamba 2, attention without positions, or feed-forward.

use crate::blocks::{
    Attention, AttentionOptions, Decoder, DecoderNames, DecoderOptions, GatedNorm, Mamba, MambaOptions, Mlp,
    MlpOptions, MlpShape, Part, dt_limit, rope,
};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "nemotron_h",
    architectures: &["NemotronHForCausalLM"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 131072, "hidden_size": 4096, "intermediate_size": 21504, "num_attention_heads": 32,
        "head_dim": 128, "num_key_value_heads": 8, "mlp_hidden_act": "relu2", "mamba_hidden_act": "silu",
        "hidden_act": "silu", "max_position_embeddings": 4096, "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false, "use_bias": false,
        "mamba_num_heads": 128, "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128, "conv_kernel": 4,
        "use_conv_bias": true, "time_step_min": 0.001, "eos_token_id": 2
    }"#,
    build,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mamba,
    Attention,
    Mlp,
}

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let kinds = kinds(c)?;
    let usual = AttentionOptions::of(c, rope(loader, &c.rope)?);
    let attention = AttentionOptions { rope: None, ..usual };
    let mlp = MlpOptions {
        act: c.act_of("mlp_hidden_act")?,
        shape: MlpShape::Plain { up: "up_proj", down: "down_proj" },
        ..MlpOptions::of(c)
    };
    let mamba = mamba(c)?;
    let names = match loader.has("backbone.embeddings.weight") {
        true => super::mamba2::BACKBONE.names,
        // As later versions of the library write it.
        false => DecoderNames { embed: "model.embeddings", norm: "model.norm_f", ..DecoderNames::USUAL },
    };
    let options = DecoderOptions { names, ..super::mamba2::BACKBONE };
    let (mut kv, mut state) = (0, 0);
    Decoder::load(c, loader, FAMILY.name, &options, |loader, layer, at| {
        let at = format!("{at}.mixer");
        let part: Box<dyn Part> = match kinds[layer] {
            Kind::Mamba => {
                state += 2;
                Box::new(Mamba::load(loader, &at, state - 2, &mamba)?)
            }
            Kind::Attention => {
                kv += 1;
                Box::new(Attention::load(loader, &at, kv - 1, &attention)?)
            }
            Kind::Mlp => Box::new(Mlp::load(loader, &at, &mlp)?),
        };
        Ok((part, Box::new(())))
    })
}

/// What each layer is: a letter of `hybrid_override_pattern`, or a word of `layers_block_type`.
fn kinds(c: &Config) -> Result<Vec<Kind>> {
    let (key, all): (_, Vec<String>) = match c.keys.text("hybrid_override_pattern")? {
        Some(pattern) => ("hybrid_override_pattern", pattern.chars().map(String::from).collect()),
        None => {
            let words = c.keys.texts("layers_block_type")?.unwrap_or_default();
            ("layers_block_type", words.into_iter().map(String::from).collect())
        }
    };
    if all.len() != c.layers {
        return Err(c.keys.fail(key, format!("{} entries for {} layers", all.len(), c.layers)));
    }
    let kind = |name: &String| match name.as_str() {
        "M" | "mamba" | "linear_attention" => Ok(Kind::Mamba),
        "*" | "attention" | "full_attention" => Ok(Kind::Attention),
        "-" | "mlp" => Ok(Kind::Mlp),
        other => Err(c.keys.fail(key, format!("layers of the kind {other:?} are not supported"))),
    };
    all.iter().map(kind).collect()
}

fn mamba(c: &Config) -> Result<MambaOptions> {
    let size = |key: &str| c.keys.size(key);
    let (groups, bias) = (size("n_groups")?, c.keys.flag("use_bias")?);
    // The library bounds steps by this as well.
    let ((least, most), floor) = (dt_limit(c)?, c.keys.number("time_step_min")? as f32);
    let mamba = MambaOptions {
        hidden: c.hidden,
        heads: size("mamba_num_heads")?,
        head_dim: size("mamba_head_dim")?,
        groups,
        state: size("ssm_state_size")?,
        taps: size("conv_kernel")?,
        conv_bias: c.keys.flag("use_conv_bias")?,
        bias: (bias, bias),
        act: c.act_of("mamba_hidden_act")?,
        norm: GatedNorm::After(groups),
        norm_eps: c.norm_eps,
        dt_limit: (least.max(floor), most),
        scales: [1.0; 5],
    };
    mamba.check(c, "mamba_num_heads")
}
