//! OLMo 2: norms stand after each part, not before it, and over all heads of query and key together.

use dualgauge_kernels::{Recorder, Value, Weight};

use crate::blocks::{Attention, AttentionOptions, Linear, Mlp, MlpOptions, Norm, NormKind, QkNorm, rope};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, ModelSpec, Result};

pub(crate) const FAMILY: Family = Family {
    name: "olmo2",
    architectures: &["Olmo2ForCausalLM"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "attention_bias": false, "eos_token_id": 50279
    }"#,
    build,
};

struct Olmo2 {
    spec: ModelSpec,
    embed: Weight,
    layers: Vec<Layer>,
    norm: Norm,
    head: Linear,
}

struct Layer {
    attention: Attention,
    after_attention: Norm,
    mlp: Mlp,
    after_mlp: Norm,
}

impl Model for Olmo2 {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&self, g: &Recorder) -> Value {
        let mut x = g.embed(g.tokens(), self.embed); // [tokens, hidden]
        for (i, l) in self.layers.iter().enumerate() {
            let _scope = g.layer(i);
            x = g.add(x, l.after_attention.forward(g, l.attention.forward(g, x)));
            x = g.add(x, l.after_mlp.forward(g, l.mlp.forward(g, x)));
        }
        self.head.forward(g, self.norm.forward(g, g.select_rows(x))) // [rows, vocab]
    }
}

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let embed = loader.matrix("model.embed_tokens.weight", c.vocab, c.hidden)?;
    let usual = AttentionOptions::of(c, rope(loader, &c.rope)?);
    let attention = AttentionOptions { qk_norm: QkNorm::Whole(NormKind::RMS), ..usual };
    let mut layers = vec![];
    for i in 0..c.layers {
        let at = format!("model.layers.{i}");
        let mut norm = |name: &str| Norm::load(loader, &format!("{at}.{name}"), c.hidden, NormKind::RMS, c.norm_eps);
        layers.push(Layer {
            after_attention: norm("post_attention_layernorm")?,
            after_mlp: norm("post_feedforward_layernorm")?,
            attention: Attention::load(loader, &format!("{at}.self_attn"), i, &attention)?,
            mlp: Mlp::load(loader, &format!("{at}.mlp"), &MlpOptions::of(c))?,
        });
    }
    let norm = Norm::load(loader, "model.norm", c.hidden, NormKind::RMS, c.norm_eps)?;
    let head = Linear::head(loader, c, embed)?;
    Ok(Box::new(Olmo2 { spec: ModelSpec::of(c, FAMILY.name, loader), embed, layers, norm, head }))
}
