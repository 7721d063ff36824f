//! Owns the response bodies of the Responses API: items while they grow, every event in order, the whole.

use std::sync::Arc;

use dualgauge::{Piece, Stop, Token, Usage};
use dualgauge_models::Text;
use serde_json::{Map, Value, json};

use super::store::Kept;
use crate::answer::{Blocks, Change, Kind};
use crate::app::Server;
use crate::error::ApiError;
use crate::ranges::LOWEST_LOGPROB;
use crate::stream::Writer;

/// One response and its events. Not streamed, the events are made and left.
pub struct Reply {
    pub server: Arc<Server>,
    pub id: String,
    pub created: u64,
    pub model: String,
    pub echo: Map<String, Value>,
    pub text: Arc<Text>,
    pub logprobs: bool,
    pub store: bool,
    pub input: Vec<Map<String, Value>>,
    pub before: Vec<Map<String, Value>>,
    pub growing: Growing,
}

/// What the answer has become.
#[derive(Default)]
pub struct Growing {
    blocks: Blocks,
    started: bool,
    events: u64,
    /// Items that are whole.
    output: Vec<Value>,
    /// The open item: its identifier, its text or arguments, its log-probabilities.
    id: String,
    words: String,
    logprobs: Vec<Value>,
    end: Option<(Stop, Usage, usize)>,
}

impl Reply {
    /// The response as it stands now.
    pub fn body(&self) -> Value {
        let growing = &self.growing;
        let (status, details) = match &growing.end {
            None => ("in_progress", Value::Null),
            Some((Stop::Length, ..)) => ("incomplete", json!({"reason": "max_output_tokens"})),
            Some(_) => ("completed", Value::Null),
        };
        let mut body = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": null,
            "incomplete_details": details,
            "model": self.model,
            "output": growing.output,
            "usage": growing.end.as_ref().map(|(_, usage, reasoning)| tokens(usage, *reasoning)),
        });
        body.as_object_mut().into_iter().for_each(|body| body.extend(self.echo.clone()));
        body
    }

    fn open(&mut self, index: usize, kind: &Kind, out: &mut Vec<u8>) {
        let prefix = match kind {
            Kind::Text => "msg_",
            Kind::Reasoning => "rs_",
            Kind::Call { .. } => "fc_",
        };
        self.growing.id = self.server.id(prefix);
        self.growing.words.clear();
        self.growing.logprobs.clear();
        let item = self.item(kind, "in_progress");
        self.event(out, "response.output_item.added", json!({"output_index": index, "item": item}));
        if *kind == Kind::Text {
            let part = json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []});
            let place = json!({"item_id": self.growing.id, "output_index": index, "content_index": 0, "part": part});
            self.event(out, "response.content_part.added", place);
        }
    }

    fn more(&mut self, index: usize, kind: &Kind, text: &str, tokens: &[Token], out: &mut Vec<u8>) {
        self.growing.words.push_str(text);
        let mut delta = json!({"item_id": self.growing.id, "output_index": index, "delta": text});
        let name = match kind {
            Kind::Text => {
                let logprobs = self.logprobs(tokens);
                delta["content_index"] = 0.into();
                delta["logprobs"] = logprobs.clone().into();
                self.growing.logprobs.extend(logprobs);
                "response.output_text.delta"
            }
            Kind::Reasoning => {
                delta["content_index"] = 0.into();
                "response.reasoning_text.delta"
            }
            Kind::Call { .. } => "response.function_call_arguments.delta",
        };
        self.event(out, name, delta);
    }

    fn close(&mut self, index: usize, kind: &Kind, out: &mut Vec<u8>) {
        let words = self.growing.words.clone();
        let mut done = json!({"item_id": self.growing.id, "output_index": index});
        match kind {
            Kind::Text => {
                done["content_index"] = 0.into();
                let mut part = done.clone();
                done["text"] = words.into();
                done["logprobs"] = self.growing.logprobs.clone().into();
                self.event(out, "response.output_text.done", done);
                part["part"] = self.part();
                self.event(out, "response.content_part.done", part);
            }
            Kind::Reasoning => {
                done["content_index"] = 0.into();
                done["text"] = words.into();
                self.event(out, "response.reasoning_text.done", done);
            }
            Kind::Call { name, .. } => {
                done["name"] = name.as_str().into();
                done["arguments"] = words.into();
                self.event(out, "response.function_call_arguments.done", done);
            }
        }
        let item = self.item(kind, "completed");
        self.event(out, "response.output_item.done", json!({"output_index": index, "item": item}));
        self.growing.output.push(item);
    }

    fn item(&self, kind: &Kind, status: &str) -> Value {
        let growing = &self.growing;
        let begun = status != "in_progress";
        match kind {
            Kind::Text => {
                let content: Vec<Value> = begun.then(|| self.part()).into_iter().collect();
                json!({"id": growing.id, "type": "message", "status": status, "role": "assistant", "content": content})
            }
            Kind::Reasoning => {
                let content: Vec<Value> =
                    begun.then(|| json!({"type": "reasoning_text", "text": growing.words})).into_iter().collect();
                json!({"id": growing.id, "type": "reasoning", "status": status, "summary": [], "content": content})
            }
            Kind::Call { id, name } => json!({
                "id": growing.id,
                "type": "function_call",
                "status": status,
                "call_id": id,
                "name": name,
                "arguments": growing.words,
            }),
        }
    }

    fn part(&self) -> Value {
        let growing = &self.growing;
        json!({"type": "output_text", "text": growing.words, "annotations": [], "logprobs": growing.logprobs})
    }

    fn logprobs(&self, tokens: &[Token]) -> Vec<Value> {
        if !self.logprobs {
            return vec![];
        }
        let entry = |id: u32, logprob: f32| {
            let (token, bytes) = (self.text.token_text(id), self.text.token_bytes(id));
            json!({"token": token, "bytes": bytes, "logprob": logprob.max(LOWEST_LOGPROB)})
        };
        let known = tokens.iter().filter_map(|t| t.logprobs.as_ref());
        known
            .map(|l| {
                let mut own = entry(l.id, l.logprob);
                own["top_logprobs"] = l.top.iter().map(|(id, logprob)| entry(*id, *logprob)).collect();
                own
            })
            .collect()
    }

    /// The name of an event is its type, and events are numbered.
    fn event(&mut self, out: &mut Vec<u8>, name: &str, mut data: Value) {
        data["type"] = name.into();
        data["sequence_number"] = self.growing.events.into();
        self.growing.events += 1;
        out.extend(format!("event: {name}\ndata: {data}\n\n").as_bytes());
    }

    fn keep(&self, response: &Value) {
        let output = self.growing.output.iter().filter_map(Value::as_object).cloned();
        let history = self.before.iter().chain(&self.input).cloned().chain(output).collect();
        let (id, input) = (self.id.clone(), self.input.clone());
        self.server.responses.put(Kept { id, response: response.clone(), input, history });
    }
}

fn tokens(usage: &Usage, reasoning: usize) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}

impl Writer for Reply {
    fn piece(&mut self, _: usize, piece: Piece, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.growing.started, true) {
            let body = self.body();
            self.event(out, "response.created", json!({"response": body}));
            self.event(out, "response.in_progress", json!({"response": body}));
        }
        let tokens: &[Token] = if let Piece::Text { tokens, .. } = &piece { tokens } else { &[] };
        let mut blocks = std::mem::take(&mut self.growing.blocks);
        blocks.take(&piece, |change| match change {
            Change::Open(index, kind) => self.open(index, kind, out),
            Change::More(index, kind, text) => self.more(index, kind, text, tokens, out),
            Change::Close(index, kind) => self.close(index, kind, out),
        });
        self.growing.blocks = blocks;
        if let Piece::Finished { reason, usage, reasoning_tokens } = piece {
            self.growing.end = Some((reason, usage, reasoning_tokens));
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        let body = self.body();
        if self.store {
            self.keep(&body);
        }
        let name = if body["status"] == "incomplete" { "response.incomplete" } else { "response.completed" };
        self.event(out, name, json!({"response": body}));
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        let code = error.code.unwrap_or("server_error");
        self.event(out, "error", json!({"code": code, "message": error.message, "param": error.param}));
    }

    fn keep_alive(&self) -> &'static [u8] {
        b": keep-alive\n\n"
    }
}
