//! Owns tools for models whose chat template shows none: they are told of them in words, in the system message, and
//! write calls in Hermes's form. Earlier calls and results become text of the same form.

use serde_json::{Value, json};

use super::ToolSpec;
use crate::text::conversation::{Conversation, Message};

/// The conversation with its tools as text. `system`: the template shows a system message; otherwise the first message
/// of the user begins with it.
pub fn instructed(conversation: &Conversation, tools: &[ToolSpec], system: bool) -> Conversation {
    let mut messages: Vec<Message> = vec![];
    for message in &conversation.messages {
        if message.role == "tool" {
            let text = format!("<tool_response>\n{}\n</tool_response>", message.content.as_deref().unwrap_or_default());
            match messages.last_mut() {
                // Templates want turns to alternate.
                Some(last) if last.role == "user" => join(last, &text),
                _ => messages.push(Message::new("user", text)),
            }
            continue;
        }
        let mut message = message.clone();
        if let Some(Value::Array(calls)) = message.extra.remove("tool_calls") {
            let written: Vec<String> = calls.iter().map(written).collect();
            join(&mut message, &written.join("\n"));
        }
        messages.push(message);
    }
    if !tools.is_empty() {
        let words = instruction(tools);
        match (messages.first_mut(), system) {
            (Some(first), true) if first.role == "system" => join(first, &words),
            (_, true) => messages.insert(0, Message::new("system", words)),
            (_, false) => match messages.iter_mut().find(|message| message.role == "user") {
                Some(user) => {
                    let text = user.content.take().unwrap_or_default();
                    user.content = Some(format!("{words}\n\n{text}"));
                }
                None => messages.insert(0, Message::new("user", words)),
            },
        }
    }
    Conversation { messages, tools: None, ..conversation.clone() }
}

fn instruction(tools: &[ToolSpec]) -> String {
    let lines: Vec<String> = tools.iter().map(|tool| tool.described().to_string()).collect();
    let lines = lines.join("\n");
    format!(
        "You can call these functions:\n<tools>\n{lines}\n</tools>\nTo call one, write its name and arguments as JSON \
         between tags:\n<tool_call>\n{{\"name\": \"function\", \"arguments\": {{\"argument\": \"value\"}}}}\n\
         </tool_call>\nIts result comes back between <tool_response> and </tool_response>. Call a function only when it \
         helps; otherwise answer in words."
    )
}

fn written(call: &Value) -> String {
    let function = call.get("function").unwrap_or(call);
    let arguments = match function.get("arguments") {
        Some(Value::String(text)) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        Some(arguments) => arguments.clone(),
        None => json!({}),
    };
    let object = json!({"name": function.get("name"), "arguments": arguments});
    format!("<tool_call>\n{object}\n</tool_call>")
}

fn join(message: &mut Message, more: &str) {
    match &mut message.content {
        Some(content) if !content.is_empty() => {
            content.push('\n');
            content.push_str(more);
        }
        content => *content = Some(more.to_owned()),
    }
}
