//! StarCoder 2: Llama with biases everywhere, norms with mean and variance, and a feed-forward part without a gate.

use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, MlpOptions, MlpShape, NormKind};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "starcoder2",
    architectures: &["Starcoder2ForCausalLM"],
    gguf: &["starcoder2"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 49152, "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 30,
        "num_attention_heads": 24, "num_key_value_heads": 2, "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096, "norm_epsilon": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "use_bias": true, "eos_token_id": 50256
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let bias = c.keys.flag("use_bias")?;
    let shape = MlpShape::Plain { up: "c_fc", down: "c_proj" };
    let options = DecoderOptions { norm: NormKind::LAYER, ..DecoderOptions::USUAL };
    Decoder::dense(c, loader, FAMILY.name, &options, |_, usual| {
        let attention = AttentionOptions { window: c.window, bias, out_bias: bias, ..usual };
        (attention, MlpOptions { bias, shape, ..MlpOptions::of(c) })
    })
}
