//! Wrapped checkpoints, as models that also see are released: the text model inside is loaded, and what is left out is said.

use std::fs;
use std::path::Path;

use dualgauge_models::Checkpoint;
use dualgauge_tests::TestDevice;
use dualgauge_tests::driver::Driver;
use serde_json::{Map, Value, json};

const LLAMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/families/llama");
const SHARED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures/families");

/// The checkpoint in `folder` with another name for each tensor, and a tensor that is none of the text model's.
fn wrapped(folder: &Path, architecture: &str, rename: impl Fn(&str) -> String) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (header, data) = bytes[8..].split_at(header);
    let header: Map<String, Value> = serde_json::from_slice(header).unwrap();
    let mut renamed: Map<String, Value> = header
        .into_iter()
        .filter(|(name, _)| name != "__metadata__")
        .map(|(name, info)| (rename(&name), info))
        .collect();
    let end = data.len();
    renamed.insert("vision_tower.weight".into(), json!({"dtype": "F32", "shape": [2], "data_offsets": [end, end + 8]}));
    let mut header = serde_json::to_vec(&renamed).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, data, &[0; 8]].concat();
    fs::write(place.path().join("model.safetensors"), file).unwrap();
    let mut text: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    text.as_object_mut().unwrap().remove("architectures");
    let eos = text.as_object_mut().unwrap().remove("eos_token_id");
    let whole = json!({
        "architectures": [architecture], "model_type": "wrapper", "eos_token_id": eos, "text_config": text,
        "vision_config": {"hidden_size": 8},
    });
    fs::write(place.path().join("config.json"), whole.to_string()).unwrap();
    place
}

fn same(folder: &Path, architecture: &str, rename: impl Fn(&str) -> String) {
    let place = wrapped(folder, architecture, rename);
    let (inner, outer) = (Checkpoint::open(folder).unwrap(), Checkpoint::open(place.path()).unwrap());
    assert_eq!((inner.family(), &inner.config.eos), (outer.family(), &outer.config.eos));
    assert_eq!((inner.left_out(), outer.left_out()), (&[][..], &["vision"][..]));
    let device = TestDevice::cpus().into_iter().find(TestDevice::is_exact).expect("every machine has a CPU");
    let prompt: Vec<u32> = (0..20).map(|i| 8 + i * i % 370).collect();
    let logits =
        |path: &Path| Driver::load(&device, path, 64).greedy(&[&prompt], 3, usize::MAX, None)[0].logits.clone();
    assert_eq!(logits(folder), logits(place.path()), "{architecture}");
}

#[test]
fn the_text_model_inside_is_loaded() {
    let llama = Path::new(LLAMA);
    same(llama, "LlavaForConditionalGeneration", |name| format!("language_model.{name}"));
    same(llama, "LlamaForCausalLM", |name| match name.strip_prefix("model.") {
        Some(rest) => format!("model.language_model.{rest}"),
        None => name.into(),
    });
    for (fixture, architecture) in
        [("gemma3_text", "Gemma3ForConditionalGeneration"), ("gemma4_text", "Gemma4ForConditionalGeneration")]
    {
        let folder = Path::new(SHARED).join(fixture);
        match folder.is_dir() {
            true => same(&folder, architecture, |name| format!("language_model.{name}")),
            false => eprintln!("skipped {fixture}: it is not beside the repository"),
        }
    }
}

#[test]
fn an_unknown_wrapper_of_an_unknown_text_model_is_refused() {
    let place = wrapped(Path::new(LLAMA), "LlavaForConditionalGeneration", |name| format!("language_model.{name}"));
    let path = place.path().join("config.json");
    let config = fs::read_to_string(&path).unwrap().replace("\"model_type\":\"llama\"", "\"model_type\":\"lama\"");
    fs::write(&path, config).unwrap();
    let error = Checkpoint::open(place.path()).err().expect("is refused").to_string();
    assert!(error.contains("LlavaForConditionalGeneration is not known"), "{error}");
}
