//! Owns the way from an answer's text to its pieces: reasoning, text and calls are told apart, calls are counted and get
//! their identifiers, tokens go with the piece that their text is in. Knows no stop strings.

use std::collections::VecDeque;

use dualgauge_models::text::{AnswerParser, AnswerPart};

use crate::form::CallIds;
use crate::frontend::Piece;
use crate::request::Token;

/// Reads one answer.
pub struct Parts {
    /// `None`: all is text.
    parser: Option<AnswerParser>,
    ids: CallIds,
    /// Of the answer: choices of one request differ in it.
    seed: u64,
    /// More than one call may come.
    parallel: bool,
    calls: usize,
    /// Tokens whose piece has not come.
    tokens: Vec<Token>,
    pub reasoning_tokens: usize,
}

impl Parts {
    pub fn new(parser: Option<AnswerParser>, ids: CallIds, seed: u64, parallel: bool) -> Self {
        Self { parser, ids, seed, parallel, calls: 0, tokens: vec![], reasoning_tokens: 0 }
    }

    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Adds text and tokens. True when a call began that must not be: the answer is over.
    pub fn take(&mut self, text: String, tokens: Vec<Token>, ready: &mut VecDeque<Piece>) -> bool {
        let Some(parser) = &mut self.parser else {
            if !text.is_empty() || !tokens.is_empty() {
                ready.push_back(Piece::Text { text, tokens });
            }
            return false;
        };
        let before = parser.in_reasoning();
        let parts = parser.push(&text);
        let reasons = before || parser.in_reasoning() || parts.iter().any(|p| matches!(p, AnswerPart::Reasoning(_)));
        self.reasoning_tokens += if reasons { tokens.len() } else { 0 };
        self.tokens.extend(tokens);
        self.tell(parts, ready)
    }

    /// The text has ended.
    pub fn finish(&mut self, ready: &mut VecDeque<Piece>) {
        let Some(parser) = &mut self.parser else { return };
        let parts = parser.finish();
        self.tell(parts, ready);
        if !self.tokens.is_empty() {
            ready.push_back(Piece::Text { text: String::new(), tokens: std::mem::take(&mut self.tokens) });
        }
    }

    fn tell(&mut self, parts: Vec<AnswerPart>, ready: &mut VecDeque<Piece>) -> bool {
        for part in parts {
            let piece = match part {
                AnswerPart::Text(text) => Piece::Text { text, tokens: std::mem::take(&mut self.tokens) },
                AnswerPart::Reasoning(text) => Piece::Reasoning { text, tokens: std::mem::take(&mut self.tokens) },
                AnswerPart::Arguments(text) => Piece::ToolArguments {
                    index: self.calls.saturating_sub(1),
                    text,
                    tokens: std::mem::take(&mut self.tokens),
                },
                AnswerPart::Call { .. } if self.calls > 0 && !self.parallel => return true,
                AnswerPart::Call { name, id } => {
                    let index = self.calls;
                    self.calls += 1;
                    Piece::ToolCall { index, id: id.unwrap_or_else(|| self.id(index)), name }
                }
            };
            ready.push_back(piece);
        }
        false
    }

    /// 96 bits that follow from the request, the choice and the call.
    fn id(&self, index: usize) -> String {
        let first = mix(self.ids.seed ^ mix(self.seed ^ mix(index as u64)));
        let second = mix(first ^ self.ids.seed);
        format!("{}{first:016x}{:08x}", self.ids.prefix, second >> 32)
    }
}

/// The finaliser of SplitMix64.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
