//! Models that rotate long sequences by other frequencies (LongRoPE): what a sequence gets depends on its own length alone,
//! also when it grows long while it is generated, and whatever the prefix cache holds.

use std::fs;
use std::path::Path;

use dualgauge::{Engine, EngineConfig, Event, Request, Sampling};
use dualgauge_models::{Checkpoint, WeightDtype};
use dualgauge_tests::devices::TestDevice;
use serde_json::{Value, json};

/// Tokens of the longest sequence that is no long one.
const BORDER: usize = 40;

/// The Llama fixture, its context stretched from [`BORDER`] tokens.
fn stretched() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/families/llama"));
    for entry in fs::read_dir(fixture).unwrap().map(|e| e.unwrap()) {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["original_max_position_embeddings"] = json!(BORDER);
    config["rope_scaling"] = json!({
        "type": "longrope", "short_factor": vec![1.0; 8], "long_factor": [1.0, 1.3, 1.7, 2.2, 3.0, 5.0, 8.0, 13.0],
    });
    fs::write(path, config.to_string()).unwrap();
    folder
}

fn start(folder: &Path, config: EngineConfig) -> Engine {
    let device = TestDevice::cpus().into_iter().find(TestDevice::is_exact).expect("every machine has a CPU");
    let mut backend = device.open();
    let checkpoint = Checkpoint::open(folder).unwrap();
    let model = checkpoint.load(backend.as_mut(), WeightDtype::Auto, &mut |_, _| {}).unwrap();
    Engine::start(backend, model, config).unwrap()
}

fn greedy(engine: &Engine, prompt: &[u32], count: usize) -> Vec<u32> {
    let sampling = Sampling { max_tokens: Some(count), ignore_eos: true, temperature: 0.0, ..Sampling::default() };
    let mut events = engine.submit(Request::new(prompt.to_vec(), sampling)).unwrap();
    let mut tokens = vec![];
    while let Some(event) = events.next_blocking() {
        match event {
            Event::Token(token) => tokens.push(token.id),
            Event::Failed { message } => panic!("{message}"),
            Event::Prompt(_) | Event::Finished { .. } => {}
        }
    }
    tokens
}

#[test]
fn a_sequence_that_grows_long_is_what_it_would_be_had_it_been_long_from_the_start() {
    let folder = stretched();
    let prompt: Vec<u32> = (0..30).map(|i| 8 + (i * i * 7 + i) % 370).collect();
    // Each token from nothing: all that is known is one prompt, and nothing is cached.
    let fresh = EngineConfig { prefix_caching: false, ..EngineConfig::default() };
    let fresh = start(folder.path(), fresh);
    let mut known = prompt.clone();
    for _ in 0..24 {
        known.extend(greedy(&fresh, &known, 1));
    }
    let wanted = &known[prompt.len()..];
    let engine = start(folder.path(), EngineConfig::default());
    assert_eq!(greedy(&engine, &prompt, 24), wanted, "grown");
    assert_eq!(greedy(&engine, &prompt, 24), wanted, "again, from the cache");
    // The cache holds the first tokens of a short sequence, and of a long one.
    let long: Vec<u32> = prompt.iter().copied().chain((0..30).map(|i| 8 + (i * 11) % 370)).collect();
    assert_eq!(greedy(&engine, &long, 8), greedy(&fresh, &long, 8), "a long prompt that begins as the short one");
    assert_eq!(greedy(&engine, &prompt, 8), wanted[..8], "a short one after the long one");
    // Were there no second set of frequencies, this test would say nothing.
    let other =
        start(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/families/llama")), EngineConfig::default());
    assert_ne!(greedy(&other, &prompt, 24), wanted, "frequencies make a difference");
}
