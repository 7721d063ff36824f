//! Each method against golden values of an independent implementation: its parts are written to a file and read back.

use std::collections::HashMap;
use std::fs;

use dualgauge_kernels::Format;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::*;

struct Golden(Value);

impl Golden {
    fn open(name: &str) -> Self {
        let path = format!("{}/../tests/fixtures/quant/{name}.json", env!("CARGO_MANIFEST_DIR"));
        Self(serde_json::from_str(&fs::read_to_string(path).expect("the fixture is there")).expect("JSON"))
    }

    fn bytes(&self, key: &str) -> Vec<u8> {
        hex(&self.0[key])
    }

    fn expected(&self, key: &str) -> Vec<f32> {
        floats(&self.0[key])
    }

    /// Part `name` of the tensors, stored as `suffix`.
    fn part(&self, name: &str, suffix: &'static str, dtype: Dtype) -> Stored {
        let tensor = &self.0["tensors"][name];
        let shape = tensor["shape"].as_array().expect("a shape");
        let shape = shape.iter().map(|n| n.as_u64().expect("a size") as usize).collect();
        (suffix, dtype, shape, hex(&tensor["hex"]))
    }
}

fn hex(text: &Value) -> Vec<u8> {
    let text = text.as_str().expect("hex");
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hex")).collect()
}

fn floats(values: &Value) -> Vec<f32> {
    values.as_array().expect("values").iter().map(|v| v.as_f64().expect("a number") as f32).collect()
}

type Stored = (&'static str, Dtype, Vec<usize>, Vec<u8>);

/// The tensor `w` of a file with these parts, under this configuration.
fn read(config: &Value, parts: &[Stored]) -> Result<(Vec<usize>, Format, Vec<f32>)> {
    let folder = tempfile::tempdir().expect("a folder");
    let views = parts.iter().map(|(name, dtype, shape, bytes)| {
        (format!("w{name}"), TensorView::new(*dtype, shape.clone(), bytes).expect("filled"))
    });
    let views: HashMap<_, _> = views.collect();
    fs::write(folder.path().join("model.safetensors"), safetensors::serialize(views, None).expect("serializes"))
        .expect("written");
    let keys = Keys::new("config.json", config.as_object().expect("an object").clone());
    let quantised = Quantised::new(Safetensors::open(folder.path())?, &keys)?;
    assert!(quantised.contains("w"), "found by its parts");
    let tensor = quantised.tensor("w")?.expect("found");
    Ok((tensor.shape.dims().to_vec(), tensor.format, tensor.to_f32()))
}

fn refused(config: &Value, parts: &[Stored]) -> String {
    match read(config, parts) {
        Ok(_) => panic!("is refused"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn mxfp4_is_the_golden_bit_for_bit() {
    let golden = Golden::open("mxfp4");
    let config = json!({"quant_method": "mxfp4"});
    let blocks = ("_blocks", Dtype::U8, vec![3, 2, 2, 16], golden.bytes("blocks_hex"));
    let scales = ("_scales", Dtype::U8, vec![3, 2, 2], golden.bytes("scales_hex"));
    let (shape, format, values) = read(&config, &[blocks.clone(), scales.clone()]).expect("reads");
    assert_eq!((shape, format), (vec![3, 2, 64], Format::Mxfp4));
    assert_eq!(values, golden.expected("expected_f32"));

    let missing = refused(&config, std::slice::from_ref(&blocks));
    assert!(missing.contains("model.safetensors: tensor w: w_scales is missing"), "{missing}");
    let short = ("_scales", Dtype::U8, vec![3, 4], scales.3.clone());
    let message = refused(&config, &[blocks.clone(), short]);
    assert!(message.contains("w_scales has shape [3, 4], [3, 2, 2] is wanted"), "{message}");
    let flat = ("_blocks", Dtype::U8, vec![3, 2, 32], blocks.3.clone());
    assert!(refused(&config, &[flat, scales.clone()]).contains("[3, 2, 32]"));
    let wide = ("_blocks", Dtype::I8, blocks.2.clone(), blocks.3);
    assert!(refused(&config, &[wide, scales]).contains("element type I8, [U8] is wanted"));
}

/// Ragged tiles, and rows that are no whole blocks, which become f32; one scale a row, one of the whole.
#[test]
fn fp8_is_the_golden_bit_for_bit() {
    let golden = Golden::open("fp8_e4m3");
    let block = &golden.0["block128"];
    let codes = hex(&block["hex"]);
    let weight = ("", Dtype::F8_E4M3, vec![150, 140], codes.clone());
    let scale = |suffix, shape: &[usize], values: &[f32]| -> Stored {
        (suffix, Dtype::F32, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
    };
    let tiles = floats(&block["scale_inv"]);
    let config = json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    let stored = [weight.clone(), scale("_scale_inv", &[2, 2], &tiles)];
    let (shape, format, values) = read(&config, &stored).expect("reads");
    assert_eq!((shape, format), (vec![150, 140], Format::F32));
    let samples: Vec<usize> = floats(&block["sample_index"]).iter().map(|i| *i as usize).collect();
    let held: Vec<f32> = samples.iter().map(|i| values[*i]).collect();
    assert_eq!(held, floats(&block["sample_f32"]));
    let sum: f64 = values.iter().map(|v| f64::from(*v)).sum();
    assert!((sum - block["sum_f64"].as_f64().expect("a number")).abs() < 1e-9, "{sum}");

    // The first 128 columns alone are whole blocks, with the tiles' first column of scales.
    let left: Vec<u8> = codes.chunks(140).flat_map(|row| &row[..128]).copied().collect();
    let wanted: Vec<f32> = values.chunks(140).flat_map(|row| &row[..128]).copied().collect();
    let left = ("", Dtype::F8_E4M3, vec![150, 128], left);
    let (_, format, values) =
        read(&config, &[left.clone(), scale("_scale_inv", &[2, 1], &[tiles[0], tiles[2]])]).unwrap();
    assert_eq!((format, values), (Format::Fp8G128, wanted.clone()));

    let rows: Vec<f32> = (0..150).map(|row| tiles[row / 128 * 2]).collect();
    let plain = json!({"quant_method": "fp8"});
    let (_, _, values) = read(&plain, &[left.clone(), scale("_scale", &[150, 1], &rows)]).expect("a scale a row");
    assert_eq!(values, wanted);
    let (_, _, values) = read(&plain, &[left.clone(), scale("_scale", &[], &tiles[..1])]).expect("one scale");
    assert_eq!(values[..128 * 128], wanted[..128 * 128]);

    let refused = |config: &Value, stored: &[Stored], part: &str| {
        let message = refused(config, stored);
        assert!(message.contains(part) && !message.contains('\n'), "{message}");
    };
    refused(&config, std::slice::from_ref(&left), "w_scale is missing");
    refused(&config, &[left.clone(), scale("_scale_inv", &[1, 2], &tiles[..2])], "[1, 2], [2, 1] is wanted");
    refused(&plain, &[left.clone(), scale("_scale", &[7], &[1.0; 7])], "[7], [150, 1] is wanted");
    refused(&plain, &[left.clone(), scale("_scale", &[1], &[f32::NAN])], "no finite number");
    let mut broken = left.clone();
    broken.3[128] = 0xff;
    refused(&plain, &[broken, scale("_scale", &[1], &[1.0])], "row 1 holds an 8-bit float that is not a number");
    let zero = json!({"quant_method": "fp8", "weight_block_size": [0, 128]});
    refused(&zero, std::slice::from_ref(&left), "weight_block_size: is not the rows and columns of a tile");
    refused(&json!({"quant_method": "fp8", "fmt": "e5m2"}), &[left], "\"e5m2\" is not supported");
}

#[test]
fn gptq_is_the_golden_bit_for_bit_whatever_the_order_of_its_inputs() {
    for name in ["gptq", "gptq_desc_act"] {
        let golden = Golden::open(name);
        let config = json!({"quant_method": "gptq", "bits": 4, "group_size": 32});
        let stored = [
            golden.part("qweight", ".qweight", Dtype::I32),
            golden.part("qzeros", ".qzeros", Dtype::I32),
            golden.part("scales", ".scales", Dtype::F16),
            golden.part("g_idx", ".g_idx", Dtype::I32),
        ];
        let (shape, format, values) = read(&config, &stored).expect("reads");
        assert_eq!((shape, format), (vec![16, 64], Format::Int4G32), "{name}");
        assert_eq!(values, golden.expected("expected_f32_out_in"), "{name}");

        let mut lost = stored.clone();
        lost[3].3[..4].copy_from_slice(&9i32.to_le_bytes());
        let message = refused(&config, &lost);
        assert!(message.contains("every group has 32 inputs"), "{message}");
        let mut short = stored.clone();
        short[1] = (".qzeros", Dtype::I32, vec![1, 2], vec![0; 8]);
        let message = refused(&config, &short);
        assert!(message.contains("w.qzeros has shape [1, 2], [2, 2] is wanted"), "{message}");
        let message = refused(&json!({"quant_method": "gptq", "bits": 3}), &stored);
        assert!(message.contains("bits: 3 is not supported; these are: 4, 8"), "{message}");
    }
}

#[test]
fn awq_is_the_golden_bit_for_bit() {
    let golden = Golden::open("awq");
    let config = json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"});
    let stored = [
        golden.part("qweight", ".qweight", Dtype::I32),
        golden.part("qzeros", ".qzeros", Dtype::I32),
        golden.part("scales", ".scales", Dtype::F16),
    ];
    let (shape, format, values) = read(&config, &stored).expect("reads");
    assert_eq!((shape, format), (vec![16, 64], Format::Int4G32));
    assert_eq!(values, golden.expected("expected_f32_out_in"));
    let message = refused(&json!({"quant_method": "awq", "version": "gemv"}), &stored);
    assert!(message.contains("version: \"gemv\" is not supported, only gemm is"), "{message}");
    let message = refused(&config, &[stored[0].clone(), stored[2].clone()]);
    assert!(message.contains("w.qzeros is missing"), "{message}");
}

#[test]
fn packed_int4_of_compressed_tensors_is_the_golden_bit_for_bit() {
    let golden = Golden::open("ct_int4_pack");
    let config = json!({"quant_method": "compressed-tensors", "format": "pack-quantized"});
    let scale = golden.0["tensors"]["weight_scale"]["dtype"].as_str().expect("a type") == "float32";
    let stored = [
        golden.part("weight_packed", "_packed", Dtype::I32),
        golden.part("weight_scale", "_scale", if scale { Dtype::F32 } else { Dtype::BF16 }),
        golden.part("weight_shape", "_shape", Dtype::I64),
    ];
    let (shape, format, values) = read(&config, &stored).expect("reads");
    assert_eq!((shape, format), (vec![16, 64], Format::Int4G32));
    assert_eq!(values, golden.expected("expected_f32_out_in"));
    let mut odd = stored.clone();
    odd[2].3[8..].copy_from_slice(&(-64i64).to_le_bytes());
    assert!(refused(&config, &odd).contains("_shape makes no sense"));
    odd[2].3[8..].copy_from_slice(&65i64.to_le_bytes());
    assert!(refused(&config, &odd).contains("8 words a row do not hold 65 values of 4 or 8 bits"));
    let message = refused(&json!({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}), &stored);
    assert!(message.contains("format: \"nvfp4-pack-quantized\" is not supported"), "{message}");
}
