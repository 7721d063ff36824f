//! Owns what a chat is before it is text: messages, tools and the switches of a template. It knows no template and no
//! wire format.

use serde_json::{Map, Value};

/// What a chat template renders.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    pub messages: Vec<Message>,
    /// Tool descriptions, as the template expects them (a list of `{"type": "function", "function": {...}}`).
    pub tools: Option<Value>,
    /// Documents for templates that quote them.
    pub documents: Option<Value>,
    /// Ends the prompt with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// The beginning of the answer: it stands behind the opening of the assistant's turn, and the model goes on from
    /// there.
    pub prefill: Option<String>,
    /// More variables for the template (`enable_thinking`, `reasoning_effort`, ...).
    pub kwargs: Map<String, Value>,
    /// The time for templates that print a date: seconds since 1970-01-01 in the zone to show. Without it such a
    /// template is told that there is no clock.
    pub now: Option<i64>,
}

/// One turn. `content: None` reaches the template as an empty string, since many templates fail on null; the few that
/// show tool calls only beside null get null.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    pub role: String,
    pub content: Option<String>,
    /// All other fields: `tool_calls`, `tool_call_id`, `name`, `reasoning_content`, ... Arguments of tool calls may
    /// be JSON in a string or an object; the template gets the form that it understands.
    pub extra: Map<String, Value>,
}

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(content.into()), extra: Map::new() }
    }

    /// Reads a message object: `role`, `content` as a string, null or a list of text parts (joined by line feeds),
    /// and any other field. Errors name the field.
    pub fn from_json(value: Value) -> Result<Self, String> {
        let Value::Object(mut fields) = value else { return Err("a message must be an object".to_owned()) };
        let role = match fields.remove("role") {
            Some(Value::String(role)) => role,
            _ => return Err("role must be a string".to_owned()),
        };
        let content = match fields.remove("content") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text),
            Some(Value::Array(parts)) => Some(join_parts(&parts)?),
            Some(_) => return Err("content must be a string or a list of parts".to_owned()),
        };
        Ok(Self { role, content, extra: fields })
    }
}

fn join_parts(parts: &[Value]) -> Result<String, String> {
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
            (Some("text"), Some(text)) => texts.push(text),
            (Some("text"), None) => return Err(format!("content[{index}].text must be a string")),
            (Some(other), _) => return Err(format!("content[{index}].type {other:?} is not supported, only text is")),
            (None, _) => return Err(format!("content[{index}].type must be a string")),
        }
    }
    Ok(texts.join("\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn content_may_be_text_null_or_parts() {
        let parts = json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "n"});
        let message = Message::from_json(parts).expect("valid");
        assert_eq!(message.content.as_deref(), Some("a\nb"));
        assert_eq!(message.extra.get("name"), Some(&json!("n")));
        assert_eq!(Message::from_json(json!({"role": "tool", "content": null})).expect("valid").content, None);
    }

    #[test]
    fn errors_name_the_field() {
        let image = json!({"role": "user", "content": [{"type": "image_url"}]});
        assert!(Message::from_json(image).expect_err("image").contains("content[0].type"));
        assert!(Message::from_json(json!({"content": "x"})).expect_err("no role").contains("role"));
    }
}
