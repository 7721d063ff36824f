//! Owns the response bodies of the Gemini API: candidates whole, or a piece at a time. A call is always told whole.

use std::sync::Arc;

use dualgauge::{Piece, Stop, Token, Usage};
use dualgauge_models::Text;
use serde_json::{Value, json};

use super::error_body;
use crate::answer::{Answer, Blocks, Change, Kind, Spent};
use crate::error::ApiError;
use crate::ranges::LOWEST_LOGPROB;
use crate::stream::Writer;

/// What all bodies of one response share.
pub struct Reply {
    pub id: String,
    pub model: String,
    pub thoughts: bool,
    pub logprobs: bool,
    pub text: Arc<Text>,
}

impl Reply {
    /// The whole response.
    pub fn whole(&self, answers: &[Answer]) -> Value {
        let candidates = answers.iter().enumerate().map(|(index, answer)| {
            let told = answer.blocks.iter().filter(|(kind, _)| self.thoughts || *kind != Kind::Reasoning);
            let parts = told.map(|(kind, text)| part(kind, text)).collect();
            let stop = answer.end.as_ref().map(|(stop, _)| stop);
            self.candidate(index, parts, stop, &answer.tokens)
        });
        let candidates = candidates.collect();
        let spent: Vec<Spent> = answers.iter().filter_map(|a| a.end.as_ref().map(|(_, spent)| *spent)).collect();
        self.body(candidates, Some(&spent))
    }

    fn body(&self, candidates: Vec<Value>, spent: Option<&[Spent]>) -> Value {
        let mut body = json!({"candidates": candidates, "modelVersion": self.model, "responseId": self.id});
        if let Some(spent) = spent {
            body["usageMetadata"] = usage(spent);
        }
        body
    }

    fn candidate(&self, index: usize, parts: Vec<Value>, stop: Option<&Stop>, tokens: &[Token]) -> Value {
        let mut candidate = json!({"index": index, "content": {"role": "model", "parts": parts}});
        if let Some(stop) = stop {
            candidate["finishReason"] = if *stop == Stop::Length { "MAX_TOKENS" } else { "STOP" }.into();
        }
        if self.logprobs && !tokens.is_empty() {
            candidate["logprobsResult"] = self.logprobs(tokens);
        }
        candidate
    }

    fn logprobs(&self, tokens: &[Token]) -> Value {
        let entry = |id: u32, logprob: f32| json!({"token": self.text.token_text(id), "tokenId": id, "logProbability": logprob.max(LOWEST_LOGPROB)});
        let known = || tokens.iter().filter_map(|t| t.logprobs.as_ref());
        let chosen: Vec<Value> = known().map(|l| entry(l.id, l.logprob)).collect();
        let top: Vec<Value> = known()
            .map(|l| json!({"candidates": l.top.iter().map(|(id, p)| entry(*id, *p)).collect::<Vec<_>>()}))
            .collect();
        json!({"chosenCandidates": chosen, "topCandidates": top})
    }
}

fn part(kind: &Kind, text: &str) -> Value {
    match kind {
        Kind::Text => json!({"text": text}),
        Kind::Reasoning => json!({"text": text, "thought": true}),
        Kind::Call { id, name } => {
            // Arguments that were cut off are none.
            let args: Value = serde_json::from_str(text).unwrap_or_else(|_| json!({}));
            json!({"functionCall": {"id": id, "name": name, "args": args}})
        }
    }
}

/// The prompt counts once, however many candidates answer it. Thoughts are counted beside the candidates.
fn usage(spent: &[Spent]) -> Value {
    let prompt = spent.first().map_or(0, |s| s.usage.prompt_tokens);
    let thoughts: usize = spent.iter().map(|s| s.reasoning_tokens).sum();
    let Usage { completion_tokens: made, .. } = spent.iter().fold(Usage::default(), |sum, s| Usage {
        completion_tokens: sum.completion_tokens + s.usage.completion_tokens,
        ..sum
    });
    let mut usage = json!({
        "promptTokenCount": prompt,
        "candidatesTokenCount": made - thoughts.min(made),
        "totalTokenCount": prompt + made,
    });
    if thoughts > 0 {
        usage["thoughtsTokenCount"] = thoughts.into();
    }
    usage
}

/// How responses follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// `data: {..}`, with `alt=sse`.
    Events,
    /// One JSON array of responses.
    Array,
}

/// The responses of one stream.
pub struct Pieces {
    reply: Reply,
    frame: Frame,
    candidates: Vec<Growing>,
    running: usize,
    begun: bool,
}

#[derive(Default)]
struct Growing {
    blocks: Blocks,
    arguments: String,
    spent: Spent,
}

impl Pieces {
    pub fn new(reply: Reply, frame: Frame, candidates: usize) -> Self {
        let growing = (0..candidates).map(|_| Growing::default()).collect();
        Self { reply, frame, candidates: growing, running: candidates, begun: false }
    }

    fn push(&mut self, body: &Value, out: &mut Vec<u8>) {
        match self.frame {
            Frame::Events => out.extend(format!("data: {body}\n\n").as_bytes()),
            Frame::Array => {
                out.extend(if self.begun { &b",\n"[..] } else { b"[" });
                out.extend(body.to_string().as_bytes());
            }
        }
        self.begun = true;
    }
}

impl Writer for Pieces {
    fn piece(&mut self, at: usize, piece: Piece, out: &mut Vec<u8>) {
        let growing = &mut self.candidates[at];
        let arguments = &mut growing.arguments;
        let mut parts = vec![];
        growing.blocks.take(&piece, |change| match change {
            Change::Open(..) => arguments.clear(),
            Change::More(_, Kind::Call { .. }, text) => arguments.push_str(text),
            Change::More(_, kind, text) => parts.push((kind.clone(), text.to_owned())),
            Change::Close(_, kind @ Kind::Call { .. }) => parts.push((kind.clone(), std::mem::take(arguments))),
            Change::Close(..) => {}
        });
        parts.retain(|(kind, _)| self.reply.thoughts || *kind != Kind::Reasoning);
        let parts: Vec<Value> = parts.iter().map(|(kind, text)| part(kind, text)).collect();
        let tokens: &[Token] = match &piece {
            Piece::Text { tokens, .. } | Piece::ToolArguments { tokens, .. } => tokens,
            _ => &[],
        };
        let mut stop = None;
        if let Piece::Finished { reason, usage, reasoning_tokens } = &piece {
            growing.spent = Spent { usage: *usage, reasoning_tokens: *reasoning_tokens };
            stop = Some(reason);
            self.running -= 1;
        }
        if parts.is_empty() && stop.is_none() && (tokens.is_empty() || !self.reply.logprobs) {
            return;
        }
        let candidate = self.reply.candidate(at, parts, stop, tokens);
        let spent: Option<Vec<Spent>> = (self.running == 0).then(|| self.candidates.iter().map(|c| c.spent).collect());
        let body = self.reply.body(vec![candidate], spent.as_deref());
        self.push(&body, out);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.frame == Frame::Array {
            out.extend(b"]\n");
        }
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        self.push(&error_body(error), out);
        self.end(out);
    }

    fn keep_alive(&self) -> &'static [u8] {
        match self.frame {
            Frame::Events => b": keep-alive\n\n",
            Frame::Array => b"",
        }
    }
}
