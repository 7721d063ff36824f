//! Broken and hostile model files: each is refused at once, in one line that names the file and the reason and shows no
//! folder of the machine. What is allowed to differ, loads.

mod gguf;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dualgauge_models::{Checkpoint, WeightDtype};
use dualgauge_tests::Random;
use dualgauge_tests::devices::TestDevice;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/families");

/// A copy of a fixture to spoil.
fn copy(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(Path::new(FIXTURES).join(name)).unwrap().map(|e| e.unwrap()) {
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

fn edit(folder: &TempDir, file: &str, change: impl FnOnce(&mut Map<String, Value>)) {
    let path = folder.path().join(file);
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(json.as_object_mut().unwrap());
    fs::write(path, json.to_string()).unwrap();
}

/// Opens and loads; the error, checked for its form. Fails when it takes a second.
fn refusal(path: &Path) -> String {
    refusal_as(path, WeightDtype::Auto)
}

fn refusal_as(path: &Path, dtype: WeightDtype) -> String {
    let mut backend = TestDevice::reference().open();
    let start = Instant::now();
    let loaded = Checkpoint::open(path).and_then(|c| c.load(backend.as_mut(), dtype, &mut |_, _| {}));
    let error = loaded.err().expect("the file is refused").to_string();
    assert!(start.elapsed() < Duration::from_secs(1), "took {:?}: {error}", start.elapsed());
    assert_eq!(error.lines().count(), 1, "one line: {error}");
    assert!(error.len() < 400, "short: {error}");
    let folder = path.parent().unwrap().to_str().unwrap();
    assert!(!error.contains(folder), "no folder of the machine: {error}");
    error
}

#[track_caller]
fn refused(path: &Path, file: &str, reason: &str) {
    let error = refusal(path);
    assert!(error.starts_with(&format!("{file}: ")), "names {file}: {error}");
    assert!(error.contains(reason), "says {reason:?}: {error}");
}

#[test]
fn keys_out_of_range_are_named() {
    let cases = [
        ("hidden_size", json!(0), "0 is not a whole number from 1"),
        ("hidden_size", json!(-64), "-64 is not a whole number"),
        ("hidden_size", json!(1e30), "is not a whole number"),
        ("hidden_size", json!(18446744073709551615u64), "is not a whole number"),
        ("hidden_size", json!(64.5), "64.5 is not a whole number"),
        ("hidden_size", json!("64"), "\"64\" is not a whole number"),
        ("num_hidden_layers", json!(5000), "5000 is more than 4096"),
        ("num_attention_heads", json!(6), "6 does not divide hidden_size, 64"),
        ("num_key_value_heads", json!(3), "3 does not divide num_attention_heads, 4"),
        ("vocab_size", json!(1u64 << 40), "is not a whole number from 1 to"),
        ("vocab_size", json!([384]), "[384] is not a whole number"),
        ("head_dim", json!(16777216), "4 heads of 16777216 are too wide"),
        ("head_dim", json!(15), "15 of 15 dimensions cannot be rotated"),
        ("rms_norm_eps", json!(0.0), "0 is not a number above zero"),
        ("rms_norm_eps", json!(null), "is missing"),
        ("rope_theta", json!(-1), "-1 is not a number above zero"),
        ("hidden_act", json!("mish"), "the activation \"mish\" is not known"),
        ("tie_word_embeddings", json!("yes"), "\"yes\" is not true or false"),
        ("eos_token_id", json!(384), "384 is not in the vocabulary of 384"),
        ("eos_token_id", json!([1, -2]), "-2 is not a token id"),
        ("rope_scaling.rope_type", json!("spiral"), "\"spiral\" is not known"),
        ("rope_scaling.factor", json!(null), "is missing"),
        ("rope_scaling.factor", json!(0), "0 is not a number above zero"),
        ("rope_scaling", json!([8]), "[8] is not an object"),
        ("quantization_config", json!({"quant_method": "exl9"}), "\"exl9\" is not supported; these are: mxfp4"),
        ("architectures", json!("LlamaForCausalLM"), "is not a list of strings"),
    ];
    let named = ["head_dim 15", "quantization_config {\"quant_method\":\"exl9\"}"];
    for (key, value, reason) in cases {
        let folder = copy("llama");
        edit(&folder, "config.json", |config| match key.split_once('.') {
            Some((outer, inner)) => config[outer][inner] = value.clone(),
            None => drop(config.insert(key.into(), value.clone())),
        });
        let error = refusal(folder.path());
        assert!(error.starts_with("config.json: ") && error.contains(reason), "{key} {value}: {error}");
        let own = error.contains(&format!("{key}: "));
        assert!(own || named.contains(&format!("{key} {value}").as_str()), "names {key}: {error}");
    }
}

#[test]
fn folders_that_are_no_checkpoint_are_refused() {
    let folder = copy("llama");
    edit(&folder, "config.json", |c| drop(c.insert("architectures".into(), json!(["LamaForCausalLM"]))));
    let error = refusal(folder.path());
    assert!(error.contains("LamaForCausalLM is not known; the nearest that is: LlamaForCausalLM"), "{error}");

    fs::write(folder.path().join("config.json"), "{\"architectures\": ").unwrap();
    refused(folder.path(), "config.json", "is not valid JSON");
    fs::write(folder.path().join("config.json"), "[".repeat(100_000)).unwrap();
    refused(folder.path(), "config.json", "is not valid JSON");
    fs::remove_file(folder.path().join("config.json")).unwrap();
    refused(folder.path(), "config.json", "not found");

    let folder = copy("llama");
    fs::write(folder.path().join("generation_config.json"), "{\"eos_token_id\": 4294967296}").unwrap();
    refused(folder.path(), "generation_config.json", "eos_token_id: 4294967296 is not a token id");

    let folder = copy("llama");
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    refused(folder.path(), "model.safetensors", "not found");
    fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
    refused(folder.path(), "model.safetensors", "pickle");

    let missing = folder.path().join("nothing-here");
    refused(&missing, "nothing-here", "cannot be opened");
}

/// A safetensors file of this header over `data` bytes of zeros.
fn safetensors(folder: &TempDir, header: &str, data: usize) -> PathBuf {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder.path().to_path_buf()
}

#[test]
fn broken_safetensors_are_refused() {
    let folder = copy("llama");
    let file = folder.path().join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    for len in [0, 7, 8, 100, whole.len() - 1] {
        fs::write(&file, &whole[..len]).unwrap();
        refused(folder.path(), "model.safetensors", "the download may be incomplete");
    }
    let mut longer = whole.clone();
    longer.push(0);
    fs::write(&file, longer).unwrap();
    refused(folder.path(), "model.safetensors", "the download may be incomplete");
    for length in [u64::MAX, 1 << 40, 1 << 62] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        fs::write(&file, bytes).unwrap();
        refused(folder.path(), "model.safetensors", "header too large");
    }
    fs::write(&file, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    refused(folder.path(), "model.safetensors", "Git LFS pointer");

    let name = "model.embed_tokens.weight";
    let entry = |dtype: &str, shape: &str, from: usize, to: usize| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let other = r#""b":{"dtype":"F32","shape":[1],"data_offsets":"#;
    let cases = [
        (format!("{{{},{other}[4,12]}}}}", entry("F32", "[2]", 0, 8)), 12, "invalid offset"), // overlap
        (format!("{{{},{other}[12,16]}}}}", entry("F32", "[2]", 0, 8)), 16, "invalid offset"), // hole
        (format!("{{{0},{0}}}", entry("F32", "[2]", 0, 8)), 8, "comes twice"),
        (format!("{{{}}}", entry("F32", "[4]", 0, 8)), 8, "invalid shape"),
        (format!("{{{}}}", entry("F32", "[4611686018427387904,4]", 0, 0)), 0, "overflow"),
        (format!("{{{}}}", entry("F32", "[0,64]", 0, 0)), 0, "has shape [0, 64]"),
        (format!("{{{}}}", entry("I8", "[384,64]", 0, 24576)), 24576, "element type I8 is not supported"),
        (format!("{{{}}}", entry("F13", "[1]", 0, 4)), 4, "invalid JSON"),
        (format!("{{{}}}", entry("F32", "[1,1,1,1,1,2]", 0, 8)), 8, "6 dimensions"),
        (format!("{{{}}}", entry("F32", "[-1]", 0, 8)), 8, "invalid JSON"),
        (format!("{{{},{}[12,16]}}}}", entry("F32", "[2]", 0, 8), other.replace('b', "b\\nc")), 16, "invalid offset"),
        ("[]".into(), 0, "invalid JSON"),
        ("{}".into(), 0, "model.embed_tokens.weight: is missing"),
    ];
    for (header, data, reason) in cases {
        refused(&safetensors(&folder, &header, data), "model.safetensors", reason);
    }

    fs::remove_file(&file).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    refused(folder.path(), "model.safetensors", "is not a regular file");
}

#[test]
fn broken_shards_are_refused() {
    const INDEX: &str = "model.safetensors.index.json";
    let spoil = |tensor: &str, shard: Value| {
        let folder = copy("llama_sharded");
        edit(&folder, INDEX, |index| index["weight_map"][tensor] = shard);
        folder
    };
    for shard in ["../model.safetensors", "/dev/zero", "model.bin", ".safetensors", "a\nb.safetensors", ""] {
        let folder = spoil("lm_head.weight", json!(shard));
        refused(folder.path(), INDEX, "is not the name of a safetensors file");
    }
    let folder = spoil("lm_head.weight", json!(7));
    refused(folder.path(), INDEX, "is no valid index");
    let folder = spoil("lm_head.weight", json!("missing.safetensors"));
    refused(folder.path(), "missing.safetensors", "cannot be opened");
    let folder = spoil("lm_head.weight", json!("model-00001-of-00004.safetensors"));
    refused(folder.path(), "model-00001-of-00004.safetensors", "has no tensor lm_head.weight");

    let folder = copy("llama_sharded");
    let shards = ["model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors"];
    fs::copy(folder.path().join(shards[0]), folder.path().join(shards[1])).unwrap();
    refused(folder.path(), shards[1], "is also in model-00001-of-00004.safetensors");

    let folder = copy("llama_sharded");
    fs::write(folder.path().join(INDEX), r#"{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}"#).unwrap();
    refused(folder.path(), INDEX, "comes twice");
}

#[test]
fn tensors_that_do_not_fit_the_configuration_are_named() {
    let folder = copy("llama");
    edit(&folder, "config.json", |c| drop(c.insert("intermediate_size".into(), json!(96))));
    let what = "tensor model.layers.0.mlp.gate_proj.weight: has shape [128, 64], the configuration says [96, 64]";
    refused(folder.path(), "model.safetensors", what);
    edit(&folder, "config.json", |c| drop(c.insert("intermediate_size".into(), json!(128))));
    edit(&folder, "config.json", |c| drop(c.insert("num_hidden_layers".into(), json!(4))));
    refused(folder.path(), "model.safetensors", "tensor model.layers.3.input_layernorm.weight: is missing");
    edit(&folder, "config.json", |c| drop(c.insert("attention_bias".into(), json!(true))));
    refused(folder.path(), "model.safetensors", "tensor model.layers.0.self_attn.q_proj.bias: is missing");
}

#[test]
fn names_with_and_without_prefix_load() {
    let rename = |prefix: &str, replacement: &str| {
        let folder = copy("llama");
        let path = folder.path().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
        let header = header.replace(&format!("\"{prefix}"), &format!("\"{replacement}"));
        let header = header.replace(&format!("\"{replacement}lm_head"), "\"lm_head");
        let mut changed = (header.len() as u64).to_le_bytes().to_vec();
        changed.extend(header.as_bytes());
        changed.extend(&bytes[8 + length..]);
        fs::write(path, changed).unwrap();
        folder
    };
    for replacement in ["", "language_model.model.", "model.language_model."] {
        let folder = rename("model.", replacement);
        let mut backend = TestDevice::reference().open();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let loaded = checkpoint.load(backend.as_mut(), WeightDtype::Auto, &mut |_, _| {});
        assert!(loaded.is_ok(), "{replacement:?}: {}", loaded.err().unwrap());
    }
}

#[test]
fn a_load_counts_what_it_does() {
    for (name, tensors) in [("llama", 29u64), ("llama_tied", 28), ("llama_sharded", 20)] {
        let checkpoint = Checkpoint::open(&Path::new(FIXTURES).join(name)).unwrap();
        assert_eq!((checkpoint.name.as_str(), checkpoint.family()), (name, "llama"));
        let expected: Value =
            serde_json::from_str(&fs::read_to_string(Path::new(FIXTURES).join(name).join("expected.json")).unwrap())
                .unwrap();
        let elements = |v: &Value| v[1].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).product::<u64>();
        let listed = expected["tensors"].as_object().unwrap();
        let parameters: u64 = listed.values().map(elements).sum();
        let bytes: u64 = listed.values().map(|v| elements(v) * if v[0] == "float32" { 4 } else { 2 }).sum();
        assert_eq!(checkpoint.weights_bytes(), bytes, "{name}");
        let mut backend = TestDevice::reference().open();
        let mut seen = vec![];
        let model =
            checkpoint.load(backend.as_mut(), WeightDtype::Auto, &mut |done, all| seen.push((done, all))).unwrap();
        assert_eq!(model.spec().parameters, parameters, "{name}: tied weights count once");
        assert_eq!(seen.last(), Some(&(bytes, bytes)), "{name}");
        assert!(seen.is_sorted() && seen.len() as u64 >= tensors, "{name}: {} reports", seen.len());
    }
}

/// Bytes by hand: matrices in blocks, vectors as f32, the vocabulary's matrices as the documentation says.
#[test]
fn a_load_quantises_what_it_says() {
    let folder = Path::new(FIXTURES).join("llama");
    let expected: Value = serde_json::from_str(&fs::read_to_string(folder.join("expected.json")).unwrap()).unwrap();
    for dtype in [WeightDtype::Q8, WeightDtype::Q4, WeightDtype::Fp8] {
        let bytes = expected["tensors"].as_object().unwrap().iter().map(|(name, tensor)| {
            let dims: Vec<u64> = tensor[1].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect();
            let elements: u64 = dims.iter().product();
            let vocabulary = name.contains("embed_tokens") || name.contains("lm_head");
            match dtype {
                _ if dims.len() == 1 => elements * 4,
                WeightDtype::Q8 => elements / 32 * 34,
                WeightDtype::Q4 if vocabulary => elements / 32 * 34,
                WeightDtype::Q4 => elements / 32 * 18,
                _ if vocabulary => elements * if tensor[0] == "float32" { 4 } else { 2 },
                _ if dims[1].is_multiple_of(128) => elements / 128 * 132,
                _ => elements / 32 * 36,
            }
        });
        let bytes: u64 = bytes.sum();
        for device in [TestDevice::reference(), TestDevice::cpus().swap_remove(0)] {
            let checkpoint = Checkpoint::open(&folder).unwrap();
            let mut backend = device.open();
            let model = checkpoint.load(backend.as_mut(), dtype, &mut |_, _| {}).unwrap();
            assert_eq!(model.spec().weight_bytes, bytes, "{dtype:?} on {}", device.name);
            let note = format!("weights were quantised to {}: ", dtype.name());
            assert!(model.spec().notes.iter().any(|n| n.starts_with(&note)), "{:?}", model.spec().notes);
        }
    }
}

/// Flips bytes of the first `header` of `whole`; whatever comes of it, it is an answer.
fn survives_damage(path: &Path, whole: &[u8], header: usize) {
    let mut random = Random::new(5);
    let mut backend = TestDevice::reference().open();
    let (mut refused, start) = (0, Instant::now());
    for _ in 0..600 {
        let mut bytes = whole.to_vec();
        for _ in 0..=random.below(3) {
            bytes[random.below(header)] = [0, 0xff, b'9', b'"', b'{', random.below(256) as u8][random.below(6)];
        }
        fs::write(path, bytes).unwrap();
        let folder = if path.ends_with("model.safetensors") { path.parent().unwrap() } else { path };
        let loaded = Checkpoint::open(folder).and_then(|c| c.load(backend.as_mut(), WeightDtype::Auto, &mut |_, _| {}));
        if let Err(error) = loaded {
            refused += 1;
            assert_eq!(error.to_string().lines().count(), 1, "one line: {error}");
        }
    }
    assert!(refused > 300, "most damage is seen: {refused} of 600");
    assert!(start.elapsed() < Duration::from_secs(60), "took {:?}", start.elapsed());
}

#[test]
fn damaged_headers_are_answered_without_a_panic() {
    let folder = copy("llama");
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    survives_damage(&path, &whole, header);
    let path = folder.path().join("model.gguf");
    let whole = gguf::sample();
    survives_damage(&path, &whole, whole.len() - 1024);
    let path = folder.path().join("config.json");
    fs::copy(Path::new(FIXTURES).join("llama/model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let whole = fs::read(&path).unwrap();
    let mut random = Random::new(6);
    for _ in 0..600 {
        let mut bytes = whole.clone();
        bytes[random.below(whole.len())] = [b'0', b'9', b'-', b'e', b'"', b'[', b'n', 0xc3][random.below(8)];
        fs::write(&path, bytes).unwrap();
        if let Err(error) = Checkpoint::open(folder.path()) {
            assert_eq!(error.to_string().lines().count(), 1, "one line: {error}");
        }
    }
}
