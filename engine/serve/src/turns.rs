//! Owns a conversation while it is put together from an API's content blocks: which block becomes which turn of a chat
//! template. Knows no wire format.

use std::collections::HashMap;

use dualgauge_models::Message;
use serde_json::{Value, json};

/// Turns in order. Blocks of one role in a row make one turn.
#[derive(Debug, Default)]
pub struct Turns {
    messages: Vec<Message>,
    /// Names of the calls so far, by identifier.
    names: HashMap<String, String>,
    /// Calls whose results have not come.
    open: Vec<String>,
}

/// A result names a call that no earlier turn made.
#[derive(Debug, PartialEq)]
pub struct NoSuchCall;

impl Turns {
    /// Instructions: they stand before all turns, in one message.
    pub fn system(&mut self, text: &str) {
        match self.messages.first_mut() {
            Some(first) if first.role == "system" => join(first, text),
            _ => self.messages.insert(0, Message::new("system", text)),
        }
    }

    pub fn user(&mut self, text: &str) {
        self.text("user", text);
    }

    pub fn assistant(&mut self, text: &str) {
        self.text("assistant", text);
    }

    /// What the assistant thought, for templates that show it again.
    pub fn reasoning(&mut self, text: &str) {
        let turn = self.assistant_turn();
        let before = turn.extra.get("reasoning_content").and_then(Value::as_str).unwrap_or_default().to_owned();
        turn.extra.insert("reasoning_content".into(), (before + text).into());
    }

    /// A call that the assistant made.
    pub fn call(&mut self, id: &str, name: &str, arguments: &Value) {
        self.names.insert(id.to_owned(), name.to_owned());
        self.open.push(id.to_owned());
        let call =
            json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments.to_string()}});
        let calls = self.assistant_turn().extra.entry("tool_calls").or_insert_with(|| json!([]));
        if let Some(calls) = calls.as_array_mut() {
            calls.push(call);
        }
    }

    /// What a call returned.
    ///
    /// # Errors
    /// When no earlier turn made such a call.
    pub fn result(&mut self, id: &str, text: &str) -> Result<(), NoSuchCall> {
        let name = self.names.get(id).ok_or(NoSuchCall)?;
        let mut message = Message::new("tool", text);
        message.extra.insert("tool_call_id".into(), id.into());
        message.extra.insert("name".into(), name.as_str().into());
        self.open.retain(|open| open != id);
        self.messages.push(message);
        Ok(())
    }

    /// The oldest call of this name whose result has not come: APIs whose calls may lack identifiers name the tool.
    pub fn open_call(&self, name: &str) -> Option<String> {
        self.open.iter().find(|id| self.names.get(*id).is_some_and(|n| n == name)).cloned()
    }

    /// A call without a result.
    pub fn unanswered(&self) -> Option<&str> {
        self.open.first().map(String::as_str)
    }

    /// The turns, and the text that the answer begins with: that of a last turn which is the assistant's and made no calls.
    pub fn finish(mut self) -> (Vec<Message>, Option<String>) {
        let plain = |m: &mut Message| m.role == "assistant" && !m.extra.contains_key("tool_calls");
        let prefill = self.messages.pop_if(plain).and_then(|m| m.content).filter(|text| !text.is_empty());
        (self.messages, prefill)
    }

    fn text(&mut self, role: &str, text: &str) {
        match self.messages.last_mut() {
            Some(last) if last.role == role => join(last, text),
            _ => self.messages.push(Message::new(role, text)),
        }
    }

    fn assistant_turn(&mut self) -> &mut Message {
        if self.messages.last().is_none_or(|m| m.role != "assistant") {
            self.messages.push(Message { role: "assistant".into(), ..Message::default() });
        }
        self.messages.last_mut().expect("a turn was pushed: this is a bug")
    }
}

fn join(message: &mut Message, text: &str) {
    match &mut message.content {
        Some(content) if !content.is_empty() => {
            content.push('\n');
            content.push_str(text);
        }
        content => *content = Some(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_one_role_are_one_turn() {
        let mut turns = Turns::default();
        turns.user("a");
        turns.user("b");
        turns.assistant("c");
        turns.call("1", "f", &json!({"x": 1}));
        turns.result("1", "y").unwrap();
        turns.user("d");
        turns.system("s");
        turns.system("t");
        let (messages, prefill) = turns.finish();
        let shown: Vec<_> = messages.iter().map(|m| (m.role.as_str(), m.content.as_deref())).collect();
        let wanted = [("system", "s\nt"), ("user", "a\nb"), ("assistant", "c"), ("tool", "y"), ("user", "d")];
        assert_eq!(shown, wanted.map(|(role, text)| (role, Some(text))));
        assert_eq!(messages[2].extra["tool_calls"][0]["function"], json!({"name": "f", "arguments": "{\"x\":1}"}));
        assert_eq!((&messages[3].extra["name"], prefill), (&json!("f"), None));
    }

    #[test]
    fn results_belong_to_calls() {
        let mut turns = Turns::default();
        assert_eq!(turns.result("1", "y"), Err(NoSuchCall));
        turns.call("1", "f", &json!({}));
        turns.call("2", "f", &json!({}));
        assert_eq!((turns.unanswered(), turns.open_call("f").as_deref()), (Some("1"), Some("1")));
        turns.result("1", "y").unwrap();
        assert_eq!((turns.unanswered(), turns.open_call("f").as_deref()), (Some("2"), Some("2")));
        turns.result("2", "y").unwrap();
        assert_eq!((turns.unanswered(), turns.open_call("f")), (None, None));
    }

    #[test]
    fn a_last_turn_of_the_assistant_begins_the_answer() {
        let mut turns = Turns::default();
        turns.user("a");
        turns.assistant("It is");
        let (messages, prefill) = turns.finish();
        assert_eq!((messages.len(), prefill.as_deref()), (1, Some("It is")));
    }
}
