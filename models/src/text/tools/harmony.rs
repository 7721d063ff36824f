//! Owns the channels of gpt-oss: an answer is a row of messages, each with a header (channel, recipient) and a body.
//! `analysis` is reasoning, `final` the answer, a recipient `functions.NAME` a call.

use super::ToolSpec;
use super::parser::beginning_at_end;
use crate::text::answer::AnswerPart;

const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
/// What ends a body. A channel or start mark without an end before it begins the next header.
const ENDS: [&str; 5] = ["<|end|>", "<|call|>", "<|return|>", START, CHANNEL];
/// Longer headers are none.
const MAX_HEADER_BYTES: usize = 1024;

/// Reads an answer in channels.
#[derive(Clone, Debug)]
pub struct Harmony {
    tools: Vec<ToolSpec>,
    separate: bool,
    state: State,
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The prompt ends in a header, which the answer goes on with.
    First,
    Header,
    Text,
    Reasoning,
    /// A call: whether arguments were there.
    Call(bool),
}

impl Harmony {
    pub fn new(tools: Vec<ToolSpec>, separate: bool) -> Self {
        Self { tools, separate, state: State::First, held: String::new() }
    }

    pub fn in_reasoning(&self) -> bool {
        self.state == State::Reasoning
    }

    pub fn push(&mut self, text: &str, out: &mut Vec<AnswerPart>) {
        self.held.push_str(text);
        while self.step(out) {}
    }

    pub fn finish(&mut self, out: &mut Vec<AnswerPart>) {
        let rest = std::mem::take(&mut self.held);
        match self.state {
            // A header that was cut off says nothing; other text at the very start is an answer without channels.
            State::First if !rest.contains(CHANNEL) && !rest.contains(START) => self.body(rest, out),
            State::First | State::Header => {}
            _ => self.body(rest, out),
        }
        self.end(out);
    }

    fn step(&mut self, out: &mut Vec<AnswerPart>) -> bool {
        match self.state {
            State::First | State::Header => self.header(out),
            _ => {
                let found = ENDS.iter().filter_map(|end| Some((self.held.find(end)?, *end))).min();
                if let Some((at, end)) = found {
                    let body = self.take(at);
                    self.body(body, out);
                    self.end(out);
                    if end != START && end != CHANNEL {
                        self.take(end.len());
                    }
                    self.state = State::Header;
                    return true;
                }
                let kept = ENDS.iter().map(|end| beginning_at_end(&self.held, end)).max().unwrap_or(0);
                let body = self.take(self.held.len() - kept);
                self.body(body, out);
                false
            }
        }
    }

    fn header(&mut self, out: &mut Vec<AnswerPart>) -> bool {
        let text = self.held.trim_start();
        let marks = [CHANNEL, START, MESSAGE, "<|constrain|>", "to="];
        let begins = marks.iter().any(|mark| text.starts_with(mark) || mark.starts_with(text));
        if self.state == State::First && !begins {
            self.state = State::Text;
            return true;
        }
        let found = self.held.find(MESSAGE);
        if let Some(at) = found.filter(|at| *at <= MAX_HEADER_BYTES) {
            let header = self.take(at);
            self.take(MESSAGE.len());
            self.open(&header, out);
            return true;
        }
        if self.held.len() > MAX_HEADER_BYTES + MESSAGE.len() {
            self.state = State::Text;
            return true;
        }
        false
    }

    fn open(&mut self, header: &str, out: &mut Vec<AnswerPart>) {
        let word = |mark: &str| {
            let rest = header.split_once(mark)?.1;
            let end = rest.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(rest.len());
            Some(&rest[..end])
        };
        let function = word("to=").and_then(|recipient| recipient.strip_prefix("functions."));
        let known = function.filter(|name| self.tools.iter().any(|tool| tool.name == *name));
        self.state = match (known, word(CHANNEL)) {
            (Some(name), _) => {
                out.push(AnswerPart::Call { name: name.to_owned(), id: None });
                State::Call(false)
            }
            (None, Some("analysis")) => State::Reasoning,
            (None, _) => State::Text,
        };
    }

    fn body(&mut self, text: String, out: &mut Vec<AnswerPart>) {
        if text.is_empty() {
            return;
        }
        out.push(match self.state {
            State::Reasoning if self.separate => AnswerPart::Reasoning(text),
            State::Call(_) => {
                self.state = State::Call(true);
                AnswerPart::Arguments(text)
            }
            _ => AnswerPart::Text(text),
        });
    }

    /// A call without a body has no arguments, which is an object too.
    fn end(&mut self, out: &mut Vec<AnswerPart>) {
        if self.state == State::Call(false) {
            out.push(AnswerPart::Arguments("{}".to_owned()));
            self.state = State::Call(true);
        }
    }

    fn take(&mut self, bytes: usize) -> String {
        let rest = self.held.split_off(bytes);
        std::mem::replace(&mut self.held, rest)
    }
}
