//! Owns text in, text out: prompts become tokens, tokens become whole characters, stop strings end the answer. Knows no
//! wire format; chat templates and tokenizers are the model crate's.

use std::collections::VecDeque;
use std::sync::Arc;

use dualgauge_models::text::{AnswerParser, CallFormat, Reading, ReasoningFormat, ToolSpec};
use dualgauge_models::{Conversation, Detokenizer, Text};

use crate::form::{CallIds, OutputFormat, Reasoning, ToolChoice, ToolUse};
use crate::grammar::{Compiler, Grammar, Wish};
use crate::parts::Parts;
use crate::stop::StopMatcher;
use crate::{Engine, Event, Events, FinishReason, Rejected, Request, Sampling, Token, TokenLogprobs, Usage};

/// An engine and its model's dialect of text. Clones share both.
#[derive(Clone)]
pub struct Frontend {
    engine: Engine,
    text: Arc<Text>,
    compiler: Arc<Compiler>,
}

/// One generation from text to text.
#[derive(Clone, Debug)]
pub struct TextRequest {
    pub prompt: Prompt,
    pub sampling: Sampling,
    /// Texts that end the answer. What they match is cut off, unless `include_stop_text`.
    pub stop: Vec<String>,
    pub include_stop_text: bool,
    /// Leave control tokens out of the text.
    pub skip_special_tokens: bool,
    /// As [`Request::cache_salt`].
    pub cache_salt: Option<String>,
    /// As [`Request::prompt_logprobs`].
    pub prompt_logprobs: Option<usize>,
    /// Tools of a chat.
    pub tools: Option<ToolUse>,
    /// What the answer's text must be; calls of tools and reasoning are beside it.
    pub format: Option<OutputFormat>,
    pub reasoning: Reasoning,
}

impl TextRequest {
    pub fn new(prompt: Prompt, sampling: Sampling) -> Self {
        Self {
            prompt,
            sampling,
            stop: vec![],
            include_stop_text: false,
            skip_special_tokens: true,
            cache_salt: None,
            prompt_logprobs: None,
            tools: None,
            format: None,
            reasoning: Reasoning::default(),
        }
    }
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a request, moved once or twice")]
pub enum Prompt {
    Text {
        text: String,
        /// Let the tokenizer add the tokens it begins every text with.
        add_special: bool,
    },
    Tokens(Vec<u32>),
    Chat(Conversation),
}

/// Why a text request was not taken. Nothing was queued.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The chat template refused the conversation, or the text cannot be encoded.
    #[error("{0}")]
    Text(String),
}

/// What an answer's stream carries. Exactly one `Finished` or `Failed` ends it.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// As [`Event::Prompt`].
    Prompt(Vec<TokenLogprobs>),
    /// Text that is ready to show: whole characters, and nothing that may yet become a stop string. The tokens are
    /// those whose text is in it or before it; the text is empty when only tokens were left.
    Text {
        text: String,
        tokens: Vec<Token>,
    },
    /// As `Text`, of the model's reasoning: before the answer, or between two calls. Only when
    /// [`Reasoning::separate`] is set.
    Reasoning {
        text: String,
        tokens: Vec<Token>,
    },
    /// A call of a tool begins; its arguments follow. It is over when any piece but its arguments comes. Only when
    /// [`TextRequest::tools`] is set. A malformed call is `Text`.
    ToolCall {
        /// Counts the calls of this answer from 0.
        index: usize,
        /// No other call has it.
        id: String,
        name: String,
    },
    /// More of the arguments: joined they are a JSON object, if the answer was not cut off.
    ToolArguments {
        index: usize,
        text: String,
        tokens: Vec<Token>,
    },
    Finished {
        reason: Stop,
        usage: Usage,
        /// Of the completion tokens, those of the reasoning.
        reasoning_tokens: usize,
    },
    Failed {
        message: String,
    },
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model's own end token, or the end of what the request's format allows.
    Eos,
    /// One of [`Sampling::stop_ids`].
    StopId(u32),
    /// One of [`TextRequest::stop`].
    StopString(String),
    /// As `Eos`, and the answer has calls of tools: their results are awaited.
    ToolCalls,
    /// `max_tokens` or the end of the context.
    Length,
    Aborted,
}

impl Frontend {
    pub fn new(engine: Engine, text: Arc<Text>) -> Self {
        let compiler = Compiler::new(text.clone(), engine.spec().vocab, engine.spec().eos.clone());
        Self { engine, text, compiler: Arc::new(compiler) }
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    pub fn text(&self) -> &Arc<Text> {
        &self.text
    }

    /// Encodes the prompt and queues it. Encoding a long prompt takes milliseconds: asynchronous callers may want to do
    /// it on a thread that may block.
    ///
    /// # Errors
    /// When the format or a tool's schema is wrong, the template or the tokenizer refuses the prompt, or the engine the request. Nothing was
    /// queued. Making a grammar can take some hundred milliseconds.
    pub fn generate(&self, request: TextRequest) -> Result<Generation, Refused> {
        if request.stop.iter().any(String::is_empty) {
            let message = "a stop string must not be empty".into();
            return Err(Rejected::Invalid { field: "stop", message }.into());
        }
        let chat = matches!(request.prompt, Prompt::Chat(_));
        if request.tools.is_some() && !chat {
            let message = "tools need a chat".into();
            return Err(Rejected::Invalid { field: "tools", message }.into());
        }
        let prompt = self.prompt_tokens(&request)?;
        let place = self.reasoning_place(&request, &prompt);
        let wish = Wish { tools: request.tools.as_ref(), format: request.format.as_ref(), chat, ..place };
        let grammar = self.grammar(&wish)?;
        let reading = self.reading(&request, &wish);
        let shown = reading.as_ref().map(|reading| self.marks(reading)).unwrap_or_default();
        let mut eos = match request.sampling.ignore_eos {
            true => vec![],
            false => self.engine.spec().eos.clone(),
        };
        let constrained = grammar.is_some();
        let mut engine_request = Request::new(prompt.clone(), request.sampling);
        engine_request.cache_salt = request.cache_salt;
        engine_request.prompt_logprobs = request.prompt_logprobs;
        engine_request.grammar = grammar;
        let (stop_ids, min_tokens) = (engine_request.sampling.stop_ids.clone(), engine_request.sampling.min_tokens);
        // gpt-oss waits for a result behind this token; not every checkpoint names it among the end tokens.
        let harmony = reading.as_ref().is_some_and(|r| r.calls == CallFormat::Harmony && !r.tools.is_empty());
        if let Some(id) = self.text.id_of("<|call|>").filter(|id| harmony && !eos.contains(id)) {
            engine_request.sampling.stop_ids.push(id);
            eos.push(id);
        }
        let ids = request.tools.as_ref().map(|tools| tools.call_ids.clone());
        let ids = ids.unwrap_or_else(|| CallIds { prefix: String::new(), seed: 0 });
        let parallel = request.tools.as_ref().is_none_or(|tools| tools.parallel);
        let parts = Parts::new(reading.map(AnswerParser::new), ids, engine_request.sampling.seed, parallel);
        // A chat's answer is a text of its own; a completion goes on where its prompt ends. What a grammar describes is
        // shown to the letter.
        let detokenizer = match &request.prompt {
            Prompt::Chat(conversation) if conversation.prefill.is_none() && !constrained => {
                Detokenizer::new(self.text.clone(), request.skip_special_tokens)
            }
            _ => Detokenizer::after(self.text.clone(), request.skip_special_tokens, &prompt),
        };
        let detokenizer = detokenizer.showing(shown);
        let events = self.engine.submit(engine_request)?;
        Ok(Generation {
            events: Some(events),
            answer: Answer {
                prompt,
                eos,
                stop_ids,
                min_tokens,
                stop: request.stop.clone(),
                include_stop_text: request.include_stop_text,
                detokenizer,
                matcher: StopMatcher::new(request.stop, request.include_stop_text),
                parts,
                generated: 0,
                written: 0,
                shown: 0,
                pending: VecDeque::new(),
                unread: 0,
                ready: VecDeque::new(),
            },
        })
    }

    /// What the answer must keep to.
    fn grammar(&self, wish: &Wish<'_>) -> Result<Option<Grammar>, Refused> {
        let refused = |(field, message)| Refused::Rejected(Rejected::Invalid { field, message });
        let Some(source) = wish.source(&self.text).map_err(refused)? else { return Ok(None) };
        let field = if wish.format.is_some() { "format" } else { "tools" };
        self.compiler.compile(source).map(Some).map_err(|message| refused((field, message)))
    }

    /// Whether the prompt ends inside of the reasoning, or behind it.
    fn reasoning_place(&self, request: &TextRequest, prompt: &[u32]) -> Wish<'static> {
        let mut place = Wish { tools: None, format: None, begun: false, closed: false, chat: false };
        if let Some(tags) = self.text.reasoning_format().and_then(ReasoningFormat::tags) {
            let end = self.text.decode(&prompt[prompt.len().saturating_sub(PROMPT_END_TOKENS)..], false);
            place.begun = end.trim_end().ends_with(tags.open.trim_end());
            place.closed = end.trim_end().ends_with(tags.close);
        }
        let prefilled = |c: &Conversation| c.prefill.is_some() || !c.add_generation_prompt;
        place.closed |= !place.begun && matches!(&request.prompt, Prompt::Chat(c) if prefilled(c));
        place
    }

    /// How the answer is read; `None`: all of it is text.
    fn reading(&self, request: &TextRequest, wish: &Wish<'_>) -> Option<Reading> {
        let tools = request.tools.as_ref().filter(|tools| tools.choice != ToolChoice::None);
        let tools: Vec<ToolSpec> = tools.map_or_else(Vec::new, |tools| {
            let allowed = |tool: &&ToolSpec| tools.allowed.as_ref().is_none_or(|names| names.contains(&tool.name));
            tools.tools.iter().filter(allowed).cloned().collect()
        });
        let calls = wish.syntax(&self.text).map_or(self.text.call_format(), |syntax| syntax.format);
        let reasoning = self.text.reasoning_format();
        let separate = request.reasoning.separate;
        let needed =
            !tools.is_empty() || reasoning == Some(ReasoningFormat::Harmony) || (separate && reasoning.is_some());
        // Behind the reasoning there is no other.
        let reasoning = reasoning.filter(|format| !wish.closed || *format == ReasoningFormat::Harmony);
        (wish.chat && needed).then_some(Reading { calls, reasoning, tools, separate, begun: wish.begun })
    }

    /// Control tokens that the reading needs to see.
    fn marks(&self, reading: &Reading) -> Vec<u32> {
        let calls =
            if reading.tools.is_empty() && reading.calls != CallFormat::Harmony { &[] } else { reading.calls.marks() };
        let tags = reading.reasoning.and_then(ReasoningFormat::tags);
        let marks = calls.iter().copied().chain(tags.into_iter().flat_map(|tags| [tags.open, tags.close]));
        // A mark may be a control token and more.
        let first = |mark: &str| mark.find(['>', ']']).and_then(|end| self.text.id_of(&mark[..=end]));
        marks.filter_map(|mark| self.text.id_of(mark).or_else(|| first(mark))).collect()
    }

    /// The ids of the prompt that [`Self::generate`] would send, with tools and reasoning as the template shows them.
    ///
    /// # Errors
    /// When the template or the tokenizer refuses it.
    pub fn prompt_tokens(&self, request: &TextRequest) -> Result<Vec<u32>, Refused> {
        let refused = |error: dualgauge_models::Error| Refused::Text(error.to_string());
        match &request.prompt {
            Prompt::Tokens(tokens) => Ok(tokens.clone()),
            Prompt::Text { text, add_special } => self.text.encode(text, *add_special).map_err(refused),
            Prompt::Chat(conversation) => {
                let tools = request.tools.as_ref().filter(|tools| tools.choice != ToolChoice::None);
                let tools = tools.map_or(&[][..], |tools| &tools.tools);
                let mut conversation = self.text.with_tools(conversation, tools);
                request.reasoning.tell(&mut conversation.kwargs);
                self.text.encode_chat(&conversation).map_err(refused)
            }
        }
    }
}

/// Tokens at the end of a prompt that may hold a mark of the reasoning.
const PROMPT_END_TOKENS: usize = 16;

/// A running answer. Dropping it aborts the request.
pub struct Generation {
    /// Gone when the answer is over.
    events: Option<Events>,
    answer: Answer,
}

impl Generation {
    pub fn prompt_tokens(&self) -> &[u32] {
        &self.answer.prompt
    }

    /// The next piece; `None` after the one that ends the answer.
    pub async fn next(&mut self) -> Option<Piece> {
        loop {
            if let Some(piece) = self.answer.ready.pop_front() {
                return Some(piece);
            }
            let event = self.events.as_mut()?.next().await;
            self.take(event);
        }
    }

    /// As [`Self::next`] for callers outside of any async runtime.
    pub fn next_blocking(&mut self) -> Option<Piece> {
        loop {
            if let Some(piece) = self.answer.ready.pop_front() {
                return Some(piece);
            }
            let event = self.events.as_mut()?.next_blocking();
            self.take(event);
        }
    }

    fn take(&mut self, event: Option<Event>) {
        let cached_tokens = self.events.as_ref().map_or(0, Events::cached_tokens);
        if event.is_none_or(|event| self.answer.take(event, cached_tokens)) {
            // Dropping the events of a request that is not over aborts it.
            self.events = None;
        }
    }
}

/// What an answer has become so far. Offsets are in bytes of its whole text.
struct Answer {
    prompt: Vec<u32>,
    eos: Vec<u32>,
    stop_ids: Vec<u32>,
    min_tokens: usize,
    stop: Vec<String>,
    include_stop_text: bool,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    parts: Parts,
    generated: usize,
    /// Text that the detokenizer wrote, and how much of it was shown.
    written: usize,
    shown: usize,
    /// Tokens not handed out, with the span of their text. The last `unread` have written nothing yet: their characters
    /// are incomplete.
    pending: VecDeque<(Token, usize, usize)>,
    unread: usize,
    ready: VecDeque<Piece>,
}

impl Answer {
    /// True when the answer is over.
    fn take(&mut self, event: Event, cached_tokens: usize) -> bool {
        match event {
            Event::Prompt(logprobs) => {
                self.ready.push_back(Piece::Prompt(logprobs));
                false
            }
            Event::Token(token) => self.token(token, cached_tokens),
            Event::Finished { reason, usage } => {
                let rest = self.detokenizer.finish();
                if self.write(&rest, cached_tokens) {
                    return true;
                }
                let held = self.matcher.finish();
                if self.show(held, usize::MAX) {
                    return self.end_with_calls(cached_tokens);
                }
                self.parts.finish(&mut self.ready);
                let reason = match reason {
                    FinishReason::Stop(id) if self.eos.contains(&id) && !self.stop_ids.contains(&id) => Stop::Eos,
                    FinishReason::Stop(id) => Stop::StopId(id),
                    FinishReason::Complete => Stop::Eos,
                    FinishReason::Length => Stop::Length,
                    FinishReason::Aborted => Stop::Aborted,
                };
                let reason = if reason == Stop::Eos && self.parts.calls() > 0 { Stop::ToolCalls } else { reason };
                let reasoning_tokens = self.parts.reasoning_tokens;
                self.ready.push_back(Piece::Finished { reason, usage, reasoning_tokens });
                true
            }
            Event::Failed { message } => {
                let held = self.matcher.finish();
                self.show(held, usize::MAX);
                self.parts.finish(&mut self.ready);
                self.ready.push_back(Piece::Failed { message });
                true
            }
        }
    }

    fn token(&mut self, token: Token, cached_tokens: usize) -> bool {
        self.generated += 1;
        let id = token.id;
        // The engine ends the request at such a token; its text is no part of the answer.
        let ends = self.eos.contains(&id) || self.stop_ids.contains(&id);
        let text = match ends && !self.include_stop_text {
            true => String::new(),
            false => self.detokenizer.push(id),
        };
        self.pending.push_back((token, self.written, self.written));
        self.unread += 1;
        self.write(&text, cached_tokens)
    }

    /// Adds text of the tokens that have written nothing yet. True when a stop string ended the answer.
    fn write(&mut self, text: &str, cached_tokens: usize) -> bool {
        if text.is_empty() {
            return false;
        }
        self.written += text.len();
        for (_, _, end) in self.pending.iter_mut().rev().take(self.unread) {
            *end = self.written;
        }
        self.unread = 0;
        if self.generated <= self.min_tokens {
            let text = self.matcher.pass(text);
            return self.show(text, self.written) && self.end_with_calls(cached_tokens);
        }
        let shown = self.matcher.push(text);
        let Some(hit) = shown.hit else {
            let end = self.written - self.matcher.held();
            return self.show(shown.text, end) && self.end_with_calls(cached_tokens);
        };
        // Tokens that begin behind the cut are not shown.
        let cut = self.shown + shown.text.len();
        self.pending.retain(|(_, start, _)| *start < cut);
        if self.show(shown.text, usize::MAX) {
            return self.end_with_calls(cached_tokens);
        }
        self.parts.finish(&mut self.ready);
        let reason = Stop::StopString(self.stop[hit].clone());
        self.end(reason, cached_tokens)
    }

    /// A call came that must not be: the answer ends with the one before.
    fn end_with_calls(&mut self, cached_tokens: usize) -> bool {
        self.end(Stop::ToolCalls, cached_tokens)
    }

    fn end(&mut self, reason: Stop, cached_tokens: usize) -> bool {
        let usage = Usage { prompt_tokens: self.prompt.len(), cached_tokens, completion_tokens: self.generated };
        let reasoning_tokens = self.parts.reasoning_tokens;
        self.ready.push_back(Piece::Finished { reason, usage, reasoning_tokens });
        true
    }

    /// Hands out text, and the tokens whose text ends at `end` or before. True when the answer is over with it.
    fn show(&mut self, text: String, end: usize) -> bool {
        self.shown += text.len();
        let ready = match end {
            usize::MAX => self.pending.len(),
            _ => {
                let read = self.pending.len() - self.unread;
                self.pending.iter().take(read).take_while(|(_, _, e)| *e <= end).count()
            }
        };
        let tokens: Vec<Token> = self.pending.drain(..ready).map(|(token, _, _)| token).collect();
        self.unread = self.unread.min(self.pending.len());
        self.parts.take(text, tokens, &mut self.ready)
    }
}
