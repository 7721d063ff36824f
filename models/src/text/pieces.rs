//! Owns the raw bytes of every token and the rule that joins them into text. It knows no encoding and no requests.
//! Decoding is concatenation of bytes, so that a stream and a whole decode cannot differ.

use serde_json::Value;

use super::bytes::byte_of;
use crate::{Error, Result};

/// Bytes of all tokens in one buffer, with what happens where a text begins.
#[derive(Debug)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// End of each token in `bytes`; a token begins where the one before it ends.
    ends: Vec<u32>,
    special: Vec<bool>,
    /// The decoder drops one space at the very start of a text.
    strips_first_space: bool,
    longest: usize,
}

/// How the tokenizer writes a token, read from the `decoder` of `tokenizer.json`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Spelling {
    /// Each character stands for a byte, as in GPT-2.
    ByteLevel,
    /// `▁` is a space, `<0x0A>` a byte, as in SentencePiece.
    SentencePiece { strips_first_space: bool, bytes: bool },
    /// Words with spaces between, `##` continues a word, as in BERT.
    WordPiece,
}

impl Spelling {
    /// Reads the tokenizer's decoder. Errors: a decoder that is not one of the known three kinds.
    pub(super) fn of(decoder: &Value) -> Result<Self, String> {
        match decoder.get("type").and_then(Value::as_str) {
            Some("ByteLevel") => Ok(Self::ByteLevel),
            Some("WordPiece") => Ok(Self::WordPiece),
            Some("Metaspace") => {
                let prefix = decoder.get("prepend_scheme").and_then(Value::as_str).map(|scheme| scheme != "never");
                let prefix = prefix.or(decoder.get("add_prefix_space").and_then(Value::as_bool));
                Ok(Self::SentencePiece { strips_first_space: prefix.unwrap_or(true), bytes: false })
            }
            Some("Sequence") => Self::of_sequence(decoder),
            Some(other) => Err(format!("the decoder {other:?} is not supported")),
            None => Err("there is no decoder".to_owned()),
        }
    }

    fn of_sequence(decoder: &Value) -> Result<Self, String> {
        let steps = decoder.get("decoders").and_then(Value::as_array).ok_or("decoder: decoders must be a list")?;
        let (mut spaces, mut bytes, mut strips, mut inner) = (false, false, false, None);
        for step in steps {
            match step.get("type").and_then(Value::as_str) {
                Some("Replace")
                    if step.pointer("/pattern/String").and_then(Value::as_str) == Some("▁")
                        && step.get("content").and_then(Value::as_str) == Some(" ") =>
                {
                    spaces = true;
                }
                Some("ByteFallback") => bytes = true,
                Some("Fuse") => {}
                Some("Strip") => {
                    strips = step.get("content").and_then(Value::as_str) == Some(" ")
                        && step.get("start").and_then(Value::as_u64) == Some(1)
                        && step.get("stop").and_then(Value::as_u64) == Some(0);
                    if !strips {
                        return Err("this Strip decoder is not supported".to_owned());
                    }
                }
                Some("ByteLevel" | "Metaspace" | "WordPiece") => inner = Some(Self::of(step)?),
                other => return Err(format!("the decoder step {:?} is not supported", other.unwrap_or("?"))),
            }
        }
        match inner {
            Some(Self::SentencePiece { strips_first_space, .. }) => {
                Ok(Self::SentencePiece { strips_first_space: strips_first_space || strips, bytes })
            }
            Some(inner) => Ok(inner),
            None if spaces || bytes => Ok(Self::SentencePiece { strips_first_space: strips, bytes }),
            None => Err("the decoder does not say how tokens are written".to_owned()),
        }
    }

    /// Appends the bytes that a vocabulary entry stands for.
    fn write(self, token: &str, out: &mut Vec<u8>) {
        match self {
            Self::ByteLevel => {
                let start = out.len();
                for character in token.chars() {
                    match byte_of(character) {
                        Some(byte) => out.push(byte),
                        None => {
                            out.truncate(start);
                            out.extend_from_slice(token.as_bytes());
                            return;
                        }
                    }
                }
            }
            Self::SentencePiece { bytes, .. } => match hex_byte(token).filter(|_| bytes) {
                Some(byte) => out.push(byte),
                None => {
                    for (index, part) in token.split('▁').enumerate() {
                        if index > 0 {
                            out.push(b' ');
                        }
                        out.extend_from_slice(part.as_bytes());
                    }
                }
            },
            Self::WordPiece => match token.strip_prefix("##") {
                Some(rest) => out.extend_from_slice(rest.as_bytes()),
                None => {
                    out.push(b' ');
                    out.extend_from_slice(token.as_bytes());
                }
            },
        }
    }
}

/// One entry of the vocabulary.
pub(super) enum Entry<'a> {
    /// An ordinary token in the tokenizer's own spelling.
    Spelled(&'a str),
    /// An added token: its text as it is.
    Literal { text: &'a str, special: bool },
    /// An id without a token.
    Hole,
}

impl Pieces {
    /// Begins an empty table with room for `capacity` tokens.
    pub(super) fn build(spelling: Spelling, capacity: usize) -> Building {
        let strips_first_space = match spelling {
            Spelling::ByteLevel => false,
            Spelling::SentencePiece { strips_first_space, .. } => strips_first_space,
            Spelling::WordPiece => true,
        };
        let ends = Vec::with_capacity(capacity);
        let special = Vec::with_capacity(capacity);
        let bytes = Vec::with_capacity(capacity.saturating_mul(8));
        Building { spelling, pieces: Self { bytes, ends, special, strips_first_space, longest: 0 } }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of a token; none for an id outside the vocabulary.
    pub(super) fn get(&self, id: u32) -> &[u8] {
        let index = id as usize;
        let Some(&end) = self.ends.get(index) else { return &[] };
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start as usize..end as usize]
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    pub(super) fn strips_first_space(&self) -> bool {
        self.strips_first_space
    }

    /// Bytes of the longest token.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }
}

/// Pieces while they are filled, in the order of ids.
pub(super) struct Building {
    spelling: Spelling,
    pieces: Pieces,
}

impl Building {
    pub(super) fn push(&mut self, entry: Entry<'_>) -> Result<()> {
        let pieces = &mut self.pieces;
        let start = pieces.bytes.len();
        let mut is_special = false;
        match entry {
            Entry::Spelled(token) => self.spelling.write(token, &mut pieces.bytes),
            Entry::Literal { text, special } => {
                pieces.bytes.extend_from_slice(text.as_bytes());
                is_special = special;
            }
            Entry::Hole => {}
        }
        pieces.longest = pieces.longest.max(pieces.bytes.len() - start);
        let end = u32::try_from(pieces.bytes.len())
            .map_err(|_| Error::Text("the tokens of this vocabulary are over 4 GiB".to_owned()))?;
        pieces.ends.push(end);
        pieces.special.push(is_special);
        Ok(())
    }

    pub(super) fn finish(self) -> Pieces {
        self.pieces
    }
}

/// The byte of `<0x0A>`.
fn hex_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(spelling: Spelling, token: &str) -> Vec<u8> {
        let mut building = Pieces::build(spelling, 1);
        building.push(Entry::Spelled(token)).expect("small");
        building.finish().get(0).to_vec()
    }

    #[test]
    fn spellings() {
        assert_eq!(one(Spelling::ByteLevel, "Ġthe"), b" the");
        assert_eq!(one(Spelling::ByteLevel, "ðŁĺ"), [0xf0, 0x9f, 0x98]);
        let pieces = Spelling::SentencePiece { strips_first_space: true, bytes: true };
        assert_eq!(one(pieces, "▁▁a"), b"  a");
        assert_eq!(one(pieces, "<0xE5>"), [0xe5]);
        assert_eq!(one(pieces, "<0xE5>x"), b"<0xE5>x");
        assert_eq!(one(Spelling::WordPiece, "##ing"), b"ing");
    }

    #[test]
    fn unknown_decoders_are_refused() {
        assert!(Spelling::of(&json!({"type": "CTC"})).expect_err("unknown").contains("CTC"));
        assert!(Spelling::of(&json!({"type": "Sequence", "decoders": [{"type": "Fuse"}]})).is_err());
    }
}
