//! Owns what an answer consists of, for every API: blocks of reasoning, text and calls, told one by one while they grow or
//! collected whole.

use dualgauge::{Piece, Stop, Token, TokenLogprobs, Usage};

/// What a part of an answer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Reasoning,
    Text,
    Call { id: String, name: String },
}

/// What a piece does to the blocks of an answer. Blocks are counted from 0; one is open at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    Open(usize, &'a Kind),
    /// More of a block: text, or the JSON of a call's arguments.
    More(usize, &'a Kind, &'a str),
    Close(usize, &'a Kind),
}

/// The blocks of an answer while it is streamed.
#[derive(Debug, Default)]
pub struct Blocks {
    open: Option<Kind>,
    opened: usize,
}

impl Blocks {
    /// Tells what a piece changes.
    pub fn take(&mut self, piece: &Piece, mut tell: impl FnMut(Change<'_>)) {
        match piece {
            Piece::Text { text, .. } => self.more(Kind::Text, text, &mut tell),
            Piece::Reasoning { text, .. } => self.more(Kind::Reasoning, text, &mut tell),
            Piece::ToolCall { id, name, .. } => {
                self.open(Kind::Call { id: id.clone(), name: name.clone() }, &mut tell);
            }
            Piece::ToolArguments { text, .. } => {
                if let (Some(kind), false) = (&self.open, text.is_empty()) {
                    tell(Change::More(self.opened - 1, kind, text));
                }
            }
            Piece::Finished { .. } => self.close(&mut tell),
            Piece::Prompt(_) | Piece::Failed { .. } => {}
        }
    }

    fn more(&mut self, kind: Kind, text: &str, tell: &mut impl FnMut(Change<'_>)) {
        if text.is_empty() {
            return;
        }
        if self.open.as_ref() != Some(&kind) {
            self.open(kind.clone(), tell);
        }
        tell(Change::More(self.opened - 1, &kind, text));
    }

    fn open(&mut self, kind: Kind, tell: &mut impl FnMut(Change<'_>)) {
        self.close(tell);
        tell(Change::Open(self.opened, &kind));
        self.opened += 1;
        self.open = Some(kind);
    }

    fn close(&mut self, tell: &mut impl FnMut(Change<'_>)) {
        if let Some(kind) = self.open.take() {
            tell(Change::Close(self.opened - 1, &kind));
        }
    }
}

/// What the pieces of an answer add up to.
#[derive(Debug, Default)]
pub struct Answer {
    /// In the order in which they were made.
    pub blocks: Vec<(Kind, String)>,
    /// Of all blocks.
    pub tokens: Vec<Token>,
    pub prompt_logprobs: Option<Vec<TokenLogprobs>>,
    pub end: Option<(Stop, Spent)>,
    growing: Blocks,
}

/// What an answer cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    pub usage: Usage,
    /// Of the completion tokens, those of the reasoning.
    pub reasoning_tokens: usize,
}

impl Answer {
    pub fn take(&mut self, piece: Piece) {
        let blocks = &mut self.blocks;
        self.growing.take(&piece, |change| match change {
            Change::Open(_, kind) => blocks.push((kind.clone(), String::new())),
            Change::More(at, _, text) => blocks[at].1.push_str(text),
            Change::Close(..) => {}
        });
        match piece {
            Piece::Prompt(logprobs) => self.prompt_logprobs = Some(logprobs),
            Piece::Text { tokens, .. } | Piece::Reasoning { tokens, .. } | Piece::ToolArguments { tokens, .. } => {
                self.tokens.extend(tokens);
            }
            Piece::Finished { reason, usage, reasoning_tokens } => {
                self.end = Some((reason, Spent { usage, reasoning_tokens }));
            }
            // A call has a name and no tokens yet; of failures those who collect are told before.
            Piece::ToolCall { .. } | Piece::Failed { .. } => {}
        }
    }

    /// All text, without reasoning and calls.
    pub fn text(&self) -> String {
        self.joined(&Kind::Text)
    }

    pub fn reasoning(&self) -> String {
        self.joined(&Kind::Reasoning)
    }

    /// Identifier, name and arguments (JSON) of each call.
    pub fn calls(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.blocks.iter().filter_map(|(kind, arguments)| match kind {
            Kind::Call { id, name } => Some((id.as_str(), name.as_str(), arguments.as_str())),
            _ => None,
        })
    }

    fn joined(&self, wanted: &Kind) -> String {
        self.blocks.iter().filter(|(kind, _)| kind == wanted).map(|(_, text)| text.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Piece {
        Piece::Text { text: text.into(), tokens: vec![] }
    }

    #[test]
    fn one_block_is_open_at_a_time() {
        let pieces = [
            Piece::Reasoning { text: "hm".into(), tokens: vec![] },
            text(""),
            text("a"),
            text("b"),
            Piece::ToolCall { index: 0, id: "1".into(), name: "f".into() },
            Piece::ToolArguments { index: 0, text: "{}".into(), tokens: vec![] },
            Piece::ToolCall { index: 1, id: "2".into(), name: "f".into() },
            Piece::Finished { reason: Stop::ToolCalls, usage: Usage::default(), reasoning_tokens: 1 },
        ];
        let (mut blocks, mut told, mut answer) = (Blocks::default(), vec![], Answer::default());
        for piece in pieces {
            blocks.take(&piece, |change| {
                told.push(match change {
                    Change::Open(at, _) => format!("+{at}"),
                    Change::More(at, _, text) => format!("{at}{text}"),
                    Change::Close(at, _) => format!("-{at}"),
                });
            });
            answer.take(piece);
        }
        assert_eq!(told.join(" "), "+0 0hm -0 +1 1a 1b -1 +2 2{} -2 +3 -3");
        assert_eq!((answer.text().as_str(), answer.reasoning().as_str()), ("ab", "hm"));
        assert_eq!(answer.calls().collect::<Vec<_>>(), [("1", "f", "{}"), ("2", "f", "")]);
    }
}
