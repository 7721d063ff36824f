//! Apertus: Llama with a norm on each head and a feed-forward part without a gate, whose activation xIELU has learned bends.

use dualgauge_kernels::Act;

use crate::blocks::{
    Attention, AttentionOptions, Decoder, DecoderOptions, LayerNorms, Mlp, MlpOptions, MlpShape, NormKind, QkNorm, rope,
};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "apertus",
    architectures: &["ApertusForCausalLM"],
    gguf: &["apertus"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 131072, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "xielu", "max_position_embeddings": 65536, "rms_norm_eps": 1e-5,
        "rope_theta": 12000000.0, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192
        },
        "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false, "eos_token_id": 68
    }"#,
    build,
};

const NORMS: LayerNorms = LayerNorms {
    before_attention: Some("attention_layernorm"),
    after_attention: None,
    before_feed: Some("feedforward_layernorm"),
    after_feed: None,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let options = DecoderOptions { layer_norms: NORMS, ..DecoderOptions::USUAL };
    let usual = AttentionOptions::of(c, rope(loader, &c.rope)?);
    let attention = AttentionOptions { qk_norm: QkNorm::Head(NormKind::RMS), ..usual };
    let shape = MlpShape::Plain { up: "up_proj", down: "down_proj" };
    Decoder::load(c, loader, FAMILY.name, &options, |loader, i, at| {
        let act = match c.act {
            Act::Xielu { .. } => xielu(c, loader, i, &format!("{at}.mlp.act_fn"))?,
            other => other,
        };
        let mlp = MlpOptions { shape, act, ..MlpOptions::of(c) };
        let attention = Attention::load(loader, &format!("{at}.self_attn"), i, &attention)?;
        Ok((Box::new(attention), Box::new(Mlp::load(loader, &format!("{at}.mlp"), &mlp)?)))
    })
}

/// As the layer learned it: two bends are stored as what softplus makes them of. GGUF files keep them beside the tensors.
fn xielu(c: &Config, loader: &mut Loader<'_>, layer: usize, at: &str) -> Result<Act> {
    let mut number = |name: &str| {
        let key = format!("xielu_{name}");
        match c.keys.numbers(&key)? {
            Some(all) if all.len() == c.layers => Ok(all[layer] as f32),
            Some(all) => Err(c.keys.fail(&key, format!("{} entries for {} layers", all.len(), c.layers))),
            None => Ok(loader.values(&format!("{at}.{name}"), 1)?[0]),
        }
    };
    let softplus = |x: f32| if x > 20.0 { x } else { x.exp().ln_1p() };
    let beta = number("beta")?;
    let (positive, negative) = (softplus(number("alpha_p")?), beta + softplus(number("alpha_n")?));
    Ok(Act::Xielu { positive, negative, beta })
}
