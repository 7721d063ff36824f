//! Owns text in, text out: prompts become tokens, tokens become whole characters, stop strings end the answer. Knows no
//! wire format; chat templates and tokenizers are the model crate's.

use std::collections::VecDeque;
use std::sync::Arc;

use dualgauge_models::{Conversation, Detokenizer, Text};

use crate::stop::StopMatcher;
use crate::{Engine, Event, Events, FinishReason, Rejected, Request, Sampling, Token, TokenLogprobs, Usage};

/// An engine and its model's dialect of text. Clones share both.
#[derive(Clone)]
pub struct Frontend {
    engine: Engine,
    text: Arc<Text>,
}

/// One generation from text to text.
#[derive(Clone, Debug)]
pub struct TextRequest {
    pub prompt: Prompt,
    pub sampling: Sampling,
    /// Texts that end the answer. What they match is cut off, unless `include_stop_text`.
    pub stop: Vec<String>,
    pub include_stop_text: bool,
    /// Leave control tokens out of the text.
    pub skip_special_tokens: bool,
    /// As [`Request::cache_salt`].
    pub cache_salt: Option<String>,
    /// As [`Request::prompt_logprobs`].
    pub prompt_logprobs: Option<usize>,
}

impl TextRequest {
    pub fn new(prompt: Prompt, sampling: Sampling) -> Self {
        Self {
            prompt,
            sampling,
            stop: vec![],
            include_stop_text: false,
            skip_special_tokens: true,
            cache_salt: None,
            prompt_logprobs: None,
        }
    }
}

#[derive(Clone, Debug)]
pub enum Prompt {
    Text {
        text: String,
        /// Let the tokenizer add the tokens it begins every text with.
        add_special: bool,
    },
    Tokens(Vec<u32>),
    Chat(Conversation),
}

/// Why a text request was not taken. Nothing was queued.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The chat template refused the conversation, or the text cannot be encoded.
    #[error("{0}")]
    Text(String),
}

/// What an answer's stream carries. Exactly one `Finished` or `Failed` ends it.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// As [`Event::Prompt`].
    Prompt(Vec<TokenLogprobs>),
    /// Text that is ready to show: whole characters, and nothing that may yet become a stop string. The tokens are
    /// those whose text is in it or before it; the text is empty when only tokens were left.
    Text { text: String, tokens: Vec<Token> },
    Finished { reason: Stop, usage: Usage },
    Failed { message: String },
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model's own end token.
    Eos,
    /// One of [`Sampling::stop_ids`].
    StopId(u32),
    /// One of [`TextRequest::stop`].
    StopString(String),
    /// `max_tokens` or the end of the context.
    Length,
    Aborted,
}
