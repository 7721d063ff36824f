//! Owns the way from an Ollama body to a request of the engine. Ranges are checked here and every error names its field.

use dualgauge::{OutputFormat, Prompt, Reasoning, Sampling, TextRequest, ToolChoice, ToolUse};
use dualgauge_models::text::ToolSpec;
use serde_json::{Value, json};

use super::types::{Chat, Common, Generate, Options, Think, Tool, Turn};
use crate::app::Server;
use crate::body::TextOr;
use crate::error::ApiError;
use crate::ranges::{MAX_LOGPROBS, integer, max_tokens, number, stop_texts, token_ids, top_k};
use crate::run::count;
use crate::tools::Offer;
use crate::turns::Turns;

/// What a body asks for.
pub struct Job {
    pub model: String,
    pub stream: bool,
    /// `None`: only that the model be loaded, which it is.
    pub request: Option<TextRequest>,
}

/// A chat body as a job.
///
/// # Errors
/// 400 for a field out of range or not supported, 404 for an unknown model.
pub fn chat(server: &Server, common: Common, body: Chat) -> Result<Job, ApiError> {
    let model = model(server, common.model.as_deref())?;
    let messages = body.messages.unwrap_or_default();
    let stream = common.stream.unwrap_or(true);
    if messages.is_empty() {
        return Ok(Job { model, stream, request: None });
    }
    let tools = tools(server, body.tools.unwrap_or_default())?;
    let (messages, prefill) = turns(messages)?.finish();
    let conversation = server.conversation(messages, prefill);
    let request = request(server, common, Prompt::Chat(conversation), tools, "messages")?;
    Ok(Job { model, stream, request: Some(request) })
}

/// A body of `generate` as a job.
///
/// # Errors
/// As [`chat`].
pub fn generate(server: &Server, common: Common, body: Generate) -> Result<Job, ApiError> {
    let model = model(server, common.model.as_deref())?;
    let stream = common.stream.unwrap_or(true);
    for (field, set) in [
        ("template", body.template.is_some_and(|t| !t.is_empty())),
        ("suffix", body.suffix.is_some_and(|s| !s.is_empty())),
        ("images", body.images.is_some_and(|i| !i.is_empty())),
    ] {
        if set {
            return Err(ApiError::unsupported(field, format!("{field}: this model does not support it.")));
        }
    }
    let Some(text) = body.prompt.filter(|p| !p.is_empty()) else { return Ok(Job { model, stream, request: None }) };
    let context = token_ids("context", body.context.unwrap_or_default(), server.engine().spec().vocab)?;
    let prompt = if body.raw == Some(true) {
        Prompt::Text { text, add_special: true }
    } else {
        let mut turns = Turns::default();
        body.system.filter(|s| !s.is_empty()).iter().for_each(|system| turns.system(system));
        turns.user(&text);
        Prompt::Chat(server.conversation(turns.finish().0, None))
    };
    let prompt = if context.is_empty() { prompt } else { behind(server, context, prompt)? };
    let request = request(server, common, prompt, None, "prompt")?;
    Ok(Job { model, stream, request: Some(request) })
}

/// The served model that a name means: `NAME:latest` is `NAME`.
///
/// # Errors
/// 400 without a name, 404 for an unknown one.
pub fn model(server: &Server, name: Option<&str>) -> Result<String, ApiError> {
    let Some(name) = name.filter(|n| !n.is_empty()) else {
        return Err(ApiError::invalid("model", "model: this field is required."));
    };
    let short = name.strip_suffix(":latest").unwrap_or(name);
    server.model(Some(name)).or_else(|_| server.model(Some(short))).map(|_| name.to_owned())
}

/// A prompt that goes on where an earlier answer ended. What begins every text is there already.
fn behind(server: &Server, mut context: Vec<u32>, prompt: Prompt) -> Result<Prompt, ApiError> {
    let request = TextRequest::new(prompt, Sampling::default());
    let more = server.app.frontend.prompt_tokens(&request)?;
    let begins = server.app.frontend.text().bos_id().is_some_and(|bos| more.first() == Some(&bos));
    context.extend(&more[usize::from(begins)..]);
    Ok(Prompt::Tokens(context))
}

fn request(
    server: &Server,
    common: Common,
    prompt: Prompt,
    tools: Option<ToolUse>,
    param: &str,
) -> Result<TextRequest, ApiError> {
    let options = common.options.unwrap_or_default();
    let stop = match &options.stop {
        None => vec![],
        Some(TextOr::Text(text)) => vec![text.clone()],
        Some(TextOr::Parts(texts)) => texts.clone(),
    };
    let mut sampling = sampling(server, &options)?;
    if common.logprobs == Some(true) {
        let top = integer("top_logprobs", common.top_logprobs.unwrap_or(0), 0, MAX_LOGPROBS)?;
        sampling.logprobs = Some(top as usize);
    }
    let reasoning = match common.think {
        None => Reasoning { separate: true, ..Reasoning::default() },
        Some(Think::Switch(think)) => Reasoning { separate: true, enabled: Some(think), effort: None },
        Some(Think::Effort(effort)) => Reasoning { separate: true, enabled: Some(true), effort: Some(effort) },
    };
    let mut request = TextRequest {
        stop: stop_texts("options.stop", &stop)?,
        tools,
        format: format(common.format)?,
        reasoning,
        ..TextRequest::new(prompt, sampling)
    };
    if let Some(context) = options.num_ctx {
        fit(server, &mut request, param, context)?;
    }
    Ok(request)
}

/// Keeps a prompt and its answer within the context that the request asks for.
fn fit(server: &Server, request: &mut TextRequest, param: &str, context: i64) -> Result<(), ApiError> {
    let context = integer("options.num_ctx", context, 1, i64::from(u32::MAX))? as usize;
    if context >= server.engine().max_model_len() {
        return Ok(());
    }
    let prompt = count(server, param, request)?;
    let Some(left) = context.checked_sub(prompt).filter(|left| *left > 0) else {
        let message = format!("The prompt has {prompt} tokens and options.num_ctx is {context}. Shorten the prompt.");
        return Err(ApiError { code: Some("context_length_exceeded"), ..ApiError::invalid(param, message) });
    };
    request.sampling.max_tokens = Some(request.sampling.max_tokens.map_or(left, |most| most.min(left)));
    Ok(())
}

fn sampling(server: &Server, options: &Options) -> Result<Sampling, ApiError> {
    let base = server.sampling();
    let set = |name: &str, value, low, high, base: f32| {
        Ok::<_, ApiError>(number(&format!("options.{name}"), value, low, high)?.unwrap_or(base))
    };
    Ok(Sampling {
        temperature: set("temperature", options.temperature, 0.0, 100.0, base.temperature)?,
        top_p: set("top_p", options.top_p, 0.0, 1.0, base.top_p)?.max(f32::MIN_POSITIVE),
        min_p: set("min_p", options.min_p, 0.0, 1.0, base.min_p)?,
        top_k: options.top_k.map_or(Ok(base.top_k), |k| top_k(server, "options.top_k", k))?,
        repetition_penalty: set("repeat_penalty", options.repeat_penalty, 0.01, 100.0, base.repetition_penalty)?,
        presence_penalty: set("presence_penalty", options.presence_penalty, -2.0, 2.0, 0.0)?,
        frequency_penalty: set("frequency_penalty", options.frequency_penalty, -2.0, 2.0, 0.0)?,
        seed: options.seed.map_or(base.seed, i64::cast_unsigned),
        // Negative: as much as there is room for.
        max_tokens: match options.num_predict {
            None | Some(i64::MIN..=0) => None,
            Some(n) => Some(max_tokens(server, "options.num_predict", n.min(server.engine().max_model_len() as i64))?),
        },
        ..base
    })
}

fn format(format: Option<Value>) -> Result<Option<OutputFormat>, ApiError> {
    match format {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(word)) if word.is_empty() => Ok(None),
        Some(Value::String(word)) if word == "json" => Ok(Some(OutputFormat::JsonObject)),
        Some(schema @ Value::Object(_)) => Ok(Some(OutputFormat::JsonSchema { schema, strict: false })),
        Some(_) => Err(ApiError::invalid("format", "format: must be \"json\" or a JSON schema.")),
    }
}

fn tools(server: &Server, tools: Vec<Tool>) -> Result<Option<ToolUse>, ApiError> {
    let spec = |tool: Tool| ToolSpec {
        name: tool.function.name,
        description: tool.function.description,
        parameters: tool.function.parameters,
        strict: false,
    };
    let tools = tools.into_iter().map(spec).collect();
    Offer { tools, choice: ToolChoice::Auto, allowed: None, parallel: true, id_prefix: "call_" }
        .check(server, "tools", "tools")
}

fn turns(messages: Vec<Turn>) -> Result<Turns, ApiError> {
    let mut turns = Turns::default();
    let mut calls = 0usize;
    for (at, turn) in messages.into_iter().enumerate() {
        if turn.images.is_some_and(|images| !images.is_empty()) {
            let path = format!("messages[{at}].images");
            return Err(ApiError::unsupported(path.clone(), format!("{path}: this model reads text only.")));
        }
        let content = turn.content.unwrap_or_default();
        match turn.role.as_str() {
            "system" => turns.system(&content),
            "user" => turns.user(&content),
            "assistant" => {
                turn.thinking.filter(|t| !t.is_empty()).iter().for_each(|t| turns.reasoning(t));
                if !content.is_empty() {
                    turns.assistant(&content);
                }
                for call in turn.tool_calls.unwrap_or_default() {
                    let id = call.id.filter(|id| !id.is_empty()).unwrap_or_else(|| format!("call_{calls}"));
                    calls += 1;
                    let arguments = call.function.arguments.unwrap_or_else(|| json!({}));
                    turns.call(&id, &call.function.name, &arguments);
                }
            }
            "tool" => {
                let named = turn.tool_name.and_then(|name| turns.open_call(&name));
                let id = turn.tool_call_id.or(named).or_else(|| turns.unanswered().map(str::to_owned));
                turns.result(&id.unwrap_or_default(), &content).map_err(|_| {
                    let path = format!("messages[{at}]");
                    ApiError::invalid(path.clone(), format!("{path}: no earlier message made a call that it answers."))
                })?;
            }
            other => {
                let path = format!("messages[{at}].role");
                let message = format!("{path}: '{other}' is no role; use 'system', 'user', 'assistant' or 'tool'.");
                return Err(ApiError::invalid(path, message));
            }
        }
    }
    Ok(turns)
}
