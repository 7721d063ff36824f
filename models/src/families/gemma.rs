//! Gemma 1 and 2: embeddings scaled by the root of the width, norms that store gain - 1, a GELU gate. Gemma 2 also norms
//! what each part returns, caps scores and logits, and looks through a window in every other layer.

use dualgauge_kernels::{Recorder, Value, Weight};

use crate::blocks::{Attention, AttentionOptions, Linear, Mlp, MlpOptions, Norm, NormKind, rope};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, ModelSpec, Result};

pub(crate) const GEMMA: Family = Family {
    name: "gemma",
    architectures: &["GemmaForCausalLM"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "attention_bias": false, "eos_token_id": 1
    }"#,
    build: gemma,
};

pub(crate) const GEMMA2: Family = Family {
    name: "gemma2",
    architectures: &["Gemma2ForCausalLM"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256,
        "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "attention_bias": false, "sliding_window": 4096,
        "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "eos_token_id": 1
    }"#,
    build: gemma2,
};

const NORM: NormKind = NormKind::Rms { offset: 1.0 };

struct Gemma {
    spec: ModelSpec,
    embed: Weight,
    embed_scale: f32,
    layers: Vec<Layer>,
    norm: Norm,
    head: Linear,
    logits_cap: Option<f32>,
}

struct Layer {
    attention_norm: Norm,
    attention: Attention,
    /// Of what attention returns; Gemma 2 only, as the next.
    after_attention: Option<Norm>,
    mlp_norm: Norm,
    mlp: Mlp,
    after_mlp: Option<Norm>,
}

/// What Gemma 2 has beside its attention.
struct Variant {
    /// Norms after each part, too.
    sandwich: bool,
    logits_cap: Option<f32>,
}

impl Model for Gemma {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&self, g: &Recorder) -> Value {
        let after = |norm: &Option<Norm>, x| norm.as_ref().map_or(x, |norm| norm.forward(g, x));
        let mut x = g.scale(g.embed(g.tokens(), self.embed), self.embed_scale); // [tokens, hidden]
        for (i, l) in self.layers.iter().enumerate() {
            let _scope = g.layer(i);
            let seen = l.attention.forward(g, l.attention_norm.forward(g, x));
            x = g.add(x, after(&l.after_attention, seen));
            let thought = l.mlp.forward(g, l.mlp_norm.forward(g, x));
            x = g.add(x, after(&l.after_mlp, thought));
        }
        let logits = self.head.forward(g, self.norm.forward(g, g.select_rows(x))); // [rows, vocab]
        self.logits_cap.map_or(logits, |cap| g.softcap(logits, cap))
    }
}

fn gemma(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    build(c, loader, GEMMA.name, Variant { sandwich: false, logits_cap: None }, |_, usual| usual)
}

fn gemma2(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let cap = |key: &str| Ok::<_, crate::Error>(c.keys.maybe_positive(key)?.map(|cap| cap as f32));
    let scale = (c.keys.positive("query_pre_attn_scalar")? as f32).sqrt().recip();
    let softcap = cap("attn_logit_softcapping")?;
    let types = c.keys.texts("layer_types")?;
    if let Some(types) = types.as_ref().filter(|types| types.len() != c.layers) {
        return Err(c.keys.fail("layer_types", format!("{} entries for {} layers", types.len(), c.layers)));
    }
    let slides = |layer: usize| match &types {
        Some(types) => types[layer] == "sliding_attention",
        None => layer.is_multiple_of(2),
    };
    let variant = Variant { sandwich: true, logits_cap: cap("final_logit_softcapping")? };
    build(c, loader, GEMMA2.name, variant, |layer, usual| {
        let window = c.window.filter(|_| slides(layer));
        AttentionOptions { scale, softcap, window, ..usual }
    })
}

fn build(
    c: &Config,
    loader: &mut Loader<'_>,
    family: &'static str,
    variant: Variant,
    attention: impl Fn(usize, AttentionOptions) -> AttentionOptions,
) -> Result<Box<dyn Model>> {
    let embed = loader.matrix("model.embed_tokens.weight", c.vocab, c.hidden)?;
    let usual = AttentionOptions::of(c, rope(loader, &c.rope)?);
    let mut layers = vec![];
    for i in 0..c.layers {
        let at = format!("model.layers.{i}");
        let mut norm = |name: &str| Norm::load(loader, &format!("{at}.{name}"), c.hidden, NORM, c.norm_eps);
        let (after_attention, mlp_norm, after_mlp) = match variant.sandwich {
            false => (None, norm("post_attention_layernorm")?, None),
            true => (
                Some(norm("post_attention_layernorm")?),
                norm("pre_feedforward_layernorm")?,
                Some(norm("post_feedforward_layernorm")?),
            ),
        };
        layers.push(Layer {
            attention_norm: norm("input_layernorm")?,
            attention: Attention::load(loader, &format!("{at}.self_attn"), i, &attention(i, usual))?,
            after_attention,
            mlp_norm,
            mlp: Mlp::load(loader, &format!("{at}.mlp"), &MlpOptions::of(c))?,
            after_mlp,
        });
    }
    let norm = Norm::load(loader, "model.norm", c.hidden, NORM, c.norm_eps)?;
    let head = Linear::head(loader, c, embed)?;
    let (spec, embed_scale) = (ModelSpec::of(c, family, loader), (c.hidden as f32).sqrt());
    Ok(Box::new(Gemma { spec, embed, embed_scale, layers, norm, head, logits_cap: variant.logits_cap }))
}
