//! Owns one request under way: tokens known, tokens computed, and when it is over. Knows no clock, no device and no
//! other sequence.

use std::ops::Range;

use dualgauge_models::ModelSpec;

use crate::grammar::{Grammar, GrammarState};
use crate::kv::BlockTable;
use crate::request::{FinishReason, Request, Token, TokenLogprobs, Usage};
use crate::sampler::Seen;

/// Names a request within one engine; later requests have larger ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

pub struct Sequence {
    pub id: RequestId,
    pub request: Request,
    /// The prompt and what was generated.
    pub tokens: Vec<u32>,
    /// Tokens whose K/V is in the blocks of `table`, and that its state has taken in. Always less than `tokens.len()`: the last one is never computed.
    pub computed: usize,
    pub table: BlockTable,
    /// Tokens that end the output.
    pub stop_ids: Vec<u32>,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// What penalties count; `None` when the request has none.
    pub seen: Option<Seen>,
    /// Where the output is in the request's grammar. It follows the tokens, whatever becomes of the blocks.
    pub grammar: Option<GrammarState>,
    /// Prompt tokens found in the prefix cache at first admission; `None` before.
    pub cached_tokens: Option<usize>,
    /// The sequence is long when it has more tokens than this, as in [`dualgauge_models::ModelSpec::long_after`].
    long_after: usize,
    /// Failed steps that this sequence was in since it last got further.
    pub failures: u32,
    /// Tokens that were computed or about to be when a step failed, where that undid all of them.
    pub lost: usize,
    /// Log-probabilities of the prompt so far.
    prompt_logprobs: Vec<TokenLogprobs>,
    prompt_sent: bool,
}

/// What one step computes of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub id: RequestId,
    /// Positions to compute.
    pub positions: Range<usize>,
    /// Positions whose logits are wanted: a tail of `positions`, may be empty.
    pub rows: Range<usize>,
    /// The last row's logits choose the next token.
    pub samples: bool,
}

/// What the sampler made of one chunk's logits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    /// The next token, when the chunk reached the last known one.
    pub token: Option<Token>,
    /// Of the tokens that follow the chunk's positions in the prompt.
    pub prompt: Vec<TokenLogprobs>,
}

impl Sequence {
    /// `context` bounds prompt and output together, and is at most the model's.
    pub fn new(id: RequestId, request: Request, model: &ModelSpec, context: usize) -> Self {
        let sampling = &request.sampling;
        let mut stop_ids = sampling.stop_ids.clone();
        if !sampling.ignore_eos {
            stop_ids.extend(&model.eos);
        }
        let room = context - request.prompt.len();
        let max_tokens = sampling.max_tokens.map_or(room, |max| max.min(room));
        let seen = sampling.has_penalties().then(|| Seen::new(&request.prompt));
        Self {
            id,
            tokens: request.prompt.clone(),
            computed: 0,
            table: BlockTable::default(),
            stop_ids,
            max_tokens,
            seen,
            grammar: request.grammar.as_ref().map(Grammar::start),
            cached_tokens: None,
            long_after: model.long_after.unwrap_or(usize::MAX),
            failures: 0,
            lost: 0,
            prompt_logprobs: vec![],
            prompt_sent: false,
            request,
        }
    }

    /// Whether the model rotates the sequence as a long one.
    pub fn is_long(&self) -> bool {
        self.tokens.len() > self.long_after
    }

    /// Under which the sequence's blocks are cached: those of another tenant, or of a long sequence where this one is not,
    /// hold other values for the same tokens.
    pub fn salt(&self) -> Option<String> {
        match (&self.request.cache_salt, self.is_long()) {
            (salt, _) if self.long_after == usize::MAX => salt.clone(),
            (None, false) => None,
            (None, true) => Some("long".into()),
            (Some(salt), false) => Some(format!("short {salt}")),
            (Some(salt), true) => Some(format!("long {salt}")),
        }
    }

    /// Tokens known and not computed: at least one.
    pub fn gap(&self) -> usize {
        self.tokens.len() - self.computed
    }

    pub fn prompt_tokens(&self) -> usize {
        self.request.prompt.len()
    }

    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_tokens()
    }

    pub fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens(),
            cached_tokens: self.cached_tokens.unwrap_or(0),
            completion_tokens: self.generated(),
        }
    }

    /// The prompt's log-probabilities are wanted and not complete.
    pub fn wants_prompt_logprobs(&self) -> bool {
        self.request.prompt_logprobs.is_some() && self.prompt_logprobs.len() + 1 < self.prompt_tokens()
    }

    /// The next `len` tokens as a chunk.
    pub fn chunk(&self, len: usize) -> Chunk {
        let end = self.computed + len;
        let reaches = end == self.tokens.len();
        // Row p predicts token p + 1; those of the prompt's tokens are made once, also across a preemption.
        let first = if self.wants_prompt_logprobs() {
            self.computed.max(self.prompt_logprobs.len()).min(end)
        } else if reaches {
            end - 1
        } else {
            end
        };
        Chunk { id: self.id, positions: self.computed..end, rows: first..end, samples: reaches }
    }

    /// Takes the prompt's log-probabilities of one chunk. All of them, when this made them complete.
    pub fn add_prompt_logprobs(&mut self, more: Vec<TokenLogprobs>) -> Option<Vec<TokenLogprobs>> {
        self.prompt_logprobs.extend(more);
        if self.prompt_sent || self.request.prompt_logprobs.is_none() || self.wants_prompt_logprobs() {
            return None;
        }
        self.prompt_sent = true;
        // A copy stays: its length says that they are done, should the sequence be preempted and computed again.
        Some(self.prompt_logprobs.clone())
    }

    /// Appends a generated token. Why the sequence is over, if it is.
    pub fn push(&mut self, token: u32) -> Option<FinishReason> {
        self.tokens.push(token);
        if let Some(seen) = &mut self.seen {
            seen.generated(token);
        }
        let complete = self.grammar.as_mut().is_some_and(|grammar| grammar.push(token));
        if self.stop_ids.contains(&token) {
            return Some(FinishReason::Stop(token));
        }
        if complete {
            return Some(FinishReason::Complete);
        }
        (self.generated() >= self.max_tokens).then_some(FinishReason::Length)
    }
}
