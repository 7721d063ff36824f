//! Checkpoints rewritten as GGUF, with the names and layouts that llama.cpp's converter gives them:
//! the goldens of the library hold for them, too. The checkpoints lie beside the repository.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use dualgauge_kernels::{Format, HostTensor};
use dualgauge_tests::TestDevice;
use dualgauge_tests::driver::Driver;
use serde_json::Value;

const SHARED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures/families");

/// A tensor of f32, or of MXFP4 blocks.
#[derive(Clone)]
struct Tensor {
    dims: Vec<usize>,
    kind: u32,
    bytes: Vec<u8>,
}

impl Tensor {
    fn of(dims: &[usize], values: &[f32]) -> Self {
        Self { dims: dims.to_vec(), kind: 0, bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }

    fn values(&self) -> Vec<f32> {
        self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// Rows `first`, `first + step` .. of each matrix (or entries of each vector) of a stack.
    fn rows(&self, first: usize, step: usize, count: usize) -> Self {
        let (stack, rows) = (self.dims[0], self.dims[1]);
        let row = self.bytes.len() / stack / rows;
        let places = (0..stack).flat_map(|e| (0..count).map(move |i| e * rows + first + i * step));
        let bytes = places.flat_map(|place| &self.bytes[place * row..][..row]).copied().collect();
        Self { dims: [&[stack, count], &self.dims[2..]].concat(), kind: self.kind, bytes }
    }

    /// Each matrix of a stack turned round.
    fn turned(&self) -> Self {
        let [stack, rows, columns] = *self.dims else { panic!("a stack of matrices") };
        let values = self.values();
        let at = |e: usize, r: usize, c: usize| values[(e * rows + r) * columns + c];
        let turned: Vec<f32> = (0..stack)
            .flat_map(|e| (0..columns).flat_map(move |c| (0..rows).map(move |r| (e, r, c))))
            .map(|(e, r, c)| at(e, r, c))
            .collect();
        Self::of(&[stack, columns, rows], &turned)
    }
}

/// The tensors of a safetensors file, floats as f32.
fn read(folder: &Path) -> BTreeMap<String, Tensor> {
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (header, data) = bytes[8..].split_at(header);
    let header: serde_json::Map<String, Value> = serde_json::from_slice(header).unwrap();
    let list = |v: &Value| v.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect::<Vec<_>>();
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    let tensors = tensors.map(|(name, info)| {
        let (dims, range) = (list(&info["shape"]), list(&info["data_offsets"]));
        let raw = &data[range[0]..range[1]];
        let wide = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
        let tensor = match info["dtype"].as_str().unwrap() {
            "BF16" => Tensor::of(&dims, &raw.chunks_exact(2).map(wide).collect::<Vec<_>>()),
            "F16" => Tensor::of(&dims, &HostTensor::new("f16", [raw.len() / 2], Format::F16, raw).unwrap().to_f32()),
            "F32" | "U8" => Tensor { dims, kind: 0, bytes: raw.to_vec() },
            other => panic!("{other}"),
        };
        (name, tensor)
    });
    tensors.collect()
}

/// `NAME_blocks` and `NAME_scales` as ggml's blocks: the scale, then the low halves of 32 beside the high ones.
fn mxfp4(blocks: &Tensor, scales: &Tensor) -> Tensor {
    let [lead @ .., groups, 16] = &blocks.dims[..] else { panic!("blocks of 16 bytes") };
    let block = |(codes, scale): (&[u8], &u8)| {
        let code = |i: usize| codes[i / 2] >> (4 * (i % 2)) & 15;
        std::iter::once(*scale).chain((0..16).map(|i| code(i) | code(i + 16) << 4)).collect::<Vec<u8>>()
    };
    let bytes = blocks.bytes.chunks_exact(16).zip(&scales.bytes).flat_map(block).collect();
    Tensor { dims: [lead, &[groups * 32]].concat(), kind: 39, bytes }
}

/// What the converter calls the parts of a layer.
const PARTS: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.q_a_proj", "attn_q_a"),
    ("self_attn.q_a_layernorm", "attn_q_a_norm"),
    ("self_attn.q_b_proj", "attn_q_b"),
    ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    ("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.router", "ffn_gate_inp"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("block_sparse_moe.router.layer", "ffn_gate_inp"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
    ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
    ("self_attn.sinks", "attn_sinks"),
    ("mlp.gate.e_score_correction_bias", "exp_probs_b"),
    ("mlp.moe_statics.e_score_correction_bias", "exp_probs_b"),
    ("block_sparse_moe.e_score_correction_bias", "exp_probs_b"),
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("self_attn.qkv_proj", "attn_qkv"),
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
    ("model.final_layernorm", "output_norm"),
    ("transformer.wte", "token_embd"),
    ("transformer.wpe", "position_embd"),
    ("transformer.ln_f", "output_norm"),
    ("gpt_neox.embed_in", "token_embd"),
    ("gpt_neox.final_layer_norm", "output_norm"),
    ("embed_out", "output"),
];

/// Architectures whose rotation the converter rewrites for pairs (2i, 2i + 1), as it does Llama's.
const PAIRS: [&str; 4] = ["granitemoe", "granite", "arcee", "smollm3"];
/// Whose norms after attention keep their place.
const AFTER: [&str; 7] = ["gpt-oss", "glm4moe", "gemma2", "gemma3", "olmo2", "exaone4", "seed_oss"];
/// To whose gains the converter adds the 1 that the models do.
const PLUS_ONE: [&str; 4] = ["gemma", "gemma2", "gemma3", "nemotron"];

/// A checkpoint as the converter writes it.
fn converted(folder: &Path, arch: &str, config: &Value) -> BTreeMap<String, Tensor> {
    let size = |key: &str| config[key].as_u64().unwrap_or(0) as usize;
    let mut out = BTreeMap::new();
    let mut stacks: BTreeMap<String, Vec<(usize, Tensor)>> = BTreeMap::new();
    let all = read(folder);
    for (name, tensor) in &all {
        let prefixes = ["model.layers.", "transformer.h.", "gpt_neox.layers."];
        let in_layers = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
        let (at, rest) = match in_layers.and_then(|n| n.split_once('.')) {
            Some((layer, rest)) => (format!("blk.{layer}."), rest),
            None => (String::new(), name.as_str()),
        };
        let mut put = |name: &str, tensor: Tensor| assert!(out.insert(format!("{at}{name}"), tensor).is_none());
        let inner = size("intermediate_size");
        if let Some((_, expert)) = rest.split_once(".experts.") {
            // The base name, whether it is a bias, the tensor with rows of outputs.
            let (part, kind, tensor) = match expert.strip_suffix("_scales") {
                Some(_) => continue,
                None => match (expert.strip_suffix("_blocks"), expert.strip_suffix("_bias")) {
                    (Some(part), _) => (part, "weight", mxfp4(tensor, &all[&name.replace("_blocks", "_scales")])),
                    (_, Some(part)) => (part, "bias", tensor.clone()),
                    _ if tensor.dims.len() == 3 => (expert, "weight", tensor.turned()),
                    _ => {
                        let (number, part) = expert.split_once('.').unwrap();
                        let part = match part.strip_suffix(".weight").unwrap() {
                            "w1" | "gate_proj" => "ffn_gate_exps.weight",
                            "w3" | "up_proj" => "ffn_up_exps.weight",
                            _ => "ffn_down_exps.weight",
                        };
                        let stack = stacks.entry(format!("{at}{part}")).or_default();
                        stack.push((number.parse().unwrap(), tensor.clone()));
                        continue;
                    }
                },
            };
            match part {
                "gate_up_proj" => {
                    put(&format!("ffn_gate_exps.{kind}"), tensor.rows(0, 2, inner));
                    put(&format!("ffn_up_exps.{kind}"), tensor.rows(1, 2, inner));
                }
                _ => put(&format!("ffn_down_exps.{kind}"), tensor),
            }
            continue;
        }
        match rest {
            "block_sparse_moe.input_linear.weight" => {
                put("ffn_gate_exps.weight", tensor.rows(0, 1, inner));
                put("ffn_up_exps.weight", tensor.rows(inner, 1, inner));
            }
            "block_sparse_moe.output_linear.weight" => put("ffn_down_exps.weight", tensor.clone()),
            "post_attention_layernorm.bias" => put("ffn_norm.bias", tensor.clone()),
            "post_attention_layernorm.weight" => {
                let tensor = if PLUS_ONE.contains(&arch) { plus_one(tensor) } else { tensor.clone() };
                put(if AFTER.contains(&arch) { "post_attention_norm.weight" } else { "ffn_norm.weight" }, tensor);
            }
            // Kept in the metadata.
            _ if rest.contains(".act_fn.") => {}
            "self_attn.kv_b_proj.weight" => {
                let (heads, plain, value) = (size("num_attention_heads"), size("qk_nope_head_dim"), size("v_head_dim"));
                let heads = Tensor { dims: vec![heads, plain + value, tensor.dims[1]], ..tensor.clone() };
                put("attn_k_b.weight", heads.rows(0, 1, plain).turned());
                put("attn_v_b.weight", heads.rows(plain, 1, value));
            }
            _ => {
                let whole = PARTS.iter().find(|(hf, _)| *hf == rest).map(|(_, gguf)| *gguf);
                let (gguf, kind) = match (whole, rest.rsplit_once('.').unwrap()) {
                    (Some("attn_sinks"), _) => ("attn_sinks", "weight"),
                    (Some(gguf), _) => (gguf, "bias"),
                    (None, (stem, kind)) => (PARTS.iter().find(|(hf, _)| *hf == stem).expect(name).1, kind),
                };
                let tensor = match gguf {
                    "ffn_gate_inp_shexp" | "exp_probs_b" => {
                        Tensor { dims: vec![tensor.bytes.len() / 4], ..tensor.clone() }
                    }
                    // Stored for pairs (2i, 2i + 1).
                    "attn_q" | "attn_k" if PAIRS.contains(&arch) => {
                        let dim = size("hidden_size") / size("num_attention_heads");
                        let (rows, columns) = (tensor.dims[0], tensor.dims[1]);
                        let cut = Tensor { dims: vec![rows / dim, 2, dim / 2 * columns], ..tensor.clone() };
                        let row = |t: &Tensor| Tensor { dims: vec![rows, columns], ..t.clone() };
                        let halves = Tensor { dims: vec![rows / dim, dim, columns], ..row(&cut) };
                        let pairs: Vec<Tensor> =
                            (0..dim / 2).flat_map(|i| [i, i + dim / 2]).map(|i| halves.rows(i, 1, 1)).collect();
                        let size = columns * 4;
                        let heads =
                            (0..rows / dim).flat_map(|h| pairs.iter().map(move |p| &p.bytes[h * size..][..size]));
                        Tensor { dims: vec![rows, columns], kind: 0, bytes: heads.flatten().copied().collect() }
                    }
                    _ if PLUS_ONE.contains(&arch) && gguf.ends_with("norm") && kind == "weight" => plus_one(tensor),
                    // Stored [in, out].
                    "attn_qkv" | "attn_output" | "ffn_up" | "ffn_down" if arch == "gpt2" && kind == "weight" => {
                        let matrix = Tensor { dims: [&[1], &tensor.dims[..]].concat(), ..tensor.clone() }.turned();
                        Tensor { dims: matrix.dims[1..].to_vec(), ..matrix }
                    }
                    // Query, key and value of each head one after another become all queries, keys, values.
                    "attn_qkv" if arch == "gptneox" => {
                        let heads = size("num_attention_heads");
                        let each = tensor.bytes.len() / heads / 3;
                        let part = |part: usize| (0..heads).map(move |head| 3 * head + part);
                        let order = (0..3).flat_map(part);
                        let bytes = order.flat_map(|piece| &tensor.bytes[piece * each..][..each]).copied().collect();
                        Tensor { bytes, ..tensor.clone() }
                    }
                    _ => tensor.clone(),
                };
                put(&format!("{gguf}.{kind}"), tensor);
            }
        }
    }
    for (name, mut stack) in stacks {
        stack.sort_by_key(|(number, _)| *number);
        let dims = [&[stack.len()], &stack[0].1.dims[..]].concat();
        out.insert(name, Tensor { dims, kind: 0, bytes: stack.into_iter().flat_map(|(_, t)| t.bytes).collect() });
    }
    let scaling = &config["rope_scaling"];
    let vector = |values: &Value| {
        let values: Vec<f32> = values.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        Tensor::of(&[values.len()], &values)
    };
    if arch == "phi3" {
        out.insert("rope_factors_short.weight".into(), vector(&scaling["short_factor"]));
        out.insert("rope_factors_long.weight".into(), vector(&scaling["long_factor"]));
    }
    if scaling["rope_type"] == "llama3" {
        let dim = config["head_dim"].as_u64().map_or(size("hidden_size") / size("num_attention_heads"), |d| d as usize);
        out.insert("rope_freqs.weight".into(), llama3(scaling, config["rope_theta"].as_f64().unwrap(), dim));
    }
    out
}

fn plus_one(tensor: &Tensor) -> Tensor {
    Tensor::of(&tensor.dims, &tensor.values().iter().map(|v| v + 1.0).collect::<Vec<_>>())
}

/// By how much each frequency is divided: long waves by the factor, short ones by 1, those between by what lies between.
fn llama3(scaling: &Value, theta: f64, dim: usize) -> Tensor {
    let number = |key: &str| scaling[key].as_f64().unwrap();
    let (factor, low, high) = (number("factor"), number("low_freq_factor"), number("high_freq_factor"));
    let original = number("original_max_position_embeddings");
    let divisors = (0..dim / 2).map(|i| {
        let wave = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / dim as f64);
        let smooth = ((original / wave - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    });
    Tensor::of(&[dim / 2], &divisors.collect::<Vec<_>>())
}

/// The configuration as the converter writes it: keys of the architecture.
fn keys(arch: &str, c: &Value) -> Vec<(String, Value)> {
    let mut keys: Vec<(String, Value)> = vec![("general.architecture".into(), arch.into())];
    let plain = [
        ("hidden_size", "embedding_length"),
        ("num_hidden_layers", "block_count"),
        ("num_attention_heads", "attention.head_count"),
        ("num_key_value_heads", "attention.head_count_kv"),
        ("max_position_embeddings", "context_length"),
        ("intermediate_size", "feed_forward_length"),
        ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
        ("rope_theta", "rope.freq_base"),
        ("vocab_size", "vocab_size"),
        ("head_dim", "attention.key_length"),
        ("sliding_window", "attention.sliding_window"),
        ("num_local_experts", "expert_count"),
        ("num_experts", "expert_count"),
        ("n_routed_experts", "expert_count"),
        ("moe_num_experts", "expert_count"),
        ("num_experts_per_tok", "expert_used_count"),
        ("moe_k", "expert_used_count"),
        ("moe_intermediate_size", "expert_feed_forward_length"),
        ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
        ("n_shared_experts", "expert_shared_count"),
        ("moe_num_shared_experts", "expert_shared_count"),
        ("first_k_dense_replace", "leading_dense_block_count"),
        ("moe_layer_start_index", "leading_dense_block_count"),
        ("routed_scaling_factor", "expert_weights_scale"),
        ("n_group", "expert_group_count"),
        ("topk_group", "expert_group_used_count"),
        ("kv_lora_rank", "attention.kv_lora_rank"),
        ("q_lora_rank", "attention.q_lora_rank"),
        ("qk_rope_head_dim", "rope.dimension_count"),
        ("rotary_dim", "rope.dimension_count"),
        ("v_head_dim", "attention.value_length_mla"),
        ("embedding_multiplier", "embedding_scale"),
        ("residual_multiplier", "residual_scale"),
        ("logits_scaling", "logit_scale"),
        ("attention_multiplier", "attention.scale"),
        ("layer_norm_eps", "attention.layer_norm_epsilon"),
        ("layer_norm_epsilon", "attention.layer_norm_epsilon"),
        ("norm_epsilon", "attention.layer_norm_epsilon"),
        ("norm_eps", "attention.layer_norm_epsilon"),
        ("logit_scale", "logit_scale"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("n_embd", "embedding_length"),
        ("n_layer", "block_count"),
        ("n_head", "attention.head_count"),
        ("n_positions", "context_length"),
        ("rotary_emb_base", "rope.freq_base"),
    ];
    for (hf, gguf) in plain {
        if c[hf].is_number() {
            keys.push((format!("{arch}.{gguf}"), c[hf].clone()));
        }
    }
    let mut put = |key: &str, value: Value| keys.push((format!("{arch}.{key}"), value));
    let int = |key: &str| c[key].as_u64().unwrap();
    let scaling = &c["rope_scaling"];
    let head_dim = c["head_dim"].as_u64().or(c["hidden_size"].as_u64().map(|h| h / int("num_attention_heads")));
    let share = c["partial_rotary_factor"].as_f64().or(c["rotary_pct"].as_f64());
    if let Some(share) = share.filter(|_| !["glm4moe", "minimax-m2"].contains(&arch)) {
        put("rope.dimension_count", ((share * head_dim.unwrap() as f64) as u64).into());
    }
    if let Some(parallel) = c["use_parallel_residual"].as_bool() {
        put("use_parallel_residual", parallel.into());
    }
    if let (true, Some(types)) = (arch != "gemma2" && c["sliding_window"].is_number(), c["layer_types"].as_array()) {
        let slides: Vec<Value> = types.iter().map(|kind| (kind == "sliding_attention").into()).collect();
        put("attention.sliding_window_pattern", slides.into());
    }
    if arch == "phi3" {
        let (context, original) = (int("max_position_embeddings") as f64, int("original_max_position_embeddings"));
        let factor = (1.0 + (context / original as f64).ln() / (original as f64).ln()).sqrt();
        put("rope.scaling.original_context_length", original.into());
        put("rope.scaling.attn_factor", factor.into());
    }
    if scaling.is_object() && (scaling["rope_type"] == "yarn" || scaling["type"] == "yarn") {
        put("rope.scaling.type", "yarn".into());
        put("rope.scaling.factor", scaling["factor"].as_f64().unwrap().into());
        put("rope.scaling.original_context_length", scaling["original_max_position_embeddings"].clone());
        if let Some(all) = scaling["mscale_all_dim"].as_f64() {
            put("rope.scaling.yarn_log_multiplier", (0.1 * all).into());
        }
    }
    match arch {
        "glm4moe" => {
            put("rope.dimension_count", (int("head_dim") / 2).into());
            put("expert_weights_norm", c["norm_topk_prob"].clone());
            put("expert_gating_func", 2.into());
        }
        "deepseek2" => {
            put("attention.key_length_mla", (int("qk_nope_head_dim") + int("qk_rope_head_dim")).into());
            put("attention.key_length", (int("kv_lora_rank") + int("qk_rope_head_dim")).into());
            put("attention.value_length", int("kv_lora_rank").into());
            put("expert_weights_norm", c["norm_topk_prob"].clone());
            let sigmoid = c["scoring_func"] == "sigmoid";
            put("expert_gating_func", if sigmoid { 2.into() } else { 1.into() });
        }
        _ => {}
    }
    keys
}

fn written(keys: &[(String, Value)], tensors: &BTreeMap<String, Tensor>) -> Vec<u8> {
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        bytes.extend(string(key));
        match value {
            Value::String(text) => bytes.extend([&8u32.to_le_bytes()[..], &string(text)].concat()),
            Value::Array(list) => {
                let flags = list.iter().all(Value::is_boolean);
                bytes.extend([9u32, if flags { 7 } else { 6 }].iter().flat_map(|v| v.to_le_bytes()));
                bytes.extend((list.len() as u64).to_le_bytes());
                for value in list {
                    match value {
                        Value::Bool(flag) => bytes.push(u8::from(*flag)),
                        other => bytes.extend((other.as_f64().unwrap() as f32).to_le_bytes()),
                    }
                }
            }
            Value::Bool(flag) => bytes.extend([&7u32.to_le_bytes()[..], &[u8::from(*flag)]].concat()),
            Value::Number(n) if n.is_u64() => {
                bytes.extend([&4u32.to_le_bytes()[..], &(n.as_u64().unwrap() as u32).to_le_bytes()].concat());
            }
            other => {
                bytes.extend([&6u32.to_le_bytes()[..], &(other.as_f64().unwrap() as f32).to_le_bytes()].concat());
            }
        }
    }
    let mut data = vec![];
    for (name, tensor) in tensors {
        bytes.extend(string(name));
        bytes.extend((tensor.dims.len() as u32).to_le_bytes());
        tensor.dims.iter().rev().for_each(|dim| bytes.extend((*dim as u64).to_le_bytes()));
        bytes.extend(tensor.kind.to_le_bytes());
        bytes.extend((data.len() as u64).to_le_bytes());
        data.extend(&tensor.bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    [bytes, data].concat()
}

/// Logits and greedy tokens of every prompt but the shortest.
fn reproduces(name: &str, arch: &str) {
    let folder = PathBuf::from(SHARED).join(name);
    let json = |file: &str| -> Value { serde_json::from_slice(&fs::read(folder.join(file)).unwrap()).unwrap() };
    let (config, expected) = (json("config.json"), json("expected.json"));
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model.gguf");
    let mut keys = keys(arch, &config);
    if arch == "apertus" {
        let all = read(&folder);
        for name in ["alpha_p", "alpha_n", "beta"] {
            let of = |i: u64| all[&format!("model.layers.{i}.mlp.act_fn.{name}")].values()[0];
            let values: Vec<f32> = (0..config["num_hidden_layers"].as_u64().unwrap()).map(of).collect();
            keys.push((format!("xielu.{name}"), values.into()));
        }
    }
    fs::write(&path, written(&keys, &converted(&folder, arch, &config))).unwrap();
    let device = TestDevice::cpus().into_iter().find(TestDevice::is_exact).expect("every machine has a CPU");
    let mut driver = Driver::load(&device, &path, 256);
    let numbers = |v: &Value| -> Vec<f64> { v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect() };
    for prompt in &expected["prompts"].as_array().unwrap()[1..] {
        let ids: Vec<u32> = numbers(&prompt["ids"]).into_iter().map(|id| id as u32).collect();
        let held = driver.greedy(&[&ids], 24, usize::MAX, None).remove(0);
        let pairs = held.logits[0].iter().zip(numbers(&prompt["logits"]));
        let off = pairs.map(|(held, wanted)| (f64::from(*held) - wanted).abs()).fold(0.0, f64::max);
        assert!(off <= 2e-4, "{name} as GGUF: logits are off by {off:e}");
        let greedy: Vec<u32> = numbers(&prompt["greedy_ids"]).into_iter().map(|id| id as u32).collect();
        assert_eq!(held.ids, greedy, "{name} as GGUF: greedy tokens");
    }
}

#[test]
fn experts_are_read_from_gguf_files() {
    all_reproduce(&[
        ("gpt_oss_bf16", "gpt-oss"),
        ("olmoe", "olmoe"),
        ("qwen2_moe", "qwen2moe"),
        ("qwen3_moe", "qwen3moe"),
        ("granitemoe", "granitemoe"),
        ("glm4_moe", "glm4moe"),
        ("minimax_m2", "minimax-m2"),
        ("ernie4_5_moe", "ernie4_5-moe"),
        ("deepseek_v2", "deepseek2"),
        ("deepseek_v3", "deepseek2"),
    ]);
}

#[test]
fn dense_models_are_read_from_gguf_files() {
    all_reproduce(&[
        ("apertus", "apertus"),
        ("arcee", "arcee"),
        ("cohere", "command-r"),
        ("cohere2", "cohere2"),
        ("ernie4_5", "ernie4_5"),
        ("exaone4", "exaone4"),
        ("gemma", "gemma"),
        // Not gemma2: no key of such a file states by what the fixture's scores are scaled.
        ("gemma3_text", "gemma3"),
        ("glm4", "glm4"),
        ("gpt2", "gpt2"),
        ("gpt_neox", "gptneox"),
        ("granite", "granite"),
        ("hunyuan_v1_dense", "hunyuan-dense"),
        ("nemotron", "nemotron"),
        ("olmo2", "olmo2"),
        ("olmo3", "olmo2"),
        ("phi", "phi2"),
        ("phi3", "phi3"),
        ("qwen2", "qwen2"),
        ("qwen3", "qwen3"),
        ("seed_oss", "seed_oss"),
        ("smollm3", "smollm3"),
        ("stablelm", "stablelm"),
        ("starcoder2", "starcoder2"),
    ]);
}

fn all_reproduce(all: &[(&str, &str)]) {
    let mut failed = vec![];
    for (name, arch) in all {
        if !Path::new(SHARED).join(name).is_dir() {
            eprintln!("skipped {name}: it is not beside the repository");
        } else if std::panic::catch_unwind(|| reproduces(name, arch)).is_err() {
            failed.push(*name);
        }
    }
    assert!(failed.is_empty(), "as GGUF, these differ: {}", failed.join(", "));
}
