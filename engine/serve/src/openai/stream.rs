//! Owns the merging of a response's generations and their way to the client: collected into one body, or as server-sent
//! events. Whoever drops these drops the generations, and so aborts them.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use dualgauge::{Generation, Piece, Stop, Token};
use hyper::body::Frame;

use super::ApiError;
use super::reply::{Answer, Call, Choice, Content, Reply, Spent};

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
/// A generation on its way to its next piece.
type Step = Boxed<(Generation, Option<Piece>)>;

/// The generations of one response. Pieces come in the order in which they are made.
pub struct Choices {
    /// Each waits for its next piece; `None` once it has ended.
    waiting: Vec<Option<Step>>,
    /// Where the next look begins, so that no choice starves the others.
    next: usize,
}

impl Choices {
    pub fn new(generations: Vec<Generation>) -> Self {
        Self { waiting: generations.into_iter().map(|g| Some(step(g))).collect(), next: 0 }
    }

    /// The next piece and the place of its choice; `None` when all have ended.
    pub async fn next(&mut self) -> Option<(usize, Piece)> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<(usize, Piece)>> {
        let count = self.waiting.len();
        let mut open = false;
        for at in (0..count).map(|i| (self.next + i) % count) {
            let Some(future) = &mut self.waiting[at] else { continue };
            match future.as_mut().poll(cx) {
                Poll::Pending => open = true,
                Poll::Ready((_, None)) => self.waiting[at] = None,
                Poll::Ready((generation, Some(piece))) => {
                    let ended = matches!(piece, Piece::Finished { .. } | Piece::Failed { .. });
                    self.waiting[at] = (!ended).then(|| step(generation));
                    self.next = at + 1;
                    return Poll::Ready(Some((at, piece)));
                }
            }
        }
        if open { Poll::Pending } else { Poll::Ready(None) }
    }
}

fn step(mut generation: Generation) -> Step {
    Box::pin(async move {
        let piece = generation.next().await;
        (generation, piece)
    })
}

/// Waits for all answers.
///
/// # Errors
/// When one of them fails or is cut off.
pub async fn whole(reply: Reply, choices: Vec<Choice>, mut pieces: Choices) -> Result<Response, ApiError> {
    let mut answers: Vec<Answer> = choices.iter().map(|_| Answer::default()).collect();
    while let Some((at, piece)) = pieces.next().await {
        let answer = &mut answers[at];
        match piece {
            Piece::Prompt(logprobs) => answer.prompt_logprobs = Some(logprobs),
            Piece::Text { text, tokens } => {
                answer.text.push_str(&text);
                answer.tokens.extend(tokens);
            }
            Piece::Reasoning { text, tokens } => {
                answer.reasoning.push_str(&text);
                answer.tokens.extend(tokens);
            }
            Piece::ToolCall { id, name, .. } => answer.calls.push(Call { id, name, arguments: String::new() }),
            Piece::ToolArguments { index, text, tokens } => {
                answer.calls[index].arguments.push_str(&text);
                answer.tokens.extend(tokens);
            }
            Piece::Finished { reason: Stop::Aborted, .. } => return Err(cut_off()),
            Piece::Finished { reason, usage, reasoning_tokens } => {
                answer.end = Some((reason, Spent { usage, reasoning_tokens }))
            }
            Piece::Failed { message } => return Err(failed(&message)),
        }
    }
    if answers.iter().any(|a| a.end.is_none()) {
        return Err(cut_off());
    }
    Ok(([(header::CONTENT_TYPE, "application/json")], reply.whole(choices, answers)).into_response())
}

/// Answers with events as they come. The response begins with the first piece, so that what fails before it has a status of
/// its own.
///
/// # Errors
/// When a choice fails before anything was made.
pub async fn events(reply: Reply, choices: Vec<Choice>, mut pieces: Choices) -> Result<Response, ApiError> {
    let first = pieces.next().await;
    match &first {
        None | Some((_, Piece::Finished { reason: Stop::Aborted, .. })) => return Err(cut_off()),
        Some((_, Piece::Failed { message })) => return Err(failed(message)),
        Some(_) => {}
    }
    let usages = vec![Spent::default(); choices.len()];
    let mut events = Events { reply, choices, pieces, usages, ended: 0, ready: String::new(), done: false };
    if let Some((at, piece)) = first {
        events.take(at, piece);
    }
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        // Proxies that buffer would hold the tokens back.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::new(EventBody::new(events))).into_response())
}

struct Events {
    reply: Reply,
    choices: Vec<Choice>,
    pieces: Choices,
    usages: Vec<Spent>,
    ended: usize,
    /// Events that are ready to be sent.
    ready: String,
    done: bool,
}

impl Events {
    /// The next bytes of the stream: one or more whole events.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if !self.ready.is_empty() {
                return Some(std::mem::take(&mut self.ready).into());
            }
            if self.done {
                return None;
            }
            match self.pieces.next().await {
                Some((at, piece)) => self.take(at, piece),
                None => self.fail(cut_off()),
            }
        }
    }

    fn take(&mut self, at: usize, piece: Piece) {
        let choice = &mut self.choices[at];
        match piece {
            Piece::Prompt(logprobs) => {
                let opening = self.reply.open(choice, Some(&logprobs));
                self.push(opening);
            }
            Piece::Text { text, tokens } => self.say(at, Content::Text(&text), &tokens),
            Piece::Reasoning { text, tokens } => self.say(at, Content::Reasoning(&text), &tokens),
            Piece::ToolCall { index, id, name } => self.say(at, Content::Call { index, id: &id, name: &name }, &[]),
            Piece::ToolArguments { index, text, tokens } => {
                self.say(at, Content::Arguments { index, text: &text }, &tokens);
            }
            Piece::Finished { reason: Stop::Aborted, .. } => self.fail(cut_off()),
            Piece::Finished { reason, usage, reasoning_tokens } => {
                let opening = self.reply.open(choice, None);
                let body = self.reply.finish(choice, &reason);
                self.push(opening);
                self.push(Some(body));
                self.usages[at] = Spent { usage, reasoning_tokens };
                self.ended += 1;
                if self.ended == self.choices.len() {
                    let usage = self.reply.usage_chunk(&self.usages);
                    self.push(usage);
                    self.ready.push_str("data: [DONE]\n\n");
                    self.done = true;
                }
            }
            Piece::Failed { message } => self.fail(failed(&message)),
        }
    }

    fn say(&mut self, at: usize, content: Content<'_>, tokens: &[Token]) {
        let choice = &mut self.choices[at];
        let opening = self.reply.open(choice, None);
        let body = self.reply.piece(choice, content, tokens);
        self.push(opening);
        self.push(body);
    }

    /// One line of JSON is one event: serde escapes line ends.
    fn push(&mut self, body: Option<String>) {
        if let Some(body) = body {
            self.ready.push_str("data: ");
            self.ready.push_str(&body);
            self.ready.push_str("\n\n");
        }
    }

    /// Ends the stream with an error and without `[DONE]`.
    fn fail(&mut self, error: ApiError) {
        self.push(Some(error.body().to_string()));
        self.done = true;
    }
}

/// The body that hyper pulls: nothing is made for a client that does not read.
struct EventBody {
    next: Option<Boxed<(Events, Option<Bytes>)>>,
}

impl EventBody {
    fn new(events: Events) -> Self {
        Self { next: Some(pull(events)) }
    }
}

fn pull(mut events: Events) -> Boxed<(Events, Option<Bytes>)> {
    Box::pin(async move {
        let bytes = events.next().await;
        (events, bytes)
    })
}

impl hyper::body::Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(next) = &mut self.next else { return Poll::Ready(None) };
        match next.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready((_, None)) => {
                self.next = None;
                Poll::Ready(None)
            }
            Poll::Ready((events, Some(bytes))) => {
                self.next = Some(pull(events));
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
        }
    }
}

fn failed(message: &str) -> ApiError {
    tracing::error!("a generation failed: {message}");
    ApiError::internal()
}

fn cut_off() -> ApiError {
    ApiError::unavailable("The server is shutting down; the answer was cut off.")
}
