//! Broken and hostile model files: each is refused at once, in one line that names the file and the reason and shows no
//! folder of the machine. What is allowed to differ, loads.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dualgauge_models::{Checkpoint, WeightDtype};
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
        ("rope_scaling.rope_type", json!("longrope"), "\"longrope\" is not known"),
        ("rope_scaling.factor", json!(null), "is missing"),
        ("rope_scaling.factor", json!(0), "0 is not a number above zero"),
        ("rope_scaling", json!([8]), "[8] is not an object"),
        ("quantization_config", json!({"quant_method": "fp8"}), "the format \"fp8\" is not supported"),
        ("architectures", json!("LlamaForCausalLM"), "is not a list of strings"),
    ];
    let named = ["head_dim 15"];
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

/// Little-endian GGUF, written by the specification.
#[derive(Clone, Default)]
struct GgufFile {
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: usize,
}

impl GgufFile {
    /// Keys of a tiny Llama, without tensors.
    fn tiny() -> Self {
        let mut file = Self::default().text("general.architecture", "llama");
        let sizes = [("block_count", 1u32), ("context_length", 64), ("embedding_length", 32), ("vocab_size", 8)];
        for (key, value) in sizes.into_iter().chain([("feed_forward_length", 32), ("attention.head_count", 2)]) {
            file = file.key(&format!("llama.{key}"), 4, &value.to_le_bytes());
        }
        file.key("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes())
    }

    fn key(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.keys.extend(string(key));
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self.key_count += 1;
        self
    }

    fn text(self, key: &str, value: &str) -> Self {
        self.key(key, 8, &string(value))
    }

    fn tensor(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors.extend(string(name));
        self.tensors.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| self.tensors.extend(dim.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.tensor_count += 1;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(self.tensor_count.to_le_bytes());
        bytes.extend(self.key_count.to_le_bytes());
        bytes.extend(&self.keys);
        bytes.extend(&self.tensors);
        bytes.resize(bytes.len().next_multiple_of(32) + self.data, 0);
        bytes
    }

    #[track_caller]
    fn refused(&self, reason: &str) {
        bytes_refused(&self.bytes(), reason);
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

#[track_caller]
fn bytes_refused(bytes: &[u8], reason: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    refused(&path, "model.gguf", reason);
}

#[test]
fn broken_gguf_files_are_refused() {
    let tiny = GgufFile::tiny;
    let embed = |kind, offset| GgufFile { data: 1024, ..tiny() }.tensor("token_embd.weight", &[32, 8], kind, offset);
    embed(0, 0).refused("tensor model.layers.0.input_layernorm.weight: is missing");
    embed(0, 32).refused("ends before tensor token_embd.weight does");
    embed(0, 1 << 60).refused("ends before tensor");
    embed(0, u64::MAX - 31).refused("ends before tensor");
    embed(0, 7).refused("offset 7 is not aligned");
    embed(12, 0).refused("tensor token_embd.weight: format q4_k is not supported; these are: f32, f16");
    embed(39, 0).refused("format mxfp4 is not supported");
    embed(4000, 0).refused("format number 4000 is not supported");
    embed(14, 0).refused("is no whole q6_k blocks");
    embed(0, 0).tensor("token_embd.weight", &[32], 0, 0).refused("states tensor token_embd.weight twice");
    embed(0, 0).tensor("other", &[32], 0, 96).refused("overlap");
    tiny().tensor("x", &[1, 1, 1, 1, 1], 0, 0).refused("tensor x: 5 dimensions");
    tiny().tensor("x", &[], 0, 0).refused("tensor x: 0 dimensions");
    tiny().tensor("x", &[0], 0, 0).refused("a dimension of 0 makes no sense");
    tiny().tensor("x", &[1 << 33, 1 << 33], 0, 0).refused("makes no sense");
    tiny().tensor("", &[1], 0, 0).refused("name is empty");
    tiny().text("general.architecture", "llama").refused("states general.architecture twice");
    tiny().key("general.alignment", 4, &0u32.to_le_bytes()).refused("general.alignment is not a power of two");
    tiny().key("general.alignment", 4, &3u32.to_le_bytes()).refused("general.alignment is not a power of two");
    tiny().key("x", 13, &[]).refused("x: a value of unknown type 13");
    tiny().key("x", 7, &[2]).refused("x: a boolean of value 2");
    tiny().key("x", 8, &u64::MAX.to_le_bytes()).refused("x: a string of 18446744073709551615 bytes");
    let list = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    tiny().key("x", 9, &list(4, u64::MAX)).refused("x: lists of more than");
    tiny().key("x", 9, &list(4, 1 << 20)).refused("runs beyond the end of the file");
    tiny().key("x", 9, &list(8, 1 << 20)).refused("runs beyond the end of the file");
    tiny().key("x", 9, &list(9, 1)).refused("x: a list of lists");
    GgufFile { key_count: 1 << 50, ..tiny() }.refused("metadata keys; at most");
    GgufFile { tensor_count: 5, ..tiny() }.refused("runs beyond the end of the file");

    let whole = tiny().bytes();
    bytes_refused(b"", "is no GGUF file");
    bytes_refused(b"GGUF", "runs beyond the end of the file");
    bytes_refused(&[b"GGML", &whole[4..]].concat(), "is no GGUF file");
    bytes_refused(&[b"GGUF\0\0\0\x03", &whole[8..]].concat(), "big-endian");
    bytes_refused(&[b"GGUF\x09\0\0\0", &whole[8..]].concat(), "version 9");
    for len in (24..whole.len() - 64).step_by(7) {
        bytes_refused(&whole[..len], "runs beyond the end of the file");
    }
}

#[test]
fn gguf_metadata_out_of_range_is_named_by_its_own_key() {
    let without = |key: &str| {
        let mut file = GgufFile::default().text("general.architecture", "llama");
        for (name, value) in [("block_count", 1u32), ("context_length", 64), ("embedding_length", 30)] {
            file = file.key(&format!("llama.{name}"), 4, &value.to_le_bytes());
        }
        file.key(key, 4, &4u32.to_le_bytes())
    };
    without("llama.attention.head_count").refused("llama.attention.head_count: 4 does not divide hidden_size, 30");
    let negative = GgufFile::default().text("general.architecture", "llama");
    negative
        .key("llama.embedding_length", 5, &(-5i32).to_le_bytes())
        .refused("llama.embedding_length: -5 is not a whole");
    GgufFile::default().text("general.architecture", "lama").refused_as_unknown();
    GgufFile::default().refused("general.architecture is missing");
    GgufFile::default().key("general.architecture", 4, &[0; 4]).refused("general.architecture is not a string");
    GgufFile::tiny()
        .tensor("rope_freqs.weight", &[4], 0, 0)
        .with_data(32)
        .refused("rope_freqs.weight: is not 8 numbers");
}

impl GgufFile {
    fn with_data(self, data: usize) -> Self {
        Self { data, ..self }
    }

    #[track_caller]
    fn refused_as_unknown(&self) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        fs::write(&path, self.bytes()).unwrap();
        let error = refusal(&path);
        assert!(error.contains("architecture lama is not known; the nearest that is: llama"), "{error}");
    }
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

#[test]
fn quantised_weights_are_kept_or_refused_never_expanded() {
    // One q8_0 tensor, which is missing its neighbours: the wished format is looked at first.
    let file = GgufFile::tiny().tensor("token_embd.weight", &[32, 8], 8, 0).with_data(34 * 8);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, file.bytes()).unwrap();
    for dtype in [WeightDtype::Bf16, WeightDtype::F16] {
        let error = refusal_as(&path, dtype);
        assert!(error.contains("is q8_0") && error.contains("use dtype auto or f32"), "{error}");
    }
    for dtype in [WeightDtype::Auto, WeightDtype::F32] {
        assert!(refusal_as(&path, dtype).contains("input_layernorm.weight: is missing"));
    }
}
