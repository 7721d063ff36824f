//! ModernBERT: an encoder with rotated positions, norms before each part, a GELU gate, and a window in all layers but each
//! third.

use dualgauge_kernels::{KvLayer, Recorder, Value, Weight};

use crate::blocks::{
    Attention, AttentionNames, AttentionOptions, Mlp, MlpOptions, MlpShape, Norm, NormKind, Part, Projections, rope,
};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, ModelSpec, Result, RopeConfig};

pub(crate) const FAMILY: Family = Family {
    name: "modernbert",
    architectures: &["ModernBertModel"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 50368, "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22,
        "num_attention_heads": 12, "hidden_activation": "gelu", "max_position_embeddings": 8192, "norm_eps": 1e-5,
        "norm_bias": false, "attention_bias": false, "mlp_bias": false, "local_attention": 128,
        "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0
    }"#,
    build,
};

struct ModernBert {
    spec: ModelSpec,
    embed: Weight,
    embed_norm: Norm,
    layers: Vec<Layer>,
    norm: Norm,
}

struct Layer {
    /// The first layer has none: the embedding is normed already.
    attention_norm: Option<Norm>,
    attention: Attention,
    mlp_norm: Norm,
    mlp: Mlp,
}

impl Model for ModernBert {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&self, g: &Recorder) -> Value {
        let mut x = self.embed_norm.forward(g, g.embed(g.tokens(), self.embed)); // [tokens, hidden]
        for (i, l) in self.layers.iter().enumerate() {
            let _scope = g.layer(i);
            let normed = l.attention_norm.as_ref().map_or(x, |norm| norm.forward(g, x));
            x = g.add(x, l.attention.forward(g, normed));
            x = g.add(x, l.mlp.forward(g, l.mlp_norm.forward(g, x)));
        }
        self.norm.forward(g, g.select_rows(x)) // [rows, hidden]
    }
}

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let kind = NormKind::Layer { bias: c.keys.flag("norm_bias")?, offset: 0.0 };
    let every = c.keys.size("global_attn_every_n_layers")?;
    let slides = c.slides(|layer| !layer.is_multiple_of(every))?;
    let turns = |kind: &str, key: &str| match c.keys.value("rope_parameters") {
        Some(_) => RopeConfig::read(&c.keys, c.head_dim, c.context, Some(kind)),
        None => Ok(RopeConfig::plain(c.keys.positive(key)?, c.head_dim)),
    };
    let far = rope(loader, &turns("full_attention", "global_rope_theta")?)?;
    let near = rope(loader, &turns("sliding_attention", "local_rope_theta")?)?;
    // Half of it lies on each side, the token itself between.
    let window = c.keys.size("local_attention")? / 2 + 1;
    let names = AttentionNames { out: "Wo", ..AttentionNames::USUAL };
    let usual = AttentionOptions::of(c, far);
    let usual = AttentionOptions { projections: Projections::Fused("Wqkv"), names, ahead: true, ..usual };
    let shape = MlpShape::Fused { gate_up: "Wi", down: "Wo" };
    let embed = loader.matrix("model.embeddings.tok_embeddings.weight", c.vocab, c.hidden)?;
    let mut layers = vec![];
    for (i, slides) in slides.into_iter().enumerate() {
        let at = format!("model.layers.{i}");
        let mut norm = |name: &str| Norm::load(loader, &format!("{at}.{name}"), c.hidden, kind, c.norm_eps);
        let attention_norm = if i > 0 { Some(norm("attn_norm")?) } else { None };
        let mlp_norm = norm("mlp_norm")?;
        let attention = match slides {
            true => AttentionOptions { rope: Some(near), window: Some(window), ..usual },
            false => usual,
        };
        layers.push(Layer {
            attention_norm,
            mlp_norm,
            attention: Attention::load(loader, &format!("{at}.attn"), i, &attention)?,
            mlp: Mlp::load(loader, &format!("{at}.mlp"), &MlpOptions { shape, ..MlpOptions::of(c) })?,
        });
    }
    let kv_layers: Vec<KvLayer> = layers.iter().filter_map(|l| l.attention.kv()).collect();
    Ok(Box::new(ModernBert {
        embed_norm: Norm::load(loader, "model.embeddings.norm", c.hidden, kind, c.norm_eps)?,
        norm: Norm::load(loader, "model.final_norm", c.hidden, kind, c.norm_eps)?,
        spec: ModelSpec { kv_layers, ..ModelSpec::of(c, FAMILY.name, loader) },
        embed,
        layers,
    }))
}
