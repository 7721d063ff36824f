//! Gemma 4, dense: Gemma 3 whose values are normed, whose wide layers have larger heads of which a share is rotated, and to
//! each of whose layers embeddings of its own add a little. What a layer returns is scaled.

use dualgauge_kernels::{Act, Recorder, Value, Weight};

use crate::blocks::{
    Attention, AttentionOptions, Besides, Decoder, DecoderOptions, LayerNorms, Linear, Mlp, MlpOptions, Norm, NormKind,
    Projections, QkNorm, rope,
};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result, RopeConfig};

pub(crate) const FAMILY: Family = Family {
    name: "gemma4_text",
    architectures: &["Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 262144, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "global_head_dim": 512,
        "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0}
        },
        "tie_word_embeddings": true, "attention_bias": false, "sliding_window": 512, "sliding_window_pattern": 6,
        "vocab_size_per_layer_input": 262144, "attention_k_eq_v": false, "enable_moe_block": false, "eos_token_id": 1
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    for (key, what) in [("enable_moe_block", "experts"), ("num_kv_shared_layers", "layers that share keys and values")]
    {
        if c.keys.value(key).is_some_and(|v| v.as_bool() == Some(true) || v.as_u64().is_some_and(|v| v > 0)) {
            return Err(c.keys.fail(key, format!("{what} are not supported in this family")));
        }
    }
    let kinds = Kinds::read(c, loader)?;
    let logits_cap = c.keys.maybe_positive("final_logit_softcapping")?.map(|cap| cap as f32);
    let embed_scale = (c.hidden as f32).sqrt();
    let options = DecoderOptions { layer_norms: LayerNorms::AROUND, logits_cap, embed_scale, ..DecoderOptions::USUAL };
    let besides = LayerInputs::load(c, loader)?;
    let model = Decoder::build(c, loader, FAMILY.name, &options, |loader, i, at| {
        let attention = if kinds.slides[i] { &kinds.near } else { &kinds.wide };
        let attention = Attention::load(loader, &format!("{at}.self_attn"), i, attention)?;
        Ok((Box::new(attention), Box::new(Mlp::load(loader, &format!("{at}.mlp"), &MlpOptions::of(c))?)))
    })?;
    Ok(Box::new(model.besides(Box::new(besides))))
}

/// The two kinds of attention, and which layers have the one with a window.
struct Kinds {
    slides: Vec<bool>,
    near: AttentionOptions,
    wide: AttentionOptions,
}

impl Kinds {
    fn read(c: &Config, loader: &mut Loader<'_>) -> Result<Self> {
        let slides = c.slides_but_every()?;
        let (mut wide_dim, mut wide_heads) = (c.keys.maybe_size("global_head_dim")?.unwrap_or(c.head_dim), c.kv_heads);
        let keys_are_values = c.keys.flag("attention_k_eq_v")?;
        if let Some(heads) = c.keys.maybe_size("num_global_key_value_heads")?.filter(|_| keys_are_values) {
            wide_heads = heads;
        }
        // The library's own files state the sizes of each layer that has others.
        if let Some(layers) = c.keys.object("per_layer_config")?
            && let Some(wide) = slides.iter().position(|slides| !slides)
            && let Some(wide) = layers.object(&wide.to_string())?
        {
            wide_dim = wide.maybe_size("head_dim")?.unwrap_or(wide_dim);
            wide_heads = wide.maybe_size("num_key_value_heads")?.unwrap_or(wide_heads);
        }
        if !c.heads.is_multiple_of(wide_heads) {
            return Err(c.keys.fail("num_global_key_value_heads", format!("{wide_heads} does not divide {}", c.heads)));
        }
        let mut of = |kind: &str, dim| rope(loader, &RopeConfig::read(&c.keys, dim, c.context, Some(kind))?);
        let near = AttentionOptions {
            qk_norm: QkNorm::Head(NormKind::RMS),
            v_norm: true,
            scale: 1.0,
            window: c.window,
            ..AttentionOptions::of(c, of("sliding_attention", c.head_dim)?)
        };
        let wide = AttentionOptions {
            head_dim: wide_dim,
            kv_heads: wide_heads,
            projections: if keys_are_values { Projections::KeysAreValues } else { Projections::Split },
            window: None,
            rope: Some(of("full_attention", wide_dim)?),
            ..near
        };
        Ok(Self { slides, near, wide })
    }
}

/// What each layer is given of the tokens beside the stream, and by how much it scales what it returns.
struct LayerInputs {
    inputs: Option<Inputs>,
    scales: Vec<f32>,
}

struct Inputs {
    width: usize,
    embed: Weight,
    embed_scale: f32,
    project: Linear,
    project_scale: f32,
    norm: Norm,
    layers: Vec<Gate>,
}

struct Gate {
    gate: Linear,
    back: Linear,
    norm: Norm,
    act: Act,
}

impl LayerInputs {
    fn load(c: &Config, loader: &mut Loader<'_>) -> Result<Self> {
        let at = |i: usize, name: &str| format!("model.layers.{i}.{name}");
        let scales = (0..c.layers)
            .map(|i| match loader.has(&at(i, "layer_scalar")) {
                true => Ok(loader.values(&at(i, "layer_scalar"), 1)?[0]),
                false => Ok(1.0),
            })
            .collect::<Result<_>>()?;
        let stated = c.keys.value("hidden_size_per_layer_input").is_some_and(|v| v.as_u64() != Some(0));
        if !stated {
            return Ok(Self { inputs: None, scales });
        }
        let (width, rows) = (c.keys.size("hidden_size_per_layer_input")?, c.keys.size("vocab_size_per_layer_input")?);
        let all = c.layers * width;
        let mut layers = vec![];
        for i in 0..c.layers {
            layers.push(Gate {
                gate: Linear::load(loader, &at(i, "per_layer_input_gate"), width, c.hidden, false)?,
                back: Linear::load(loader, &at(i, "per_layer_projection"), c.hidden, width, false)?,
                norm: Norm::load(loader, &at(i, "post_per_layer_input_norm"), c.hidden, NormKind::RMS, c.norm_eps)?,
                act: c.act,
            });
        }
        let inputs = Inputs {
            width,
            embed: loader.matrix("model.embed_tokens_per_layer.weight", rows, all)?,
            embed_scale: (width as f32).sqrt(),
            project: Linear::load(loader, "model.per_layer_model_projection", all, c.hidden, false)?,
            project_scale: (c.hidden as f32).sqrt().recip(),
            norm: Norm::load(loader, "model.per_layer_projection_norm", width, NormKind::RMS, c.norm_eps)?,
            layers,
        };
        Ok(Self { inputs: Some(inputs), scales })
    }
}

impl Besides for LayerInputs {
    fn begin(&self, g: &Recorder, embedded: Value) -> Value {
        let Some(inputs) = &self.inputs else { return embedded };
        let (tokens, layers) = (g.shape().tokens, inputs.layers.len());
        let own = g.scale(g.embed(g.tokens(), inputs.embed), inputs.embed_scale); // [tokens, layers * width]
        let seen = g.scale(inputs.project.forward(g, embedded), inputs.project_scale);
        let seen = inputs.norm.forward(g, g.reshape(seen, [tokens, layers, inputs.width]));
        let seen = g.reshape(seen, [tokens, layers * inputs.width]);
        g.scale(g.add(seen, own), std::f32::consts::FRAC_1_SQRT_2)
    }

    fn after(&self, g: &Recorder, layer: usize, mut x: Value, begun: Value) -> Value {
        if let Some(inputs) = &self.inputs {
            let Gate { gate, back, norm, act } = &inputs.layers[layer];
            let own = g.narrow(begun, layer * inputs.width, inputs.width); // [tokens, width]
            let gated = g.gated_act(gate.forward(g, x), own, *act);
            x = g.add(x, norm.forward(g, back.forward(g, gated)));
        }
        g.scale(x, self.scales[layer])
    }
}
