//! BERT and XLM-RoBERTa: encoders with learned positions, a norm after each sum, and biases everywhere; and the pair
//! scorer made of them.

use dualgauge_kernels::{KvLayer, Recorder, Value, Weight};

use crate::blocks::{
    Attention, AttentionNames, AttentionOptions, Linear, Mlp, MlpOptions, MlpShape, Norm, NormKind, Part, rope,
};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, ModelSpec, Result};

pub(crate) const BERT: Family = Family {
    name: "bert",
    architectures: &["BertModel", "BertForSequenceClassification"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 30522, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "hidden_act": "gelu", "max_position_embeddings": 512, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "attention_bias": true, "mlp_bias": true
    }"#,
    build: |c, loader| build(c, loader, BERT.name, "bert", 0),
};

pub(crate) const XLM_ROBERTA: Family = Family {
    name: "xlm-roberta",
    architectures: &["XLMRobertaModel"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 30522, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "hidden_act": "gelu", "max_position_embeddings": 512, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "attention_bias": true, "mlp_bias": true, "pad_token_id": 1
    }"#,
    // Positions are counted from behind the padding token.
    build: |c, loader| build(c, loader, XLM_ROBERTA.name, "roberta", c.keys.count("pad_token_id")? + 1),
};

struct Bert {
    spec: ModelSpec,
    /// `[types * vocab, hidden]`: each word's row, plus that of a type of text.
    words: Weight,
    positions: Weight,
    norm: Norm,
    layers: Vec<Layer>,
    /// Of a scorer: what is made of the first row, and the map to scores.
    scorer: Option<(Linear, Linear)>,
}

struct Layer {
    attention: Attention,
    after_attention: Norm,
    mlp: Mlp,
    after_mlp: Norm,
}

impl Model for Bert {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&self, g: &Recorder) -> Value {
        let words = g.embed(g.tokens(), self.words);
        let x = g.add(words, g.embed(g.positions(), self.positions)); // [tokens, hidden]
        let mut x = self.norm.forward(g, x);
        for (i, l) in self.layers.iter().enumerate() {
            let _scope = g.layer(i);
            x = l.after_attention.forward(g, g.add(l.attention.forward(g, x), x));
            x = l.after_mlp.forward(g, g.add(l.mlp.forward(g, x), x));
        }
        let rows = g.select_rows(x); // [rows, hidden]
        match &self.scorer {
            // A cap of one is the hyperbolic tangent.
            Some((pooler, scores)) => scores.forward(g, g.softcap(pooler.forward(g, rows), 1.0)),
            None => rows,
        }
    }
}

fn build(
    c: &Config,
    loader: &mut Loader<'_>,
    family: &'static str,
    prefix: &str,
    first_position: usize,
) -> Result<Box<dyn Model>> {
    let labels = loader.has("classifier.weight");
    // Scorers keep the encoder under its name, encoders alone do not.
    let at = |name: &str| if labels { format!("{prefix}.{name}") } else { name.to_string() };
    if first_position >= c.context {
        return Err(c.keys.fail("pad_token_id", format!("leaves none of {} positions", c.context)));
    }
    let types = c.keys.size("type_vocab_size")?;
    let words = loader.values_of(&at("embeddings.word_embeddings.weight"), &[c.vocab, c.hidden])?;
    let of_types = loader.values_of(&at("embeddings.token_type_embeddings.weight"), &[types, c.hidden])?;
    // Only a scorer sees more than one type of text.
    let seen = if labels { types } else { 1 };
    let sums = of_types.chunks_exact(c.hidden).take(seen).flat_map(|of_type| {
        words.chunks_exact(c.hidden).flat_map(move |word| word.iter().zip(of_type).map(|(a, b)| a + b))
    });
    let words = loader.constant_matrix("words and types", seen * c.vocab, c.hidden, &sums.collect::<Vec<_>>())?;
    let positions = loader.values_of(&at("embeddings.position_embeddings.weight"), &[c.context, c.hidden])?;
    let context = c.context - first_position;
    let positions = loader.constant_matrix("positions", context, c.hidden, &positions[first_position * c.hidden..])?;
    let norm = NormKind::LAYER;
    let mut made = vec![];
    let usual = AttentionOptions::of(c, rope(loader, &c.rope)?);
    let names = AttentionNames {
        q: "self.query",
        k: "self.key",
        v: "self.value",
        out: "output.dense",
        ..AttentionNames::USUAL
    };
    let attention = AttentionOptions { names, rope: None, ahead: true, ..usual };
    let shape = MlpShape::Plain { up: "intermediate.dense", down: "output.dense" };
    for i in 0..c.layers {
        let at = at(&format!("encoder.layer.{i}"));
        made.push(Layer {
            attention: Attention::load(loader, &format!("{at}.attention"), i, &attention)?,
            after_attention: Norm::load(
                loader,
                &format!("{at}.attention.output.LayerNorm"),
                c.hidden,
                norm,
                c.norm_eps,
            )?,
            mlp: Mlp::load(loader, &at, &MlpOptions { shape, ..MlpOptions::of(c) })?,
            after_mlp: Norm::load(loader, &format!("{at}.output.LayerNorm"), c.hidden, norm, c.norm_eps)?,
        });
    }
    let norm = Norm::load(loader, &at("embeddings.LayerNorm"), c.hidden, norm, c.norm_eps)?;
    let scorer = match labels {
        true => Some((
            Linear::load(loader, &at("pooler.dense"), c.hidden, c.hidden, true)?,
            Linear::load(loader, "classifier", 1, c.hidden, true)?,
        )),
        false => None,
    };
    let kv_layers: Vec<KvLayer> = made.iter().filter_map(|l| l.attention.kv()).collect();
    let spec = ModelSpec { kv_layers, context, vocab: seen * c.vocab, ..ModelSpec::of(c, family, loader) };
    Ok(Box::new(Bert { spec, words, positions, norm, layers: made, scorer }))
}
