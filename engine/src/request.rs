//! Owns what a caller asks for and what comes back: tokens in, tokens out. Knows no text and no wire format.

use std::collections::BTreeMap;

use crate::grammar::Grammar;

/// One generation: a prompt and how to continue it. Valid by construction of [`crate::Engine::submit`], which checks it.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    pub sampling: Sampling,
    /// Requests share cached prefixes only within the same salt (tenant).
    pub cache_salt: Option<String>,
    /// Return log-probabilities of the prompt's own tokens (completions with `echo`).
    pub prompt_logprobs: Option<usize>,
    /// What the output must keep to.
    pub grammar: Option<Grammar>,
}

impl Request {
    pub fn new(prompt: Vec<u32>, sampling: Sampling) -> Self {
        Self { prompt, sampling, cache_salt: None, prompt_logprobs: None, grammar: None }
    }
}

/// How the next token is chosen and when to stop. The default is greedy to the end of the context.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy; at most 100.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most likely tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this likely, relative to the most likely; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1 does nothing.
    pub repetition_penalty: f32,
    /// Subtracted from tokens that the output has.
    pub presence_penalty: f32,
    /// Subtracted once for each time the output has the token.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: BTreeMap<u32, f32>,
    /// The choice at position p is a function of (logits, parameters, seed, p) and nothing else.
    pub seed: u64,
    /// Log-probabilities of this many best tokens with each token; `None`: none at all. At most 20.
    pub logprobs: Option<usize>,
    /// Most tokens to generate; `None`: to the end of the context.
    pub max_tokens: Option<usize>,
    /// No stop token is taken before this many tokens.
    pub min_tokens: usize,
    /// Tokens that end the output; the model's own end tokens are added unless `ignore_eos`.
    pub stop_ids: Vec<u32>,
    pub ignore_eos: bool,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: 0,
            logprobs: None,
            max_tokens: None,
            min_tokens: 0,
            stop_ids: vec![],
            ignore_eos: false,
        }
    }
}

/// What a request's stream carries. Exactly one `Finished` or `Failed` ends it.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Log-probabilities of prompt tokens 1.. (the first has none), when asked for. Before the first `Token`.
    Prompt(Vec<TokenLogprobs>),
    Token(Token),
    Finished {
        reason: FinishReason,
        usage: Usage,
    },
    /// The step failed or the device was lost; what was streamed before stands.
    Failed {
        message: String,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub id: u32,
    pub logprobs: Option<TokenLogprobs>,
}

/// Natural logarithms, of the model's distribution before temperature and filters, after penalties and bias.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    pub id: u32,
    pub logprob: f32,
    /// The most likely tokens, best first.
    pub top: Vec<(u32, f32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token; it was delivered as the last `Token`.
    Stop(u32),
    /// The output is complete: the request's grammar lets nothing follow.
    Complete,
    /// `max_tokens` or the end of the context.
    Length,
    /// The engine was shut down, or the caller aborted.
    Aborted,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: usize,
    /// Of the prompt, found in the prefix cache.
    pub cached_tokens: usize,
    pub completion_tokens: usize,
}

/// Why a request was not taken. Nothing was queued.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// A field is out of range; `field` is its name in this module.
    #[error("{field}: {message}")]
    Invalid { field: &'static str, message: String },
    #[error("the prompt has {prompt_tokens} tokens and the context holds {context}")]
    TooLong { prompt_tokens: usize, context: usize },
    /// The queue is at its bound: try again later.
    #[error("{waiting} requests are waiting, the queue holds no more")]
    QueueFull { waiting: usize },
    #[error("the engine is shutting down")]
    ShuttingDown,
    #[error("the device is lost: {0}")]
    Dead(String),
}
