//! Llama 2 and 3, SmolLM 2, and all that are built as they are: a norm before each part, rotary attention with grouped
//! heads, gated feed-forward. Families that differ only in options are built by [`dense`] with theirs.

use dualgauge_kernels::{Recorder, Value, Weight};

use crate::blocks::{Attention, AttentionOptions, Linear, Mlp, MlpOptions, Norm, NormKind, rope};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, ModelSpec, Result};

pub(crate) const FAMILY: Family = Family {
    name: "llama",
    architectures: &["LlamaForCausalLM"],
    gguf: &["llama"],
    gguf_interleaved: true,
    defaults: r#"{
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "eos_token_id": 2
    }"#,
    build,
};

struct Llama {
    spec: ModelSpec,
    embed: Weight,
    layers: Vec<Layer>,
    norm: Norm,
    head: Linear,
}

struct Layer {
    attention_norm: Norm,
    attention: Attention,
    mlp_norm: Norm,
    mlp: Mlp,
}

impl Model for Llama {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&self, g: &Recorder) -> Value {
        let mut x = g.embed(g.tokens(), self.embed); // [tokens, hidden]
        for (i, l) in self.layers.iter().enumerate() {
            let _scope = g.layer(i);
            x = g.add(x, l.attention.forward(g, l.attention_norm.forward(g, x)));
            x = g.add(x, l.mlp.forward(g, l.mlp_norm.forward(g, x)));
        }
        self.head.forward(g, self.norm.forward(g, g.select_rows(x))) // [rows, vocab]
    }
}

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    if c.keys.value("num_local_experts").is_some() {
        return Err(c.keys.fail("num_local_experts", "experts in a Llama file are not supported"));
    }
    dense(c, loader, FAMILY.name, |_, attention| (attention, MlpOptions::of(c)))
}

/// A model of this structure whose layers have the options that `options` makes of their index and the usual ones.
pub(super) fn dense(
    c: &Config,
    loader: &mut Loader<'_>,
    family: &'static str,
    options: impl Fn(usize, AttentionOptions) -> (AttentionOptions, MlpOptions),
) -> Result<Box<dyn Model>> {
    let embed = loader.matrix("model.embed_tokens.weight", c.vocab, c.hidden)?;
    let usual = AttentionOptions::of(c, rope(loader, &c.rope)?);
    let mut layers = vec![];
    for i in 0..c.layers {
        let at = format!("model.layers.{i}");
        let (attention, mlp) = options(i, usual);
        let mut norm = |name: &str| Norm::load(loader, &format!("{at}.{name}"), c.hidden, NormKind::RMS, c.norm_eps);
        layers.push(Layer {
            attention_norm: norm("input_layernorm")?,
            mlp_norm: norm("post_attention_layernorm")?,
            attention: Attention::load(loader, &format!("{at}.self_attn"), i, &attention)?,
            mlp: Mlp::load(loader, &format!("{at}.mlp"), &mlp)?,
        });
    }
    let norm = Norm::load(loader, "model.norm", c.hidden, NormKind::RMS, c.norm_eps)?;
    let head = Linear::head(loader, c, embed)?;
    Ok(Box::new(Llama { spec: ModelSpec::of(c, family, loader), embed, layers, norm, head }))
}
