//! Owns the way from a Responses body to a request of the engine, with what earlier responses left. Ranges are checked here
//! and every error names its field.

use dualgauge::{OutputFormat, Prompt, Reasoning, TextRequest, ToolChoice, ToolUse};
use dualgauge_models::text::ToolSpec;
use serde_json::{Map, Value, json};

use super::types::{Choice, Create, Format, Item, Part, Tool};
use crate::app::Server;
use crate::body::TextOr;
use crate::error::ApiError;
use crate::ranges::{MAX_LOGPROBS, integer, max_tokens, number};
use crate::run::count;
use crate::tools::Offer;
use crate::turns::Turns;

const LOGPROBS: &str = "message.output_text.logprobs";

/// What a body asks for.
pub struct Job {
    pub model: String,
    pub stream: bool,
    pub store: bool,
    pub request: TextRequest,
    /// Items of this request, and all that came before it.
    pub input: Vec<Map<String, Value>>,
    pub before: Vec<Map<String, Value>>,
    /// Fields that the response repeats.
    pub echo: Map<String, Value>,
}

/// A body as a job.
///
/// # Errors
/// 400 for a field out of range or not supported, 404 for an unknown model.
pub fn job(server: &Server, body: Create) -> Result<Job, ApiError> {
    let model = server.model(body.model.as_deref())?.to_owned();
    if body.background == Some(true) {
        return Err(ApiError::unsupported("background", "background: answers are made while the client waits."));
    }
    let base = server.sampling();
    let mut sampling = base.clone();
    let temperature = number("temperature", body.temperature, 0.0, 2.0)?;
    sampling.temperature = temperature.unwrap_or(base.temperature);
    let top_p = number("top_p", body.top_p, 0.0, 1.0)?;
    sampling.top_p = top_p.unwrap_or(base.top_p).max(f32::MIN_POSITIVE);
    sampling.max_tokens = body.max_output_tokens.map(|n| max_tokens(server, "max_output_tokens", n)).transpose()?;
    sampling.seed = body.seed.map_or(base.seed, i64::cast_unsigned);
    let top = integer("top_logprobs", body.top_logprobs.unwrap_or(0), 0, MAX_LOGPROBS)?;
    if top > 0 || body.include.iter().flatten().any(|name| name == LOGPROBS) {
        sampling.logprobs = Some(top as usize);
    }
    let truncate = match body.truncation.as_deref() {
        None | Some("disabled") => false,
        Some("auto") => true,
        Some(_) => return Err(ApiError::invalid("truncation", "truncation: must be 'auto' or 'disabled'.")),
    };
    let echo = echo(&body, f64::from(base.temperature), f64::from(base.top_p));
    let format = body.text.and_then(|t| t.format).map(format).transpose()?.flatten();
    let effort = body.reasoning.and_then(|r| r.effort);
    let enabled = effort.as_ref().map(|effort| effort != "none");
    let reasoning = Reasoning { separate: true, effort: effort.filter(|e| e != "none"), enabled };
    let parallel = body.parallel_tool_calls.unwrap_or(true);
    let tools = tools(server, body.tools.unwrap_or_default(), body.tool_choice, parallel)?;

    let before = match body.previous_response_id.as_deref() {
        None => vec![],
        Some(id) => server.responses.get(id).map(|kept| kept.history.clone()).ok_or_else(|| {
            let message = format!("previous_response_id: there is no response '{id}' here any more.");
            let error = ApiError::invalid("previous_response_id", message);
            ApiError { code: Some("previous_response_not_found"), ..error }
        })?,
    };
    let input = items(server, body.input)?;
    let mut turns = Turns::default();
    body.instructions.iter().for_each(|text| turns.system(text));
    for (at, item) in before.iter().enumerate() {
        add(&mut turns, &format!("previous[{at}]"), item)?;
    }
    for (at, item) in input.iter().enumerate() {
        add(&mut turns, &format!("input[{at}]"), item)?;
    }
    let (messages, prefill) = turns.finish();
    let conversation = server.conversation(messages, prefill);
    let request = TextRequest::new(Prompt::Chat(conversation), sampling);
    let mut request = TextRequest { tools, format, reasoning, ..request };
    if truncate {
        shorten(server, &mut request)?;
    }
    let (stream, store) = (body.stream.unwrap_or(false), body.store.unwrap_or(true));
    Ok(Job { model, stream, store, request, input, before, echo })
}

fn echo(body: &Create, temperature: f64, top_p: f64) -> Map<String, Value> {
    let tool = |tool: &Tool| {
        json!({
            "type": tool.kind,
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
            "strict": tool.strict.unwrap_or(false),
        })
    };
    let tools: Vec<Value> = body.tools.iter().flatten().map(tool).collect();
    let choice = match &body.tool_choice {
        None => json!("auto"),
        Some(Choice::Mode(mode)) => json!(mode),
        Some(Choice::Object(object)) if object.kind == "function" => json!({"type": "function", "name": object.name}),
        Some(Choice::Object(object)) => {
            let tools: Vec<Value> =
                object.tools.iter().flatten().map(|t| json!({"type": t.kind, "name": t.name})).collect();
            json!({"type": object.kind, "mode": object.mode, "tools": tools})
        }
    };
    let format = body.text.as_ref().and_then(|t| t.format.as_ref());
    let format = match format {
        Some(f) if f.kind == "json_schema" => {
            json!({"type": f.kind, "name": f.name, "schema": f.schema, "strict": f.strict})
        }
        Some(f) => json!({"type": f.kind}),
        None => json!({"type": "text"}),
    };
    let echo = json!({
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata.clone().unwrap_or_default(),
        "parallel_tool_calls": body.parallel_tool_calls.unwrap_or(true),
        "previous_response_id": body.previous_response_id,
        "store": body.store.unwrap_or(true),
        "temperature": body.temperature.unwrap_or(temperature),
        "text": {"format": format},
        "tool_choice": choice,
        "tools": tools,
        "top_logprobs": body.top_logprobs.unwrap_or(0),
        "top_p": body.top_p.unwrap_or(top_p),
        "truncation": body.truncation.as_deref().unwrap_or("disabled"),
    });
    if let Value::Object(echo) = echo { echo } else { Map::new() }
}

fn format(format: Format) -> Result<Option<OutputFormat>, ApiError> {
    match (format.kind.as_str(), format.schema) {
        ("text", _) => Ok(None),
        ("json_object", _) => Ok(Some(OutputFormat::JsonObject)),
        ("json_schema", Some(schema @ Value::Object(_))) => {
            Ok(Some(OutputFormat::JsonSchema { schema, strict: format.strict.unwrap_or(false) }))
        }
        ("json_schema", _) => Err(ApiError::invalid("text.format.schema", "text.format.schema: must be an object.")),
        _ => {
            let message = "text.format.type: must be 'text', 'json_object' or 'json_schema'.";
            Err(ApiError::invalid("text.format.type", message))
        }
    }
}

fn tools(
    server: &Server,
    tools: Vec<Tool>,
    choice: Option<Choice>,
    parallel: bool,
) -> Result<Option<ToolUse>, ApiError> {
    let mut described = vec![];
    for (at, tool) in tools.into_iter().enumerate() {
        if tool.kind != "function" {
            let path = format!("tools[{at}].type");
            let message = format!("{path}: must be 'function'; this server runs no tools.");
            return Err(ApiError::unsupported(path, message));
        }
        described.push(ToolSpec {
            name: tool.name.unwrap_or_default(),
            description: tool.description,
            parameters: tool.parameters.filter(|p| !p.is_null()),
            strict: tool.strict.unwrap_or(false),
        });
    }
    let wrong = || {
        let message = "tool_choice: must be 'none', 'auto', 'required', or name a function or allowed tools.";
        ApiError::invalid("tool_choice", message)
    };
    let mode = |mode: &str| match mode {
        "auto" => Ok(ToolChoice::Auto),
        "none" => Ok(ToolChoice::None),
        "required" => Ok(ToolChoice::Required),
        _ => Err(wrong()),
    };
    let (choice, allowed) = match choice {
        None => (ToolChoice::Auto, None),
        Some(Choice::Mode(word)) => (mode(&word)?, None),
        Some(Choice::Object(object)) => match (object.kind.as_str(), object.name, object.tools) {
            ("function", Some(name), _) => (ToolChoice::Named(name), None),
            ("allowed_tools", _, Some(tools)) => {
                let names = tools.into_iter().filter_map(|tool| tool.name).collect();
                (mode(object.mode.as_deref().unwrap_or("auto"))?, Some(names))
            }
            _ => return Err(wrong()),
        },
    };
    Offer { tools: described, choice, allowed, parallel, id_prefix: "call_" }.check(server, "tools", "tool_choice")
}

/// The items of a request, each with an identifier; references are what they refer to.
fn items(server: &Server, input: Option<TextOr<Map<String, Value>>>) -> Result<Vec<Map<String, Value>>, ApiError> {
    let mut items = match input {
        Some(TextOr::Text(text)) => {
            let part = json!({"type": "input_text", "text": text});
            let item = json!({"type": "message", "role": "user", "content": [part]});
            vec![if let Value::Object(item) = item { item } else { Map::new() }]
        }
        Some(TextOr::Parts(items)) => items,
        None => vec![],
    };
    if items.is_empty() {
        return Err(ApiError::invalid("input", "input: must be text or a list of at least one item."));
    }
    for (at, item) in items.iter_mut().enumerate() {
        if item.get("type").and_then(Value::as_str) == Some("item_reference") {
            let id = item.get("id").and_then(Value::as_str).unwrap_or_default();
            *item = server.responses.item(id).ok_or_else(|| {
                let path = format!("input[{at}].id");
                ApiError::invalid(path.clone(), format!("{path}: there is no item '{id}' here any more."))
            })?;
        }
        if !item.contains_key("type") && item.contains_key("role") {
            item.insert("type".into(), "message".into());
        }
        if item.get("id").is_none_or(Value::is_null) {
            item.insert("id".into(), server.id("item_").into());
        }
    }
    Ok(items)
}

fn add(turns: &mut Turns, path: &str, item: &Map<String, Value>) -> Result<(), ApiError> {
    let wrong = |field: &str, fault: String| {
        let path = format!("{path}{field}");
        ApiError::invalid(path.clone(), format!("{path}: {fault}"))
    };
    let read: Item = serde_path_to_error::deserialize(Value::Object(item.clone())).map_err(|e| {
        let field = format!(".{}", e.path());
        wrong(field.trim_end_matches('.'), format!("{}.", e.inner()))
    })?;
    let missing = |field: &str| wrong(field, "this field is required.".into());
    match read.kind.as_deref() {
        Some("message") => {
            let text = text(read.content.ok_or_else(|| missing(".content"))?, &format!("{path}.content"))?;
            match read.role.as_deref() {
                Some("user") => turns.user(&text),
                Some("assistant") => turns.assistant(&text),
                Some("system" | "developer") => turns.system(&text),
                _ => {
                    let fault = "must be 'user', 'assistant', 'system' or 'developer'.".into();
                    return Err(wrong(".role", fault));
                }
            }
        }
        Some("function_call") => {
            let id = read.call_id.ok_or_else(|| missing(".call_id"))?;
            let name = read.name.ok_or_else(|| missing(".name"))?;
            let arguments = read.arguments.ok_or_else(|| missing(".arguments"))?;
            let arguments = serde_json::from_str(&arguments).unwrap_or(Value::String(arguments));
            turns.call(&id, &name, &arguments);
        }
        Some("function_call_output") => {
            let id = read.call_id.ok_or_else(|| missing(".call_id"))?;
            let text = text(read.output.ok_or_else(|| missing(".output"))?, &format!("{path}.output"))?;
            let lost = |_| wrong(".call_id", format!("no earlier item is a call with the call_id '{id}'."));
            turns.result(&id, &text).map_err(lost)?;
        }
        // What was thought before is not shown again.
        Some("reasoning") => {}
        other => {
            let other = other.unwrap_or_default();
            let path = format!("{path}.type");
            let message = format!("{path}: items of the type '{other}' are not supported.");
            return Err(ApiError::unsupported(path, message));
        }
    }
    Ok(())
}

fn text(content: TextOr<Part>, path: &str) -> Result<String, ApiError> {
    let parts = match content {
        TextOr::Text(text) => return Ok(text),
        TextOr::Parts(parts) => parts,
    };
    let mut texts = vec![];
    for (at, part) in parts.into_iter().enumerate() {
        let text = match part.kind.as_str() {
            "input_text" | "output_text" | "text" => part.text,
            "refusal" => part.refusal,
            other => {
                let path = format!("{path}[{at}].type");
                let message = format!("{path}: '{other}' is not supported; this model reads text only.");
                return Err(ApiError::unsupported(path, message));
            }
        };
        let path = format!("{path}[{at}].text");
        texts.push(text.ok_or_else(|| ApiError::invalid(path.clone(), format!("{path}: must be a string.")))?);
    }
    Ok(texts.join("\n"))
}

/// Leaves out the oldest turns until the rest fits, with room for one token. Instructions and the last turn stay.
fn shorten(server: &Server, request: &mut TextRequest) -> Result<(), ApiError> {
    loop {
        if count(server, "input", request).is_ok_and(|tokens| tokens < server.engine().max_model_len()) {
            return Ok(());
        }
        let Prompt::Chat(conversation) = &mut request.prompt else { return Ok(()) };
        let messages = &mut conversation.messages;
        let first = messages.iter().position(|m| m.role != "system").unwrap_or(messages.len());
        if messages.len() - first < 2 {
            // What is left is too long by itself; the engine says so.
            return Ok(());
        }
        messages.remove(first);
        // A result without its call would puzzle the template.
        while messages.get(first).is_some_and(|m| m.role == "tool") {
            messages.remove(first);
        }
    }
}
