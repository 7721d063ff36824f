//! Owns a model's thinking aloud: between which marks it stands, and telling it from the answer while both are written.

use super::tools::beginning_at_end;

/// How a model marks its reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningFormat {
    /// Between two marks, before the answer.
    Tags(Tags),
    /// In a channel of its own: gpt-oss.
    Harmony,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tags {
    pub open: &'static str,
    pub close: &'static str,
}

/// Names for flags, and the marks. A template that holds both marks has the format; the first that fits decides.
const NAMED: [(&str, Tags); 6] = [
    ("seed", Tags { open: "<seed:think>", close: "</seed:think>" }),
    ("mistral", Tags { open: "[THINK]", close: "[/THINK]" }),
    ("cohere", Tags { open: "<|START_THINKING|>", close: "<|END_THINKING|>" }),
    ("gemma4", Tags { open: "<|channel>thought\n", close: "<channel|>" }),
    ("thinking", Tags { open: "<thinking>", close: "</thinking>" }),
    ("think", Tags { open: "<think>", close: "</think>" }),
];

impl ReasoningFormat {
    /// The format that a chat template shows.
    pub fn of_template(source: &str) -> Option<Self> {
        if source.contains("<|channel|>") && source.contains("<|start|>") {
            return Some(Self::Harmony);
        }
        let fits = |tags: &Tags| source.contains(tags.open.trim_end()) && source.contains(tags.close);
        NAMED.iter().find(|(_, tags)| fits(tags)).map(|(_, tags)| Self::Tags(*tags))
    }

    /// By the name that flags use.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "harmony" => Some(Self::Harmony),
            _ => NAMED.iter().find(|(known, _)| *known == name).map(|(_, tags)| Self::Tags(*tags)),
        }
    }

    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMED.iter().map(|(name, _)| *name).chain(["harmony"])
    }

    pub fn tags(self) -> Option<Tags> {
        match self {
            Self::Tags(tags) => Some(tags),
            Self::Harmony => None,
        }
    }
}

/// What a piece of an answer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Reasoning(String),
    /// Reasoning that stays in the text, with its marks.
    Kept(String),
    Answer(String),
}

/// Tells reasoning from the answer.
#[derive(Clone, Debug)]
pub(super) struct Splitter {
    tags: Tags,
    separate: bool,
    state: State,
    /// Text that is not decided.
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space was there.
    Start,
    /// The mark was there and nothing but white space since.
    Opened,
    Inside,
    /// The end mark was there and nothing but white space since.
    Closed,
    Answer,
}

impl Splitter {
    /// `begun`: the text begins inside of the reasoning.
    pub(super) fn new(tags: Tags, separate: bool, begun: bool) -> Self {
        Self { tags, separate, state: if begun { State::Opened } else { State::Start }, held: String::new() }
    }

    pub(super) fn inside(&self) -> bool {
        matches!(self.state, State::Opened | State::Inside)
    }

    pub(super) fn push(&mut self, text: &str, out: &mut Vec<Side>) {
        self.held.push_str(text);
        while self.step(out) {}
    }

    pub(super) fn finish(&mut self, out: &mut Vec<Side>) {
        let rest = std::mem::take(&mut self.held);
        match self.state {
            State::Start | State::Answer => side(out, Side::Answer, rest),
            State::Opened | State::Inside => self.reasoning(out, rest),
            State::Closed => {}
        }
    }

    fn step(&mut self, out: &mut Vec<Side>) -> bool {
        let trimmed = self.held.trim_start();
        let gap = self.held.len() - trimmed.len();
        match self.state {
            State::Start => {
                let open = self.tags.open;
                if trimmed.starts_with(open) {
                    let mark = self.take(gap + open.len());
                    self.kept(out, mark);
                    self.state = State::Opened;
                    return true;
                }
                if open.starts_with(trimmed) {
                    return false;
                }
                self.state = State::Answer;
                true
            }
            State::Opened | State::Closed => {
                if self.separate {
                    self.take(gap);
                }
                if self.held.is_empty() {
                    return false;
                }
                self.state = if self.state == State::Opened { State::Inside } else { State::Answer };
                true
            }
            State::Inside => {
                let close = self.tags.close;
                if let Some(at) = self.held.find(close) {
                    let before = self.take(at);
                    let shown = if self.separate { before.trim_end() } else { &before };
                    self.reasoning(out, shown.to_owned());
                    let mark = self.take(close.len());
                    self.kept(out, mark);
                    self.state = State::Closed;
                    return true;
                }
                let end = self.held.len() - beginning_at_end(&self.held, close);
                let end = if self.separate { self.held[..end].trim_end().len() } else { end };
                let shown = self.take(end);
                self.reasoning(out, shown);
                false
            }
            State::Answer => {
                let rest = std::mem::take(&mut self.held);
                side(out, Side::Answer, rest);
                false
            }
        }
    }

    fn reasoning(&self, out: &mut Vec<Side>, text: String) {
        match self.separate {
            true => side(out, Side::Reasoning, text),
            false => side(out, Side::Kept, text),
        }
    }

    fn kept(&self, out: &mut Vec<Side>, text: String) {
        if !self.separate {
            side(out, Side::Kept, text);
        }
    }

    fn take(&mut self, bytes: usize) -> String {
        let rest = self.held.split_off(bytes);
        std::mem::replace(&mut self.held, rest)
    }
}

fn side(out: &mut Vec<Side>, kind: fn(String) -> Side, text: String) {
    if !text.is_empty() {
        out.push(kind(text));
    }
}
