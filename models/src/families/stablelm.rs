//! StableLM: Llama with norms of mean and variance, of which a part of each head is rotated.

use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, LayerNorms, MlpOptions, NormKind};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "stablelm",
    architectures: &["StableLmForCausalLM"],
    gguf: &["stablelm"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 50304, "hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-5, "rope_theta": 10000.0, "partial_rotary_factor": 0.25, "tie_word_embeddings": false,
        "use_qkv_bias": false, "qk_layernorm": false, "use_parallel_residual": false, "eos_token_id": 0
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    if c.keys.flag("qk_layernorm")? {
        return Err(c.keys.fail("qk_layernorm", "norms on queries and keys are not supported in this family"));
    }
    let (bias, parallel) = (c.keys.flag("use_qkv_bias")?, c.keys.flag("use_parallel_residual")?);
    let layer_norms = if parallel { LayerNorms::SHARED } else { LayerNorms::BEFORE };
    let options = DecoderOptions { norm: NormKind::LAYER, layer_norms, parallel, ..DecoderOptions::USUAL };
    Decoder::dense(c, loader, FAMILY.name, &options, |_, usual| {
        (AttentionOptions { bias, out_bias: false, ..usual }, MlpOptions::of(c))
    })
}
