//! Owns the reading of calls in a growing text. What may be the beginning of a call is held back until it is one; its
//! arguments then go out as they come. What turns out to be no call is text again. Where the text is cut changes nothing
//! but the size of the pieces.

use super::json::{self, Span};
use super::{CallFormat, ToolSpec, named, pythonic, tagged};
use crate::text::answer::AnswerPart;

/// Longest beginning of a call, and longest call of the forms that are read whole.
const MAX_HELD_BYTES: usize = 128 << 10;

/// A call that is there as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    pub id: Option<String>,
    /// A JSON object.
    pub arguments: String,
}

/// What the beginning of a call says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// Too little to tell.
    More,
    Not,
    /// The arguments begin at a byte; `inside` an object that ends after them.
    Arguments {
        name: String,
        id: Option<String>,
        at: usize,
        inside: bool,
    },
    /// Whole calls up to a byte.
    Whole {
        calls: Vec<Call>,
        end: usize,
    },
}

/// Reads text with calls of one form.
#[derive(Clone, Debug)]
pub struct CallParser {
    format: CallFormat,
    tools: Vec<ToolSpec>,
    state: State,
    /// Text that is not decided.
    held: String,
    /// White space before what may be a call: gone with a call, text with anything else.
    gap: String,
    /// Held text that is known not to end a call that is read whole.
    searched: usize,
    /// Nothing but white space was there yet.
    at_start: bool,
}

#[derive(Clone, Debug)]
enum State {
    Text,
    /// A call may have begun, with the held text.
    Head,
    Arguments {
        span: Span,
        inside: bool,
    },
    /// Behind the arguments, inside of the object that they are in.
    Rest(Span),
    /// Behind a call: its end marks, and another call perhaps.
    Between,
}

impl CallParser {
    pub fn new(format: CallFormat, tools: Vec<ToolSpec>) -> Self {
        Self { format, tools, state: State::Text, held: String::new(), gap: String::new(), searched: 0, at_start: true }
    }

    pub fn push(&mut self, text: &str, out: &mut Vec<AnswerPart>) {
        self.held.push_str(text);
        while self.step(false, out) {}
    }

    /// The text ends here.
    pub fn finish(&mut self, out: &mut Vec<AnswerPart>) {
        while self.step(false, out) {}
        while self.step(true, out) {}
        text(out, std::mem::take(&mut self.held));
    }

    /// True when there may be more to do with what is held. With `last` nothing more comes.
    fn step(&mut self, last: bool, out: &mut Vec<AnswerPart>) -> bool {
        if self.held.is_empty() {
            return false;
        }
        match self.state.clone() {
            State::Text => self.in_text(last, out),
            State::Head => self.in_head(last, out),
            State::Arguments { mut span, inside } => {
                let end = span.take(&self.held);
                let more = self.take(end.unwrap_or(self.held.len()));
                arguments(out, more);
                self.state = match (end, inside) {
                    (None, _) => State::Arguments { span, inside },
                    (Some(_), true) => State::Rest(Span::inside()),
                    (Some(_), false) => State::Between,
                };
                true
            }
            State::Rest(mut span) => {
                let end = span.take(&self.held);
                self.take(end.unwrap_or(self.held.len()));
                self.state = if end.is_some() { State::Between } else { State::Rest(span) };
                true
            }
            State::Between => self.between(last, out),
        }
    }

    fn in_text(&mut self, last: bool, out: &mut Vec<AnswerPart>) -> bool {
        let begins = begins(self.format);
        if self.at_start {
            let trimmed = self.held.trim_start();
            if trimmed.is_empty() {
                // White space before a call is no text.
                return false;
            }
            if let Some(open) = bare(self.format)
                && trimmed.starts_with(open)
            {
                let space = self.held.len() - trimmed.len();
                self.gap = self.take(space);
                self.state = State::Head;
                return true;
            }
        }
        let found = begins.iter().filter_map(|mark| self.held.find(mark)).min();
        if let Some(at) = found {
            let mut before = self.take(at);
            self.gap = before.split_off(before.trim_end().len());
            text(out, before);
            self.at_start = false;
            self.state = State::Head;
            self.searched = 0;
            return true;
        }
        let kept =
            if last { 0 } else { begins.iter().map(|mark| beginning_at_end(&self.held, mark)).max().unwrap_or(0) };
        // White space before a mark goes with the mark.
        let end = match kept {
            0 if !last => self.held.trim_end().len(),
            _ => self.held[..self.held.len() - kept].trim_end_matches(|c: char| !last && c.is_whitespace()).len(),
        };
        let shown = self.take(end);
        self.at_start &= shown.is_empty();
        let some = !shown.is_empty();
        text(out, shown);
        some && last
    }

    fn in_head(&mut self, last: bool, out: &mut Vec<AnswerPart>) -> bool {
        let head = match self.held.len() > MAX_HELD_BYTES {
            true => Head::Not,
            false => self.head(),
        };
        let known = |name: &str| self.tools.iter().any(|tool| tool.name == name);
        match head {
            Head::Arguments { name, id, at, inside } if known(&name) => {
                self.take(at);
                self.gap.clear();
                out.push(AnswerPart::Call { name, id });
                self.state = State::Arguments { span: Span::default(), inside };
            }
            Head::Whole { calls, end } if !calls.is_empty() && calls.iter().all(|call| known(&call.name)) => {
                self.take(end);
                self.gap.clear();
                for Call { name, id, arguments: json } in calls {
                    out.push(AnswerPart::Call { name, id });
                    arguments(out, json);
                }
                self.state = State::Between;
            }
            Head::More if !last => return false,
            // No call after all: what looked like its mark is text.
            _ => {
                let mark = begins(self.format).iter().find(|mark| self.held.starts_with(**mark));
                let first = self.held.chars().next().map_or(0, char::len_utf8);
                let shown = self.take(mark.map_or(first, |mark| mark.len()));
                let gap = std::mem::take(&mut self.gap);
                text(out, gap + &shown);
                self.at_start = false;
                self.state = State::Text;
            }
        }
        true
    }

    fn head(&mut self) -> Head {
        let held = self.held.as_str();
        let mark = begins(self.format).iter().find(|mark| held.starts_with(**mark)).map_or(0, |mark| mark.len());
        match self.format {
            CallFormat::DeepSeek | CallFormat::DeepSeek31 => named::deepseek(held),
            CallFormat::Kimi => named::kimi(held),
            CallFormat::MistralList | CallFormat::MistralNamed => named::mistral(held),
            CallFormat::Pythonic | CallFormat::Lfm => pythonic::list(held, mark + space(&held[mark..])),
            CallFormat::Gemma => self.whole(mark, &["<tool_call|>"], |text, _| pythonic::gemma(text)),
            // Some models write JSON between the tags.
            CallFormat::Glm if held[mark..].trim_start().starts_with('{') => json::head(held, mark),
            CallFormat::Glm => self.whole(mark, &["</tool_call>"], tagged::glm),
            CallFormat::Coder if held[mark..].trim_start().starts_with('{') => json::head(held, mark),
            CallFormat::Coder => {
                let mark = if held.starts_with("<function=") { 0 } else { mark };
                self.whole(mark, &["</function>", "</tool_call>", "</seed:tool_call>"], tagged::coder)
            }
            _ => {
                let body = mark + space(&held[mark..]);
                let list = held[body..].starts_with('[');
                json::head(held, if list { body + 1 } else { body })
            }
        }
    }

    /// A call of a form that is read once it has ended.
    fn whole(&mut self, mark: usize, ends: &[&str], read: fn(&str, &[ToolSpec]) -> Option<Call>) -> Head {
        let from = self.searched.max(mark);
        let longest = ends.iter().map(|end| end.len()).max().unwrap_or(0);
        let found = ends.iter().filter_map(|end| Some((self.held[from..].find(end)? + from, end.len()))).min();
        let Some((at, length)) = found else {
            let mut next = self.held.len().saturating_sub(longest).max(mark);
            while !self.held.is_char_boundary(next) {
                next -= 1;
            }
            self.searched = next;
            return Head::More;
        };
        let call = read(&self.held[mark..at], &self.tools);
        call.map_or(Head::Not, |call| Head::Whole { calls: vec![call], end: at + length })
    }

    fn between(&mut self, last: bool, out: &mut Vec<AnswerPart>) -> bool {
        let trimmed = self.held.trim_start();
        let gap = self.held.len() - trimmed.len();
        if trimmed.is_empty() {
            return false;
        }
        for close in closes(self.format) {
            if trimmed.starts_with(close) {
                self.take(gap + close.len());
                return true;
            }
        }
        let next = begins(self.format).iter().any(|mark| trimmed.starts_with(mark));
        if next || (bare(self.format) == Some('{') && trimmed.starts_with('{')) {
            self.gap = self.take(gap);
            self.state = State::Head;
            self.searched = 0;
            return true;
        }
        if let Some(rest) = trimmed.strip_prefix([',', ';']) {
            let rest = rest.trim_start();
            if rest.starts_with('{') {
                self.take(self.held.len() - rest.len());
                self.state = State::Head;
                return true;
            }
            if rest.is_empty() && !last {
                return false;
            }
        }
        let marks = closes(self.format).iter().chain(begins(self.format));
        if !last && marks.into_iter().any(|mark| mark.starts_with(trimmed)) {
            return false;
        }
        if last && (closes(self.format).iter().any(|mark| mark.starts_with(trimmed))) {
            // An end mark that was cut off.
            self.held.clear();
            return false;
        }
        self.take(gap);
        self.state = State::Text;
        self.in_text(last, out)
    }

    fn take(&mut self, bytes: usize) -> String {
        let rest = self.held.split_off(bytes);
        std::mem::replace(&mut self.held, rest)
    }
}

/// Marks that a call begins with.
fn begins(format: CallFormat) -> &'static [&'static str] {
    match format {
        CallFormat::Hermes | CallFormat::Glm => &["<tool_call>"],
        CallFormat::Coder => &["<tool_call>", "<seed:tool_call>", "<function="],
        CallFormat::LlamaJson => &["<|python_tag|>"],
        CallFormat::Pythonic => &["<|python_start|>"],
        CallFormat::Lfm => &["<|tool_call_start|>"],
        CallFormat::MistralList | CallFormat::MistralNamed => &["[TOOL_CALLS]"],
        CallFormat::DeepSeek | CallFormat::DeepSeek31 => &["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"],
        CallFormat::Kimi => &["<|tool_calls_section_begin|>", "<|tool_call_begin|>"],
        CallFormat::Gemma => &["<|tool_call>"],
        CallFormat::Phi => &["<|tool_call|>", "functools"],
        CallFormat::Granite => &["<|tool_call|>"],
        CallFormat::Functools => &["functools"],
        CallFormat::Nemotron => &["<TOOLCALL>"],
        CallFormat::Cohere => &["<|START_ACTION|>"],
        CallFormat::Harmony => &[],
    }
}

/// Marks that stand behind a call.
fn closes(format: CallFormat) -> &'static [&'static str] {
    match format {
        CallFormat::Hermes | CallFormat::Glm => &["]", "</tool_call>"],
        CallFormat::Coder => &["</function>", "</tool_call>", "</seed:tool_call>"],
        CallFormat::LlamaJson => &["<|eom_id|>", "<|eot_id|>"],
        CallFormat::Pythonic => &["<|python_end|>"],
        CallFormat::Lfm => &["<|tool_call_end|>"],
        CallFormat::MistralList | CallFormat::MistralNamed | CallFormat::Functools => &["]"],
        CallFormat::DeepSeek | CallFormat::DeepSeek31 => &["```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"],
        CallFormat::Kimi => &["<|tool_call_end|>", "<|tool_calls_section_end|>"],
        CallFormat::Gemma => &["<tool_call|>"],
        CallFormat::Phi | CallFormat::Granite => &["]", "<|/tool_call|>"],
        CallFormat::Nemotron => &["]", "</TOOLCALL>"],
        CallFormat::Cohere => &["]", "<|END_ACTION|>"],
        CallFormat::Harmony => &[],
    }
}

/// What an answer that is a call begins with when there is no mark.
fn bare(format: CallFormat) -> Option<char> {
    match format {
        CallFormat::LlamaJson => Some('{'),
        CallFormat::Pythonic => Some('['),
        _ => None,
    }
}

fn space(text: &str) -> usize {
    text.len() - text.trim_start().len()
}

/// Length of the longest proper beginning of `mark` that `text` ends with.
pub fn beginning_at_end(text: &str, mark: &str) -> usize {
    let lengths = mark.char_indices().map(|(at, _)| at).filter(|length| *length > 0 && *length <= text.len());
    lengths.rev().find(|length| text.ends_with(&mark[..*length])).unwrap_or(0)
}

fn text(out: &mut Vec<AnswerPart>, more: String) {
    if !more.is_empty() {
        out.push(AnswerPart::Text(more));
    }
}

fn arguments(out: &mut Vec<AnswerPart>, more: String) {
    if !more.is_empty() {
        out.push(AnswerPart::Arguments(more));
    }
}
