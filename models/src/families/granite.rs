//! Granite 3: Llama with four multipliers, on embeddings, on scores, on what each part adds and under the logits.

use dualgauge_kernels::{Recorder, Value, Weight};

use crate::blocks::{Attention, AttentionOptions, Linear, Mlp, MlpOptions, Norm, NormKind, rope};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, ModelSpec, Result};

pub(crate) const FAMILY: Family = Family {
    name: "granite",
    architectures: &["GraniteForCausalLM"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false,
        "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0,
        "eos_token_id": 2
    }"#,
    build,
};

struct Granite {
    spec: ModelSpec,
    embed: Weight,
    embed_scale: f32,
    layers: Vec<Layer>,
    residual_scale: f32,
    norm: Norm,
    head: Linear,
    logits_scale: f32,
}

struct Layer {
    attention_norm: Norm,
    attention: Attention,
    mlp_norm: Norm,
    mlp: Mlp,
}

impl Model for Granite {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&self, g: &Recorder) -> Value {
        let mut x = g.scale(g.embed(g.tokens(), self.embed), self.embed_scale); // [tokens, hidden]
        for (i, l) in self.layers.iter().enumerate() {
            let _scope = g.layer(i);
            let seen = l.attention.forward(g, l.attention_norm.forward(g, x));
            x = g.add(x, g.scale(seen, self.residual_scale));
            let thought = l.mlp.forward(g, l.mlp_norm.forward(g, x));
            x = g.add(x, g.scale(thought, self.residual_scale));
        }
        g.scale(self.head.forward(g, self.norm.forward(g, g.select_rows(x))), self.logits_scale) // [rows, vocab]
    }
}

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let embed = loader.matrix("model.embed_tokens.weight", c.vocab, c.hidden)?;
    let usual = AttentionOptions::of(c, rope(loader, &c.rope)?);
    let attention = AttentionOptions { scale: c.keys.positive("attention_multiplier")? as f32, ..usual };
    let mut layers = vec![];
    for i in 0..c.layers {
        let at = format!("model.layers.{i}");
        let mut norm = |name: &str| Norm::load(loader, &format!("{at}.{name}"), c.hidden, NormKind::RMS, c.norm_eps);
        layers.push(Layer {
            attention_norm: norm("input_layernorm")?,
            mlp_norm: norm("post_attention_layernorm")?,
            attention: Attention::load(loader, &format!("{at}.self_attn"), i, &attention)?,
            mlp: Mlp::load(loader, &format!("{at}.mlp"), &MlpOptions::of(c))?,
        });
    }
    Ok(Box::new(Granite {
        embed_scale: c.keys.positive("embedding_multiplier")? as f32,
        residual_scale: c.keys.positive("residual_multiplier")? as f32,
        logits_scale: (c.keys.positive("logits_scaling")? as f32).recip(),
        norm: Norm::load(loader, "model.norm", c.hidden, NormKind::RMS, c.norm_eps)?,
        head: Linear::head(loader, c, embed)?,
        spec: ModelSpec::of(c, FAMILY.name, loader),
        embed,
        layers,
    }))
}
