//! Phi 1 and 2: both parts of a layer see one norm; biases everywhere, under the head too; a part of each head is rotated.

use crate::blocks::{
    AttentionNames, AttentionOptions, Decoder, DecoderNames, DecoderOptions, LayerNorms, MlpOptions, MlpShape, NormKind,
};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "phi",
    architectures: &["PhiForCausalLM"],
    gguf: &["phi2"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
        "num_attention_heads": 32, "hidden_act": "gelu_new", "max_position_embeddings": 2048, "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "tie_word_embeddings": false, "qk_layernorm": false,
        "eos_token_id": 2
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    if c.keys.flag("qk_layernorm")? {
        return Err(c.keys.fail("qk_layernorm", "norms on queries and keys are not supported in this family"));
    }
    let options = DecoderOptions {
        names: DecoderNames { norm: "model.final_layernorm", ..DecoderNames::USUAL },
        norm: NormKind::LAYER,
        layer_norms: LayerNorms::SHARED,
        parallel: true,
        head_bias: true,
        ..DecoderOptions::USUAL
    };
    let names = AttentionNames { out: "dense", ..AttentionNames::USUAL };
    let shape = MlpShape::Plain { up: "fc1", down: "fc2" };
    Decoder::dense(c, loader, FAMILY.name, &options, |_, usual| {
        let attention = AttentionOptions { names, bias: true, out_bias: true, ..usual };
        (attention, MlpOptions { bias: true, shape, ..MlpOptions::of(c) })
    })
}
