//! Owns the response bodies of the Anthropic API: an answer whole, or as events in their order.

use dualgauge::{Piece, Stop, Usage};
use serde_json::{Value, json};

use super::error_body;
use crate::answer::{Answer, Blocks, Change, Kind};
use crate::error::ApiError;
use crate::stream::Writer;

/// What all bodies of one response share.
pub struct Reply {
    pub id: String,
    pub model: String,
    pub thinking: bool,
    pub input_tokens: usize,
}

impl Reply {
    /// The whole response.
    pub fn whole(&self, answer: &Answer) -> Value {
        let told = answer.blocks.iter().filter(|(kind, _)| self.tells(kind));
        let content = told.map(|(kind, text)| match kind {
            Kind::Text => json!({"type": "text", "text": text}),
            Kind::Reasoning => json!({"type": "thinking", "thinking": text, "signature": ""}),
            Kind::Call { id, name } => json!({"type": "tool_use", "id": id, "name": name, "input": object(text)}),
        });
        let (reason, sequence) = answer.end.as_ref().map_or((Value::Null, Value::Null), |(stop, _)| stop_reason(stop));
        let output = answer.end.as_ref().map_or(0, |(_, spent)| spent.usage.completion_tokens);
        self.message(content.collect(), reason, sequence, output)
    }

    fn message(&self, content: Value, stop_reason: Value, stop_sequence: Value, output_tokens: usize) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "usage": {
                "input_tokens": self.input_tokens,
                "output_tokens": output_tokens,
                // Nobody asked for a cache; ours does not change what a prompt counts.
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
            },
        })
    }

    fn tells(&self, kind: &Kind) -> bool {
        self.thinking || *kind != Kind::Reasoning
    }
}

/// Why an answer ended, and the stop sequence that was hit.
fn stop_reason(stop: &Stop) -> (Value, Value) {
    match stop {
        Stop::StopString(text) => (json!("stop_sequence"), json!(text)),
        Stop::ToolCalls => (json!("tool_use"), Value::Null),
        Stop::Length => (json!("max_tokens"), Value::Null),
        Stop::Eos | Stop::StopId(_) | Stop::Aborted => (json!("end_turn"), Value::Null),
    }
}

/// Arguments of a call. Those that were cut off are none.
fn object(arguments: &str) -> Value {
    serde_json::from_str(arguments).ok().filter(Value::is_object).unwrap_or_else(|| json!({}))
}

/// The events of one response.
pub struct Events {
    reply: Reply,
    started: bool,
    blocks: Blocks,
}

impl Events {
    pub fn new(reply: Reply) -> Self {
        Self { reply, started: false, blocks: Blocks::default() }
    }

    fn finish(&self, stop: &Stop, usage: &Usage, out: &mut Vec<u8>) {
        let (reason, sequence) = stop_reason(stop);
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
        let usage = json!({"output_tokens": usage.completion_tokens});
        event(out, json!({"type": "message_delta", "delta": delta, "usage": usage}));
    }
}

impl Writer for Events {
    fn piece(&mut self, _: usize, piece: Piece, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.started, true) {
            let message = self.reply.message(json!([]), Value::Null, Value::Null, 0);
            event(out, json!({"type": "message_start", "message": message}));
        }
        if matches!(piece, Piece::Reasoning { .. }) && !self.reply.thinking {
            return;
        }
        self.blocks.take(&piece, |change| match change {
            Change::Open(index, kind) => {
                let block = match kind {
                    Kind::Text => json!({"type": "text", "text": ""}),
                    Kind::Reasoning => json!({"type": "thinking", "thinking": "", "signature": ""}),
                    Kind::Call { id, name } => json!({"type": "tool_use", "id": id, "name": name, "input": {}}),
                };
                event(out, json!({"type": "content_block_start", "index": index, "content_block": block}));
            }
            Change::More(index, kind, text) => {
                let delta = match kind {
                    Kind::Text => json!({"type": "text_delta", "text": text}),
                    Kind::Reasoning => json!({"type": "thinking_delta", "thinking": text}),
                    Kind::Call { .. } => json!({"type": "input_json_delta", "partial_json": text}),
                };
                event(out, json!({"type": "content_block_delta", "index": index, "delta": delta}));
            }
            Change::Close(index, kind) => {
                if *kind == Kind::Reasoning {
                    let delta = json!({"type": "signature_delta", "signature": ""});
                    event(out, json!({"type": "content_block_delta", "index": index, "delta": delta}));
                }
                event(out, json!({"type": "content_block_stop", "index": index}));
            }
        });
        if let Piece::Finished { reason, usage, .. } = &piece {
            self.finish(reason, usage, out);
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        event(out, json!({"type": "message_stop"}));
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        event(out, error_body(error, &self.reply.id));
    }

    fn keep_alive(&self) -> &'static [u8] {
        b"event: ping\ndata: {\"type\":\"ping\"}\n\n"
    }
}

/// The name of an event is its type.
fn event(out: &mut Vec<u8>, data: Value) {
    let name = data["type"].as_str().unwrap_or_default();
    out.extend(format!("event: {name}\ndata: {data}\n\n").as_bytes());
}
