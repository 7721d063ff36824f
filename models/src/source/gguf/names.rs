//! Owns the dictionary between GGUF and Hugging Face names: tensors and configuration keys. Knows no values' meaning.

use serde_json::{Map, Value, json};

use crate::Result;
use crate::source::{Metadata, MetadataValue};

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
    // Where a file has both, the second is another norm.
    ("post_attention_layernorm", "post_attention_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("mlp.router", "ffn_gate_inp"),
    ("mlp.router.layer", "ffn_gate_inp"),
    ("mlp.experts.gate_proj", "ffn_gate_exps"),
    ("mlp.experts.up_proj", "ffn_up_exps"),
    ("mlp.experts.down_proj", "ffn_down_exps"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
    ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
    ("self_attn.q_a_proj", "attn_q_a"),
    ("self_attn.q_a_layernorm", "attn_q_a_norm"),
    ("self_attn.q_b_proj", "attn_q_b"),
    ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    ("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    ("self_attn.kv_b_proj", "attn_kv_b"),
    ("self_attn.k_b_proj", "attn_k_b"),
    ("self_attn.v_b_proj", "attn_v_b"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("post_self_attn_layernorm", "post_attention_norm"),
    ("post_mlp_layernorm", "post_ffw_norm"),
    ("attention_layernorm", "attn_norm"),
    ("feedforward_layernorm", "ffn_norm"),
    ("self_attn.query_layernorm", "attn_q_norm"),
    ("self_attn.key_layernorm", "attn_k_norm"),
    ("self_attn.dense", "attn_output"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.fc1", "ffn_up"),
    ("mlp.fc2", "ffn_down"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
    ("ln_1", "attn_norm"),
    ("ln_2", "ffn_norm"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("attention.query_key_value", "attn_qkv"),
    ("attention.dense", "attn_output"),
    ("mlp.dense_h_to_4h", "ffn_up"),
    ("mlp.dense_4h_to_h", "ffn_down"),
];

/// The same of tensors whose names do not end alike.
const LAYER_TENSORS: &[(&str, &str)] = &[
    ("self_attn.sinks", "attn_sinks.weight"),
    ("mlp.e_score_correction_bias", "exp_probs_b.bias"),
    ("mlp.gate.e_score_correction_bias", "exp_probs_b.bias"),
    ("mlp.moe_statics.e_score_correction_bias", "exp_probs_b.bias"),
];

/// What some families call their feed-forward part.
const FEED_NAMES: &[&str] = &["block_sparse_moe.", "feed_forward."];

/// Hugging Face name of an expert's part, and that of the stack of all experts in GGUF.
const EXPERT_PARTS: &[(&str, &str)] = &[
    ("gate_proj", "ffn_gate_exps"),
    ("up_proj", "ffn_up_exps"),
    ("down_proj", "ffn_down_exps"),
    ("w1", "ffn_gate_exps"),
    ("w3", "ffn_up_exps"),
    ("w2", "ffn_down_exps"),
];

/// What stands before the index of a layer.
const LAYERS: &[&str] = &["model.layers.", "transformer.h.", "gpt_neox.layers."];

const MODEL_PARTS: &[(&str, &str)] = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("model.final_layernorm", "output_norm"),
    ("transformer.wte", "token_embd"),
    ("transformer.wpe", "position_embd"),
    ("transformer.ln_f", "output_norm"),
    ("gpt_neox.embed_in", "token_embd"),
    ("gpt_neox.final_layer_norm", "output_norm"),
    ("embed_out", "output"),
];

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
    ("moe_k", "expert_used_count"),
    ("n_routed_experts", "expert_count"),
    ("moe_num_experts", "expert_count"),
    ("n_shared_experts", "expert_shared_count"),
    ("moe_num_shared_experts", "expert_shared_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
    ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
    ("intermediate_size_mlp", "feed_forward_length"),
    ("routed_scaling_factor", "expert_weights_scale"),
    ("norm_topk_prob", "expert_weights_norm"),
    ("n_group", "expert_group_count"),
    ("topk_group", "expert_group_used_count"),
    ("first_k_dense_replace", "leading_dense_block_count"),
    ("moe_layer_start_index", "leading_dense_block_count"),
    ("interleave_moe_layer_step", "interleave_moe_layer_step"),
    ("q_lora_rank", "attention.q_lora_rank"),
    ("kv_lora_rank", "attention.kv_lora_rank"),
    ("embedding_multiplier", "embedding_scale"),
    ("residual_multiplier", "residual_scale"),
    ("logits_scaling", "logit_scale"),
    ("attention_multiplier", "attention.scale"),
    ("logit_scale", "logit_scale"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("use_parallel_residual", "use_parallel_residual"),
];

/// The GGUF names that a tensor may have, the likeliest first.
pub(super) fn tensor(name: &str) -> Vec<String> {
    let of = |parts: &'static [(&str, &str)], stem: &str| -> Vec<&'static str> {
        parts.iter().filter(|(hf, _)| *hf == stem).map(|(_, gguf)| *gguf).collect()
    };
    let Some((stem, kind)) = name.rsplit_once('.') else { return vec![] };
    let in_layers = LAYERS.iter().find_map(|prefix| name.strip_prefix(prefix));
    let Some((layer, name)) = in_layers.and_then(|s| s.split_once('.')) else {
        return of(MODEL_PARTS, stem).into_iter().map(|gguf| format!("{gguf}.{kind}")).collect();
    };
    let feed = FEED_NAMES.iter().find_map(|feed| name.strip_prefix(feed));
    let name = feed.map_or_else(|| name.to_string(), |rest| format!("mlp.{rest}"));
    let whole = of(LAYER_TENSORS, &name).into_iter().map(|gguf| format!("blk.{layer}.{gguf}"));
    let Some((stem, kind)) = name.rsplit_once('.') else { return whole.collect() };
    whole.chain(of(LAYER_PARTS, stem).into_iter().map(|gguf| format!("blk.{layer}.{gguf}.{kind}"))).collect()
}

/// The stack that an expert's matrix is in, and which of it; `None` for other tensors.
pub(super) fn expert(name: &str) -> Option<(String, usize)> {
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (_, expert) = rest.split_once(".experts.")?;
    let (expert, part) = expert.strip_suffix(".weight")?.split_once('.')?;
    let (_, stack) = EXPERT_PARTS.iter().find(|(hf, _)| *hf == part)?;
    Some((format!("blk.{layer}.{stack}.weight"), expert.parse().ok()?))
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
        use MetadataValue as V;
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
    latent(metadata, architecture, &own, &mut config)?;
    for name in ["alpha_p", "alpha_n", "beta"] {
        if let Some(MetadataValue::Floats(values)) = metadata.get(&format!("xielu.{name}")) {
            config.insert(format!("xielu_{name}"), json!(values));
        }
    }
    // A window that the file leaves out is one that the model lacks.
    config.entry("sliding_window").or_insert(Value::Null);
    match metadata.get(&own("attention.sliding_window_pattern")) {
        Some(MetadataValue::Int(every)) => drop(config.insert("sliding_window_pattern".into(), json!(every))),
        Some(MetadataValue::Ints(layers)) => {
            let kind = |slides: &i64| if *slides == 0 { "full_attention" } else { "sliding_attention" };
            config.insert("layer_types".into(), layers.iter().map(kind).collect());
        }
        _ => {}
    }
    // Layers that only guess ahead stand behind the others.
    if let (Some(ahead), Some(all)) = (metadata.int(&own("nextn_predict_layers"))?, metadata.int(&own("block_count"))?)
    {
        config.insert("num_hidden_layers".into(), (all - ahead).into());
    }
    if let Some(function) = metadata.int(&own("expert_gating_func"))? {
        config.insert("scoring_func".into(), if function == 2 { "sigmoid" } else { "softmax" }.into());
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

/// The sizes of heads over a latent cache: files made for it state those of the cache under the usual keys.
fn latent(
    metadata: &Metadata,
    architecture: &str,
    own: &impl Fn(&str) -> String,
    config: &mut Map<String, Value>,
) -> Result<()> {
    let size = |name: &str| match metadata.int(&own(&format!("attention.{name}_mla")))? {
        Some(size) => Ok::<_, crate::Error>(Some(size)),
        None => metadata.int(&own(&format!("attention.{name}"))),
    };
    if architecture != "deepseek2" {
        return Ok(());
    }
    let rotated = metadata.int(&own("rope.dimension_count"))?;
    if let (Some(key), Some(rotated)) = (size("key_length")?, rotated) {
        config.insert("qk_nope_head_dim".into(), (key - rotated).into());
        config.insert("qk_rope_head_dim".into(), rotated.into());
    }
    if let Some(value) = size("value_length")? {
        config.insert("v_head_dim".into(), value.into());
    }
    // A key that the file leaves out is one that the model lacks, not one with a default.
    config.entry("q_lora_rank").or_insert(Value::Null);
    Ok(())
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
    // A tenth of DeepSeek's scale of all dimensions; its other scale is the same in every model, so cosines keep theirs.
    if let Some(multiplier) = number("rope.scaling.yarn_log_multiplier")?.filter(|v| *v != 0.0) {
        for key in ["mscale", "mscale_all_dim"] {
            scaling.insert(key.into(), (multiplier * 10.0).into());
        }
    }
    if let Some(original) = metadata.int(&own("rope.scaling.original_context_length"))? {
        scaling.insert("original_max_position_embeddings".into(), original.into());
    }
    Ok(Some(Value::Object(scaling)))
}
