//! Owns the parts of a model's answer while it is written: reasoning, text, calls of tools. It knows no tokens; where the
//! text is cut into pieces changes nothing but the size of the parts.

use super::reasoning::{ReasoningFormat, Splitter};
use super::tools::{CallFormat, CallParser, Harmony, ToolSpec};

/// A part of an answer, or more of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerPart {
    Text(String),
    Reasoning(String),
    /// A call begins. `id` is the model's own name for it, if it gives one.
    Call {
        name: String,
        id: Option<String>,
    },
    /// More of the arguments of the call that began last: JSON.
    Arguments(String),
}

/// How an answer is to be read.
#[derive(Clone, Debug)]
pub struct Reading {
    pub calls: CallFormat,
    pub reasoning: Option<ReasoningFormat>,
    /// Tools whose calls are looked for. Without any, all is text.
    pub tools: Vec<ToolSpec>,
    /// Reasoning is a part of its own; otherwise it is text, as the model wrote it.
    pub separate: bool,
    /// The prompt ends inside of the reasoning.
    pub begun: bool,
}

/// Reads one answer.
#[derive(Clone, Debug)]
pub struct AnswerParser {
    inner: Inner,
}

#[derive(Clone, Debug)]
enum Inner {
    Harmony(Harmony),
    Tags { splitter: Option<Splitter>, calls: Option<CallParser> },
}

impl AnswerParser {
    pub fn new(reading: Reading) -> Self {
        let Reading { calls, reasoning, tools, separate, begun } = reading;
        if reasoning == Some(ReasoningFormat::Harmony) || calls == CallFormat::Harmony {
            return Self { inner: Inner::Harmony(Harmony::new(tools, separate)) };
        }
        let splitter = reasoning.and_then(ReasoningFormat::tags).map(|tags| Splitter::new(tags, separate, begun));
        let calls = (!tools.is_empty()).then(|| CallParser::new(calls, tools));
        Self { inner: Inner::Tags { splitter, calls } }
    }

    pub fn push(&mut self, text: &str) -> Vec<AnswerPart> {
        let mut parts = vec![];
        match &mut self.inner {
            Inner::Harmony(harmony) => harmony.push(text, &mut parts),
            Inner::Tags { splitter: Some(splitter), calls } => {
                let mut split = vec![];
                splitter.push(text, &mut split);
                forward(split, calls, &mut parts);
            }
            Inner::Tags { splitter: None, calls } => read(text.to_owned(), calls, &mut parts),
        }
        parts
    }

    /// The answer ends here.
    pub fn finish(&mut self) -> Vec<AnswerPart> {
        let mut parts = vec![];
        match &mut self.inner {
            Inner::Harmony(harmony) => harmony.finish(&mut parts),
            Inner::Tags { splitter, calls } => {
                if let Some(splitter) = splitter {
                    let mut split = vec![];
                    splitter.finish(&mut split);
                    forward(split, calls, &mut parts);
                }
                if let Some(calls) = calls {
                    calls.finish(&mut parts);
                }
            }
        }
        parts
    }

    pub fn in_reasoning(&self) -> bool {
        match &self.inner {
            Inner::Harmony(harmony) => harmony.in_reasoning(),
            Inner::Tags { splitter, .. } => splitter.as_ref().is_some_and(Splitter::inside),
        }
    }
}

/// What the splitter says is an answer's own text goes to the reader of calls.
fn forward(split: Vec<super::reasoning::Side>, calls: &mut Option<CallParser>, parts: &mut Vec<AnswerPart>) {
    use super::reasoning::Side;
    for side in split {
        match side {
            Side::Reasoning(text) => parts.push(AnswerPart::Reasoning(text)),
            // Not looked into: calls that are thought of are none.
            Side::Kept(text) => parts.push(AnswerPart::Text(text)),
            Side::Answer(text) => read(text, calls, parts),
        }
    }
}

fn read(text: String, calls: &mut Option<CallParser>, parts: &mut Vec<AnswerPart>) {
    match calls {
        Some(calls) => calls.push(&text, parts),
        None if text.is_empty() => {}
        None => parts.push(AnswerPart::Text(text)),
    }
}
