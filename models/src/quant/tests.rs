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
        let hex = self.0[key].as_str().expect("hex");
        (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex")).collect()
    }

    fn expected(&self) -> Vec<f32> {
        let values = self.0["expected_f32"].as_array().expect("values");
        values.iter().map(|v| v.as_f64().expect("a number") as f32).collect()
    }
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
    assert_eq!(values, golden.expected());

    let missing = refused(&config, std::slice::from_ref(&blocks));
    assert!(missing.contains("model.safetensors: tensor w: _scales is missing"), "{missing}");
    let short = ("_scales", Dtype::U8, vec![3, 4], scales.3.clone());
    let message = refused(&config, &[blocks.clone(), short]);
    assert!(message.contains("_scales has shape [3, 4], that of _blocks wants [3, 2, 2]"), "{message}");
    let flat = ("_blocks", Dtype::U8, vec![3, 2, 32], blocks.3.clone());
    assert!(refused(&config, &[flat, scales.clone()]).contains("[3, 2, 32]"));
    let wide = ("_blocks", Dtype::I8, blocks.2.clone(), blocks.3);
    assert!(refused(&config, &[wide, scales]).contains("element type I8, U8 is wanted"));
}
