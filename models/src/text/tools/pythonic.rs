//! Owns calls that are written as code: `[f(a=1, b="x"), g()]` of Llama and LFM2, and Gemma's `call:f{a:1}`. Values are
//! literals; nothing is evaluated.

use serde_json::{Map, Number, Value};

use super::parser::{Call, Head};

/// Deeper values are no call.
const MAX_DEPTH: usize = 32;

/// A list of calls that begins at `at`.
pub(super) fn list(text: &str, at: usize) -> Head {
    let mut reader = Reader { text, at, quotes: &["\"", "'"] };
    match reader.calls() {
        Ok(calls) => Head::Whole { calls, end: reader.at },
        Err(Stop::More) => Head::More,
        Err(Stop::Not) => Head::Not,
    }
}

/// `call:NAME{key:value,...}`, strings between `<|"|>`; `text` is all between the outer tags.
pub(super) fn gemma(text: &str) -> Option<Call> {
    let mut reader = Reader { text, at: 0, quotes: &["<|\"|>", "\""] };
    reader.space();
    reader.literal("call:").ok()?;
    let name = reader.name().ok()?;
    let arguments = reader.fields('{', '}', ':', 0).ok()?;
    reader.space();
    (reader.at == text.len()).then(|| call(name, arguments))
}

/// Why a text is no call: it is not whole yet, or something else.
#[derive(Debug, PartialEq)]
enum Stop {
    More,
    Not,
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// What strings are between.
    quotes: &'static [&'static str],
}

impl<'a> Reader<'a> {
    fn calls(&mut self) -> Result<Vec<Call>, Stop> {
        self.literal("[")?;
        let mut calls = vec![];
        loop {
            self.space();
            let name = self.name()?;
            let arguments = self.fields('(', ')', '=', 0)?;
            calls.push(call(name, arguments));
            match self.one_of(&[',', ']'])? {
                ',' => {}
                _ => return Ok(calls),
            }
        }
    }

    /// `key<between>value` pairs between two brackets.
    fn fields(&mut self, open: char, close: char, between: char, depth: usize) -> Result<Map<String, Value>, Stop> {
        self.one_of(&[open])?;
        let mut fields = Map::new();
        if self.next_is(close)? {
            return Ok(fields);
        }
        loop {
            self.space();
            let quoted = self.quotes.iter().any(|quote| self.rest().starts_with(quote));
            let key = if quoted { self.string()? } else { self.name()? };
            self.one_of(&[between])?;
            fields.insert(key, self.value(depth + 1)?);
            let end = self.one_of(&[',', close])?;
            if end == close || self.next_is(close)? {
                return Ok(fields);
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, Stop> {
        if depth > MAX_DEPTH {
            return Err(Stop::Not);
        }
        self.space();
        let rest = self.rest();
        if self.quotes.iter().any(|quote| rest.starts_with(quote)) {
            return self.string().map(Value::String);
        }
        match rest.chars().next() {
            None => Err(Stop::More),
            Some('[') => self.items('[', ']', depth),
            Some('(') => self.items('(', ')', depth),
            Some('{') => self.fields('{', '}', ':', depth).map(Value::Object),
            Some(_) if self.quotes.iter().any(|quote| quote.starts_with(rest)) => Err(Stop::More),
            Some(_) => self.word(),
        }
    }

    fn items(&mut self, open: char, close: char, depth: usize) -> Result<Value, Stop> {
        self.one_of(&[open])?;
        let mut items = vec![];
        if self.next_is(close)? {
            return Ok(items.into());
        }
        loop {
            items.push(self.value(depth + 1)?);
            let end = self.one_of(&[',', close])?;
            if end == close || self.next_is(close)? {
                return Ok(items.into());
            }
        }
    }

    /// A number, or a name of Python's or JSON's for a constant.
    fn word(&mut self) -> Result<Value, Stop> {
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c))).ok_or(Stop::More)?;
        let word = &rest[..end];
        self.at += end;
        match word {
            "True" | "true" => Ok(true.into()),
            "False" | "false" => Ok(false.into()),
            "None" | "null" => Ok(Value::Null),
            _ => word.parse::<Number>().map(Value::Number).map_err(|_| Stop::Not),
        }
    }

    fn string(&mut self) -> Result<String, Stop> {
        let quote = self.quotes.iter().find(|quote| self.rest().starts_with(**quote)).ok_or(Stop::Not)?;
        let escapes = quote.len() == 1;
        self.at += quote.len();
        let mut out = String::new();
        loop {
            let rest = self.rest();
            if rest.starts_with(quote) {
                self.at += quote.len();
                return Ok(out);
            }
            let Some(character) = rest.chars().next() else { return Err(Stop::More) };
            self.at += character.len_utf8();
            if !(escapes && character == '\\') {
                out.push(character);
                continue;
            }
            let Some(escaped) = self.rest().chars().next() else { return Err(Stop::More) };
            self.at += escaped.len_utf8();
            match escaped {
                'n' => out.push('\n'),
                't' => out.push('\t'),
                'r' => out.push('\r'),
                '\\' | '\'' | '"' | '/' => out.push(escaped),
                'u' => {
                    let digits = self.rest().get(..4).ok_or(Stop::More)?;
                    let code = u32::from_str_radix(digits, 16).map_err(|_| Stop::Not)?;
                    out.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                    self.at += 4;
                }
                other => {
                    out.push('\\');
                    out.push(other);
                }
            }
        }
    }

    fn name(&mut self) -> Result<String, Stop> {
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_alphanumeric() || "_.-".contains(c))).ok_or(Stop::More)?;
        let first = rest.chars().next();
        if end == 0 || first.is_some_and(|c| c.is_ascii_digit()) {
            return Err(Stop::Not);
        }
        self.at += end;
        Ok(rest[..end].to_owned())
    }

    fn one_of(&mut self, wanted: &[char]) -> Result<char, Stop> {
        self.space();
        let next = self.rest().chars().next().ok_or(Stop::More)?;
        if !wanted.contains(&next) {
            return Err(Stop::Not);
        }
        self.at += next.len_utf8();
        Ok(next)
    }

    /// Eats the character if it is next.
    fn next_is(&mut self, wanted: char) -> Result<bool, Stop> {
        self.space();
        let next = self.rest().chars().next().ok_or(Stop::More)?;
        self.at += if next == wanted { wanted.len_utf8() } else { 0 };
        Ok(next == wanted)
    }

    fn literal(&mut self, wanted: &str) -> Result<(), Stop> {
        if self.rest().starts_with(wanted) {
            self.at += wanted.len();
            return Ok(());
        }
        Err(if wanted.starts_with(self.rest()) { Stop::More } else { Stop::Not })
    }

    fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }
}

fn call(name: String, arguments: Map<String, Value>) -> Call {
    Call { name, id: None, arguments: Value::Object(arguments).to_string() }
}
