//! Owns the way from a Converse body to a request of the engine. Ranges are checked here and every error names its field.

use dualgauge::{OutputFormat, Prompt, Reasoning, TextRequest, ToolChoice, ToolUse};
use dualgauge_models::text::ToolSpec;
use serde_json::Value;

use super::types::{Additional, Block, Converse, InferenceConfig, Llama, OutputConfig, ToolConfig, ToolResult, Turn};
use crate::app::Server;
use crate::error::ApiError;
use crate::ranges::{max_tokens, number, stop_texts, top_k};
use crate::tools::Offer;
use crate::turns::Turns;

/// What a Llama body gets that names no limit.
const LLAMA_MAX_TOKENS: i64 = 512;

/// The served model of an identifier: a name or alias as it stands, or what an ARN ends with.
///
/// # Errors
/// 404 for an unknown one.
pub fn model(server: &Server, id: &str) -> Result<String, ApiError> {
    let last = id.rsplit('/').next().unwrap_or(id);
    let found = if id.starts_with("arn:") {
        server.model(Some(id)).or_else(|_| server.model(Some(last)))
    } else {
        server.model(Some(id))
    };
    found.map(str::to_owned)
}

/// A Converse body as a request.
///
/// # Errors
/// 400 for a field out of range or not supported.
pub fn converse(server: &Server, body: Converse) -> Result<TextRequest, ApiError> {
    let InferenceConfig { max_tokens: most, temperature, top_p, stop_sequences } =
        body.inference_config.unwrap_or_default();
    let additional = body.additional_model_request_fields.unwrap_or_default();
    let base = server.sampling();
    let mut sampling = base.clone();
    sampling.max_tokens = most.map(|n| max_tokens(server, "inferenceConfig.maxTokens", n)).transpose()?;
    let temperature = number("inferenceConfig.temperature", temperature, 0.0, 1.0)?;
    sampling.temperature = temperature.unwrap_or(base.temperature);
    let top_p = number("inferenceConfig.topP", top_p, 0.0, 1.0)?;
    sampling.top_p = top_p.unwrap_or(base.top_p).max(f32::MIN_POSITIVE);
    let more = |name: &str| format!("additionalModelRequestFields.{name}");
    let Additional { top_k: k, min_p, seed, presence_penalty, frequency_penalty, reasoning_effort, thinking } =
        additional;
    sampling.top_k = k.map_or(Ok(base.top_k), |k| top_k(server, &more("top_k"), k))?;
    sampling.min_p = number(&more("min_p"), min_p, 0.0, 1.0)?.unwrap_or(base.min_p);
    sampling.presence_penalty = number(&more("presence_penalty"), presence_penalty, -2.0, 2.0)?.unwrap_or(0.0);
    sampling.frequency_penalty = number(&more("frequency_penalty"), frequency_penalty, -2.0, 2.0)?.unwrap_or(0.0);
    sampling.seed = seed.map_or(base.seed, i64::cast_unsigned);
    let stop = stop_texts("inferenceConfig.stopSequences", stop_sequences.as_deref().unwrap_or_default())?;
    let enabled = thinking.and_then(|t| t.get("type").and_then(Value::as_str).map(|kind| kind != "disabled"));
    let reasoning = Reasoning { separate: true, effort: reasoning_effort, enabled };
    let tools = tools(server, body.tool_config)?;
    let format = format(body.output_config)?;
    let (messages, prefill) = turns(body.system.unwrap_or_default(), body.messages.unwrap_or_default())?.finish();
    let conversation = server.conversation(messages, prefill);
    let request = TextRequest::new(Prompt::Chat(conversation), sampling);
    Ok(TextRequest { stop, tools, format, reasoning, ..request })
}

/// A Llama body as a request. Its prompt is text as the model gets it, which may begin as every text does.
///
/// # Errors
/// 400 for a field out of range.
pub fn llama(server: &Server, body: Llama) -> Result<TextRequest, ApiError> {
    if body.prompt.is_empty() {
        return Err(ApiError::invalid("prompt", "prompt: must not be empty."));
    }
    let mut sampling = server.sampling();
    sampling.max_tokens = Some(match body.max_gen_len {
        Some(n) => max_tokens(server, "max_gen_len", n)?,
        None => max_tokens(server, "max_gen_len", LLAMA_MAX_TOKENS.min(server.engine().max_model_len() as i64))?,
    });
    sampling.temperature = number("temperature", body.temperature, 0.0, 1.0)?.unwrap_or(sampling.temperature);
    sampling.top_p = number("top_p", body.top_p, 0.0, 1.0)?.unwrap_or(sampling.top_p).max(f32::MIN_POSITIVE);
    let text = server.app.frontend.text();
    let begun = text.bos_id().is_some_and(|bos| body.prompt.starts_with(&text.token_text(bos)));
    Ok(TextRequest::new(Prompt::Text { text: body.prompt, add_special: !begun }, sampling))
}

fn format(config: Option<OutputConfig>) -> Result<Option<OutputFormat>, ApiError> {
    let Some(format) = config.and_then(|c| c.text_format) else { return Ok(None) };
    if format.kind != "json_schema" {
        let path = "outputConfig.textFormat.type";
        return Err(ApiError::invalid(path, format!("{path}: must be 'json_schema'.")));
    }
    let schema = format.structure.and_then(|s| s.json_schema).and_then(|s| serde_json::from_str(&s.schema).ok());
    match schema {
        Some(schema @ Value::Object(_)) => Ok(Some(OutputFormat::JsonSchema { schema, strict: true })),
        _ => {
            let path = "outputConfig.textFormat.structure.jsonSchema.schema";
            Err(ApiError::invalid(path, format!("{path}: must be a JSON schema in a string.")))
        }
    }
}

fn tools(server: &Server, config: Option<ToolConfig>) -> Result<Option<ToolUse>, ApiError> {
    let Some(config) = config else { return Ok(None) };
    let mut described = vec![];
    for (at, tool) in config.tools.into_iter().enumerate() {
        match (tool.tool_spec, tool.cache_point) {
            (Some(spec), _) => described.push(ToolSpec {
                name: spec.name,
                description: spec.description,
                parameters: spec.input_schema.and_then(|schema| schema.json),
                strict: spec.strict.unwrap_or(false),
            }),
            (None, Some(_)) => {}
            (None, None) => {
                let path = format!("toolConfig.tools[{at}]");
                return Err(ApiError::invalid(path.clone(), format!("{path}: must be a toolSpec.")));
            }
        }
    }
    let choice = match config.tool_choice {
        None => ToolChoice::Auto,
        Some(choice) => match (choice.auto, choice.any, choice.tool) {
            (Some(_), None, None) => ToolChoice::Auto,
            (None, Some(_), None) => ToolChoice::Required,
            (None, None, Some(named)) => ToolChoice::Named(named.name),
            _ => {
                let path = "toolConfig.toolChoice";
                return Err(ApiError::invalid(path, format!("{path}: must be one of 'auto', 'any' and 'tool'.")));
            }
        },
    };
    Offer { tools: described, choice, allowed: None, parallel: true, id_prefix: "tooluse_" }.check(
        server,
        "toolConfig.tools",
        "toolConfig.toolChoice",
    )
}

fn turns(system: Vec<Block>, messages: Vec<Turn>) -> Result<Turns, ApiError> {
    let wrong = |path: String, fault: &str| Err(ApiError::invalid(path.clone(), format!("{path}: {fault}")));
    if messages.is_empty() {
        return wrong("messages".into(), "must have at least one message.");
    }
    let mut turns = Turns::default();
    let mut begun = false;
    for (at, turn) in messages.into_iter().enumerate() {
        let path = format!("messages[{at}]");
        if turn.content.is_empty() {
            return wrong(format!("{path}.content"), "must have at least one block.");
        }
        match turn.role.as_str() {
            "user" => begun = true,
            "assistant" if begun => {}
            "system" => {}
            "assistant" => return wrong(path, "a conversation must begin with the user."),
            other => {
                return wrong(format!("{path}.role"), &format!("'{other}' is no role; use 'user' or 'assistant'."));
            }
        }
        for (i, block) in turn.content.into_iter().enumerate() {
            add(&mut turns, &turn.role, &format!("{path}.content[{i}]"), block)?;
        }
        if let Some(id) = turns.unanswered().filter(|_| turn.role == "user") {
            return wrong(path, &format!("the toolUse '{id}' of the turn before needs its toolResult here."));
        }
    }
    if let Some(id) = turns.unanswered() {
        return wrong("messages".into(), &format!("the toolUse '{id}' has no toolResult in the turn after it."));
    }
    for (i, block) in system.into_iter().enumerate() {
        add(&mut turns, "system", &format!("system[{i}]"), block)?;
    }
    Ok(turns)
}

fn add(turns: &mut Turns, role: &str, path: &str, block: Block) -> Result<(), ApiError> {
    let user = role == "user";
    match block {
        Block { tool_use: Some(call), .. } if role == "assistant" => {
            turns.call(&call.tool_use_id, &call.name, &call.input);
            Ok(())
        }
        Block { tool_result: Some(ToolResult { tool_use_id, content }), .. } if user => {
            let mut texts = vec![];
            for (i, block) in content.into_iter().enumerate() {
                texts.extend(text(&format!("{path}.toolResult.content[{i}]"), block)?);
            }
            turns.result(&tool_use_id, &texts.join("\n")).map_err(|_| {
                let path = format!("{path}.toolResult.toolUseId");
                let message = format!("{path}: no earlier turn has a toolUse with the id '{tool_use_id}'.");
                ApiError::invalid(path, message)
            })
        }
        // What was thought before is not shown again.
        Block { reasoning_content: Some(_), .. } if role == "assistant" => Ok(()),
        block => {
            if let Some(text) = text(path, block)? {
                match role {
                    "system" => turns.system(&text),
                    "user" => turns.user(&text),
                    _ => turns.assistant(&text),
                }
            }
            Ok(())
        }
    }
}

/// The text of a block that has some; a mark for the cache has none.
fn text(path: &str, block: Block) -> Result<Option<String>, ApiError> {
    let document = block.document.and_then(|d| d.source).and_then(|s| s.text);
    let guarded = block.guard_content.and_then(|g| g.text).map(|t| t.text);
    let json = block.json.map(|value| value.to_string());
    if let Some(text) = block.text.or(guarded).or(document).or(json) {
        return Ok(Some(text));
    }
    if block.cache_point.is_some() {
        return Ok(None);
    }
    let Block { image, video, audio, citations_content, search_result, .. } = block;
    let known = [image, video, audio, citations_content, search_result].iter().any(Option::is_some);
    let fault = if known { "this model reads text only." } else { "must have one member that belongs here." };
    Err(ApiError::invalid(path, format!("{path}: {fault}")))
}
