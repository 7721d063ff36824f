//! Owns the sampling that a model recommends for itself in `generation_config.json`. What it leaves out, or states out of
//! range, is OpenAI's default.

use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::app::Defaults;

const FILE: &str = "generation_config.json";
const MOST_BYTES: u64 = 1 << 20;

/// The recommendations in a model folder and the sentence that names them; none without the file.
pub fn recommended(model: &Path) -> (Defaults, Option<String>) {
    let mut defaults = Defaults::default();
    let Some(config) = read(&model.join(FILE)) else { return (defaults, None) };
    // `do_sample: false` is what libraries write by default, not advice: servers disregard it.
    let number = |key: &str, low: f64, high: f64| {
        config.get(key).and_then(Value::as_f64).filter(|v| (low..=high).contains(v)).map(|v| v as f32)
    };
    let mut said = vec![];
    let mut set = |key: &str, slot: &mut f32, low, high| {
        if let Some(value) = number(key, low, high) {
            *slot = value;
            said.push(format!("{key} {value}"));
        }
    };
    set("temperature", &mut defaults.temperature, 0.0, 2.0);
    set("top_p", &mut defaults.top_p, 0.0, 1.0);
    set("min_p", &mut defaults.min_p, 0.0, 1.0);
    set("repetition_penalty", &mut defaults.repetition_penalty, 0.01, 100.0);
    if let Some(k) = config.get("top_k").and_then(Value::as_u64).filter(|k| *k <= 1 << 20) {
        defaults.top_k = k as usize;
        said.push(format!("top_k {k}"));
    }
    (defaults, Some(said.join(", ")).filter(|s| !s.is_empty()))
}

fn read(path: &Path) -> Option<Value> {
    let file = std::fs::File::open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = vec![];
    file.take(MOST_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Defaults {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(FILE), json).expect("a file");
        recommended(folder.path()).0
    }

    #[test]
    fn recommendations_are_taken() {
        let defaults = of(r#"{"temperature": 0.6, "top_p": 0.9, "top_k": 20, "do_sample": true}"#);
        assert_eq!((defaults.temperature, defaults.top_p, defaults.top_k), (0.6, 0.9, 20));
        assert_eq!(defaults.min_p, 0.0);
    }

    #[test]
    fn nonsense_is_not() {
        for json in ["", "[]", "{", r#"{"temperature": "hot", "top_p": -3, "top_k": -1, "repetition_penalty": 1e300}"#]
        {
            assert_eq!(of(json), Defaults::default(), "{json}");
        }
    }
}
