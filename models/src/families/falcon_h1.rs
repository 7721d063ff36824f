//! Falcon H1: in every layer Mamba 2 and attention see the same input side by side; many multipliers.

use dualgauge_kernels::{Act, KvLayer, Recorder, StateLayer, Value};

use super::bamba::{NAMES, NORMS};
use crate::blocks::{
    Attention, AttentionOptions, Decoder, DecoderOptions, GatedNorm, Linear, Mamba, MambaOptions, Part, rope,
};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "falcon_h1",
    architectures: &["FalconH1ForCausalLM"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 128000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "tie_word_embeddings": false, "attention_bias": false,
        "mlp_bias": false, "projectors_bias": false, "mamba_n_heads": 128, "mamba_d_head": 64, "mamba_n_groups": 1,
        "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_conv_bias": true, "mamba_proj_bias": false,
        "mamba_rms_norm": false, "mamba_norm_before_gate": true, "lm_head_multiplier": 1.0,
        "embedding_multiplier": 1.0, "key_multiplier": 1.0, "attention_in_multiplier": 1.0,
        "attention_out_multiplier": 1.0, "ssm_in_multiplier": 1.0, "ssm_out_multiplier": 1.0,
        "ssm_multipliers": [1.0, 1.0, 1.0, 1.0, 1.0], "mlp_multipliers": [1.0, 1.0], "eos_token_id": 2
    }"#,
    build,
};

/// Mamba 2 and attention side by side.
struct Mixer {
    mamba: Mamba,
    mamba_out: f32,
    attention: Attention,
    attention_in: f32,
    attention_out: f32,
}

impl Part for Mixer {
    fn forward(&self, g: &Recorder, x: Value) -> Value {
        let recalled = g.scale(self.mamba.forward(g, x), self.mamba_out);
        let seen = g.scale(self.attention.forward(g, g.scale(x, self.attention_in)), self.attention_out);
        g.add(recalled, seen)
    }

    fn kv(&self) -> Option<KvLayer> {
        self.attention.kv()
    }

    fn states(&self) -> Vec<StateLayer> {
        self.mamba.states()
    }
}

/// `down(up * act(scale * gate)) * scale`
struct Feed {
    gate: Linear,
    up: Linear,
    down: Linear,
    scales: [f32; 2],
    act: Act,
}

impl Part for Feed {
    fn forward(&self, g: &Recorder, x: Value) -> Value {
        let gate = g.scale(self.gate.forward(g, x), self.scales[0]);
        g.scale(self.down.forward(g, g.gated_act(gate, self.up.forward(g, x), self.act)), self.scales[1])
    }
}

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let scale = |key: &str| Ok::<_, crate::Error>(c.keys.number(key)? as f32);
    let options = DecoderOptions {
        names: NAMES,
        layer_norms: NORMS,
        embed_scale: scale("embedding_multiplier")?,
        logits_scale: scale("lm_head_multiplier")?,
        ..DecoderOptions::USUAL
    };
    let usual = AttentionOptions::of(c, rope(loader, &c.rope)?);
    // Keys are multiplied before the rotation, which is the same for every score.
    let attention = AttentionOptions { scale: usual.scale * scale("key_multiplier")?, ..usual };
    let mamba = mamba(c)?;
    let feed = scales::<2>(c, "mlp_multipliers")?;
    let (mamba_out, attention_in) = (scale("ssm_out_multiplier")?, scale("attention_in_multiplier")?);
    let attention_out = scale("attention_out_multiplier")?;
    Decoder::load(c, loader, FAMILY.name, &options, |loader, layer, at| {
        let mixer = Mixer {
            mamba: Mamba::load(loader, &format!("{at}.mamba"), 2 * layer, &mamba)?,
            mamba_out,
            attention: Attention::load(loader, &format!("{at}.self_attn"), layer, &attention)?,
            attention_in,
            attention_out,
        };
        let mut load =
            |name: &str, out, inner| Linear::load(loader, &format!("{at}.feed_forward.{name}"), out, inner, c.mlp_bias);
        let (gate, up) = (load("gate_proj", c.inner, c.hidden)?, load("up_proj", c.inner, c.hidden)?);
        let down = load("down_proj", c.hidden, c.inner)?;
        Ok((Box::new(mixer), Box::new(Feed { gate, up, down, scales: feed, act: c.act })))
    })
}

fn mamba(c: &Config) -> Result<MambaOptions> {
    let usual = MambaOptions::of(c)?;
    let input = c.keys.number("ssm_in_multiplier")? as f32;
    let norm = match (c.keys.flag("mamba_rms_norm")?, c.keys.flag("mamba_norm_before_gate")?) {
        (false, _) => GatedNorm::None,
        (true, true) => GatedNorm::Before(usual.groups),
        (true, false) => GatedNorm::After(usual.groups),
    };
    let scales = scales::<5>(c, "ssm_multipliers")?.map(|by| by * input);
    if usual.bias.0 && scales != [1.0; 5] {
        return Err(c.keys.fail("mamba_proj_bias", "a bias under multipliers is not supported"));
    }
    Ok(MambaOptions { norm, scales, bias: (usual.bias.0, c.keys.flag("projectors_bias")?), ..usual })
}

fn scales<const N: usize>(c: &Config, key: &str) -> Result<[f32; N]> {
    let all: Vec<f32> = c.keys.numbers(key)?.unwrap_or_default().into_iter().map(|v| v as f32).collect();
    all.try_into().map_err(|_| c.keys.fail(key, format!("is not {N} numbers")))
}
