//! Owns the way from a Messages body to a request of the engine. Ranges are checked here and every error names its field.

use dualgauge::{OutputFormat, Prompt, Reasoning, TextRequest, ToolChoice, ToolUse};
use dualgauge_models::text::ToolSpec;
use serde_json::Value;

use super::types::{Block, Choice, Format, Messages, Thinking, Tool, Turn};
use crate::app::Server;
use crate::body::TextOr;
use crate::error::ApiError;
use crate::ranges::{max_tokens, number, stop_texts, top_k};
use crate::tools::Offer;
use crate::turns::Turns;

/// What a body asks for.
pub struct Job {
    pub model: String,
    pub stream: bool,
    /// Reasoning is told.
    pub thinking: bool,
    pub request: TextRequest,
}

/// A body as a job. `count_only`: only its prompt is of interest, and the limit of the answer may be missing.
///
/// # Errors
/// 400 for a field out of range or not supported, 404 for an unknown model.
pub fn job(server: &Server, body: Messages, count_only: bool) -> Result<Job, ApiError> {
    let model = body.model.as_deref().filter(|m| !m.is_empty());
    let model = model.ok_or_else(|| ApiError::invalid("model", "model: this field is required."))?;
    let model = server.model(Some(model))?.to_owned();
    let mut sampling = server.sampling();
    sampling.max_tokens = match body.max_tokens {
        Some(n) => Some(max_tokens(server, "max_tokens", n)?),
        None if count_only => None,
        None => return Err(ApiError::invalid("max_tokens", "max_tokens: this field is required.")),
    };
    sampling.temperature = number("temperature", body.temperature, 0.0, 1.0)?.unwrap_or(sampling.temperature);
    let top_p = number("top_p", body.top_p, 0.0, 1.0)?.unwrap_or(sampling.top_p);
    sampling.top_p = top_p.max(f32::MIN_POSITIVE);
    sampling.top_k = body.top_k.map_or(Ok(sampling.top_k), |k| top_k(server, "top_k", k))?;
    sampling.seed = body.seed.map_or(sampling.seed, i64::cast_unsigned);
    let stop = stop_texts("stop_sequences", body.stop_sequences.as_deref().unwrap_or_default())?;

    let (output, effort) = body.output_config.map_or((None, None), |c| (c.format, c.effort));
    let format = output.or(body.output_format).map(format).transpose()?;
    let (thinking, reasoning) = reasoning(body.thinking, effort)?;
    let tools = tools(server, body.tools.unwrap_or_default(), body.tool_choice)?;
    let turns = turns(body.system, body.messages)?;
    let (messages, prefill) = turns.finish();
    let conversation = server.conversation(messages, prefill);
    let request = TextRequest::new(Prompt::Chat(conversation), sampling);
    let request = TextRequest { stop, tools, format, reasoning, ..request };
    Ok(Job { model, stream: body.stream.unwrap_or(false), thinking, request })
}

fn format(format: Format) -> Result<OutputFormat, ApiError> {
    match (format.kind.as_str(), format.schema) {
        ("json_schema", Some(schema @ Value::Object(_))) => Ok(OutputFormat::JsonSchema { schema, strict: true }),
        ("json_schema", _) => {
            Err(ApiError::invalid("output_config.format.schema", "output_config.format.schema: must be an object."))
        }
        _ => {
            let message = "output_config.format.type: must be 'json_schema'.";
            Err(ApiError::invalid("output_config.format.type", message))
        }
    }
}

/// Whether reasoning is told, and what is asked of the model. Without the field there is none.
fn reasoning(thinking: Option<Thinking>, effort: Option<String>) -> Result<(bool, Reasoning), ApiError> {
    let thinking = match thinking.as_ref().map(|t| t.kind.as_str()) {
        Some("enabled" | "adaptive") => true,
        None | Some("disabled") => false,
        Some(_) => {
            let message = "thinking.type: must be 'enabled', 'adaptive' or 'disabled'.";
            return Err(ApiError::invalid("thinking.type", message));
        }
    };
    let effort = effort.filter(|_| thinking);
    Ok((thinking, Reasoning { separate: true, effort, enabled: Some(thinking) }))
}

fn tools(server: &Server, tools: Vec<Tool>, choice: Option<Choice>) -> Result<Option<ToolUse>, ApiError> {
    let mut described = Vec::with_capacity(tools.len());
    for (at, tool) in tools.into_iter().enumerate() {
        if tool.kind.as_ref().is_some_and(|kind| kind != "custom") {
            let path = format!("tools[{at}].type");
            let message = format!("{path}: tools that the server itself would run are not supported.");
            return Err(ApiError::unsupported(path, message));
        }
        let strict = tool.strict.unwrap_or(false);
        let parameters = tool.input_schema;
        described.push(ToolSpec { name: tool.name, description: tool.description, parameters, strict });
    }
    let parallel = choice.as_ref().and_then(|c| c.disable_parallel_tool_use) != Some(true);
    let choice = match choice.as_ref().map(|c| (c.kind.as_str(), c.name.as_ref())) {
        None | Some(("auto", _)) => ToolChoice::Auto,
        Some(("any", _)) => ToolChoice::Required,
        Some(("none", _)) => ToolChoice::None,
        Some(("tool", Some(name))) => ToolChoice::Named(name.clone()),
        Some(("tool", None)) => {
            return Err(ApiError::invalid("tool_choice.name", "tool_choice.name: this field is required."));
        }
        Some(_) => {
            let message = "tool_choice.type: must be 'auto', 'any', 'tool' or 'none'.";
            return Err(ApiError::invalid("tool_choice.type", message));
        }
    };
    let offer = Offer { tools: described, choice, allowed: None, parallel, id_prefix: "toolu_" };
    offer.check(server, "tools", "tool_choice")
}

fn turns(system: Option<TextOr<Block>>, messages: Vec<Turn>) -> Result<Turns, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "messages: must have at least one message."));
    }
    let mut turns = Turns::default();
    for (at, turn) in messages.into_iter().enumerate() {
        let path = format!("messages[{at}]");
        let content = blocks(turn.content);
        match turn.role.as_str() {
            "user" => user(&mut turns, &path, content)?,
            "assistant" => assistant(&mut turns, &path, content)?,
            other => {
                let message = format!("{path}.role: '{other}' is no role; use 'user' or 'assistant'.");
                return Err(ApiError::invalid(format!("{path}.role"), message));
            }
        }
    }
    if let Some(id) = turns.unanswered() {
        let message = format!("messages: the call '{id}' has no tool_result in the turn after it.");
        return Err(ApiError::invalid("messages", message));
    }
    for (i, block) in system.map(blocks).unwrap_or_default().into_iter().enumerate() {
        turns.system(&plain(&format!("system[{i}]"), block)?);
    }
    Ok(turns)
}

fn user(turns: &mut Turns, path: &str, content: Vec<Block>) -> Result<(), ApiError> {
    for (i, block) in content.into_iter().enumerate() {
        let path = format!("{path}.content[{i}]");
        if block.kind != "tool_result" {
            turns.user(&plain(&path, block)?);
            continue;
        }
        let id = block.tool_use_id.unwrap_or_default();
        let mut texts = vec![];
        for (j, block) in block.content.map(blocks).unwrap_or_default().into_iter().enumerate() {
            texts.push(plain(&format!("{path}.content[{j}]"), block)?);
        }
        turns.result(&id, &texts.join("\n")).map_err(|_| {
            let message = format!("{path}.tool_use_id: no earlier turn has a tool_use with the id '{id}'.");
            ApiError::invalid(format!("{path}.tool_use_id"), message)
        })?;
    }
    match turns.unanswered() {
        None => Ok(()),
        Some(id) => {
            let message = format!("{path}: the call '{id}' of the turn before needs its tool_result here.");
            Err(ApiError::invalid(path, message))
        }
    }
}

fn assistant(turns: &mut Turns, path: &str, content: Vec<Block>) -> Result<(), ApiError> {
    for (i, block) in content.into_iter().enumerate() {
        let path = format!("{path}.content[{i}]");
        match block.kind.as_str() {
            "tool_use" => {
                let missing = |field: &str| {
                    let path = format!("{path}.{field}");
                    ApiError::invalid(path.clone(), format!("{path}: this field is required."))
                };
                let id = block.id.ok_or_else(|| missing("id"))?;
                let name = block.name.ok_or_else(|| missing("name"))?;
                let input = block.input.filter(Value::is_object).ok_or_else(|| missing("input"))?;
                turns.call(&id, &name, &input);
            }
            // What was thought before is not shown again.
            "thinking" | "redacted_thinking" => {}
            _ => turns.assistant(&plain(&path, block)?),
        }
    }
    Ok(())
}

fn blocks(content: TextOr<Block>) -> Vec<Block> {
    let text = |text| Block {
        kind: "text".into(),
        text: Some(text),
        id: None,
        name: None,
        input: None,
        tool_use_id: None,
        content: None,
        source: None,
    };
    match content {
        TextOr::Text(content) => vec![text(content)],
        TextOr::Parts(blocks) => blocks,
    }
}

/// The text of a block that is nothing but text.
fn plain(path: &str, block: Block) -> Result<String, ApiError> {
    let source = block.source.as_ref().filter(|_| block.kind == "document");
    let source = source.filter(|s| s["type"] == "text").and_then(|s| s["data"].as_str());
    match (block.kind.as_str(), block.text, source) {
        ("text", Some(text), _) => Ok(text),
        ("document", _, Some(text)) => Ok(text.to_owned()),
        ("text", None, _) => {
            Err(ApiError::invalid(format!("{path}.text"), format!("{path}.text: this field is required.")))
        }
        (other, ..) => {
            let message = format!("{path}.type: '{other}' is not supported here; this model reads text only.");
            Err(ApiError::unsupported(format!("{path}.type"), message))
        }
    }
}
