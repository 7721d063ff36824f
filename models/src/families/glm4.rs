//! GLM-4 (0414): norms before and after each part; of each head a part is rotated, in pairs.

use dualgauge_kernels::RopeSpec;

use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, LayerNorms, MlpOptions, MlpShape};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "glm4",
    architectures: &["Glm4ForCausalLM"],
    gguf: &["glm4"],
    gguf_interleaved: true,
    defaults: r#"{
        "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40,
        "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "hidden_act": "silu",
        "max_position_embeddings": 131072, "rms_norm_eps": 1.5625e-7, "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5, "tie_word_embeddings": false, "attention_bias": true,
        "eos_token_id": [151329, 151336, 151338]
    }"#,
    build,
};

const NORMS: LayerNorms = LayerNorms {
    before_attention: Some("input_layernorm"),
    after_attention: Some("post_self_attn_layernorm"),
    before_feed: Some("post_attention_layernorm"),
    after_feed: Some("post_mlp_layernorm"),
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    // GGUF files have the norm after attention under the name that others have this one under.
    let before_feed = if c.keys.is_gguf() { Some("pre_feedforward_layernorm") } else { NORMS.before_feed };
    let options = DecoderOptions { layer_norms: LayerNorms { before_feed, ..NORMS }, ..DecoderOptions::USUAL };
    let shape = MlpShape::Fused { gate_up: "gate_up_proj", down: "down_proj" };
    Decoder::dense(c, loader, FAMILY.name, &options, |_, usual| {
        let rope = usual.rope.map(|rope| RopeSpec { interleaved: true, ..rope });
        (AttentionOptions { rope, out_bias: false, ..usual }, MlpOptions { shape, ..MlpOptions::of(c) })
    })
}
