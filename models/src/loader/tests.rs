//! What reaches the device: the numbers of rows taken out of a matrix, and the format that a tensor is asked in.

use std::collections::HashMap;
use std::fs;

use dualgauge_kernels::{
    Batch, BatchShape, DeviceInfo, KvSpec, Limits, NullOptions, Output, Probe, Program, ProgramId, Ticket, Value,
    WeightId, null_with,
};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use super::*;
use crate::config::Keys;

/// A device that keeps the numbers it is given.
struct Keeper {
    null: Box<dyn Backend>,
    kept: Vec<Vec<f32>>,
}

impl Keeper {
    fn new() -> Self {
        Self { null: null_with(NullOptions::default()), kept: vec![] }
    }
}

type Done<T> = dualgauge_kernels::Result<T>;

impl Backend for Keeper {
    fn info(&self) -> &DeviceInfo {
        self.null.info()
    }

    fn limits(&self) -> &Limits {
        self.null.limits()
    }

    fn accepts(&self, _tensor: &HostTensor<'_>) -> bool {
        true
    }

    fn upload(&mut self, tensor: HostTensor<'_>, format: Format) -> Done<Weight> {
        self.kept.push(tensor.to_f32());
        Ok(Weight { id: WeightId(self.kept.len() as u32), shape: tensor.shape, format })
    }

    fn round_up(&self, _want: BatchShape) -> Option<BatchShape> {
        unreachable!("nothing runs")
    }

    fn kv_budget(&self, _largest: &Program) -> u64 {
        unreachable!("nothing runs")
    }

    fn reserve_kv(&mut self, _spec: &KvSpec, _blocks: usize) -> Done<()> {
        unreachable!("nothing runs")
    }

    fn compile(&mut self, _program: &Program) -> Done<ProgramId> {
        unreachable!("nothing runs")
    }

    fn release(&mut self, _program: ProgramId) {
        unreachable!("nothing runs")
    }

    fn launch(&mut self, _program: ProgramId, _batch: &Batch) -> Done<Ticket> {
        unreachable!("nothing runs")
    }

    fn wait(&mut self, _ticket: Ticket) -> Done<Output> {
        unreachable!("nothing runs")
    }

    fn probe(&mut self, _program: ProgramId, _value: Value) -> Done<Probe> {
        unreachable!("nothing runs")
    }
}

/// A matrix `w` of `[16, 64]` in int4, whose inputs stand in an order of their own, and its numbers.
fn reordered() -> (Weights, Vec<f32>) {
    let path = format!("{}/../tests/fixtures/quant/gptq_desc_act.json", env!("CARGO_MANIFEST_DIR"));
    let golden: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).expect("there")).expect("JSON");
    let parts = [("qweight", Dtype::I32), ("qzeros", Dtype::I32), ("scales", Dtype::F16), ("g_idx", Dtype::I32)];
    let parts = parts.map(|(name, dtype)| {
        let (shape, text) = (&golden["tensors"][name]["shape"], golden["tensors"][name]["hex"].as_str().expect("hex"));
        let shape: Vec<usize> = shape.as_array().expect("sizes").iter().map(|n| n.as_u64().unwrap() as usize).collect();
        let bytes = (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hex"));
        (format!("w.{name}"), dtype, shape, bytes.collect::<Vec<_>>())
    });
    let views = parts.iter().map(|(name, dtype, shape, bytes)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).expect("filled"))
    });
    let views: HashMap<_, _> = views.collect();
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).expect("serializes"))
        .expect("written");
    let config = json!({"quant_method": "gptq", "bits": 4, "group_size": 32});
    let keys = Keys::new("config.json", config.as_object().expect("an object").clone());
    let files = Safetensors::open(folder.path()).expect("opens");
    let values = golden["expected_f32_out_in"].as_array().expect("values").iter();
    let values = values.map(|v| v.as_f64().expect("a number") as f32).collect();
    (Weights::Quantised(Quantised::new(files, &keys).expect("a method")), values)
}

#[test]
fn rows_of_a_matrix_keep_the_order_of_its_inputs() {
    let (weights, expected) = reordered();
    let mut device = Keeper::new();
    let mut ignored = |_, _| {};
    let mut loader = Loader::new(&weights, &mut device, WeightDtype::Auto, &mut ignored);
    let weight = loader.matrix_of_rows("w", 16, 64, &[8..16, 2..4]).expect("loads");
    assert_eq!((weight.shape.dims(), weight.format), (&[10, 64][..], Format::Int4G32));
    assert_eq!(device.kept, [[&expected[8 * 64..], &expected[2 * 64..4 * 64]].concat()]);
}

/// Two heads of eight rows: their first three, and the rest.
#[test]
fn heads_of_blocks_are_exact_in_f32_and_count_as_read() {
    let (weights, expected) = reordered();
    for (dtype, format) in [(WeightDtype::F32, Format::F32), (WeightDtype::Auto, Format::Bf16)] {
        let (mut device, mut done) = (Keeper::new(), 0);
        let mut progress = |bytes, _| done = bytes;
        let mut loader = Loader::new(&weights, &mut device, dtype, &mut progress);
        for rows in [0..3, 3..8] {
            let weight = loader.heads("w", [2, 8, 64], rows.clone(), false).expect("loads");
            assert_eq!((weight.shape.dims(), weight.format), (&[2, rows.len(), 64][..], format));
        }
        assert_eq!(done as usize, Format::Int4G32.bytes(16 * 64).unwrap(), "as much as the matrix has");
        if dtype == WeightDtype::F32 {
            let rows = |head: usize, rows: Range<usize>| &expected[(head * 8 + rows.start) * 64..][..rows.len() * 64];
            assert_eq!(device.kept[0], [rows(0, 0..3), rows(1, 0..3)].concat());
            assert_eq!(device.kept[1], [rows(0, 3..8), rows(1, 3..8)].concat());
        }
    }
}

/// Four matrices `[2, 32]` of bf16 zeros, under the names of llama.cpp's converter.
fn gguf() -> Weights {
    let names =
        ["token_embd.weight", "blk.0.ffn_gate_inp.weight", "blk.0.ffn_gate_inp_shexp.weight", "blk.0.ffn_gate.weight"];
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let mut bytes = [b"GGUF", &3u32.to_le_bytes()[..], &4u64.to_le_bytes(), &1u64.to_le_bytes()].concat();
    bytes.extend([text("general.architecture"), 8u32.to_le_bytes().to_vec(), text("qwen2moe")].concat());
    for (name, offset) in names.iter().zip((0u64..).step_by(128)) {
        bytes.extend([text(name), 2u32.to_le_bytes().to_vec()].concat());
        bytes.extend([32u64.to_le_bytes(), 2u64.to_le_bytes()].concat());
        bytes.extend([&30u32.to_le_bytes()[..], &offset.to_le_bytes()].concat());
    }
    bytes.resize(bytes.len().next_multiple_of(32) + 4 * 128, 0);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).expect("written");
    Weights::Gguf(Gguf::open(&path).expect("opens"))
}

#[test]
fn what_is_quantised_does_not_hang_on_the_names_of_a_file() {
    let weights = gguf();
    let mut device = Keeper::new();
    let mut ignored = |_, _| {};
    let mut loader = Loader::new(&weights, &mut device, WeightDtype::Q4, &mut ignored);
    let expected = [
        ("model.embed_tokens.weight", Format::Q8_0),
        ("model.layers.0.mlp.gate.weight", Format::Bf16),
        ("model.layers.0.mlp.shared_expert_gate.weight", Format::Bf16),
        ("model.layers.0.mlp.gate_proj.weight", Format::Q4_0),
    ];
    for (name, format) in expected {
        assert_eq!(loader.matrix(name, 2, 32).expect("loads").format, format, "{name}");
    }
}
