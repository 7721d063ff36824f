//! Owns the dictionary between GGUF and Hugging Face names: tensors and configuration keys. Knows no values' meaning.

use serde_json::{Map, Value, json};

use crate::Result;
use crate::source::Metadata;

/// Hugging Face name of a layer's part, and GGUF's.
const LAYER_PARTS: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
];

const MODEL_PARTS: &[(&str, &str)] =
    &[("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

/// Key of a `config.json`, and GGUF's without the architecture before it.
const KEYS: &[(&str, &str)] = &[
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_hidden_layers", "block_count"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("max_position_embeddings", "context_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("layer_norm_eps", "attention.layer_norm_epsilon"),
    ("rope_theta", "rope.freq_base"),
    ("rope_dim", "rope.dimension_count"),
    ("sliding_window", "attention.sliding_window"),
    ("vocab_size", "vocab_size"),
    ("num_local_experts", "expert_count"),
    ("num_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
];

/// The GGUF name of a tensor, `None` when it has none.
pub(super) fn tensor(name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    let part = |parts: &[(&str, &'static str)], stem: &str| parts.iter().find(|(hf, _)| *hf == stem).map(|(_, g)| *g);
    if let Some((layer, stem)) = stem.strip_prefix("model.layers.").and_then(|s| s.split_once('.')) {
        return Some(format!("blk.{layer}.{}.{kind}", part(LAYER_PARTS, stem)?));
    }
    Some(format!("{}.{kind}", part(MODEL_PARTS, stem)?))
}

/// The GGUF key behind a `config.json` key.
pub(super) fn key(architecture: &str, key: &str) -> String {
    let found = KEYS.iter().find(|(hf, _)| *hf == key).map(|(_, gguf)| format!("{architecture}.{gguf}"));
    found.unwrap_or_else(|| match key {
        "rope_factors" => "tensor rope_freqs.weight".into(),
        "eos_token_id" => "tokenizer.ggml.eos_token_id".into(),
        _ => match key.strip_prefix("rope_scaling.") {
            Some(rest) => format!("{architecture}.rope.scaling.{rest}"),
            None => key.into(),
        },
    })
}

/// The metadata in the words of a `config.json`.
pub(super) fn config(metadata: &Metadata, architecture: &str) -> Result<Map<String, Value>> {
    let own = |suffix: &str| format!("{architecture}.{suffix}");
    let mut config = Map::new();
    config.insert("model_type".into(), architecture.into());
    for (hf, gguf) in KEYS {
        let Some(value) = metadata.get(&own(gguf)) else { continue };
        use crate::source::MetadataValue as V;
        let value = match value {
            V::Int(v) => json!(v),
            V::Float(v) => json!(v),
            V::Bool(v) => json!(v),
            V::Text(v) => json!(v),
            V::Ints(v) => json!(v),
            V::Floats(v) => json!(v),
            V::Texts(v) => json!(v),
        };
        config.insert((*hf).into(), value);
    }
    if !config.contains_key("vocab_size")
        && let Some(tokens) = metadata.texts("tokenizer.ggml.tokens")?
    {
        config.insert("vocab_size".into(), tokens.len().into());
    }
    if let Some(scaling) = rope_scaling(metadata, &own)? {
        config.insert("rope_scaling".into(), scaling);
    }
    let mut eos: Vec<u32> = vec![];
    for key in ["eos", "eot", "eom"] {
        eos.extend(metadata.id(&format!("tokenizer.ggml.{key}_token_id"))?.filter(|id| !eos.contains(id)));
    }
    config.insert("eos_token_id".into(), eos.into());
    if let Some(bos) = metadata.id("tokenizer.ggml.bos_token_id")? {
        config.insert("bos_token_id".into(), bos.into());
    }
    Ok(config)
}

fn rope_scaling(metadata: &Metadata, own: &impl Fn(&str) -> String) -> Result<Option<Value>> {
    let kind = metadata.text(&own("rope.scaling.type"))?;
    let Some(kind) = kind.filter(|k| *k != "none") else { return Ok(None) };
    let mut scaling = Map::from_iter([("rope_type".to_string(), Value::from(kind))]);
    let number = |key: &str| metadata.float(&own(key));
    if let Some(factor) = number("rope.scaling.factor")? {
        scaling.insert("factor".into(), factor.into());
        // ggml multiplies its own factor with YaRN's; transformers' attention_factor is the product.
        if let Some(attention) = number("rope.scaling.attn_factor")?.filter(|v| *v != 1.0) {
            scaling.insert("attention_factor".into(), (attention * (0.1 * factor.ln() + 1.0)).into());
        }
    }
    for (hf, gguf) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
        if let Some(value) = number(&format!("rope.scaling.{gguf}"))? {
            scaling.insert(hf.into(), value.into());
        }
    }
    if let Some(original) = metadata.int(&own("rope.scaling.original_context_length"))? {
        scaling.insert("original_max_position_embeddings".into(), original.into());
    }
    Ok(Some(Value::Object(scaling)))
}
