//! Command R, R7B and A (Cohere 1 and 2): both parts of a layer see one norm of mean and variance without a bias; logits are
//! scaled. Cohere 2 looks through a window in three layers of four, and has positions in those alone.

use dualgauge_kernels::RopeSpec;

use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, LayerNorms, MlpOptions, NormKind};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const COHERE: Family = Family {
    name: "cohere",
    architectures: &["CohereForCausalLM"],
    gguf: &["command-r"],
    gguf_interleaved: true,
    defaults: r#"{
        "vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528, "num_hidden_layers": 40,
        "num_attention_heads": 64, "hidden_act": "silu", "max_position_embeddings": 8192, "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "attention_bias": false, "use_qk_norm": false,
        "logit_scale": 0.0625, "eos_token_id": 255001
    }"#,
    build: cohere,
};

pub(crate) const COHERE2: Family = Family {
    name: "cohere2",
    architectures: &["Cohere2ForCausalLM"],
    gguf: &["cohere2"],
    gguf_interleaved: true,
    defaults: r#"{
        "vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528, "num_hidden_layers": 40,
        "num_attention_heads": 64, "hidden_act": "silu", "max_position_embeddings": 8192, "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "attention_bias": false, "sliding_window": 4096,
        "sliding_window_pattern": 4, "logit_scale": 0.0625, "eos_token_id": 255001
    }"#,
    build: cohere2,
};

fn cohere(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    if c.keys.flag("use_qk_norm")? {
        return Err(c.keys.fail("use_qk_norm", "norms on queries and keys are not supported in this family"));
    }
    Decoder::dense(c, loader, COHERE.name, &frame(c)?, |_, usual| {
        (AttentionOptions { rope: usual.rope.map(pairs), ..usual }, MlpOptions::of(c))
    })
}

fn cohere2(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let slides = c.slides_but_every()?;
    Decoder::dense(c, loader, COHERE2.name, &frame(c)?, |layer, usual| {
        let rope = usual.rope.map(pairs).filter(|_| slides[layer]);
        (AttentionOptions { rope, window: c.window.filter(|_| slides[layer]), ..usual }, MlpOptions::of(c))
    })
}

fn frame(c: &Config) -> Result<DecoderOptions> {
    Ok(DecoderOptions {
        norm: NormKind::Layer { bias: false, offset: 0.0 },
        layer_norms: LayerNorms::SHARED,
        parallel: true,
        logits_scale: c.keys.positive("logit_scale")? as f32,
        ..DecoderOptions::USUAL
    })
}

fn pairs(rope: RopeSpec) -> RopeSpec {
    RopeSpec { interleaved: true, ..rope }
}
