//! Owns the way from token ids to text, one token at a time. It never gives out half a character: bytes wait until they
//! make a whole one, and bytes that never can become U+FFFD. It knows no stop strings.

use std::sync::Arc;

use super::Text;

/// Turns ids into text as they come. The pieces given out, joined, equal `Text::decode` of all ids.
#[derive(Debug)]
pub struct Detokenizer {
    text: Arc<Text>,
    skip_special: bool,
    /// Control tokens that are shown all the same.
    shown: Vec<u32>,
    decoding: Decoding,
}

impl Detokenizer {
    /// For a text that starts with the first id: tokenizers that mark words by a leading space drop that space here.
    pub fn new(text: Arc<Text>, skip_special: bool) -> Self {
        let decoding = Decoding::new(text.tokenizer().strips_first_space());
        Self { text, skip_special, shown: vec![], decoding }
    }

    /// For ids that continue `prompt`: the first space stays, and a character that the prompt began is finished.
    pub fn after(text: Arc<Text>, skip_special: bool, prompt: &[u32]) -> Self {
        let mut decoding = Decoding::new(text.tokenizer().strips_first_space() && prompt.is_empty());
        // A character has at most four bytes and every token that writes a part of it at least one.
        let mut tail: Vec<u8> = Vec::new();
        for &id in &prompt[prompt.len().saturating_sub(4)..] {
            tail.extend_from_slice(text.tokenizer().bytes(id));
        }
        decoding.pending = tail.split_off(tail.len() - unfinished(&tail));
        Self { text, skip_special, shown: vec![], decoding }
    }

    /// Shows these control tokens also when others are left out.
    pub fn showing(self, shown: Vec<u32>) -> Self {
        Self { shown, ..self }
    }

    /// Adds a token and returns the text that is now whole: often a word, at times nothing. Unknown ids add nothing.
    pub fn push(&mut self, id: u32) -> String {
        let tokenizer = self.text.tokenizer();
        let mut out = String::new();
        if !(self.skip_special && tokenizer.is_special(id)) || self.shown.contains(&id) {
            self.decoding.push(tokenizer.bytes(id), &mut out);
        }
        out
    }

    /// Ends the text: bytes that still wait become U+FFFD.
    pub fn finish(&mut self) -> String {
        let mut out = String::new();
        self.decoding.finish(&mut out);
        out
    }
}

/// Bytes to text, without a vocabulary.
#[derive(Debug)]
pub(super) struct Decoding {
    pending: Vec<u8>,
    strip_space: bool,
}

impl Decoding {
    pub(super) fn new(strip_space: bool) -> Self {
        Self { pending: Vec::new(), strip_space }
    }

    pub(super) fn push(&mut self, bytes: &[u8], out: &mut String) {
        let mut bytes = bytes;
        if self.strip_space && !bytes.is_empty() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            self.strip_space = false;
        }
        self.pending.extend_from_slice(bytes);
        let mut done = 0;
        loop {
            match std::str::from_utf8(&self.pending[done..]) {
                Ok(text) => {
                    out.push_str(text);
                    done = self.pending.len();
                    break;
                }
                Err(error) => {
                    let valid = done + error.valid_up_to();
                    out.push_str(
                        std::str::from_utf8(&self.pending[done..valid]).expect("valid up to here: this is a bug"),
                    );
                    done = valid;
                    let Some(bad) = error.error_len() else { break };
                    out.push(char::REPLACEMENT_CHARACTER);
                    done += bad;
                }
            }
        }
        self.pending.drain(..done);
    }

    pub(super) fn finish(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
    }
}

/// Bytes at the end that begin a character without finishing it.
fn unfinished(bytes: &[u8]) -> usize {
    for length in 1..=bytes.len().min(3) {
        let tail = &bytes[bytes.len() - length..];
        if tail[0] >= 0xc0 {
            let waits = matches!(std::str::from_utf8(tail), Err(error) if error.error_len().is_none());
            return if waits { length } else { 0 };
        }
    }
    0
}
