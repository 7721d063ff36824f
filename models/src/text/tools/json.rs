//! Owns calls that are JSON objects: `{"name": ..., "arguments": {...}}`, one, or several in a list. Finds where the
//! arguments begin and end while they are still being written.

use serde_json::{Map, Value};

use super::parser::{Call, Head};

/// Follows one JSON value and knows where it ends. It looks at brackets and strings alone: what is between them is for
/// the caller of the tool to judge.
#[derive(Clone, Debug, Default)]
pub(super) struct Span {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Span {
    /// Inside an object already.
    pub(super) fn inside() -> Self {
        Self { depth: 1, ..Self::default() }
    }

    /// Bytes of `text` up to the end of the value, if it is in it.
    pub(super) fn take(&mut self, text: &str) -> Option<usize> {
        for (at, byte) in text.bytes().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// Names that models give to the name of a tool and to its arguments.
const NAMES: [&str; 3] = ["name", "tool_name", "function"];
const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];

/// What an object says, as far as it is there; `at` is where it begins in `text`.
pub(super) fn head(text: &str, at: usize) -> Head {
    let mut cursor = Cursor { text, at };
    if !cursor.eat('{') {
        return if cursor.is_over() { Head::More } else { Head::Not };
    }
    let mut name = None;
    loop {
        let Some(key) = cursor.string() else { return cursor.undecided() };
        if !cursor.eat(':') {
            return cursor.undecided();
        }
        cursor.space();
        if cursor.is_over() {
            return Head::More;
        }
        let key = key.as_str();
        if ARGUMENTS.contains(&key) {
            return match name {
                Some(name) if cursor.rest().starts_with('{') => {
                    Head::Arguments { name, id: None, at: cursor.at, inside: true }
                }
                // Arguments before the name, or JSON in a string: the whole object has to be there.
                _ => whole(text, at),
            };
        }
        let begin = cursor.at;
        let Some(value) = cursor.value() else { return cursor.undecided() };
        if NAMES.contains(&key) {
            match value.as_str() {
                Some(value) => name = Some(value.to_owned()),
                None => return whole(text, at),
            }
        }
        debug_assert!(cursor.at > begin);
        if cursor.eat(',') {
            continue;
        }
        return match (cursor.eat('}'), name) {
            // A call without arguments.
            (true, Some(name)) => {
                Head::Whole { calls: vec![Call { name, id: None, arguments: "{}".to_owned() }], end: cursor.at }
            }
            (true, None) => Head::Not,
            (false, _) => cursor.undecided(),
        };
    }
}

fn whole(text: &str, at: usize) -> Head {
    let Some(length) = Span::default().take(&text[at..]) else { return Head::More };
    let end = at + length;
    let call = serde_json::from_str::<Map<String, Value>>(&text[at..end]).ok().and_then(|object| of_object(&object));
    call.map_or(Head::Not, |call| Head::Whole { calls: vec![call], end })
}

fn of_object(object: &Map<String, Value>) -> Option<Call> {
    if let Some(Value::Object(inner)) = object.get("function") {
        return of_object(inner);
    }
    let name = NAMES.iter().find_map(|key| object.get(*key)?.as_str())?.to_owned();
    let arguments = match ARGUMENTS.iter().find_map(|key| object.get(*key)) {
        None | Some(Value::Null) => "{}".to_owned(),
        Some(Value::String(text)) => {
            serde_json::from_str::<Map<String, Value>>(text).ok()?;
            text.clone()
        }
        Some(arguments @ Value::Object(_)) => arguments.to_string(),
        Some(_) => return None,
    };
    Some(Call { name, id: None, arguments })
}

/// A place in a text that may not be whole yet.
pub(super) struct Cursor<'a> {
    pub(super) text: &'a str,
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    pub(super) fn is_over(&self) -> bool {
        self.at >= self.text.len()
    }

    pub(super) fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// One character, after white space.
    pub(super) fn eat(&mut self, wanted: char) -> bool {
        self.space();
        let eaten = self.rest().starts_with(wanted);
        self.at += if eaten { wanted.len_utf8() } else { 0 };
        eaten
    }

    /// It is not what was looked for, unless the text ends here.
    fn undecided(&self) -> Head {
        match self.is_over() {
            true => Head::More,
            false => Head::Not,
        }
    }

    /// A JSON string; at the end of the text when it is not whole.
    fn string(&mut self) -> Option<String> {
        self.space();
        if !self.rest().starts_with('"') {
            return None;
        }
        match self.value()? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Any JSON value that is whole. Otherwise `None`: at the end of the text when more of it may come.
    fn value(&mut self) -> Option<Value> {
        let mut values = serde_json::Deserializer::from_str(self.rest()).into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) => {
                let end = self.at + values.byte_offset();
                // A number or word at the very end may go on.
                let open =
                    end == self.text.len() && !matches!(value, Value::String(_) | Value::Array(_) | Value::Object(_));
                self.at = end;
                (!open).then_some(value)
            }
            Some(Err(error)) if error.is_eof() => {
                self.at = self.text.len();
                None
            }
            _ => None,
        }
    }
}
