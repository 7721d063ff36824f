//! Owns the response bodies of the OpenAI API, whole and as chunks: pieces of answers in, JSON out. Knows no sockets and no
//! engine but its types.

use dualgauge::{Stop, Token, TokenLogprobs};
use dualgauge_models::Text;
use serde::Serialize;
use serde_json::{Map, Value};

use super::convert::{Job, Shape};
use crate::answer::{Answer, Spent};
use crate::ranges::LOWEST_LOGPROB;

/// What all bodies of one response share.
pub struct Reply {
    pub id: String,
    pub created: u64,
    pub model: String,
    pub shape: Shape,
    pub n: usize,
    pub logprobs: bool,
    pub return_token_ids: bool,
    pub include_usage: bool,
    pub echo: bool,
    pub echo_only: bool,
    pub include_reasoning: bool,
    pub text: std::sync::Arc<Text>,
}

/// One answer while it grows.
pub struct Choice {
    index: usize,
    /// Ids and, when it was given as text, the text of the prompt, for `echo` and `return_token_ids`.
    prompt: Asked,
    /// Where the next token begins, in characters: completions report it.
    offset: usize,
    started: bool,
}

/// A prompt as the response may have to repeat it.
#[derive(Clone, Default)]
pub struct Asked {
    pub ids: Vec<u32>,
    pub text: String,
}

impl Choice {
    pub fn new(index: usize, prompt: Asked) -> Self {
        Self { index, prompt, offset: 0, started: false }
    }
}

/// What a chunk says.
pub enum Content<'a> {
    Text(&'a str),
    Reasoning(&'a str),
    Call { index: usize, id: &'a str, name: &'a str },
    Arguments { index: usize, text: &'a str },
}

impl Reply {
    pub fn new(id: String, created: u64, model: String, job: &Job, text: std::sync::Arc<Text>) -> Self {
        Self {
            id,
            created,
            model,
            shape: job.shape,
            n: job.n,
            logprobs: job.wants_logprobs(),
            return_token_ids: job.return_token_ids,
            include_usage: job.include_usage,
            echo: job.echo,
            echo_only: job.echo_only,
            include_reasoning: job.include_reasoning,
            text,
        }
    }

    /// The whole response.
    pub fn whole(&self, choices: Vec<Choice>, answers: Vec<Answer>) -> String {
        let usage = self.usage(answers.iter().filter_map(|a| a.end.as_ref().map(|(_, spent)| spent)));
        let prompt_token_ids = self.chat_prompt_ids(choices.first());
        let mut made = Vec::with_capacity(choices.len());
        for (mut choice, answer) in choices.into_iter().zip(answers) {
            let (reason, stop_reason) = finish_reason(answer.end.as_ref().map(|(stop, _)| stop));
            let lead = if self.echo { std::mem::take(&mut choice.prompt.text) } else { String::new() };
            let (text, tokens): (_, &[Token]) =
                if self.echo_only { (lead, &[]) } else { (lead + &answer.text(), &answer.tokens) };
            let logprobs = self.logprobs.then(|| match self.shape {
                Shape::Chat => self.chat_logprobs(tokens),
                Shape::Completion => {
                    let prompt = answer.prompt_logprobs.as_deref().filter(|_| self.echo);
                    self.completion_logprobs(&mut choice, prompt, tokens)
                }
            });
            let token_ids = self.return_token_ids.then(|| tokens.iter().map(|t| t.id).collect());
            made.push(match self.shape {
                Shape::Chat => JsonChoice {
                    message: Some(Message::new(text, &answer, self.include_reasoning)),
                    ..JsonChoice::new(choice.index, logprobs, Some(reason), stop_reason, token_ids)
                },
                Shape::Completion => JsonChoice {
                    text: Some(text),
                    prompt_token_ids: self.return_token_ids.then(|| choice.prompt.ids.clone()),
                    ..JsonChoice::new(choice.index, logprobs, Some(reason), stop_reason, token_ids)
                },
            });
        }
        self.body(false, made, Some(Some(usage)), prompt_token_ids)
    }

    /// The chunk that opens a choice: the role of a chat, the echoed prompt of a completion. Nothing when there is
    /// nothing to open.
    pub fn open(&self, choice: &mut Choice, prompt_logprobs: Option<&[TokenLogprobs]>) -> Option<String> {
        if std::mem::replace(&mut choice.started, true) {
            return None;
        }
        match self.shape {
            Shape::Chat => {
                let delta = Delta { role: Some("assistant"), content: Some(""), ..Delta::default() };
                let ids = self.chat_prompt_ids(Some(choice));
                let made = JsonChoice { delta: Some(delta), ..JsonChoice::new(choice.index, None, None, None, None) };
                Some(self.body(true, vec![made], self.include_usage.then_some(None), ids))
            }
            Shape::Completion if self.echo || self.return_token_ids => {
                let logprobs =
                    (self.logprobs && self.echo).then(|| self.completion_logprobs(choice, prompt_logprobs, &[]));
                let made = JsonChoice {
                    text: Some(if self.echo { std::mem::take(&mut choice.prompt.text) } else { String::new() }),
                    prompt_token_ids: self.return_token_ids.then(|| choice.prompt.ids.clone()),
                    ..JsonChoice::new(choice.index, logprobs, None, None, self.return_token_ids.then(Vec::new))
                };
                Some(self.body(true, vec![made], self.include_usage.then_some(None), None))
            }
            Shape::Completion => None,
        }
    }

    /// A chunk with a piece of the answer; nothing when it would say nothing.
    pub fn piece(&self, choice: &mut Choice, content: Content<'_>, tokens: &[Token]) -> Option<String> {
        let says_tokens = (self.logprobs || self.return_token_ids) && !tokens.is_empty();
        let hidden = matches!(content, Content::Reasoning(_)) && !self.include_reasoning;
        if self.echo_only || hidden || (matches!(content, Content::Text("")) && !says_tokens) {
            return None;
        }
        let logprobs = (self.logprobs && !tokens.is_empty()).then(|| match self.shape {
            Shape::Chat => self.chat_logprobs(tokens),
            Shape::Completion => self.completion_logprobs(choice, None, tokens),
        });
        let token_ids = self.return_token_ids.then(|| tokens.iter().map(|t| t.id).collect());
        let made = JsonChoice::new(choice.index, logprobs, None, None, token_ids);
        let made = match self.shape {
            Shape::Chat => JsonChoice { delta: Some(Delta::new(content)), ..made },
            Shape::Completion => {
                let Content::Text(text) = content else { return None };
                JsonChoice { text: Some(text.to_owned()), ..made }
            }
        };
        Some(self.body(true, vec![made], self.include_usage.then_some(None), None))
    }

    /// The chunk that ends a choice.
    pub fn finish(&self, choice: &Choice, stop: &Stop) -> String {
        let (reason, stop_reason) = finish_reason(Some(stop));
        let made = JsonChoice::new(choice.index, None, Some(reason), stop_reason, None);
        let made = match self.shape {
            Shape::Chat => JsonChoice { delta: Some(Delta::default()), ..made },
            Shape::Completion => JsonChoice { text: Some(String::new()), ..made },
        };
        self.body(true, vec![made], self.include_usage.then_some(None), None)
    }

    /// The last chunk, when usage was asked for.
    pub fn usage_chunk(&self, usages: &[Spent]) -> Option<String> {
        self.include_usage.then(|| self.body(true, vec![], Some(Some(self.usage(usages.iter()))), None))
    }

    fn body(
        &self,
        chunk: bool,
        choices: Vec<JsonChoice<'_>>,
        usage: Option<Option<JsonUsage>>,
        prompt_token_ids: Option<Vec<u32>>,
    ) -> String {
        let object = match (self.shape, chunk) {
            (Shape::Chat, false) => "chat.completion",
            (Shape::Chat, true) => "chat.completion.chunk",
            (Shape::Completion, _) => "text_completion",
        };
        let body =
            Body { id: &self.id, object, created: self.created, model: &self.model, choices, usage, prompt_token_ids };
        serde_json::to_string(&body).expect("a body of strings and numbers is JSON: this is a bug")
    }

    /// Usages in the order of choices. A prompt counts once, whatever `n`.
    fn usage<'a>(&self, usages: impl Iterator<Item = &'a Spent>) -> JsonUsage {
        let mut total = JsonUsage::default();
        for (at, Spent { usage, reasoning_tokens }) in usages.enumerate() {
            if at % self.n == 0 {
                total.prompt_tokens += usage.prompt_tokens;
                total.prompt_tokens_details.cached_tokens += usage.cached_tokens;
            }
            if !self.echo_only {
                total.completion_tokens += usage.completion_tokens;
                total.completion_tokens_details.reasoning_tokens += reasoning_tokens;
            }
        }
        total.total_tokens = total.prompt_tokens + total.completion_tokens;
        total
    }

    fn chat_prompt_ids(&self, choice: Option<&Choice>) -> Option<Vec<u32>> {
        let choice = choice.filter(|c| c.index == 0 && self.return_token_ids && self.shape == Shape::Chat)?;
        Some(choice.prompt.ids.clone())
    }

    fn chat_logprobs(&self, tokens: &[Token]) -> Logprobs {
        let entry = |id: u32, logprob: f32, top_logprobs: Option<Vec<ChatToken>>| ChatToken {
            token: self.text.token_text(id),
            logprob: logprob.max(LOWEST_LOGPROB),
            bytes: self.text.token_bytes(id).to_vec(),
            top_logprobs,
        };
        let content = tokens.iter().filter_map(|t| t.logprobs.as_ref()).map(|l| {
            let top = l.top.iter().map(|(id, logprob)| entry(*id, *logprob, None)).collect();
            entry(l.id, l.logprob, Some(top))
        });
        Logprobs::Chat { content: content.collect(), refusal: () }
    }

    /// Four parallel lists. The first token of a text has no probability: null.
    fn completion_logprobs(&self, choice: &mut Choice, prompt: Option<&[TokenLogprobs]>, tokens: &[Token]) -> Logprobs {
        let mut lists = CompletionLists::default();
        if let Some(prompt) = prompt {
            let first = choice.prompt.ids.first().copied();
            first.into_iter().for_each(|id| lists.push(&self.text, &mut choice.offset, id, None));
            prompt.iter().for_each(|l| lists.push(&self.text, &mut choice.offset, l.id, Some(l)));
        }
        for token in tokens {
            lists.push(&self.text, &mut choice.offset, token.id, token.logprobs.as_ref());
        }
        Logprobs::Completion(lists)
    }
}

fn finish_reason(stop: Option<&Stop>) -> (&'static str, Option<Value>) {
    match stop {
        Some(Stop::Eos) | None => ("stop", None),
        Some(Stop::ToolCalls) => ("tool_calls", None),
        Some(Stop::StopId(id)) => ("stop", Some((*id).into())),
        Some(Stop::StopString(text)) => ("stop", Some(text.as_str().into())),
        Some(Stop::Length) => ("length", None),
        Some(Stop::Aborted) => ("abort", None),
    }
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<JsonChoice<'a>>,
    /// Absent, null, or usage.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<JsonUsage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct JsonChoice<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<Delta<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

impl JsonChoice<'_> {
    fn new(
        index: usize,
        logprobs: Option<Logprobs>,
        finish_reason: Option<&'static str>,
        stop_reason: Option<Value>,
        token_ids: Option<Vec<u32>>,
    ) -> Self {
        let (message, delta, text, prompt_token_ids) = (None, None, None, None);
        Self { index, message, delta, text, logprobs, finish_reason, stop_reason, token_ids, prompt_token_ids }
    }
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    /// Null beside calls when there is no text.
    content: Option<String>,
    refusal: (),
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<JsonCall>,
}

impl Message {
    fn new(text: String, answer: &Answer, reasoning: bool) -> Self {
        let call = |(id, name, arguments): (&str, &str, &str)| JsonCall {
            index: None,
            id: Some(id.to_owned()),
            kind: Some("function"),
            function: JsonFunction { name: Some(name.to_owned()), arguments: arguments.to_owned() },
        };
        let tool_calls: Vec<JsonCall> = answer.calls().map(call).collect();
        let content = Some(text).filter(|text| tool_calls.is_empty() || !text.is_empty());
        let reasoning_content = Some(answer.reasoning()).filter(|text| reasoning && !text.is_empty());
        Self { role: "assistant", content, refusal: (), reasoning_content, tool_calls }
    }
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[JsonCall; 1]>,
}

impl<'a> Delta<'a> {
    fn new(content: Content<'a>) -> Self {
        match content {
            Content::Text(text) => Self { content: Some(text), ..Self::default() },
            Content::Reasoning(text) => Self { reasoning_content: Some(text), ..Self::default() },
            Content::Call { index, id, name } => {
                let function = JsonFunction { name: Some(name.to_owned()), arguments: String::new() };
                let call = JsonCall { index: Some(index), id: Some(id.to_owned()), kind: Some("function"), function };
                Self { tool_calls: Some([call]), ..Self::default() }
            }
            Content::Arguments { index, text } => {
                let function = JsonFunction { name: None, arguments: text.to_owned() };
                let call = JsonCall { index: Some(index), id: None, kind: None, function };
                Self { tool_calls: Some([call]), ..Self::default() }
            }
        }
    }
}

/// A call; in a stream its index, and what is new of it.
#[derive(Serialize)]
struct JsonCall {
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: JsonFunction,
}

#[derive(Serialize)]
struct JsonFunction {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Logprobs {
    Chat { content: Vec<ChatToken>, refusal: () },
    Completion(CompletionLists),
}

#[derive(Serialize)]
struct ChatToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<Vec<ChatToken>>,
}

#[derive(Default, Serialize)]
struct CompletionLists {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    text_offset: Vec<usize>,
}

impl CompletionLists {
    fn push(&mut self, text: &Text, offset: &mut usize, id: u32, logprobs: Option<&TokenLogprobs>) {
        let token = text.token_text(id);
        self.text_offset.push(*offset);
        *offset += token.chars().count();
        self.token_logprobs.push(logprobs.map(|l| l.logprob.max(LOWEST_LOGPROB)));
        self.top_logprobs.push(logprobs.map(|l| {
            let top = l.top.iter().map(|(id, logprob)| (text.token_text(*id), logprob.max(LOWEST_LOGPROB).into()));
            let mut top: Map<String, Value> = top.collect();
            // The token itself is always among them.
            top.entry(token.clone()).or_insert_with(|| l.logprob.max(LOWEST_LOGPROB).into());
            top
        }));
        self.tokens.push(token);
    }
}

#[derive(Default, Serialize)]
struct JsonUsage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
    #[serde(skip_serializing_if = "CompletionDetails::is_empty")]
    completion_tokens_details: CompletionDetails,
}

#[derive(Default, Serialize)]
struct PromptDetails {
    cached_tokens: usize,
}

/// Left out while there is nothing to say.
#[derive(Default, Serialize)]
struct CompletionDetails {
    reasoning_tokens: usize,
}

impl CompletionDetails {
    fn is_empty(&self) -> bool {
        self.reasoning_tokens == 0
    }
}
