//! Owns the bound on how much a tokenizer's normaliser may grow a text: nested replacements in a hostile file would turn
//! a page into gigabytes. It knows the shape of the `normalizer` in `tokenizer.json` and nothing else.

use serde_json::Value;

/// Unicode normalisation grows a text up to 18 times, real files a few times more.
const MAX_GROWTH: u64 = 1024;

/// Refuses a normaliser that could grow text by more than `MAX_GROWTH`. The error is the reason alone.
pub(super) fn check(normalizer: &Value) -> Result<(), String> {
    let growth = growth(normalizer);
    if growth > MAX_GROWTH {
        return Err(format!("its normalizer can grow a text {growth} times, over the limit of {MAX_GROWTH}"));
    }
    Ok(())
}

/// Most bytes out for one byte in.
fn growth(step: &Value) -> u64 {
    match step.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            let steps = step.get("normalizers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            steps.iter().map(growth).fold(1, u64::saturating_mul)
        }
        Some("Replace") => {
            let content = bytes(step.get("content"));
            match step.pointer("/pattern/String") {
                // `aa` to `b` never grows, `a` to `bbb` grows three times, an empty pattern matches at every place.
                Some(pattern) if bytes(Some(pattern)) > 0 => content.div_ceil(bytes(Some(pattern))).max(1),
                _ => content.saturating_add(1),
            }
        }
        // Added once to each piece between added tokens: pieces are at least one byte long.
        Some("Prepend") => bytes(step.get("prepend")).saturating_add(1),
        Some("NFKC" | "NFKD" | "Precompiled") => 18,
        Some("NFC" | "NFD") => 4,
        Some("BertNormalizer" | "Nmt" | "Lowercase" | "ByteLevel") => 4,
        _ => 1,
    }
}

fn bytes(text: Option<&Value>) -> u64 {
    text.and_then(Value::as_str).map_or(0, |text| text.len() as u64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nested_replacements_are_refused() {
        let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        let steps = |count: usize| json!({"type": "Sequence", "normalizers": vec![double.clone(); count]});
        assert!(check(&steps(10)).is_ok());
        assert!(check(&steps(11)).expect_err("2048 times").contains("2048"));
        assert!(check(&steps(200)).is_err());
    }

    #[test]
    fn real_normalizers_pass() {
        let llama = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
        assert!(check(&llama).is_ok());
        assert!(check(&Value::Null).is_ok());
    }
}
