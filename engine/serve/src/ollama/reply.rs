//! Owns the response bodies of the Ollama API: an answer whole, or as lines. Durations are in nanoseconds.

use std::time::SystemTime;

use dualgauge::{Piece, Stop, Token, Usage};
use dualgauge_models::Text;
use serde_json::{Value, json};

use super::error_body;
use crate::answer::{Answer, Blocks, Change, Kind};
use crate::calendar::rfc3339;
use crate::error::ApiError;
use crate::ranges::LOWEST_LOGPROB;
use crate::stream::Writer;

/// What all bodies of one response share.
pub struct Reply {
    pub model: String,
    pub shape: Shape,
    pub logprobs: bool,
    pub text: std::sync::Arc<Text>,
    /// What comes into `context`: the prompt, and then the answer.
    pub context: Vec<u32>,
    pub clock: fn() -> SystemTime,
    pub began: SystemTime,
    /// When the prompt had been read.
    pub first: Option<SystemTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Chat,
    Generate,
}

impl Reply {
    /// The whole response.
    pub fn whole(&self, answer: &Answer) -> Value {
        let calls = answer.calls().enumerate().map(|(at, (id, name, arguments))| call(at, id, name, arguments));
        let mut body = self.said(&answer.text(), &answer.reasoning(), calls.collect(), &answer.tokens);
        let end = self.end(answer.end.as_ref().map(|(stop, spent)| (stop, spent.usage)));
        body.as_object_mut().into_iter().zip(end.as_object()).for_each(|(body, end)| body.extend(end.clone()));
        body
    }

    /// What is answered when nothing was asked: the model is there.
    pub fn loaded(&self) -> Value {
        let mut body = self.said("", "", vec![], &[]);
        body["done"] = true.into();
        body["done_reason"] = "load".into();
        body
    }

    fn said(&self, text: &str, reasoning: &str, calls: Vec<Value>, tokens: &[Token]) -> Value {
        let mut body = json!({"model": self.model, "created_at": rfc3339((self.clock)())});
        match self.shape {
            Shape::Chat => {
                let mut message = json!({"role": "assistant", "content": text});
                if !reasoning.is_empty() {
                    message["thinking"] = reasoning.into();
                }
                if !calls.is_empty() {
                    message["tool_calls"] = calls.into();
                }
                body["message"] = message;
            }
            Shape::Generate => {
                body["response"] = text.into();
                if !reasoning.is_empty() {
                    body["thinking"] = reasoning.into();
                }
            }
        }
        body["done"] = false.into();
        if self.logprobs && !tokens.is_empty() {
            body["logprobs"] = tokens.iter().filter_map(|t| t.logprobs.as_ref()).map(|l| self.logprob(l)).collect();
        }
        body
    }

    fn logprob(&self, token: &dualgauge::TokenLogprobs) -> Value {
        let entry = |id: u32, logprob: f32| {
            let bytes = self.text.token_bytes(id);
            json!({"token": self.text.token_text(id), "logprob": logprob.max(LOWEST_LOGPROB), "bytes": bytes})
        };
        let mut own = entry(token.id, token.logprob);
        if !token.top.is_empty() {
            own["top_logprobs"] = token.top.iter().map(|(id, logprob)| entry(*id, *logprob)).collect();
        }
        own
    }

    fn end(&self, end: Option<(&Stop, Usage)>) -> Value {
        let (stop, usage) = end.unwrap_or((&Stop::Eos, Usage::default()));
        let now = (self.clock)();
        let first = self.first.unwrap_or(now);
        let nanoseconds = |from: SystemTime, to: SystemTime| {
            let duration = to.duration_since(from).unwrap_or_default();
            u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
        };
        let mut end = json!({
            "done": true,
            "done_reason": if *stop == Stop::Length { "length" } else { "stop" },
            "total_duration": nanoseconds(self.began, now),
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": nanoseconds(self.began, first),
            "eval_count": usage.completion_tokens,
            "eval_duration": nanoseconds(first, now),
        });
        if self.shape == Shape::Generate {
            end["context"] = self.context.clone().into();
        }
        end
    }

    /// Notes what a piece says beside its words.
    pub fn note(&mut self, piece: &Piece) {
        self.first.get_or_insert_with(self.clock);
        if let (Shape::Generate, Piece::Text { tokens, .. } | Piece::Reasoning { tokens, .. }) = (self.shape, piece) {
            self.context.extend(tokens.iter().map(|t| t.id));
        }
    }
}

fn call(index: usize, id: &str, name: &str, arguments: &str) -> Value {
    // Arguments that were cut off are none.
    let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!({}));
    json!({"id": id, "function": {"index": index, "name": name, "arguments": arguments}})
}

/// The lines of one response. A call is told whole.
pub struct Lines {
    reply: Reply,
    blocks: Blocks,
    arguments: String,
    calls: usize,
}

impl Lines {
    pub fn new(reply: Reply) -> Self {
        Self { reply, blocks: Blocks::default(), arguments: String::new(), calls: 0 }
    }
}

impl Writer for Lines {
    fn piece(&mut self, _: usize, piece: Piece, out: &mut Vec<u8>) {
        self.reply.note(&piece);
        let Self { reply, blocks, arguments, calls } = self;
        let tokens: &[Token] = match &piece {
            Piece::Text { tokens, .. } | Piece::Reasoning { tokens, .. } => tokens,
            _ => &[],
        };
        blocks.take(&piece, |change| match change {
            Change::Open(..) => arguments.clear(),
            Change::More(_, Kind::Text, text) => line(out, &reply.said(text, "", vec![], tokens)),
            Change::More(_, Kind::Reasoning, text) => line(out, &reply.said("", text, vec![], tokens)),
            Change::More(_, Kind::Call { .. }, text) => arguments.push_str(text),
            Change::Close(_, Kind::Call { id, name }) => {
                line(out, &reply.said("", "", vec![call(*calls, id, name, arguments)], &[]));
                *calls += 1;
            }
            Change::Close(..) => {}
        });
        if let Piece::Finished { reason, usage, .. } = &piece {
            let mut last = reply.said("", "", vec![], &[]);
            let end = reply.end(Some((reason, *usage)));
            last.as_object_mut().into_iter().zip(end.as_object()).for_each(|(last, end)| last.extend(end.clone()));
            line(out, &last);
        }
    }

    fn end(&mut self, _: &mut Vec<u8>) {}

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        line(out, &error_body(error));
    }

    /// Every line is an answer to clients.
    fn keep_alive(&self) -> &'static [u8] {
        b""
    }
}

fn line(out: &mut Vec<u8>, body: &Value) {
    out.extend(body.to_string().as_bytes());
    out.push(b'\n');
}
