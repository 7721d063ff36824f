//! Gemma 1 and 2: embeddings scaled by the root of the width, norms that store gain - 1, a GELU gate. Gemma 2 also norms
//! what each part returns, caps scores and logits, and looks through a window in every other layer.

use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, LayerNorms, MlpOptions, NormKind};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result};

pub(crate) const GEMMA: Family = Family {
    name: "gemma",
    architectures: &["GemmaForCausalLM"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "attention_bias": false, "eos_token_id": 1
    }"#,
    build: gemma,
};

pub(crate) const GEMMA2: Family = Family {
    name: "gemma2",
    architectures: &["Gemma2ForCausalLM"],
    gguf: &[],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256,
        "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "attention_bias": false, "sliding_window": 4096,
        "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "eos_token_id": 1
    }"#,
    build: gemma2,
};

fn gemma(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    Decoder::dense(c, loader, GEMMA.name, &frame(c), |_, usual| (usual, MlpOptions::of(c)))
}

fn gemma2(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let cap = |key: &str| Ok::<_, crate::Error>(c.keys.maybe_positive(key)?.map(|cap| cap as f32));
    let scale = (c.keys.positive("query_pre_attn_scalar")? as f32).sqrt().recip();
    let softcap = cap("attn_logit_softcapping")?;
    let types = c.keys.texts("layer_types")?;
    if let Some(types) = types.as_ref().filter(|types| types.len() != c.layers) {
        return Err(c.keys.fail("layer_types", format!("{} entries for {} layers", types.len(), c.layers)));
    }
    let slides = |layer: usize| match &types {
        Some(types) => types[layer] == "sliding_attention",
        None => layer.is_multiple_of(2),
    };
    let logits_cap = cap("final_logit_softcapping")?;
    let options = DecoderOptions { layer_norms: LayerNorms::AROUND, logits_cap, ..frame(c) };
    Decoder::dense(c, loader, GEMMA2.name, &options, |layer, usual| {
        let window = c.window.filter(|_| slides(layer));
        (AttentionOptions { scale, softcap, window, ..usual }, MlpOptions::of(c))
    })
}

fn frame(c: &Config) -> DecoderOptions {
    let norm = NormKind::Rms { offset: 1.0 };
    DecoderOptions { norm, embed_scale: (c.hidden as f32).sqrt(), ..DecoderOptions::USUAL }
}
