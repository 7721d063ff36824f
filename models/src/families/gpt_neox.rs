//! GPT-NeoX and Pythia: both parts of a layer beside each other, each with its own norm; a part of each head is rotated.

use crate::blocks::{
    AttentionNames, AttentionOptions, Decoder, DecoderNames, DecoderOptions, MlpOptions, MlpShape, NormKind,
    Projections,
};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "gpt_neox",
    architectures: &["GPTNeoXForCausalLM"],
    gguf: &["gptneox"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 50432, "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 44,
        "num_attention_heads": 64, "hidden_act": "gelu", "max_position_embeddings": 2048, "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0, "partial_rotary_factor": 0.25, "tie_word_embeddings": false,
        "use_parallel_residual": true, "attention_bias": true, "eos_token_id": 2
    }"#,
    build,
};

const NAMES: DecoderNames = DecoderNames {
    embed: "gpt_neox.embed_in",
    positions: None,
    layers: "gpt_neox.layers",
    attention: "attention",
    feed: "mlp",
    norm: "gpt_neox.final_layer_norm",
    head: "embed_out",
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let parallel = c.keys.flag("use_parallel_residual")?;
    let options = DecoderOptions { names: NAMES, norm: NormKind::LAYER, parallel, ..DecoderOptions::USUAL };
    let fused = if c.keys.is_gguf() { Projections::Fused } else { Projections::ByHead };
    let projections = fused("query_key_value");
    let names = AttentionNames { out: "dense", ..AttentionNames::USUAL };
    let shape = MlpShape::Plain { up: "dense_h_to_4h", down: "dense_4h_to_h" };
    Decoder::dense(c, loader, FAMILY.name, &options, |_, usual| {
        (AttentionOptions { projections, names, ..usual }, MlpOptions { bias: true, shape, ..MlpOptions::of(c) })
    })
}
