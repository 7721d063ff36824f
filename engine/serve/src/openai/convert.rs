//! Owns the way from a request body to generations: ranges are checked here and every error names its field. Behind this
//! file there are only valid requests.

use dualgauge::{Frontend, Generation, Prompt, Reasoning, Refused, Rejected, TextRequest};
use dualgauge_models::Conversation;
use serde_json::Value;

use super::messages::messages;
use super::sampling::sampling;
use super::tools::tools;
use super::types::{Chat, Common, Completion, Prompts};
use super::{ApiError, format};
use crate::app::Server;

use crate::ranges::{MAX_LOGPROBS, choice_seed, integer, max_tokens, stop_texts, token_ids};
use crate::run::refuse_hopeless;

/// Most choices of one request, over all its prompts.
const MAX_CHOICES: usize = 128;
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
    pub include_reasoning: bool,
    /// Which field asked for a format.
    format_field: String,
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
        let field = match self.shape {
            Shape::Chat => "messages",
            Shape::Completion => "prompt",
        };
        for (at, prompt) in std::mem::take(&mut self.prompts).into_iter().enumerate() {
            let many = matches!(self.shape, Shape::Completion) && at > 0;
            let refused = |e| {
                let error = match e {
                    Refused::Rejected(Rejected::Invalid { field: "format", message }) => {
                        let field = self.format_field.clone();
                        ApiError::invalid(field.clone(), format!("{field}: {message}."))
                    }
                    // `tools[3]: ...` says which.
                    Refused::Rejected(Rejected::Invalid { field: "tools", message }) => {
                        let at = message.split(':').next().filter(|at| at.ends_with(']')).unwrap_or("tools");
                        ApiError::invalid(at, format!("{message}."))
                    }
                    other => ApiError::from(other),
                };
                let ours = error.status.as_u16() == 400;
                ApiError {
                    param: error.param.or_else(|| ours.then(|| field.to_owned())),
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

    /// The request of the first choice.
    pub fn first(&self) -> TextRequest {
        self.choice(self.prompts.first().cloned().unwrap_or(Prompt::Tokens(vec![])), 0)
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
    let tools = tools(server, chat.tools, chat.tool_choice, chat.parallel_tool_calls)?;
    let reasoning = Reasoning { separate: true, effort: chat.reasoning_effort, enabled: None };
    let include_reasoning = chat.include_reasoning.unwrap_or(true);
    let messages = messages(chat.messages)?;
    refuse_hopeless(server, "messages", messages.iter().filter_map(|m| m.content.as_ref()).map(String::len).sum())?;
    let conversation = Conversation {
        add_generation_prompt: chat.add_generation_prompt.unwrap_or(true),
        kwargs: chat.chat_template_kwargs.unwrap_or_default(),
        ..server.conversation(messages, None)
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
    let mut job = job(server, common, Shape::Chat, vec![prompt], max_tokens, logprobs)?;
    job.include_reasoning = include_reasoning;
    job.request.tools = tools;
    job.request.reasoning = reasoning;
    Ok(job)
}

/// A completion body as a job.
///
/// # Errors
/// 400 for a field out of range or not supported.
pub fn completion(server: &Server, common: Common, body: Completion) -> Result<Job, ApiError> {
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
    let stop = stop_texts("stop", common.stop.as_ref().map_or(&[], |s| s.0.as_slice()))?;
    let sampling = sampling(server, &common, max_tokens, logprobs)?;
    let (format_field, format) = match format::wanted(&common)? {
        Some(wanted) => (wanted.field, Some(wanted.format)),
        None => (String::new(), None),
    };
    Ok(Job {
        prompts,
        n,
        shape,
        stream,
        include_usage: common.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
        return_token_ids: common.return_token_ids.unwrap_or(false),
        echo: false,
        echo_only: false,
        include_reasoning: true,
        format_field,
        request: TextRequest {
            stop,
            format,
            include_stop_text: common.include_stop_str_in_output.unwrap_or(false),
            skip_special_tokens: common.skip_special_tokens.unwrap_or(true),
            cache_salt: common.cache_salt,
            ..TextRequest::new(Prompt::Tokens(vec![]), sampling)
        },
    })
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
