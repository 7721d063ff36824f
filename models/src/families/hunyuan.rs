//! Hunyuan, dense: Llama with a norm on each head of query and key after their rotation.

use crate::blocks::{AttentionNames, AttentionOptions, Decoder, DecoderOptions, MlpOptions, NormKind, QkNorm};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "hunyuan_v1_dense",
    architectures: &["HunYuanDenseV1ForCausalLM"],
    gguf: &["hunyuan-dense"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 290943, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false,
        "eos_token_id": 2
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let names = AttentionNames { q_norm: "query_layernorm", k_norm: "key_layernorm", ..AttentionNames::USUAL };
    let qk_norm = QkNorm::Head(NormKind::RMS);
    Decoder::dense(c, loader, FAMILY.name, &DecoderOptions::USUAL, |_, usual| {
        (AttentionOptions { names, qk_norm, norm_rotated: true, ..usual }, MlpOptions::of(c))
    })
}
