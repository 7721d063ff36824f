//! ERNIE 4.5 MoE: neighbouring dimensions are rotated as pairs; experts, chosen by a biased softmax, in a range of layers.

use dualgauge_kernels::RopeSpec;

use super::mixtral::options;
use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, FeedOptions, MlpOptions, MoeOptions, SharedExpert};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "ernie4_5_moe",
    architectures: &["Ernie4_5_MoeForCausalLM"],
    gguf: &["ernie4_5-moe"],
    gguf_interleaved: true,
    defaults: r#"{
        "vocab_size": 103424, "hidden_size": 2560, "intermediate_size": 12288, "num_hidden_layers": 28,
        "num_attention_heads": 20, "num_key_value_heads": 4, "hidden_act": "silu", "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": true, "use_bias": false,
        "moe_intermediate_size": 1536, "moe_k": 6, "moe_num_experts": 64, "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1, "eos_token_id": 2
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    if c.keys.flag("use_bias")? {
        return Err(c.keys.fail("use_bias", "experts with biases are not supported"));
    }
    let usual = options(c, "moe_num_experts", true)?;
    let shared = c.keys.count("moe_num_shared_experts")?;
    let shared = (shared > 0).then(|| SharedExpert { name: "shared_experts", inner: usual.inner * shared, gate: None });
    let moe = MoeOptions { correction: Some("moe_statics.e_score_correction_bias"), shared, ..usual };
    let (start, end) = (c.keys.number("moe_layer_start_index")?, c.keys.number("moe_layer_end_index")?);
    let (end, every) = (if end < 0.0 { c.layers as f64 } else { end }, c.keys.size("moe_layer_interval")?);
    Decoder::sparse(c, loader, FAMILY.name, &DecoderOptions::USUAL, |layer, usual| {
        let rope = usual.rope.map(|rope| RopeSpec { interleaved: true, ..rope });
        let sparse = (start..=end).contains(&(layer as f64)) && (layer + 1).is_multiple_of(every);
        let feed = match sparse {
            true => FeedOptions::Moe("mlp", &moe),
            false => FeedOptions::Mlp("mlp", MlpOptions::of(c)),
        };
        (AttentionOptions { rope, ..usual }, feed)
    })
}
