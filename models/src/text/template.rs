//! Owns chat templates: the Jinja text of a model, what it may use, and how much work it may do. It knows no tokens.
//! Nothing in a template can reach the machine: there is no include, no file, no environment, no clock of its own.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, OnceLock};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde_json::{Map, json};

use super::conversation::{Conversation, Message};
use super::python;
use crate::{Error, Result};

/// Steps of one rendering: about a second of work. A message takes some hundred.
const MAX_STEPS: u64 = 8_000_000;
/// Text of one rendering.
const MAX_OUTPUT_BYTES: usize = 32 << 20;
/// Longest template text: the largest known has 30 kB.
const MAX_SOURCE_BYTES: usize = 1 << 20;
/// Nested macro calls and the like; a macro call counts as ten.
const MAX_RECURSION: usize = 300;

const NAME: &str = "chat_template";

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: Arc<str>,
    /// Names that a template may print: `bos_token`, `eos_token`, `pad_token`, `unk_token`.
    tokens: BTreeMap<String, String>,
    forms: OnceLock<Forms>,
}

/// What shapes of a message the template understands, found out by trying.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Forms {
    /// Arguments of tool calls must be JSON in a string.
    argument_strings: bool,
    /// Content must be a list of parts.
    content_parts: bool,
    /// Calls are shown only beside a content of null, not beside an empty string.
    null_beside_calls: bool,
}

impl ChatTemplate {
    /// Compiles a template. Errors: the reason alone (the caller knows the file), with the line.
    pub fn new(source: &str, tokens: BTreeMap<String, String>) -> Result<Self, String> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(format!("the chat template has {} bytes, over the limit of {MAX_SOURCE_BYTES}", source.len()));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(describe)?;
        environment.set_syntax(syntax);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(MAX_STEPS));
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_debug(false);
        python::install(&mut environment);
        environment.add_template_owned(NAME, python::without_generation_marks(source)).map_err(describe)?;
        Ok(Self { environment, source: source.into(), tokens, forms: OnceLock::new() })
    }

    /// The prompt of a conversation. Errors: the template refused it, or it took too much work.
    pub fn render(&self, conversation: &Conversation) -> Result<String> {
        let forms = *self.forms.get_or_init(|| self.find_forms());
        self.render_in(conversation, forms).map_err(|reason| Error::Text(format!("the chat template: {reason}")))
    }

    /// Descriptions of tools appear in the prompt.
    pub fn shows_tools(&self) -> bool {
        let conversation = Conversation { messages: vec![Message::new("user", "a")], ..tool_call() };
        self.render(&conversation).is_ok_and(|text| text.contains(PROBE))
    }

    /// A system message appears in the prompt.
    pub fn shows_system(&self) -> bool {
        let messages = vec![Message::new("system", PROBE), Message::new("user", "a")];
        let conversation = Conversation { messages, add_generation_prompt: true, ..Conversation::default() };
        self.render(&conversation).is_ok_and(|text| text.contains(PROBE))
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    fn render_in(&self, conversation: &Conversation, forms: Forms) -> Result<String, String> {
        let mut context: BTreeMap<String, Value> = BTreeMap::new();
        for (name, text) in &self.tokens {
            context.insert(name.clone(), Value::from(text.as_str()));
        }
        // What the conversation is cannot be overwritten by its switches.
        for (name, value) in &conversation.kwargs {
            context.insert(name.clone(), Value::from(Serde(value)));
        }
        let messages: Vec<serde_json::Value> =
            conversation.messages.iter().map(|message| forms.message(message)).collect();
        context.insert("messages".into(), Value::from(Serde(&messages)));
        context.insert("tools".into(), optional(conversation.tools.as_ref()));
        context.insert("documents".into(), optional(conversation.documents.as_ref()));
        context.insert("add_generation_prompt".into(), Value::from(conversation.add_generation_prompt));
        context.insert("strftime_now".into(), python::strftime_now(conversation.now));
        let template = self.environment.get_template(NAME).map_err(describe)?;
        let mut out = Bounded { bytes: Vec::new() };
        template.render_captured_to(Value::from(context), &mut out).map_err(describe)?;
        let mut text = String::from_utf8(out.bytes).map_err(|_| "its output is not text".to_owned())?;
        text.push_str(conversation.prefill.as_deref().unwrap_or_default());
        Ok(text)
    }

    /// Tries the usual shape first: what fails or shows nothing is tried in the other.
    fn find_forms(&self) -> Forms {
        let usual = Forms { argument_strings: false, content_parts: false, null_beside_calls: false };
        let turn = Conversation {
            messages: vec![Message::new("user", PROBE)],
            add_generation_prompt: true,
            ..Default::default()
        };
        let shows = |forms: Forms| self.render_in(&turn, forms).is_ok_and(|text| text.contains(PROBE));
        let parts = Forms { content_parts: true, ..usual };
        let content_parts = !shows(usual) && shows(parts);
        let forms = Forms { content_parts, ..usual };
        let call = tool_call();
        let argument_strings = self.render_in(&call, forms).is_err()
            && self.render_in(&call, Forms { argument_strings: true, ..forms }).is_ok();
        let forms = Forms { argument_strings, ..forms };
        let shows_call = |forms: Forms| self.render_in(&call, forms).is_ok_and(|text| text.contains(CALL_PROBE));
        let null = Forms { null_beside_calls: true, ..forms };
        if !shows_call(forms) && shows_call(null) { null } else { forms }
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("bytes", &self.source.len()).finish_non_exhaustive()
    }
}

/// Text that no template holds by itself.
const PROBE: &str = "zqprobeqz";
const CALL_PROBE: &str = "zqcallqz";

/// A conversation with one tool call and its result.
fn tool_call() -> Conversation {
    let mut call = Message { role: "assistant".to_owned(), ..Message::default() };
    let function = json!({"name": CALL_PROBE, "arguments": {PROBE: 1}});
    call.extra.insert("tool_calls".into(), json!([{"id": "call00001", "type": "function", "function": function}]));
    let mut result = Message::new("tool", PROBE);
    result.extra.insert("tool_call_id".into(), json!("call00001"));
    result.extra.insert("name".into(), json!(PROBE));
    let parameters = json!({"type": "object", "properties": {PROBE: {"type": "integer", "description": PROBE}}});
    let tool = json!({"type": "function", "function": {"name": PROBE, "description": PROBE, "parameters": parameters}});
    Conversation {
        messages: vec![Message::new("user", PROBE), call, result],
        tools: Some(json!([tool])),
        ..Default::default()
    }
}

impl Forms {
    fn message(self, message: &Message) -> serde_json::Value {
        let mut fields = Map::new();
        fields.insert("role".into(), message.role.as_str().into());
        let content = match message.content.as_deref() {
            None if self.null_beside_calls && message.extra.contains_key("tool_calls") => serde_json::Value::Null,
            content if self.content_parts => json!([{"type": "text", "text": content.unwrap_or_default()}]),
            content => content.unwrap_or_default().into(),
        };
        fields.insert("content".into(), content);
        for (name, value) in &message.extra {
            fields.insert(name.clone(), if name == "tool_calls" { self.calls(value) } else { value.clone() });
        }
        serde_json::Value::Object(fields)
    }

    fn calls(self, calls: &serde_json::Value) -> serde_json::Value {
        let mut calls = calls.clone();
        for call in calls.as_array_mut().into_iter().flatten() {
            for place in ["/function/arguments", "/arguments"] {
                let Some(arguments) = call.pointer_mut(place) else { continue };
                match arguments {
                    serde_json::Value::String(text) if !self.argument_strings => {
                        if let Ok(object @ serde_json::Value::Object(_)) = serde_json::from_str(text) {
                            *arguments = object;
                        }
                    }
                    serde_json::Value::Object(_) if self.argument_strings => {
                        *arguments = python::to_json(&Value::from(Serde(&*arguments))).into();
                    }
                    _ => {}
                }
            }
        }
        calls
    }
}

/// Collects output up to the limit.
struct Bounded {
    bytes: Vec<u8>,
}

impl io::Write for Bounded {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + more.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other("too much text"));
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn optional(value: Option<&serde_json::Value>) -> Value {
    value.map_or_else(python::nothing, |value| Value::from(Serde(value)))
}

fn describe(error: minijinja::Error) -> String {
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    match error.kind() {
        ErrorKind::OutOfFuel => format!("it took more than {MAX_STEPS} steps{line}"),
        ErrorKind::WriteFailure => format!("it wrote more than {MAX_OUTPUT_BYTES} bytes{line}"),
        kind => format!("{}{line}", error.detail().map_or_else(|| kind.to_string(), str::to_owned)),
    }
}
