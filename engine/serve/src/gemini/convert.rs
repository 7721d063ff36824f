//! Owns the way from a Gemini body to requests of the engine. Ranges are checked here and every error names its field.

use dualgauge::{OutputFormat, Prompt, Reasoning, TextRequest, ToolChoice, ToolUse};
use dualgauge_models::text::ToolSpec;
use serde_json::Value;

use super::schema::json_schema;
use super::types::{Content, Count, Generate, GenerationConfig, Part, Tool, ToolConfig};
use crate::app::Server;
use crate::error::ApiError;
use crate::ranges::{MAX_LOGPROBS, choice_seed, integer, max_tokens, number, stop_texts, top_k};
use crate::tools::Offer;
use crate::turns::Turns;

const MAX_STOPS: usize = 5;
const MAX_CANDIDATES: i64 = 8;

/// What a body asks for.
pub struct Job {
    /// One for each candidate.
    pub requests: Vec<TextRequest>,
    /// Reasoning is told.
    pub thoughts: bool,
    pub logprobs: bool,
}

/// The served model of a path, with or without `models/`.
///
/// # Errors
/// 404 for an unknown one.
pub fn model<'a>(server: &'a Server, name: &'a str) -> Result<&'a str, ApiError> {
    server.model(Some(name.strip_prefix("models/").unwrap_or(name)))
}

/// A body as a job.
///
/// # Errors
/// 400 for a field out of range or not supported.
pub fn job(server: &Server, body: Generate) -> Result<Job, ApiError> {
    if body.cached_content.is_some_and(|c| !c.is_empty()) {
        let message = "cachedContent: prompts are cached by themselves; send the contents.";
        return Err(ApiError::unsupported("cachedContent", message));
    }
    let config = body.generation_config.unwrap_or_default();
    let thoughts = config.thinking_config.as_ref().and_then(|t| t.include_thoughts) == Some(true);
    let logprobs = config.response_logprobs == Some(true);
    let candidates =
        integer("generationConfig.candidateCount", config.candidate_count.unwrap_or(1), 1, MAX_CANDIDATES)?;
    let tools = tools(server, body.tools.unwrap_or_default(), body.tool_config)?;
    let (messages, prefill) = turns(body.system_instruction, body.contents)?.finish();
    let conversation = server.conversation(messages, prefill);
    let request = configured(server, config, Prompt::Chat(conversation))?;
    let candidate = |i: i64| {
        let mut request = TextRequest { tools: tools.clone(), ..request.clone() };
        request.sampling.seed = choice_seed(request.sampling.seed, i as usize);
        request
    };
    Ok(Job { requests: (0..candidates).map(candidate).collect(), thoughts, logprobs })
}

/// What a body of `countTokens` counts.
///
/// # Errors
/// As [`job`].
pub fn counted(server: &Server, body: Count) -> Result<TextRequest, ApiError> {
    let request = body.generate_content_request.unwrap_or(Generate {
        _model: None,
        contents: body.contents,
        system_instruction: body.system_instruction,
        generation_config: body.generation_config,
        tools: body.tools,
        tool_config: None,
        _safety_settings: None,
        cached_content: None,
        _labels: None,
        _service_tier: None,
        _store: None,
    });
    let mut job = job(server, request)?;
    Ok(job.requests.swap_remove(0))
}

fn configured(server: &Server, config: GenerationConfig, prompt: Prompt) -> Result<TextRequest, ApiError> {
    if config.response_modalities.iter().flatten().any(|m| !m.eq_ignore_ascii_case("text")) {
        let path = "generationConfig.responseModalities";
        return Err(ApiError::unsupported(path, format!("{path}: this model answers with text only.")));
    }
    let base = server.sampling();
    let mut sampling = base.clone();
    let set = |name: &str, value, low, high, base: f32| {
        Ok::<_, ApiError>(number(&format!("generationConfig.{name}"), value, low, high)?.unwrap_or(base))
    };
    sampling.temperature = set("temperature", config.temperature, 0.0, 2.0, base.temperature)?;
    sampling.top_p = set("topP", config.top_p, 0.0, 1.0, base.top_p)?.max(f32::MIN_POSITIVE);
    if let Some(k) = number("generationConfig.topK", config.top_k, 0.0, f64::from(u32::MAX))? {
        sampling.top_k = top_k(server, "generationConfig.topK", k as i64)?;
    }
    sampling.presence_penalty = set("presencePenalty", config.presence_penalty, -2.0, 2.0, 0.0)?;
    sampling.frequency_penalty = set("frequencyPenalty", config.frequency_penalty, -2.0, 2.0, 0.0)?;
    sampling.seed = config.seed.map_or(base.seed, i64::cast_unsigned);
    let most = config.max_output_tokens.map(|n| max_tokens(server, "generationConfig.maxOutputTokens", n));
    sampling.max_tokens = most.transpose()?;
    match (config.response_logprobs, config.logprobs) {
        (Some(true), top) => {
            let top = integer("generationConfig.logprobs", top.unwrap_or(0), 0, MAX_LOGPROBS)?;
            sampling.logprobs = Some(top as usize);
        }
        (_, Some(_)) => {
            let path = "generationConfig.logprobs";
            return Err(ApiError::invalid(path, format!("{path}: needs responseLogprobs to be true.")));
        }
        _ => {}
    }
    let stops = config.stop_sequences.unwrap_or_default();
    if stops.len() > MAX_STOPS {
        let path = "generationConfig.stopSequences";
        let message = format!("{path}: has {} texts; {MAX_STOPS} are allowed.", stops.len());
        return Err(ApiError::invalid(path, message));
    }
    let stop = stop_texts("generationConfig.stopSequences", &stops)?;
    let thinking = config.thinking_config;
    let reasoning = Reasoning {
        separate: true,
        enabled: thinking.as_ref().and_then(|t| t.thinking_budget).map(|budget| budget != 0),
        effort: thinking.and_then(|t| t.thinking_level).map(|level| level.to_lowercase()),
    };
    let format = format(config.response_mime_type, config.response_schema, config.response_json_schema)?;
    Ok(TextRequest { stop, format, reasoning, ..TextRequest::new(prompt, sampling) })
}

fn format(
    mime_type: Option<String>,
    schema: Option<Value>,
    json: Option<Value>,
) -> Result<Option<OutputFormat>, ApiError> {
    let wrong = |name: &str, fault: &str| {
        let path = format!("generationConfig.{name}");
        ApiError::invalid(path.clone(), format!("{path}: {fault}"))
    };
    let converted = schema.as_ref().map(json_schema).transpose();
    let converted = converted.map_err(|fault| wrong("responseSchema", &fault))?;
    if json.as_ref().is_some_and(|schema| !schema.is_object()) {
        return Err(wrong("responseJsonSchema", "must be an object"));
    }
    let schema = json.or(converted);
    match (mime_type.as_deref(), schema) {
        (None | Some("" | "text/plain"), None) => Ok(None),
        (None | Some("" | "text/plain"), Some(_)) => {
            Err(wrong("responseMimeType", "must be 'application/json' beside a schema."))
        }
        (Some("application/json"), None) => Ok(Some(OutputFormat::JsonObject)),
        (Some("application/json"), Some(schema)) => Ok(Some(OutputFormat::JsonSchema { schema, strict: false })),
        (Some("text/x.enum"), Some(schema)) => {
            let texts = schema["enum"].as_array().map(|list| list.iter().filter_map(Value::as_str));
            let texts: Vec<String> = texts.into_iter().flatten().map(str::to_owned).collect();
            if texts.is_empty() {
                return Err(wrong("responseSchema", "must list the texts of an enum."));
            }
            Ok(Some(OutputFormat::Choice(texts)))
        }
        (Some("text/x.enum"), None) => Err(wrong("responseSchema", "is needed by 'text/x.enum'.")),
        _ => Err(wrong("responseMimeType", "must be 'text/plain', 'application/json' or 'text/x.enum'.")),
    }
}

fn tools(server: &Server, tools: Vec<Tool>, config: Option<ToolConfig>) -> Result<Option<ToolUse>, ApiError> {
    let mut described = vec![];
    for (at, tool) in tools.into_iter().enumerate() {
        let Tool { google_search, google_search_retrieval, code_execution, url_context, .. } = &tool;
        if [google_search, google_search_retrieval, code_execution, url_context].into_iter().any(Option::is_some) {
            let path = format!("tools[{at}]");
            let message = format!("{path}: only functionDeclarations are supported; this server runs no tools.");
            return Err(ApiError::unsupported(path, message));
        }
        for (i, function) in tool.function_declarations.unwrap_or_default().into_iter().enumerate() {
            let path = format!("tools[{at}].functionDeclarations[{i}]");
            let parameters = function.parameters.as_ref().map(json_schema).transpose();
            let parameters =
                parameters.map_err(|fault| ApiError::invalid(path.clone(), format!("{path}.parameters{fault}")))?;
            let parameters = function.parameters_json_schema.or(parameters);
            described.push(ToolSpec {
                name: function.name,
                description: function.description,
                parameters,
                strict: false,
            });
        }
    }
    let config = config.and_then(|c| c.function_calling_config);
    let allowed = config.as_ref().and_then(|c| c.allowed_function_names.clone()).filter(|names| !names.is_empty());
    let choice = match config.and_then(|c| c.mode).unwrap_or_default().to_uppercase().as_str() {
        "" | "AUTO" | "VALIDATED" | "MODE_UNSPECIFIED" => ToolChoice::Auto,
        "ANY" => ToolChoice::Required,
        "NONE" => ToolChoice::None,
        _ => {
            let path = "toolConfig.functionCallingConfig.mode";
            return Err(ApiError::invalid(path, format!("{path}: must be 'AUTO', 'ANY', 'NONE' or 'VALIDATED'.")));
        }
    };
    Offer { tools: described, choice, allowed, parallel: true, id_prefix: "call_" }.check(
        server,
        "tools",
        "toolConfig.functionCallingConfig",
    )
}

fn turns(system: Option<Content>, contents: Vec<Content>) -> Result<Turns, ApiError> {
    if contents.is_empty() {
        return Err(ApiError::invalid("contents", "contents: must have at least one content."));
    }
    let mut turns = Turns::default();
    let mut calls = 0usize;
    for (at, content) in contents.into_iter().enumerate() {
        let model = match content.role.as_deref() {
            None | Some("" | "user" | "function" | "tool") => false,
            Some("model") => true,
            Some(other) => {
                let path = format!("contents[{at}].role");
                let message = format!("{path}: '{other}' is no role; use 'user' or 'model'.");
                return Err(ApiError::invalid(path, message));
            }
        };
        if content.parts.is_empty() {
            let path = format!("contents[{at}].parts");
            return Err(ApiError::invalid(path.clone(), format!("{path}: must have at least one part.")));
        }
        for (i, part) in content.parts.into_iter().enumerate() {
            add(&mut turns, &format!("contents[{at}].parts[{i}]"), model, part, &mut calls)?;
        }
    }
    for (i, part) in system.into_iter().flat_map(|s| s.parts).enumerate() {
        let path = format!("systemInstruction.parts[{i}].text");
        let text =
            part.text.ok_or_else(|| ApiError::invalid(path.clone(), format!("{path}: this field is required.")))?;
        turns.system(&text);
    }
    Ok(turns)
}

fn add(turns: &mut Turns, path: &str, model: bool, part: Part, calls: &mut usize) -> Result<(), ApiError> {
    match part {
        Part { function_call: Some(call), .. } if model => {
            // Calls may have no identifier: then results are matched by name.
            let id = call.id.filter(|id| !id.is_empty()).unwrap_or_else(|| format!("call_{calls}"));
            *calls += 1;
            turns.call(&id, &call.name, &Value::Object(call.args.unwrap_or_default()));
        }
        Part { function_response: Some(result), .. } if !model => {
            let id = result.id.filter(|id| !id.is_empty()).or_else(|| turns.open_call(&result.name));
            let response = Value::Object(result.response.unwrap_or_default()).to_string();
            turns.result(&id.unwrap_or_default(), &response).map_err(|_| {
                let path = format!("{path}.functionResponse");
                let message = format!("{path}: no earlier turn called '{}'.", result.name);
                ApiError::invalid(path, message)
            })?;
        }
        Part { thought: Some(true), .. } => {}
        Part { text: Some(text), .. } if model => turns.assistant(&text),
        Part { text: Some(text), .. } => turns.user(&text),
        Part { function_call: None, function_response: None, .. } => {
            let Part { inline_data, file_data, video_metadata, executable_code, code_execution_result, .. } = part;
            let unread = [inline_data, file_data, video_metadata, executable_code, code_execution_result];
            if unread.iter().any(Option::is_some) {
                return Err(ApiError::unsupported(path, format!("{path}: this model reads text only.")));
            }
            // A part with nothing but a signature says nothing.
        }
        _ => {
            let message = format!("{path}: calls are the role 'model's, their responses the role 'user's.");
            return Err(ApiError::invalid(path, message));
        }
    }
    Ok(())
}
