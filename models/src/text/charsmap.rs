//! Owns the check of a `precompiled_charsmap`, SentencePiece's table of character replacements: the library that uses it
//! trusts every number in it. It knows the layout of that table: a length, a double-array trie, the replacements.

use serde_json::Value;

/// Refuses a table, anywhere in `step`, in which a look-up could leave the table. The error is the reason alone.
pub(super) fn check(step: &Value) -> Result<(), String> {
    match step {
        Value::Array(items) => items.iter().try_for_each(check),
        Value::Object(fields) => fields
            .iter()
            .try_for_each(|(key, value)| if key == "precompiled_charsmap" { check_table(value) } else { check(value) }),
        _ => Ok(()),
    }
}

fn check_table(value: &Value) -> Result<(), String> {
    let broken = || "its precompiled_charsmap is broken".to_owned();
    let bytes = value.as_str().and_then(base64).ok_or_else(broken)?;
    let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(broken)?;
    let size = u32::from_le_bytes(*size) as usize;
    if !size.is_multiple_of(4) || size > rest.len() {
        return Err(broken());
    }
    let (trie, replacements) = rest.split_at(size);
    let units: Vec<usize> =
        trie.chunks_exact(4).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]) as usize).collect();
    let replacements = std::str::from_utf8(replacements).map_err(|_| broken())?;
    if walk(&units, replacements).is_none() { Err(broken()) } else { Ok(()) }
}

/// Follows every path of the trie; `None` when one leads out of it or to no character's border.
fn walk(units: &[usize], replacements: &str) -> Option<()> {
    let mut seen = vec![false; units.len()];
    let mut open = vec![offset(*units.first()?)];
    while let Some(node) = open.pop() {
        if std::mem::replace(seen.get_mut(node)?, true) {
            continue;
        }
        for byte in 1..=255 {
            let place = node ^ byte;
            let unit = *units.get(place)?;
            // The label, and the bit that marks a value, which no inner node has.
            if unit & (1 << 31 | 0xff) != byte {
                continue;
            }
            let next = place ^ offset(unit);
            if unit >> 8 & 1 == 1 && !replacements.is_char_boundary(units.get(next)? & !(1 << 31)) {
                return None;
            }
            open.push(next);
        }
    }
    Some(())
}

fn offset(unit: usize) -> usize {
    (unit >> 10) << ((unit & 1 << 9) >> 6)
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').as_bytes();
    let mut out = Vec::with_capacity(digits.len() / 4 * 3 + 3);
    let (mut bits, mut count) = (0u32, 0);
    for digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 & 0x3f_ffff | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count & 0xff) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A trie that replaces `a` by the text at `value`.
    fn units(value: usize) -> Vec<usize> {
        let mut units = vec![0; 256];
        // The root's children lie at 0 ^ byte; the leaf of `a` lies at 0x61 ^ 1.
        units[0] = 0;
        units[0x61] = 1 << 10 | 1 << 8 | 0x61;
        units[0x60] = 1 << 31 | value;
        units
    }

    #[test]
    fn only_tables_without_a_way_out_pass() {
        assert_eq!(walk(&units(0), "é\0"), Some(()));
        assert_eq!(walk(&units(3), "é\0"), Some(()));
        assert_eq!(walk(&units(1), "é\0"), None, "inside a character");
        assert_eq!(walk(&units(4), "é\0"), None, "beyond the text");
        assert_eq!(walk(&units(0)[..0x61], "é\0"), None, "a node beyond the array");
        assert_eq!(walk(&[299 << 10; 300], "é\0"), None, "children beyond the array");
    }

    #[test]
    fn lengths_are_checked_before_anything_is_made() {
        let table = |text: &str| check(&json!({"type": "Sequence", "normalizers": [{"precompiled_charsmap": text}]}));
        // 0xffffffff bytes of trie; a length of 1; no length.
        for text in ["/////w==", "AQAAAAA=", "AAA=", "!"] {
            assert!(table(text).is_err(), "{text}");
        }
        assert_eq!(base64("AQID/w=="), Some(vec![1, 2, 3, 255]));
        assert_eq!(base64("+/8="), Some(vec![0xfb, 0xff]));
    }
}
