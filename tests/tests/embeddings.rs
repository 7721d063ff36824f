//! Embedding models and the scorer of pairs that lie beside the repository, with the outputs of the transformers library:
//! every vector, on the reference and on every path of the CPU.

use std::fs;
use std::path::{Path, PathBuf};

use dualgauge::Embedder;
use dualgauge_kernels::DeviceKind;
use dualgauge_models::{Checkpoint, WeightDtype};
use dualgauge_tests::{TestDevice, each_device};
use serde_json::Value;

const SHARED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures/embed");

fn open(folder: &Path, device: &TestDevice) -> Embedder {
    let mut backend = device.open();
    let (checkpoint, pooling) = Checkpoint::open_encoder(folder).unwrap_or_else(|e| panic!("{e}"));
    let model = checkpoint.load(backend.as_mut(), WeightDtype::Auto, &mut |_, _| {}).unwrap_or_else(|e| panic!("{e}"));
    Embedder::new(backend, model, pooling).unwrap_or_else(|e| panic!("{e}"))
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn close(what: &str, held: &[f32], wanted: &[f32]) {
    assert_eq!(held.len(), wanted.len(), "{what}");
    let off = held.iter().zip(wanted).map(|(h, w)| (h - w).abs()).fold(0.0, f32::max);
    assert!(off <= 1e-4, "{what}: off by {off:e}");
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let cosine = dot(held, wanted) / (dot(held, held) * dot(wanted, wanted)).sqrt();
    assert!(cosine > 0.99999, "{what}: cosine {cosine}");
}

fn reproduces(folder: &Path, device: &TestDevice) {
    let expected: Value = serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let mut embedder = open(folder, device);
    for (i, case) in expected["cases"].as_array().unwrap().iter().enumerate() {
        let what = format!("{} on {}, text {i}", folder.file_name().unwrap().to_string_lossy(), device.name);
        let ids: Vec<u32> = numbers(&case["ids"]).into_iter().map(|id| id as u32).collect();
        if case["logits"].is_array() {
            let second = numbers(&case["type_ids"]).iter().position(|t| *t > 0.0).unwrap_or(ids.len());
            let held = embedder.score(&ids, second).unwrap();
            let wanted = numbers(&case["logits"])[0];
            assert!((held - wanted).abs() <= 1e-4, "{what}: {held} for {wanted}");
        } else {
            let held = embedder.embed(&ids).unwrap();
            close(&what, &held, &numbers(&case["embedding"]));
            // A text leaves nothing behind.
            assert_eq!(embedder.embed(&ids).unwrap(), held, "{what}: the second time");
        }
    }
}

fn folders() -> Vec<PathBuf> {
    match fs::read_dir(SHARED) {
        Ok(entries) => entries.map(|e| e.unwrap().path()).filter(|f| f.join("expected.json").exists()).collect(),
        Err(_) => {
            eprintln!("skipped the embedding models beside the repository: there are none");
            vec![]
        }
    }
}

#[test]
fn embeddings_and_scores_are_reproduced() {
    each_device!("embeddings", |device| {
        if !matches!(device.spec.kind, DeviceKind::Reference | DeviceKind::Cpu) {
            eprintln!("skipped embeddings on {}: it lacks attention to keys ahead", device.name);
        } else if device.is_exact() {
            folders().iter().for_each(|folder| reproduces(folder, device));
        }
    });
}

#[test]
fn texts_that_cannot_be_computed_are_refused() {
    let Some(folder) = folders().into_iter().find(|f| f.ends_with("bert_embed")) else { return };
    let mut embedder = open(&folder, &TestDevice::reference());
    let refused = |embedder: &mut Embedder, ids: &[u32]| embedder.embed(ids).unwrap_err().to_string();
    assert!(refused(&mut embedder, &[]).contains("a text of 0 tokens: 1 to 256"));
    assert!(refused(&mut embedder, &[1; 257]).contains("a text of 257 tokens"));
    assert!(refused(&mut embedder, &[384]).contains("token 384 does not exist: the vocabulary has 384"));
    let error = Checkpoint::open(&folder).err().unwrap().to_string();
    assert!(error.contains("BertModel"), "{error}");
}
