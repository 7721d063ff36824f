//! Owns the response bodies of Converse, whole and as events in their order, and of Llama models.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dualgauge::{Piece, Stop, Usage};
use serde_json::{Value, json};

use super::frame;
use crate::answer::{Answer, Blocks, Change, Kind};
use crate::error::ApiError;
use crate::stream::Writer;

/// When a request came, and the clock to tell since when.
#[derive(Clone, Copy)]
pub struct Timing {
    pub clock: fn() -> SystemTime,
    pub began: SystemTime,
}

impl Timing {
    fn metrics(&self) -> Value {
        let since = (self.clock)().duration_since(self.began).unwrap_or_default();
        json!({"latencyMs": u64::try_from(since.as_millis()).unwrap_or(u64::MAX)})
    }
}

/// The whole response of Converse.
pub fn converse(answer: &Answer, timing: &Timing) -> Value {
    let content = answer.blocks.iter().map(|(kind, text)| match kind {
        Kind::Text => json!({"text": text}),
        Kind::Reasoning => json!({"reasoningContent": {"reasoningText": {"text": text}}}),
        Kind::Call { id, name } => {
            // Arguments that were cut off are none.
            let input: Value = serde_json::from_str(text).unwrap_or_else(|_| json!({}));
            json!({"toolUse": {"toolUseId": id, "name": name, "input": input}})
        }
    });
    let content: Vec<Value> = content.collect();
    let (stop, usage) = answer.end.as_ref().map_or((&Stop::Eos, Usage::default()), |(stop, spent)| (stop, spent.usage));
    json!({
        "output": {"message": {"role": "assistant", "content": content}},
        "stopReason": stop_reason(stop),
        "usage": tokens(&usage),
        "metrics": timing.metrics(),
    })
}

fn stop_reason(stop: &Stop) -> &'static str {
    match stop {
        Stop::Length => "max_tokens",
        Stop::StopString(_) => "stop_sequence",
        Stop::ToolCalls => "tool_use",
        Stop::Eos | Stop::StopId(_) | Stop::Aborted => "end_turn",
    }
}

fn tokens(usage: &Usage) -> Value {
    let (input, output) = (usage.prompt_tokens, usage.completion_tokens);
    json!({"inputTokens": input, "outputTokens": output, "totalTokens": input + output})
}

/// The events of ConverseStream.
pub struct Events {
    timing: Timing,
    blocks: Blocks,
    started: bool,
    usage: Usage,
}

impl Events {
    pub fn new(timing: Timing) -> Self {
        Self { timing, blocks: Blocks::default(), started: false, usage: Usage::default() }
    }
}

impl Writer for Events {
    fn piece(&mut self, _: usize, piece: Piece, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.started, true) {
            frame::event(out, "messageStart", &json!({"role": "assistant"}));
        }
        self.blocks.take(&piece, |change| match change {
            Change::Open(index, Kind::Call { id, name }) => {
                let start = json!({"toolUse": {"toolUseId": id, "name": name}});
                frame::event(out, "contentBlockStart", &json!({"start": start, "contentBlockIndex": index}));
            }
            Change::Open(..) => {}
            Change::More(index, kind, text) => {
                let delta = match kind {
                    Kind::Text => json!({"text": text}),
                    Kind::Reasoning => json!({"reasoningContent": {"text": text}}),
                    Kind::Call { .. } => json!({"toolUse": {"input": text}}),
                };
                frame::event(out, "contentBlockDelta", &json!({"delta": delta, "contentBlockIndex": index}));
            }
            Change::Close(index, _) => frame::event(out, "contentBlockStop", &json!({"contentBlockIndex": index})),
        });
        if let Piece::Finished { reason, usage, .. } = &piece {
            frame::event(out, "messageStop", &json!({"stopReason": stop_reason(reason)}));
            self.usage = *usage;
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        let metadata = json!({"usage": tokens(&self.usage), "metrics": self.timing.metrics()});
        frame::event(out, "metadata", &metadata);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        frame::failure(out, error);
    }

    /// Every message is an event to clients.
    fn keep_alive(&self) -> &'static [u8] {
        b""
    }
}

/// The whole response of a Llama model.
pub fn llama(answer: &Answer) -> Value {
    let (stop, usage) = answer.end.as_ref().map_or((&Stop::Eos, Usage::default()), |(stop, spent)| (stop, spent.usage));
    json!({
        "generation": answer.text(),
        "prompt_token_count": usage.prompt_tokens,
        "generation_token_count": usage.completion_tokens,
        "stop_reason": llama_reason(stop),
    })
}

fn llama_reason(stop: &Stop) -> &'static str {
    if *stop == Stop::Length { "length" } else { "stop" }
}

/// The pieces of a Llama model's answer. The prompt is counted in the first.
pub struct LlamaPieces {
    pub prompt_tokens: Option<usize>,
    pub generated: usize,
}

impl LlamaPieces {
    fn push(&mut self, text: &str, stop: Option<&Stop>, out: &mut Vec<u8>) {
        let piece = json!({
            "generation": text,
            "prompt_token_count": self.prompt_tokens.take(),
            "generation_token_count": self.generated,
            "stop_reason": stop.map(llama_reason),
        });
        chunk(out, &piece.to_string());
    }
}

impl Writer for LlamaPieces {
    fn piece(&mut self, _: usize, piece: Piece, out: &mut Vec<u8>) {
        match piece {
            Piece::Text { text, tokens } => {
                self.generated += tokens.len();
                self.push(&text, None, out);
            }
            Piece::Finished { reason, usage, .. } => {
                self.generated = usage.completion_tokens;
                self.push("", Some(&reason), out);
            }
            _ => {}
        }
    }

    fn end(&mut self, _: &mut Vec<u8>) {}

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        frame::failure(out, error);
    }

    fn keep_alive(&self) -> &'static [u8] {
        b""
    }
}

/// One piece of JSON of a model's own stream.
pub fn chunk(out: &mut Vec<u8>, json: &str) {
    frame::event(out, "chunk", &json!({"bytes": STANDARD.encode(json)}));
}
