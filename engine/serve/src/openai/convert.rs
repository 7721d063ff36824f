//! Owns the way from a request body to generations: ranges are checked here and every error names its field. Behind this
//! file there are only valid requests.

use std::collections::BTreeMap;

use dualgauge::{Frontend, Generation, Prompt, Sampling, TextRequest};
use dualgauge_models::{Conversation, Message};
use serde_json::{Value, json};

use super::ApiError;
use super::types::{Chat, ChatMessage, Common, Completion, Content, Prompts, Tool, ToolChoice};
use crate::app::{Defaults, Server};

/// Most choices of one request, over all its prompts.
const MAX_CHOICES: usize = 128;
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;
const MAX_STOP_IDS: usize = 128;
const MAX_BIASES: usize = 1024;
const MAX_LOGPROBS: i64 = 20;
const MAX_SALT_BYTES: usize = 512;

/// What a body asks for: `n` generations of each prompt, and how to present them.
#[derive(Debug)]
pub struct Job {
    pub prompts: Vec<Prompt>,
    pub n: usize,
    pub shape: Shape,
    pub stream: bool,
    pub include_usage: bool,
    pub return_token_ids: bool,
    /// Completions: the answer begins with the prompt.
    pub echo: bool,
    /// With `echo` and `max_tokens: 0` only the prompt is of interest; the one token made is left out.
    pub echo_only: bool,
    request: TextRequest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Chat,
    Completion,
}

impl Job {
    /// Submits all choices, in the order of their index: prompt by prompt.
    ///
    /// # Errors
    /// When the engine takes one of them not; those taken before are aborted.
    pub fn start(&mut self, frontend: &Frontend) -> Result<Vec<Generation>, ApiError> {
        let mut generations = Vec::with_capacity(self.prompts.len() * self.n);
        for (at, prompt) in std::mem::take(&mut self.prompts).into_iter().enumerate() {
            let many = matches!(self.shape, Shape::Completion) && at > 0;
            let refused = |e| {
                let error = ApiError::from(e);
                ApiError {
                    message: if many { format!("prompt[{at}]: {}", error.message) } else { error.message },
                    ..error
                }
            };
            let first = frontend.generate(self.choice(prompt.clone(), 0)).map_err(refused)?;
            generations.push(first);
            for i in 1..self.n {
                generations.push(frontend.generate(self.choice(prompt.clone(), i)).map_err(refused)?);
            }
        }
        Ok(generations)
    }

    pub fn wants_logprobs(&self) -> bool {
        self.request.sampling.logprobs.is_some()
    }

    pub fn skips_special_tokens(&self) -> bool {
        self.request.skip_special_tokens
    }

    fn choice(&self, prompt: Prompt, i: usize) -> TextRequest {
        let mut request = self.request.clone();
        request.prompt = prompt;
        request.sampling.seed = choice_seed(request.sampling.seed, i);
        request
    }
}

/// A chat body as a job.
///
/// # Errors
/// 400 for a field out of range or not supported.
pub fn chat(server: &Server, common: Common, chat: Chat) -> Result<Job, ApiError> {
    refuse_constraints(&common)?;
    if chat.continue_final_message == Some(true) {
        return Err(not_yet("continue_final_message"));
    }
    if is_set(&chat.chat_template) {
        return Err(ApiError::unsupported("chat_template", "chat_template: the model's own template is always used."));
    }
    if chat.modalities.iter().flatten().any(|m| m != "text") {
        return Err(ApiError::unsupported("modalities", "modalities: this model answers with text only."));
    }
    let max_tokens = match chat.max_completion_tokens {
        Some(n) => Some(max_tokens(server, "max_completion_tokens", n)?),
        None => common.max_tokens.map(|n| max_tokens(server, "max_tokens", n)).transpose()?,
    };
    let logprobs = match (chat.logprobs.unwrap_or(false), chat.top_logprobs) {
        (false, None | Some(0)) => None,
        (false, Some(_)) => {
            return Err(ApiError::invalid("top_logprobs", "top_logprobs: needs logprobs to be true."));
        }
        (true, top) => Some(integer("top_logprobs", top.unwrap_or(0), 0, MAX_LOGPROBS)? as usize),
    };
    let tools = tools(chat.tools, chat.tool_choice)?;
    let messages = messages(chat.messages)?;
    refuse_hopeless(server, "messages", messages.iter().filter_map(|m| m.content.as_ref()).map(String::len).sum())?;
    let conversation = Conversation {
        messages,
        tools,
        add_generation_prompt: chat.add_generation_prompt.unwrap_or(true),
        kwargs: chat.chat_template_kwargs.unwrap_or_default(),
        now: i64::try_from(server.now()).ok(),
        ..Conversation::default()
    };
    let prompt = if common.add_special_tokens == Some(true) {
        // Templates write the special tokens themselves, so this doubles the first one; it is what was asked for.
        let text = server.app.frontend.text();
        let refused = |e: dualgauge_models::Error| ApiError::invalid("messages", e.to_string());
        let mut ids = text.encode("", true).map_err(refused)?;
        ids.extend(text.encode_chat(&conversation).map_err(refused)?);
        Prompt::Tokens(ids)
    } else {
        Prompt::Chat(conversation)
    };
    job(server, common, Shape::Chat, vec![prompt], max_tokens, logprobs)
}

/// A completion body as a job.
///
/// # Errors
/// 400 for a field out of range or not supported.
pub fn completion(server: &Server, common: Common, body: Completion) -> Result<Job, ApiError> {
    refuse_constraints(&common)?;
    if body.suffix.as_ref().is_some_and(|s| !s.is_empty()) {
        return Err(ApiError::unsupported("suffix", "suffix: this model cannot fill in the middle of a text."));
    }
    if is_set(&body.prompt_embeds) {
        return Err(ApiError::unsupported("prompt_embeds", "prompt_embeds: send the prompt as text or token ids."));
    }
    let n = common.n.unwrap_or(1);
    if let Some(best_of) = body.best_of.filter(|b| *b != n) {
        let message = format!("best_of: must equal n ({n}), not {best_of}: there is no choosing among more than n.");
        return Err(ApiError::invalid("best_of", message));
    }
    let echo = body.echo.unwrap_or(false);
    let echo_only = echo && common.max_tokens == Some(0);
    let max_tokens = if echo_only { 1 } else { max_tokens(server, "max_tokens", common.max_tokens.unwrap_or(16))? };
    let logprobs = body.logprobs.map(|k| integer("logprobs", k, 0, MAX_LOGPROBS)).transpose()?.map(|k| k as usize);
    let vocab = server.engine().spec().vocab;
    let prompts = match body.prompt {
        Prompts::Texts(texts) => texts
            .into_iter()
            .map(|text| Prompt::Text { text, add_special: common.add_special_tokens.unwrap_or(true) })
            .collect(),
        Prompts::Tokens(lists) => {
            let several = lists.len() > 1;
            let checked = lists.into_iter().enumerate().map(|(at, ids)| {
                let path = if several { format!("prompt[{at}]") } else { "prompt".into() };
                token_ids(&path, ids, vocab).map(Prompt::Tokens)
            });
            checked.collect::<Result<Vec<_>, _>>()?
        }
    };
    if prompts.is_empty() || prompts.iter().any(is_empty) {
        return Err(ApiError::invalid("prompt", "prompt: must not be empty."));
    }
    for prompt in &prompts {
        let bytes = if let Prompt::Text { text, .. } = prompt { text.len() } else { 0 };
        refuse_hopeless(server, "prompt", bytes)?;
    }
    let mut job = job(server, common, Shape::Completion, prompts, Some(max_tokens), logprobs)?;
    job.echo = echo;
    job.echo_only = echo_only;
    job.request.prompt_logprobs = logprobs.filter(|_| echo);
    Ok(job)
}

/// Messages as templates take them.
///
/// # Errors
/// 400 that names the message and its field.
pub fn messages(messages: Vec<ChatMessage>) -> Result<Vec<Message>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "messages: must have at least one message."));
    }
    messages.into_iter().enumerate().map(|(at, m)| message(at, m)).collect()
}

/// Tools as templates take them; none when the choice is `none`.
///
/// # Errors
/// 400 for a tool without a name, and for choices that would force a call.
pub fn tools(tools: Option<Vec<Tool>>, choice: Option<ToolChoice>) -> Result<Option<Value>, ApiError> {
    let tools = tools.unwrap_or_default();
    let mut described = Vec::with_capacity(tools.len());
    for (at, tool) in tools.into_iter().enumerate() {
        if tool.kind != "function" {
            let path = format!("tools[{at}].type");
            return Err(ApiError::unsupported(path.clone(), format!("{path}: must be 'function'.")));
        }
        if !tool.function.get("name").is_some_and(|n| n.as_str().is_some_and(|n| !n.is_empty())) {
            let path = format!("tools[{at}].function.name");
            return Err(ApiError::invalid(path.clone(), format!("{path}: must be a string.")));
        }
        described.push(json!({"type": "function", "function": tool.function}));
    }
    let offered = Some(described).filter(|d| !d.is_empty()).map(Value::Array);
    match choice {
        None => Ok(offered),
        Some(ToolChoice::Mode(mode)) if mode == "auto" => Ok(offered),
        Some(ToolChoice::Mode(mode)) if mode == "none" => Ok(None),
        Some(ToolChoice::Mode(mode)) if mode != "required" => {
            Err(ApiError::invalid("tool_choice", "tool_choice: must be 'none', 'auto', 'required' or name a tool."))
        }
        Some(_) => Err(ApiError::unsupported(
            "tool_choice",
            "tool_choice: forcing a call is not supported yet; use 'auto' or 'none'.",
        )),
    }
}

/// Token ids from outside, each in the vocabulary.
///
/// # Errors
/// 400 that names the id's place.
pub fn token_ids(path: &str, ids: Vec<i64>, vocab: usize) -> Result<Vec<u32>, ApiError> {
    let check = |(at, id): (usize, i64)| match u32::try_from(id) {
        Ok(id) if (id as usize) < vocab => Ok(id),
        _ => {
            let path = format!("{path}[{at}]");
            Err(ApiError::invalid(
                path.clone(),
                format!("{path}: {id} is no token id; they go from 0 to {}.", vocab - 1),
            ))
        }
    };
    ids.into_iter().enumerate().map(check).collect()
}

fn job(
    server: &Server,
    common: Common,
    shape: Shape,
    prompts: Vec<Prompt>,
    max_tokens: Option<usize>,
    logprobs: Option<usize>,
) -> Result<Job, ApiError> {
    let n = integer("n", common.n.unwrap_or(1), 1, MAX_CHOICES as i64)? as usize;
    if n * prompts.len() > MAX_CHOICES {
        let message =
            format!("{} prompts with n = {n} are more than the {MAX_CHOICES} choices allowed.", prompts.len());
        return Err(ApiError::invalid(if n > 1 { "n" } else { "prompt" }, message));
    }
    let stream = common.stream.unwrap_or(false);
    if common.stream_options.is_some() && !stream {
        return Err(ApiError::invalid("stream_options", "stream_options: only allowed when stream is true."));
    }
    if common.cache_salt.as_ref().is_some_and(|s| s.is_empty() || s.len() > MAX_SALT_BYTES) {
        return Err(ApiError::invalid("cache_salt", format!("cache_salt: must have 1 to {MAX_SALT_BYTES} bytes.")));
    }
    let stop = stop_texts(common.stop.as_ref().map_or(&[], |s| s.0.as_slice()))?;
    let sampling = sampling(server, &common, max_tokens, logprobs)?;
    Ok(Job {
        prompts,
        n,
        shape,
        stream,
        include_usage: common.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
        return_token_ids: common.return_token_ids.unwrap_or(false),
        echo: false,
        echo_only: false,
        request: TextRequest {
            stop,
            include_stop_text: common.include_stop_str_in_output.unwrap_or(false),
            skip_special_tokens: common.skip_special_tokens.unwrap_or(true),
            cache_salt: common.cache_salt,
            ..TextRequest::new(Prompt::Tokens(vec![]), sampling)
        },
    })
}

fn sampling(
    server: &Server,
    common: &Common,
    max_tokens: Option<usize>,
    logprobs: Option<usize>,
) -> Result<Sampling, ApiError> {
    let vocab = server.engine().spec().vocab;
    let Defaults { temperature, top_p, top_k, min_p, repetition_penalty } = server.app.defaults;
    let top_p = number("top_p", common.top_p, 0.0, 1.0)?.unwrap_or(top_p);
    let top_k = match common.top_k {
        None => top_k,
        Some(k) => match integer("top_k", k, -1, i64::from(u32::MAX))? {
            -1 | 0 => 0,
            k if k as usize >= vocab => 0,
            k => k as usize,
        },
    };
    let min_tokens = common.min_tokens.unwrap_or(0);
    let most = max_tokens.unwrap_or(server.engine().max_model_len());
    let min_tokens = integer("min_tokens", min_tokens, 0, most as i64)? as usize;
    let stop_ids = common.stop_token_ids.clone().unwrap_or_default();
    if stop_ids.len() > MAX_STOP_IDS {
        let message = format!("stop_token_ids: has {} ids; {MAX_STOP_IDS} are allowed.", stop_ids.len());
        return Err(ApiError::invalid("stop_token_ids", message));
    }
    Ok(Sampling {
        temperature: number("temperature", common.temperature, 0.0, 2.0)?.unwrap_or(temperature),
        // A nucleus of nothing still holds its first token.
        top_p: top_p.max(f32::MIN_POSITIVE),
        top_k,
        min_p: number("min_p", common.min_p, 0.0, 1.0)?.unwrap_or(min_p),
        repetition_penalty: number("repetition_penalty", common.repetition_penalty, 0.01, 100.0)?
            .unwrap_or(repetition_penalty),
        presence_penalty: number("presence_penalty", common.presence_penalty, -2.0, 2.0)?.unwrap_or(0.0),
        frequency_penalty: number("frequency_penalty", common.frequency_penalty, -2.0, 2.0)?.unwrap_or(0.0),
        logit_bias: logit_bias(common.logit_bias.as_ref(), vocab)?,
        seed: common.seed.map_or_else(|| server.seed(), i64::cast_unsigned),
        logprobs,
        max_tokens,
        min_tokens,
        stop_ids: token_ids("stop_token_ids", stop_ids, vocab)?,
        ignore_eos: common.ignore_eos.unwrap_or(false),
    })
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

fn stop_texts(stops: &[String]) -> Result<Vec<String>, ApiError> {
    if stops.len() > MAX_STOPS {
        return Err(ApiError::invalid("stop", format!("stop: has {} texts; {MAX_STOPS} are allowed.", stops.len())));
    }
    if stops.iter().any(|s| s.is_empty() || s.len() > MAX_STOP_BYTES) {
        return Err(ApiError::invalid("stop", format!("stop: each text must have 1 to {MAX_STOP_BYTES} bytes.")));
    }
    Ok(stops.to_vec())
}

fn logit_bias(biases: Option<&BTreeMap<String, f64>>, vocab: usize) -> Result<BTreeMap<u32, f32>, ApiError> {
    let biases = biases.into_iter().flatten();
    let mut checked = BTreeMap::new();
    for (key, bias) in biases {
        let id = key.parse().ok().filter(|id: &u32| (*id as usize) < vocab).ok_or_else(|| {
            let message = format!("logit_bias: '{key}' is no token id; they go from 0 to {}.", vocab - 1);
            ApiError::invalid("logit_bias", message)
        })?;
        if !(-100.0..=100.0).contains(bias) {
            return Err(ApiError::invalid("logit_bias", format!("logit_bias: {bias} is not from -100 to 100.")));
        }
        checked.insert(id, *bias as f32);
        if checked.len() > MAX_BIASES {
            return Err(ApiError::invalid("logit_bias", format!("logit_bias: {MAX_BIASES} entries are allowed.")));
        }
    }
    Ok(checked)
}

/// More than the context can never be; what a prompt leaves of it is found when it is known.
fn max_tokens(server: &Server, param: &str, value: i64) -> Result<usize, ApiError> {
    integer(param, value, 1, server.engine().max_model_len() as i64).map(|n| n as usize)
}

fn integer(param: &str, value: i64, low: i64, high: i64) -> Result<i64, ApiError> {
    if (low..=high).contains(&value) {
        return Ok(value);
    }
    Err(ApiError::invalid(param, format!("{param}: {value} is not from {low} to {high}.")))
}

fn number(param: &str, value: Option<f64>, low: f64, high: f64) -> Result<Option<f32>, ApiError> {
    match value {
        Some(v) if !(low..=high).contains(&v) => {
            Err(ApiError::invalid(param, format!("{param}: {v} is not from {low} to {high}.")))
        }
        value => Ok(value.map(|v| v as f32)),
    }
}

/// Text so long that it cannot fit, whatever its tokens are, is refused before time goes into encoding it.
fn refuse_hopeless(server: &Server, param: &str, bytes: usize) -> Result<(), ApiError> {
    let context = server.engine().max_model_len();
    let most = server.app.frontend.text().most_bytes(context);
    if bytes <= most {
        return Ok(());
    }
    let message = format!("{param}: {bytes} bytes of text cannot fit the model's context of {context} tokens.");
    Err(ApiError { code: Some("context_length_exceeded"), ..ApiError::invalid(param, message) })
}

fn refuse_constraints(common: &Common) -> Result<(), ApiError> {
    if let Some(format) = &common.response_format {
        let kind = match format {
            Value::Null => Some("text"),
            format => format.get("type").and_then(Value::as_str),
        };
        match kind {
            Some("text") => {}
            Some("json_object" | "json_schema") => return Err(not_yet("response_format")),
            _ => {
                let message = "response_format.type: must be 'text', 'json_object' or 'json_schema'.";
                return Err(ApiError::invalid("response_format.type", message));
            }
        }
    }
    for (name, value) in [
        ("structured_outputs", &common.structured_outputs),
        ("guided_json", &common.guided_json),
        ("guided_regex", &common.guided_regex),
        ("guided_choice", &common.guided_choice),
        ("guided_grammar", &common.guided_grammar),
    ] {
        if is_set(value) {
            return Err(not_yet(name));
        }
    }
    Ok(())
}

fn not_yet(param: &str) -> ApiError {
    ApiError::unsupported(param, format!("{param}: this is not supported yet."))
}

fn is_set(value: &Option<Value>) -> bool {
    value.as_ref().is_some_and(|v| !v.is_null())
}

fn is_empty(prompt: &Prompt) -> bool {
    match prompt {
        Prompt::Text { text, .. } => text.is_empty(),
        Prompt::Tokens(ids) => ids.is_empty(),
        Prompt::Chat(_) => false,
    }
}

/// The first choice has the request's seed; the others one that follows from it (the finaliser of SplitMix64).
fn choice_seed(seed: u64, i: usize) -> u64 {
    if i == 0 {
        return seed;
    }
    let mut z = seed.wrapping_add((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
