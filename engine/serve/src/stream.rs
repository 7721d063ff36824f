//! Owns the way of a response's generations to the client, for every API: merged, collected whole, or written piece by piece
//! as they come, with a sign of life while nothing comes. Whoever drops these drops the generations, and so aborts them.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use dualgauge::{Generation, Piece, Stop};
use hyper::body::Frame;

use crate::error::ApiError;

pub const SERVER_SENT_EVENTS: &str = "text/event-stream; charset=utf-8";
/// A stream that says nothing for so long says that it lives. Proxies cut silent connections, few before a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How a dialect writes an answer that streams.
pub trait Writer: Send + 'static {
    /// Writes what a piece of the choice `at` says. Never called with an answer that failed or was cut off.
    fn piece(&mut self, at: usize, piece: Piece, out: &mut Vec<u8>);

    /// Writes what comes behind the last choice's end.
    fn end(&mut self, out: &mut Vec<u8>);

    /// Writes the error that ends the stream instead.
    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>);

    /// What a client passes over. Empty where the format has no such thing.
    fn keep_alive(&self) -> &'static [u8];
}

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

/// Hands every piece of every answer to `take`, until all have ended.
///
/// # Errors
/// When one of them fails or is cut off.
pub async fn collect(mut pieces: Choices, mut take: impl FnMut(usize, Piece)) -> Result<(), ApiError> {
    let mut running = pieces.waiting.len();
    while let Some((at, piece)) = pieces.next().await {
        refuse_broken(&piece)?;
        running -= usize::from(matches!(piece, Piece::Finished { .. }));
        take(at, piece);
    }
    if running > 0 { Err(ApiError::cut_off()) } else { Ok(()) }
}

/// Answers with pieces as they come. The response begins with the first one, so that what fails before it has a status of
/// its own; only when it is long in coming does the response begin without it.
///
/// # Errors
/// When a choice fails before anything was made.
pub async fn respond(
    writer: impl Writer,
    content_type: &'static str,
    mut pieces: Choices,
) -> Result<Response, ApiError> {
    let running = pieces.waiting.len();
    let first = match tokio::time::timeout(KEEP_ALIVE, pieces.next()).await {
        Ok(None) => return Err(ApiError::cut_off()),
        Ok(Some((at, piece))) => refuse_broken(&piece).map(|()| Some((at, piece)))?,
        Err(_) => None,
    };
    let mut stream = Stream { writer, pieces, running, ready: vec![], done: false };
    match first {
        Some((at, piece)) => stream.take(at, piece),
        None => stream.ready.extend(stream.writer.keep_alive()),
    }
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-cache"),
        // Proxies that buffer would hold the tokens back.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::new(StreamBody { next: Some(pull(stream)) })).into_response())
}

fn refuse_broken(piece: &Piece) -> Result<(), ApiError> {
    match piece {
        Piece::Finished { reason: Stop::Aborted, .. } => Err(ApiError::cut_off()),
        Piece::Failed { message } => Err(ApiError::failed(message)),
        _ => Ok(()),
    }
}

struct Stream<W> {
    writer: W,
    pieces: Choices,
    /// Choices that have not ended.
    running: usize,
    /// Bytes that are ready to be sent.
    ready: Vec<u8>,
    done: bool,
}

impl<W: Writer> Stream<W> {
    /// The next bytes: one or more whole events.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if !self.ready.is_empty() {
                return Some(std::mem::take(&mut self.ready).into());
            }
            if self.done {
                return None;
            }
            match tokio::time::timeout(KEEP_ALIVE, self.pieces.next()).await {
                Ok(Some((at, piece))) => self.take(at, piece),
                Ok(None) => self.fail(&ApiError::cut_off()),
                Err(_) => self.ready.extend(self.writer.keep_alive()),
            }
        }
    }

    fn take(&mut self, at: usize, piece: Piece) {
        if let Err(error) = refuse_broken(&piece) {
            return self.fail(&error);
        }
        let ended = matches!(piece, Piece::Finished { .. });
        self.writer.piece(at, piece, &mut self.ready);
        self.running -= usize::from(ended);
        if self.running == 0 {
            self.writer.end(&mut self.ready);
            self.done = true;
        }
    }

    fn fail(&mut self, error: &ApiError) {
        self.writer.fail(error, &mut self.ready);
        self.done = true;
    }
}

type Pull<W> = Boxed<(Stream<W>, Option<Bytes>)>;

/// The body that hyper pulls: nothing is made for a client that does not read.
struct StreamBody<W> {
    next: Option<Pull<W>>,
}

fn pull<W: Writer>(mut stream: Stream<W>) -> Pull<W> {
    Box::pin(async move {
        let bytes = stream.next().await;
        (stream, bytes)
    })
}

impl<W: Writer> hyper::body::Body for StreamBody<W> {
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
            Poll::Ready((stream, Some(bytes))) => {
                self.next = Some(pull(stream));
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
        }
    }
}
