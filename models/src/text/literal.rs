//! Owns the difference between a control token that a template writes and the same characters in what a user wrote: the
//! first ends a turn, the second is text. It knows no template and no encoder.
//!
//! Before rendering, each control token's text inside a message is replaced by one private-use character that occurs
//! nowhere else. The template sees an ordinary character. After rendering, the characters become the text again and
//! their places are remembered: there the encoder takes no control token. A conversation without such text, which is
//! nearly every one, is rendered and encoded as it is.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use serde_json::{Map, Value};
use tokenizers::tokenizer::{AddedToken, AddedVocabulary};

use super::conversation::Conversation;

/// The added tokens of a vocabulary, to be found in a text.
#[derive(Debug, Default)]
pub(super) struct ControlTokens {
    by_text: HashMap<String, (u32, AddedToken)>,
    /// For each byte, how long the tokens are whose text begins with it: longest first.
    lengths: Vec<Vec<usize>>,
}

/// A rendered conversation: `literal` are the byte ranges that are a user's text though they look like control tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rendered {
    pub text: String,
    pub literal: Vec<Range<usize>>,
}

impl ControlTokens {
    pub(super) fn new(added: &AddedVocabulary) -> Self {
        let by_text: HashMap<String, (u32, AddedToken)> = added
            .get_added_tokens_decoder()
            .iter()
            .filter(|(_, token)| !token.content.is_empty())
            .map(|(&id, token)| (token.content.clone(), (id, token.clone())))
            .collect();
        let mut lengths = vec![Vec::new(); 256];
        for text in by_text.keys() {
            lengths[usize::from(text.as_bytes()[0])].push(text.len());
        }
        for lengths in &mut lengths {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
        }
        Self { by_text, lengths }
    }

    /// Splits `text` at added tokens as the encoder would, but takes no control token that begins in `literal`.
    /// `base` is the place of `text` in the whole that `literal` counts in.
    pub(super) fn split(&self, text: &str, base: usize, literal: &[Range<usize>]) -> Vec<(Range<usize>, Option<u32>)> {
        let mut parts = Vec::new();
        let (mut start, mut at) = (0, 0);
        while at < text.len() {
            let inside = literal
                .get(literal.partition_point(|range| range.end <= base + at))
                .is_some_and(|range| range.contains(&(base + at)));
            let found = self.starting(text, at).find(|(_, token)| {
                !(inside && is_control(token)) && (!token.single_word || stands_alone(text, at, token.content.len()))
            });
            let Some((id, token)) = found else {
                at += text[at..].chars().next().map_or(1, char::len_utf8);
                continue;
            };
            let mut end = at + token.content.len();
            let begin = if token.lstrip { text[..at].trim_end().len().max(start) } else { at };
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            if start < begin {
                parts.push((start..begin, None));
            }
            parts.push((begin..end, Some(id)));
            (start, at) = (end, end);
        }
        if start < text.len() {
            parts.push((start..text.len(), None));
        }
        parts
    }

    /// Renders with what users wrote made safe: see the top of this file. `source` is the template's text.
    pub(super) fn render<E>(
        &self,
        conversation: &Conversation,
        source: &str,
        render: impl FnOnce(&Conversation) -> Result<String, E>,
    ) -> Result<Rendered, E> {
        let mut stand_ins = StandIns { control: self, taken: BTreeMap::new(), next: FIRST_STAND_IN };
        if !stand_ins.needed(conversation) {
            return Ok(Rendered { text: render(conversation)?, literal: Vec::new() });
        }
        let safe = stand_ins.replace(conversation, source);
        Ok(stand_ins.restore(&render(&safe)?))
    }

    /// Tokens whose text begins at `at`, longest first. Costs a look-up for each length that a token may have.
    fn starting<'a>(&'a self, text: &'a str, at: usize) -> impl Iterator<Item = (u32, &'a AddedToken)> + 'a {
        let lengths = self.lengths.get(usize::from(text.as_bytes()[at])).map_or(&[][..], Vec::as_slice);
        lengths.iter().filter_map(move |&length| {
            let (id, token) = self.by_text.get(text.get(at..at + length)?)?;
            Some((*id, token))
        })
    }

    /// The control token that begins at `at`.
    fn control_at<'a>(&'a self, text: &'a str, at: usize) -> Option<&'a AddedToken> {
        self.starting(text, at).map(|(_, token)| token).find(|token| is_control(token))
    }
}

/// Tokens that structure a prompt. Some vocabularies declare their turn marks as ordinary added tokens; the shape tells.
pub(super) fn is_control(token: &AddedToken) -> bool {
    let text = token.content.as_str();
    let bars = |open: &str, close: &str| {
        text.len() > open.len() + close.len() && text.starts_with(open) && text.ends_with(close)
    };
    token.special || bars("<|", "|>") || bars("<｜", "｜>") || matches!(text, "<start_of_turn>" | "<end_of_turn>")
}

/// Marks of thinking: templates look for them in what the assistant said, so there they stay as they are.
fn is_thinking(text: &str) -> bool {
    text.to_ascii_lowercase().contains("think")
}

fn stands_alone(text: &str, at: usize, length: usize) -> bool {
    let word = |character: char| character.is_alphanumeric() || character == '_';
    !text[..at].chars().next_back().is_some_and(word) && !text[at + length..].chars().next().is_some_and(word)
}

/// The second private-use plane: no tokenizer and hardly any text uses it.
const FIRST_STAND_IN: u32 = 0x10_0000;
const LAST_STAND_IN: u32 = 0x10_fffd;

/// Which character stands for which control token in one conversation.
struct StandIns<'a> {
    control: &'a ControlTokens,
    taken: BTreeMap<char, String>,
    next: u32,
}

impl StandIns<'_> {
    fn needed(&self, conversation: &Conversation) -> bool {
        let hit = |text: &str| {
            (0..text.len()).any(|at| text.is_char_boundary(at) && self.control.control_at(text, at).is_some())
        };
        conversation.messages.iter().any(|message| {
            hit(&message.role) || message.content.as_deref().is_some_and(hit) || any_string_in_map(&message.extra, &hit)
        }) || conversation.prefill.as_deref().is_some_and(hit)
            || conversation.tools.iter().chain(&conversation.documents).any(|value| any_string(value, &hit))
            || any_string_in_map(&conversation.kwargs, &hit)
    }

    fn replace(&mut self, conversation: &Conversation, source: &str) -> Conversation {
        let mut used = Vec::new();
        collect_stand_ins(source, &mut used);
        {
            let mut note = |text: &str| {
                collect_stand_ins(text, &mut used);
                false
            };
            for message in &conversation.messages {
                note(&message.role);
                message.content.as_deref().map(&mut note);
                visit_map(&message.extra, &mut note);
            }
            conversation.prefill.as_deref().map(&mut note);
            for value in conversation.tools.iter().chain(&conversation.documents) {
                visit(value, &mut note);
            }
            visit_map(&conversation.kwargs, &mut note);
        }
        // Numbers already in use are passed over.
        used.sort_unstable();
        let mut safe = conversation.clone();
        for message in &mut safe.messages {
            let assistant = message.role == "assistant";
            message.role = self.text(&message.role, false, &used);
            message.content = message.content.as_deref().map(|text| self.text(text, assistant, &used));
            message.extra = self.map(std::mem::take(&mut message.extra), assistant, &used);
        }
        safe.prefill = safe.prefill.map(|text| self.text(&text, true, &used));
        safe.tools = safe.tools.map(|tools| self.value(tools, false, &used));
        safe.documents = safe.documents.map(|documents| self.value(documents, false, &used));
        safe.kwargs = self.map(safe.kwargs, false, &used);
        safe
    }

    fn restore(&self, rendered: &str) -> Rendered {
        let mut out = Rendered { text: String::with_capacity(rendered.len()), literal: Vec::new() };
        for character in rendered.chars() {
            match self.taken.get(&character) {
                Some(text) => {
                    let start = out.text.len();
                    out.text.push_str(text);
                    out.literal.push(start..out.text.len());
                }
                None => out.text.push(character),
            }
        }
        out
    }

    fn text(&mut self, text: &str, assistant: bool, used: &[u32]) -> String {
        let mut out = String::with_capacity(text.len());
        let mut at = 0;
        while let Some(character) = text[at..].chars().next() {
            let control = self.control;
            match control.control_at(text, at).filter(|token| !(assistant && is_thinking(&token.content))) {
                Some(token) => {
                    out.push(self.stand_in(&token.content, used));
                    at += token.content.len();
                }
                None => {
                    out.push(character);
                    at += character.len_utf8();
                }
            }
        }
        out
    }

    fn stand_in(&mut self, text: &str, used: &[u32]) -> char {
        if let Some((&character, _)) = self.taken.iter().find(|(_, taken)| *taken == text) {
            return character;
        }
        while self.next < LAST_STAND_IN && used.binary_search(&self.next).is_ok() {
            self.next += 1;
        }
        let character = char::from_u32(self.next).expect("a private-use number is a character: this is a bug");
        self.next = (self.next + 1).min(LAST_STAND_IN);
        self.taken.insert(character, text.to_owned());
        character
    }

    fn value(&mut self, value: Value, assistant: bool, used: &[u32]) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(&text, assistant, used)),
            Value::Array(items) => {
                Value::Array(items.into_iter().map(|item| self.value(item, assistant, used)).collect())
            }
            Value::Object(fields) => Value::Object(self.map(fields, assistant, used)),
            other => other,
        }
    }

    fn map(&mut self, fields: Map<String, Value>, assistant: bool, used: &[u32]) -> Map<String, Value> {
        fields
            .into_iter()
            .map(|(key, value)| (self.text(&key, false, used), self.value(value, assistant, used)))
            .collect()
    }
}

fn collect_stand_ins(text: &str, used: &mut Vec<u32>) {
    used.extend(text.chars().map(u32::from).filter(|code| (FIRST_STAND_IN..=LAST_STAND_IN).contains(code)));
}

fn any_string(value: &Value, hit: &impl Fn(&str) -> bool) -> bool {
    visit(value, &mut |text: &str| hit(text))
}

fn any_string_in_map(fields: &Map<String, Value>, hit: &impl Fn(&str) -> bool) -> bool {
    visit_map(fields, &mut |text: &str| hit(text))
}

/// Shows every string and key to `see` until one call returns true.
fn visit(value: &Value, see: &mut impl FnMut(&str) -> bool) -> bool {
    match value {
        Value::String(text) => see(text),
        Value::Array(items) => items.iter().any(|item| visit(item, see)),
        Value::Object(fields) => visit_map(fields, see),
        _ => false,
    }
}

fn visit_map(fields: &Map<String, Value>, see: &mut impl FnMut(&str) -> bool) -> bool {
    fields.iter().any(|(key, value)| see(key) || visit(value, see))
}
