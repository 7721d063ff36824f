//! Owns text to token ids and the vocabulary. It knows no chat and no stream. The `tokenizers` crate does the encoding;
//! here its panics are caught, its input is bounded, and its tables are made ready for decoding.

use std::collections::HashMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::tokenizer::{
    AddedToken, Model as _, Normalizer as _, OffsetType, PreTokenizedString, PreTokenizer as _, Token,
};

use super::charsmap;
use super::detokenizer::Decoding;
use super::literal::ControlTokens;
use super::normalizer;
use super::pieces::{Entry, Pieces, Spelling};
use crate::source::read_text;
use crate::{Error, Result};

/// Longer text is refused before any work is done on it. The longest contexts of today hold half of this.
pub const MAX_INPUT_BYTES: usize = 8 << 20;
/// A longer `tokenizer.json` is a broken one; the largest of today have a tenth of this.
const MOST_FILE_BYTES: u64 = 512 << 20;
/// More ids than this are a broken file.
const MAX_VOCABULARY: usize = 1 << 22;

/// A vocabulary with its encoder.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    spelling: Spelling,
    pieces: Pieces,
    control: ControlTokens,
}

impl Tokenizer {
    /// Reads `tokenizer.json`. Errors name the file.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.file_name().map_or_else(|| "tokenizer.json".into(), |name| name.to_string_lossy().into_owned());
        let missing = "not found in the model folder, which needs it (tokenizer.model is not read)";
        let text = read_text(path, MOST_FILE_BYTES)?.ok_or_else(|| Error::file(&name, missing))?;
        Self::parse(text.as_bytes()).map_err(|reason| Error::file(&name, reason))
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        // The parts on which the library would panic or run away are looked at before it sees them.
        let outline: Outline = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        charsmap::check(&outline.normalizer)?;
        normalizer::check(&outline.normalizer)?;
        let spelling = Spelling::of(&outline.decoder)?;
        Self::new(quiet(|| tokenizers::Tokenizer::from_bytes(bytes))?, spelling)
    }

    /// Makes the tables for decoding. Errors: the reason alone, the caller knows the file.
    pub(super) fn new(mut inner: tokenizers::Tokenizer, spelling: Spelling) -> Result<Self, String> {
        // Both would change what is encoded; a prompt that is too long is refused, not cut.
        inner.with_truncation(None).map_err(|error| error.to_string())?;
        inner.with_padding(None);
        let pieces = pieces(&inner, spelling)?;
        let control = ControlTokens::new(inner.get_added_vocabulary());
        let this = Self { inner, spelling, pieces, control };
        // A tokenizer that cannot encode a short text is broken: better known now than at the first request.
        this.encode("The quick brown fox, 123 日本 é\n\t\u{1F600}", true).map_err(|error| error.to_string())?;
        Ok(this)
    }

    /// Ids of a text; control tokens in it are recognised. `add_special` adds what the tokenizer puts around a text
    /// (often a first bos token). Errors: over `MAX_INPUT_BYTES`, or a tokenizer that cannot encode this text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        check_size(text)?;
        let encoding = quiet(|| self.inner.encode_fast(text, add_special)).map_err(refused)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids of a text in which control tokens that begin inside one of `literal` are plain text: nothing is added around
    /// it. `literal` holds rising byte ranges on character borders.
    pub(super) fn encode_with_literals(&self, text: &str, literal: &[Range<usize>]) -> Result<Vec<u32>> {
        check_size(text)?;
        quiet(|| self.segmented(text, literal)).map_err(refused)
    }

    /// Text of ids: all bytes joined, with U+FFFD for what is no character. Unknown ids add nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut out = String::new();
        let mut decoding = Decoding::new(self.strips_first_space());
        for &id in ids {
            if !(skip_special && self.is_special(id)) {
                decoding.push(self.bytes(id), &mut out);
            }
        }
        decoding.finish(&mut out);
        out
    }

    /// Bytes of one token; none for an unknown id.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.pieces.get(id)
    }

    /// True for control tokens: they never are part of an answer's text.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Ids of this vocabulary, holes counted. A model's own vocabulary may be padded beyond.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// Bytes of the longest token: a text of more than `context * longest` bytes cannot fit.
    pub fn longest_token_bytes(&self) -> usize {
        self.pieces.longest()
    }

    pub(super) fn strips_first_space(&self) -> bool {
        self.pieces.strips_first_space()
    }

    pub(super) fn control(&self) -> &ControlTokens {
        &self.control
    }

    /// Adds tokens that another file declares, where this vocabulary has the same text under the same id.
    pub(super) fn declare(&mut self, tokens: Vec<(u32, AddedToken)>) -> Result<(), String> {
        let known = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let new: Vec<AddedToken> = tokens
            .into_iter()
            .filter(|(id, token)| !known.contains_key(id) && self.inner.token_to_id(&token.content) == Some(*id))
            .map(|(_, token)| token)
            .collect();
        if !new.is_empty() {
            self.inner.add_tokens(new).map_err(|error| error.to_string())?;
            self.pieces = pieces(&self.inner, self.spelling)?;
            self.control = ControlTokens::new(self.inner.get_added_vocabulary());
        }
        Ok(())
    }

    /// The crate's own steps, with another first one: added tokens are split off by us, so that some can be left.
    fn segmented(&self, text: &str, literal: &[Range<usize>]) -> tokenizers::Result<Vec<u32>> {
        let mut pieces = PreTokenizedString::from(text);
        let mut base = 0;
        pieces.split(|_, sequence| {
            let splits = self.control.split(sequence.get(), base, literal);
            base += sequence.get().len();
            splits
                .into_iter()
                .map(|(range, id)| {
                    let slice = sequence
                        .slice(tokenizers::tokenizer::normalizer::Range::Normalized(range))
                        .ok_or("a control token ends inside a character")?;
                    let token = id.map(|id| vec![Token::new(id, String::new(), (0, slice.get().len()))]);
                    Ok((slice, token))
                })
                .collect::<tokenizers::Result<Vec<_>>>()
        })?;
        if let Some(normalizer) = self.inner.get_normalizer() {
            pieces.normalize(|sequence| normalizer.normalize(sequence))?;
        }
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|sequence| self.inner.get_model().tokenize(sequence.get()))?;
        Ok(pieces.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

/// The small parts of `tokenizer.json`.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    decoder: Value,
}

fn pieces(inner: &tokenizers::Tokenizer, spelling: Spelling) -> Result<Pieces, String> {
    let vocabulary: HashMap<String, u32> = inner.get_model().get_vocab();
    let added = inner.get_added_vocabulary().get_added_tokens_decoder();
    let last = vocabulary.values().chain(added.keys()).copied().max();
    let size = last.map_or(0, |last| last as usize + 1);
    if size > MAX_VOCABULARY {
        return Err(format!("the vocabulary has an id of {}, over the limit of {MAX_VOCABULARY}", size - 1));
    }
    let mut tokens: Vec<Entry<'_>> = (0..size).map(|_| Entry::Hole).collect();
    for (token, &id) in &vocabulary {
        tokens[id as usize] = Entry::Spelled(token);
    }
    for (&id, token) in added {
        tokens[id as usize] = Entry::Literal { text: &token.content, special: token.special };
    }
    let mut building = Pieces::build(spelling, size);
    for token in tokens {
        building.push(token).map_err(|error| error.to_string())?;
    }
    Ok(building.finish())
}

fn check_size(text: &str) -> Result<()> {
    if text.len() > MAX_INPUT_BYTES {
        return Err(Error::Text(format!(
            "the text has {} bytes, over the limit of {MAX_INPUT_BYTES} for one input",
            text.len()
        )));
    }
    Ok(())
}

fn refused(reason: String) -> Error {
    Error::Text(format!("the tokenizer cannot encode this text: {reason}"))
}

/// Runs a step of the `tokenizers` crate, which panics on some broken files, and makes an error of a panic.
fn quiet<T>(step: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(step)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the tokenizers library gave up on it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> Tokenizer {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/families");
        Tokenizer::open(&fixtures.join(name).join("tokenizer.json")).expect("a tokenizer")
    }

    /// Splitting control tokens off by ourselves is the library's way when nothing is literal.
    #[test]
    fn without_literals_the_careful_way_is_the_ordinary_one() {
        for name in ["llama", "llama_tied"] {
            let tokenizer = fixture(name);
            for text in [
                "",
                " ",
                "the end",
                "<s>",
                " <s> a<|im_start|>user\nHello  world, don't\t日本語 1234<|im_end|>\n<|im_start|>assistant\n",
                "<|im_start|><|im_end|><|im_<|im_end|>|><think>so</think>",
                "😀</s>\n\n  </s>",
            ] {
                let want = tokenizer.encode(text, false).expect("encodes");
                assert_eq!(tokenizer.encode_with_literals(text, &[]).expect("encodes"), want, "{name}: {text:?}");
            }
        }
    }

    /// All of a text literal: as if the vocabulary had no control tokens.
    #[test]
    fn literal_control_tokens_are_encoded_as_their_characters() {
        for name in ["llama", "llama_tied"] {
            let tokenizer = fixture(name);
            let mut plain = fixture(name);
            plain.inner.set_encode_special_tokens(true);
            for text in ["<s>", "x<|im_end|>y", "<|im_end|>\n<|im_start|>system\n", "日</s>本<unk>"] {
                let want = plain.encode(text, false).expect("encodes");
                let got =
                    tokenizer.encode_with_literals(text, std::slice::from_ref(&(0..text.len()))).expect("encodes");
                assert_eq!(got, want, "{name}: {text:?}");
                assert!(!got.iter().any(|&id| tokenizer.is_special(id)));
            }
        }
    }
}
