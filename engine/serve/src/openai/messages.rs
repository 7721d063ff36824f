//! Owns the way from messages on the wire to what chat templates take. Errors name the message and its field.

use std::collections::HashMap;

use dualgauge_models::Message;
use serde_json::{Value, json};

use super::ApiError;
use super::types::{ChatMessage, Content};

/// Messages as templates take them.
///
/// # Errors
/// 400 that names the message and its field.
pub fn messages(messages: Vec<ChatMessage>) -> Result<Vec<Message>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "messages: must have at least one message."));
    }
    let mut messages = messages.into_iter().enumerate().map(|(at, m)| message(at, m)).collect::<Result<Vec<_>, _>>()?;
    name_results(&mut messages);
    Ok(messages)
}

/// Some templates show which tool a result is from; the API says it by the call's identifier alone.
fn name_results(messages: &mut [Message]) {
    let mut names: HashMap<String, Value> = HashMap::new();
    for message in messages {
        for call in message.extra.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            if let (Some(id), Some(name)) = (call["id"].as_str(), call.pointer("/function/name")) {
                names.insert(id.to_owned(), name.clone());
            }
        }
        let id = message.extra.get("tool_call_id").and_then(Value::as_str);
        if let Some(name) = id.and_then(|id| names.get(id)).filter(|_| message.role == "tool").cloned() {
            message.extra.entry("name").or_insert(name);
        }
    }
}

fn message(at: usize, message: ChatMessage) -> Result<Message, ApiError> {
    let path = |field: &str| format!("messages[{at}].{field}");
    let role = match message.role.as_str() {
        "developer" => "system",
        "system" | "user" | "assistant" | "tool" => &message.role,
        other => {
            let text = format!(
                "{}: '{other}' is no role; use 'system', 'developer', 'user', 'assistant' or 'tool'.",
                path("role")
            );
            return Err(ApiError::invalid(path("role"), text));
        }
    };
    let content = match message.content {
        Content::Null if role != "assistant" => {
            let text = format!("{}: a message of the role '{role}' needs content.", path("content"));
            return Err(ApiError::invalid(path("content"), text));
        }
        Content::Null => None,
        Content::Text(text) => Some(text),
        Content::Parts(parts) => {
            let mut texts = Vec::with_capacity(parts.len());
            for (i, part) in parts.into_iter().enumerate() {
                let (path, text) = match part.kind.as_str() {
                    "text" => (format!("messages[{at}].content[{i}].text"), part.text),
                    "refusal" => (format!("messages[{at}].content[{i}].refusal"), part.refusal),
                    other => {
                        let path = format!("messages[{at}].content[{i}].type");
                        let text = format!("{path}: '{other}' is not supported; this model reads text only.");
                        return Err(ApiError::unsupported(path, text));
                    }
                };
                texts.push(text.ok_or_else(|| ApiError::invalid(path.clone(), format!("{path}: must be a string.")))?);
            }
            Some(texts.join("\n"))
        }
    };
    let mut extra = serde_json::Map::new();
    if let Some(name) = message.name {
        extra.insert("name".into(), name.into());
    }
    if let Some(id) = message.tool_call_id {
        extra.insert("tool_call_id".into(), id.into());
    }
    if let Some(text) = message.reasoning_content {
        extra.insert("reasoning_content".into(), text.into());
    }
    if let Some(calls) = message.tool_calls.filter(|c| !c.is_empty()) {
        let mut described = Vec::with_capacity(calls.len());
        for (i, call) in calls.into_iter().enumerate() {
            if call.kind.as_ref().is_some_and(|k| k != "function") {
                let path = format!("messages[{at}].tool_calls[{i}].type");
                return Err(ApiError::unsupported(path.clone(), format!("{path}: must be 'function'.")));
            }
            described.push(json!({
                "id": call.id.unwrap_or_default(),
                "type": "function",
                "function": {"name": call.function.name, "arguments": call.function.arguments.unwrap_or_else(|| "{}".into())},
            }));
        }
        extra.insert("tool_calls".into(), described.into());
    }
    Ok(Message { role: role.to_owned(), content, extra })
}
