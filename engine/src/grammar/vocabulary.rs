//! Owns a model's tokens as the grammar engine sees them: their bytes in a prefix tree. Built once for a model.

use std::sync::Arc;

use dualgauge_models::Text;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenizerEnv as _};

pub struct Vocabulary {
    env: Arc<ApproximateTokEnv>,
    /// Tokens that may stand anywhere in a text, between two characters: no control token, no part of a character that
    /// another token began.
    whole: SimpleVob,
    eos: Vec<u32>,
}

impl Vocabulary {
    /// `size` is the model's own vocabulary, which may be padded beyond the tokenizer's; `eos` ends an answer.
    pub fn new(text: &Text, size: usize, eos: &[u32]) -> Self {
        let eos: Vec<u32> = eos.iter().copied().filter(|id| (*id as usize) < size).collect();
        let mut words: Vec<Vec<u8>> = (0..size as u32)
            .map(|id| {
                let bytes = text.token_bytes(id);
                match eos.contains(&id) || text.is_special(id) {
                    true => special(&bytes, id),
                    false => bytes,
                }
            })
            .collect();
        // A model without an end token gets one that it cannot choose: its answers end where the grammar ends.
        let ends = if eos.is_empty() { vec![size as u32] } else { eos.clone() };
        if eos.is_empty() {
            words.push(special(b"end", size as u32));
        }
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, ends[0]), &words).with_eos_tokens(&ends);
        let mut whole = trie.alloc_token_set();
        for (id, word) in (0..).zip(&words) {
            if !word.is_empty() && word[0] != TokTrie::SPECIAL_TOKEN_MARKER && begins_and_goes_on(word) {
                whole.allow_token(id);
            }
        }
        Self { env: Arc::new(ApproximateTokEnv::new(trie)), whole, eos }
    }

    pub fn env(&self) -> TokEnv {
        self.env.clone()
    }

    /// Bytes of a token as the answer's text has them.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let bytes = match (id as usize) < self.env.tok_trie().vocab_size() {
            true => self.env.tok_trie().token(id),
            false => &[],
        };
        bytes.strip_prefix(&[TokTrie::SPECIAL_TOKEN_MARKER]).unwrap_or(bytes)
    }

    /// Any text, these control tokens, and with `end` the end.
    pub fn free(&self, control: &[u32], end: bool) -> SimpleVob {
        let mut mask = self.whole.clone();
        control.iter().chain(self.eos.iter().filter(|_| end)).for_each(|id| mask.allow_token(*id));
        mask
    }
}

/// Control tokens are behind a byte that no text has.
fn special(bytes: &[u8], id: u32) -> Vec<u8> {
    let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
    match bytes.is_empty() {
        true => word.extend(format!("<unnamed {id}>").bytes()),
        false => word.extend(bytes),
    }
    word
}

/// Whole characters, and at the end perhaps the beginning of one.
fn begins_and_goes_on(bytes: &[u8]) -> bool {
    match std::str::from_utf8(bytes) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    }
}
