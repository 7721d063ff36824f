//! GGUF files that are broken, and how those that are whole keep their blocks.

use std::fs;

use dualgauge_models::WeightDtype;

use super::{refusal, refusal_as, refused};

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
    embed(9, 0).refused("tensor token_embd.weight: format q8_1 is not supported; these are: f32, f16");
    embed(16, 0).refused("format iq2_xxs is not supported");
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

/// A file with every kind of thing in its header, over 1024 bytes of data.
pub(super) fn sample() -> Vec<u8> {
    let names = ["a", "b", "c"].iter().flat_map(|name| string(name)).collect::<Vec<u8>>();
    let list = [&8u32.to_le_bytes()[..], &3u64.to_le_bytes(), &names].concat();
    let file = GgufFile::tiny().key("tokenizer.ggml.tokens", 9, &list).key("general.flag", 7, &[1]);
    file.tensor("token_embd.weight", &[32, 8], 0, 0).with_data(1024).bytes()
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
