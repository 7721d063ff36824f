//! Gemma 1, 2 and 3: embeddings scaled by the root of the width, norms that store gain - 1, a GELU gate. Gemma 2 also
//! norms what each part returns, caps scores and logits, and looks through a window in every other layer. Gemma 3 norms
//! heads instead of capping, and has a window and a rotation of their own in five layers of six.

use crate::blocks::{AttentionOptions, Decoder, DecoderOptions, LayerNorms, MlpOptions, NormKind, QkNorm, rope};
use crate::family::Family;
use crate::loader::Loader;
use crate::{Config, Model, Result, RopeConfig};

pub(crate) const GEMMA: Family = Family {
    name: "gemma",
    architectures: &["GemmaForCausalLM"],
    gguf: &["gemma"],
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
    gguf: &["gemma2"],
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

pub(crate) const GEMMA3: Family = Family {
    name: "gemma3_text",
    architectures: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
    gguf: &["gemma3"],
    gguf_interleaved: false,
    defaults: r#"{
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256,
        "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "tie_word_embeddings": true,
        "attention_bias": false, "sliding_window": 4096, "sliding_window_pattern": 6, "eos_token_id": 1
    }"#,
    build: gemma3,
};

fn gemma(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    Decoder::dense(c, loader, GEMMA.name, &frame(c), |_, usual| (usual, MlpOptions::of(c)))
}

fn gemma2(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let (scale, softcap, options) = capped(c)?;
    let slides = c.slides(|layer| layer.is_multiple_of(2))?;
    Decoder::dense(c, loader, GEMMA2.name, &options, |layer, usual| {
        let window = c.window.filter(|_| slides[layer]);
        (AttentionOptions { scale, softcap, window, ..usual }, MlpOptions::of(c))
    })
}

/// EmbeddingGemma.
pub(crate) const GEMMA3_EMBEDDING: Family =
    Family { architectures: &["Gemma3TextModel"], build: gemma3_embedding, ..GEMMA3 };

fn gemma3(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    if c.keys.flag("use_bidirectional_attention")? {
        return Err(c
            .keys
            .fail("use_bidirectional_attention", "is for embedding models, and this is not loaded as one"));
    }
    let (scale, softcap, options) = capped(c)?;
    gemma3_layers(c, loader, &options, |usual| AttentionOptions { scale, softcap, ..usual })
}

/// EmbeddingGemma: Gemma 3 that looks both ways, without a head. Its window is as wide in all.
fn gemma3_embedding(c: &Config, loader: &mut Loader<'_>) -> Result<Box<dyn Model>> {
    let (scale, softcap, options) = capped(c)?;
    let ahead = c.keys.flag("use_bidirectional_attention")?;
    let mut c = c.clone();
    if ahead {
        c.window = c.window.map(|window| window / 2 + 1);
    }
    let options = DecoderOptions { headless: true, ..options };
    gemma3_layers(&c, loader, &options, |usual| AttentionOptions { scale, softcap, ahead, ..usual })
}

fn gemma3_layers(
    c: &Config,
    loader: &mut Loader<'_>,
    options: &DecoderOptions,
    attention: impl Fn(AttentionOptions) -> AttentionOptions,
) -> Result<Box<dyn Model>> {
    let slides = c.slides_but_every()?;
    let near = match c.keys.value("rope_parameters") {
        Some(_) => RopeConfig::read(&c.keys, c.head_dim, c.context, Some("sliding_attention"))?,
        None => RopeConfig::plain(c.keys.positive("rope_local_base_freq")?, c.head_dim),
    };
    let near = rope(loader, &near)?;
    let qk_norm = QkNorm::Head(options.norm);
    Decoder::dense(c, loader, GEMMA3.name, options, |layer, usual| {
        let rope = if slides[layer] { Some(near) } else { usual.rope };
        let window = c.window.filter(|_| slides[layer]);
        (AttentionOptions { window, qk_norm, rope, ..attention(usual) }, MlpOptions::of(c))
    })
}

/// The scale and the cap of scores, and the frame of Gemma 2 and 3.
fn capped(c: &Config) -> Result<(f32, Option<f32>, DecoderOptions)> {
    let cap = |key: &str| Ok::<_, crate::Error>(c.keys.maybe_positive(key)?.map(|cap| cap as f32));
    let scale = match c.keys.is_gguf() {
        // Such files leave it out: it is the size of a head but in the models of 27B, which have these many layers.
        true if c.layers == 46 || c.layers == 62 => c.hidden as f64 / c.heads as f64,
        true => c.head_dim as f64,
        false => c.keys.positive("query_pre_attn_scalar")?,
    };
    let scale = (scale as f32).sqrt().recip();
    let logits_cap = cap("final_logit_softcapping")?;
    let options = DecoderOptions { layer_norms: LayerNorms::AROUND, logits_cap, ..frame(c) };
    Ok((scale, cap("attn_logit_softcapping")?, options))
}

fn frame(c: &Config) -> DecoderOptions {
    // GGUF files store the gain itself.
    let norm = NormKind::Rms { offset: if c.keys.is_gguf() { 0.0 } else { 1.0 } };
    DecoderOptions { norm, embed_scale: (c.hidden as f32).sqrt(), ..DecoderOptions::USUAL }
}
