//! Goldens of a real model, SmolLM2 135M Instruct, computed by the transformers library in f32. Its files are too large
//! to keep: the folder that holds them is named by the environment variable DUALGAUGE_TEST_MODELS. In it,
//! `SmolLM2-135M-Instruct/` is the folder that was measured and `smollm2-135m-bf16.gguf` the same numbers; the q4_1 file
//! is what both were made from, before they were rounded to bf16.

use std::path::{Path, PathBuf};

use dualgauge_kernels::Precision;
use dualgauge_tests::devices::TestDevice;
use dualgauge_tests::driver::Driver;
use serde_json::Value;

const GOLDEN: &str = include_str!("../fixtures/real/SmolLM2-135M-Instruct.json");

/// The model's file or folder, or `None` after saying that it is skipped.
fn model(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("DUALGAUGE_TEST_MODELS").map(PathBuf::from);
    let path = folder.map(|folder| folder.join(name)).filter(|path| path.exists());
    if path.is_none() {
        eprintln!("skipped {name}: DUALGAUGE_TEST_MODELS names no folder that has it");
    }
    path
}

/// The fastest CPU path, exact.
fn device() -> TestDevice {
    TestDevice::cpus().into_iter().find(|d| d.spec.precision == Precision::Exact).expect("the CPU is always there")
}

/// Compares log-probabilities of the five best at each step, and tokens up to the first step whose two best are closer
/// than `gap`. Returns the largest difference.
fn compare(path: &Path, prompts: std::ops::Range<usize>, allowed: f32, gap: f32) -> f32 {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let ids = |v: &Value| v.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect::<Vec<u32>>();
    let golden: Vec<&Value> = golden["prompts"].as_array().unwrap()[prompts].iter().collect();
    let inputs: Vec<Vec<u32>> = golden.iter().map(|p| ids(&p["ids"])).collect();
    let greedy: Vec<Vec<u32>> = golden.iter().map(|p| ids(&p["greedy_ids"])).collect();
    let mut driver = Driver::load(&device(), path, 256);
    let inputs: Vec<&[u32]> = inputs.iter().map(Vec::as_slice).collect();
    let forced: Vec<&[u32]> = greedy.iter().map(Vec::as_slice).collect();
    let held = driver.greedy(&inputs, forced[0].len(), 128, Some(&forced));
    let mut worst = 0f32;
    for (p, held) in golden.iter().zip(&held) {
        let (name, top5) = (&p["name"], p["top5"].as_array().unwrap());
        let mut sure = true;
        for (step, top5) in top5.iter().enumerate() {
            let wanted: Vec<(usize, f32)> = top5
                .as_array()
                .unwrap()
                .iter()
                .map(|pair| (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap() as f32))
                .collect();
            for (id, wanted) in &wanted {
                let held = held.logits[step][*id] - held.log_sum_exp[step];
                worst = worst.max((held - wanted).abs());
                assert!((held - wanted).abs() <= allowed, "{name}, step {step}, token {id}: {held}, not {wanted}");
            }
            sure &= wanted[0].1 - wanted[1].1 >= gap;
            assert!(!sure || held.ids[step] as usize == wanted[0].0, "{name}, step {step}: greedy token");
        }
    }
    worst
}

#[test]
fn safetensors_reproduce_the_library() {
    if let Some(path) = model("SmolLM2-135M-Instruct") {
        let worst = compare(&path, 0..12, 2e-3, 1e-3);
        println!("safetensors: log-probabilities are off by at most {worst:e}");
    }
}

#[test]
fn the_same_numbers_in_gguf_reproduce_the_library() {
    if let Some(path) = model("smollm2-135m-bf16.gguf") {
        let worst = compare(&path, 0..12, 2e-3, 1e-3);
        println!("GGUF, bf16: log-probabilities are off by at most {worst:e}");
    }
}

#[test]
fn the_quantised_file_is_as_close_as_its_rounding() {
    if let Some(path) = model("smollm2-135m-Q4_1.gguf") {
        let worst = compare(&path, 0..12, 0.2, 0.2);
        println!("GGUF, q4_1: log-probabilities are off by at most {worst:e}");
    }
}
