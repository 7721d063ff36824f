//! ERNIE 4.5, dense: Llama whose heads are rotated in pairs.

use dualgauge_kernels::RopeSpec;

use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, MlpOptions};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "ernie4_5",
    architectures: &["Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"],
    gguf: &["ernie4_5"],
    gguf_interleaved: true,
    defaults: r#"{
        "vocab_size": 103424, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 18,
        "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 128, "hidden_act": "silu",
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": true,
        "use_bias": false, "eos_token_id": 2
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let bias = c.keys.flag("use_bias")?;
    Decoder::dense(c, loader, FAMILY.name, &DecoderOptions::USUAL, |_, usual| {
        let rope = usual.rope.map(|rope| RopeSpec { interleaved: true, ..rope });
        (AttentionOptions { rope, bias, out_bias: bias, ..usual }, MlpOptions { bias, ..MlpOptions::of(c) })
    })
}
