//! Granite 3: Llama with four multipliers, on embeddings, on scores, on what each part adds and under the logits.

use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, MlpOptions};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const FAMILY: Family = Family {
    name: "granite",
    architectures: &["GraniteForCausalLM"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false,
        "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0,
        "eos_token_id": 2
    }"#,
    build,
};

fn build(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let scale = |key: &str| Ok::<_, crate::Error>(c.keys.positive(key)? as f32);
    let options = DecoderOptions {
        embed_scale: scale("embedding_multiplier")?,
        residual_scale: scale("residual_multiplier")?,
        logits_scale: scale("logits_scaling")?.recip(),
        ..DecoderOptions::USUAL
    };
    let scale = scale("attention_multiplier")?;
    Decoder::dense(c, loader, FAMILY.name, &options, |_, usual| {
        (AttentionOptions { scale, ..usual }, MlpOptions::of(c))
    })
}
