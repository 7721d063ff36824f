//! GPT-2: learned positions are added to embeddings, norms have mean and variance, there are biases everywhere and no gate.
//! Matrices are stored column by column, but for those of GGUF files.

use crate::blocks::{
    AttentionNames, AttentionOptions, Decoder, DecoderNames, DecoderOptions, LayerNorms, MlpOptions, MlpShape,
    NormKind, Projections,
};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "gpt2",
    architectures: &["GPT2LMHeadModel"],
    gguf: &["gpt2"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 50257, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "hidden_act": "gelu_new", "max_position_embeddings": 1024, "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": true, "scale_attn_weights": true, "scale_attn_by_inverse_layer_idx": false,
        "eos_token_id": 50256
    }"#,
    build,
};

const NAMES: DecoderNames = DecoderNames {
    embed: "transformer.wte",
    positions: Some("transformer.wpe"),
    layers: "transformer.h",
    attention: "attn",
    feed: "mlp",
    norm: "transformer.ln_f",
    head: "lm_head",
};

const NORMS: LayerNorms =
    LayerNorms { before_attention: Some("ln_1"), after_attention: None, before_feed: Some("ln_2"), after_feed: None };

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let options = DecoderOptions { names: NAMES, norm: NormKind::LAYER, layer_norms: NORMS, ..DecoderOptions::USUAL };
    let (projections, shape) = match c.keys.is_gguf() {
        true => (Projections::Fused("c_attn"), MlpShape::Plain { up: "c_fc", down: "c_proj" }),
        false => (Projections::FusedColumns("c_attn"), MlpShape::PlainColumns { up: "c_fc", down: "c_proj" }),
    };
    let names = AttentionNames { out: "c_proj", ..AttentionNames::USUAL };
    let (scaled, by_layer) = (c.keys.flag("scale_attn_weights")?, c.keys.flag("scale_attn_by_inverse_layer_idx")?);
    Decoder::dense(c, loader, FAMILY.name, &options, |layer, usual| {
        let scale = if scaled { usual.scale } else { 1.0 };
        let scale = if by_layer { scale / (layer + 1) as f32 } else { scale };
        let attention = AttentionOptions { projections, names, bias: true, out_bias: true, rope: None, scale, ..usual };
        (attention, MlpOptions { bias: true, shape, ..MlpOptions::of(c) })
    })
}
