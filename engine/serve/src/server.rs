//! Owns connections: accepting, HTTP/1.1 with its time and size bounds, identifiers, the log of requests, panics, and the
//! orderly end. Knows routes only as one service.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Request, Response, Uri, header};
use axum::response::IntoResponse;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower::Service;

use crate::app::{App, Server};
use crate::bedrock::Sent;
use crate::dialect::Dialect;
use crate::error::ApiError;
use crate::router::router;
use crate::stalled::Stalled;

const REQUEST_ID: &str = "x-request-id";
/// After the drain: what connections get to write their last bytes in.
const LAST_BYTES: Duration = Duration::from_secs(2);

/// Serves until `shutdown` resolves. Then health answers 503 and new requests are refused, running ones get
/// [`App::drain_timeout`] to finish, and the engine is shut down.
///
/// # Errors
/// When the listener fails for good.
pub async fn run(listener: TcpListener, app: App, shutdown: impl Future<Output = ()>) -> io::Result<()> {
    let server = Arc::new(Server::new(app));
    let service = Entry { router: router(Arc::clone(&server)), server: Arc::clone(&server), active: Active::new() };
    let (close, closing) = watch::channel(false);
    let places = Arc::new(Semaphore::new(server.app.limits.connections));
    let mut connections = JoinSet::new();
    let mut ending = std::pin::pin!(end(Arc::clone(&server), service.active.clone(), shutdown));
    loop {
        let accepted = async {
            let place =
                Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed: this is a bug");
            (listener.accept().await, place)
        };
        tokio::select! {
            (accepted, place) = accepted => match accepted {
                Ok((stream, _)) => {
                    let connection = serve(stream, service.clone(), closing.clone());
                    connections.spawn(async move { connection.await; drop(place) });
                }
                // The client gave up, or descriptors ran out: others go on.
                Err(error) => {
                    tracing::warn!("a connection could not be accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            },
            _ = connections.join_next(), if !connections.is_empty() => {}
            () = &mut ending => break,
        }
    }
    drop(listener);
    close.send_replace(true);
    let all_closed = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_BYTES, all_closed).await.is_err() {
        tracing::warn!("{} connections were cut", connections.len());
    }
    connections.shutdown().await;
    let engine = server.engine().clone();
    let stopped = tokio::task::spawn_blocking(move || engine.shutdown(Duration::ZERO)).await.unwrap_or(false);
    match stopped {
        true => tracing::info!("stopped"),
        false => tracing::warn!("stopped while the device did not answer"),
    }
    Ok(())
}

/// Waits for the signal, then for what runs, and cuts it off when its time is over.
async fn end(server: Arc<Server>, active: Active, shutdown: impl Future<Output = ()>) {
    shutdown.await;
    server.drain();
    let count = active.count();
    if count > 0 {
        tracing::info!("draining: {count} requests may run for {:?}", server.app.drain_timeout);
    }
    if tokio::time::timeout(server.app.drain_timeout, active.none()).await.is_err() {
        tracing::warn!("{} requests were cut off", active.count());
        let engine = server.engine().clone();
        let _ = tokio::task::spawn_blocking(move || engine.shutdown(Duration::ZERO)).await;
        let _ = tokio::time::timeout(LAST_BYTES, active.none()).await;
    }
}

async fn serve(stream: TcpStream, entry: Entry, mut closing: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let limits = entry.server.app.limits;
    let service = hyper::service::service_fn(move |request| {
        let mut entry = entry.clone();
        async move { Ok::<_, Infallible>(entry.answer(request).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    // Twice what is allowed still gets an answer that says so; hyper itself refuses more.
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_header_size((limits.header_bytes + limits.url_bytes) * 2)
        .max_buf_size(((limits.header_bytes + limits.url_bytes) * 2).max(64 << 10));
    let io = TokioIo::new(Stalled::new(stream, limits.write_timeout));
    let mut connection = std::pin::pin!(http.serve_connection(io, service));
    let close = async { drop(closing.wait_for(|closing| *closing).await) };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = close => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a connection ended: {error}");
    }
}

/// Where each request comes in.
#[derive(Clone)]
struct Entry {
    router: Router,
    server: Arc<Server>,
    active: Active,
}

impl Entry {
    async fn answer(&mut self, mut request: Request<Incoming>) -> Response<Body> {
        let started = Instant::now();
        let guard = self.active.enter();
        let id = self.request_id(&request);
        let line = format!("{} {}", request.method(), request.uri().path());
        let checked = self.server.app.limits.check_head(request.uri(), request.headers());
        let sent = Sent(request.uri().clone());
        request.extensions_mut().insert(sent);
        single_slashes(request.uri_mut());
        let dialect = Dialect::of(request.uri(), request.headers());
        request.extensions_mut().insert(dialect);
        let mut response = match checked {
            Ok(()) => self.route(request.map(Body::new)).await,
            Err(error) => error.into_response(),
        };
        if let Some(error) = response.extensions_mut().remove::<ApiError>().or_else(|| unsaid(&response)) {
            response = dialect.write(&error, &id, response);
        }
        let status = response.status().as_u16();
        tracing::debug!("{line} {status} after {:.1} ms, {id}", started.elapsed().as_secs_f64() * 1e3);
        if let Ok(id) = HeaderValue::from_str(&id) {
            if let Some(name) = dialect.id_header() {
                response.headers_mut().insert(name, id.clone());
            }
            response.headers_mut().insert(REQUEST_ID, id);
        }
        response.map(|body| Body::new(Counted { body, _guard: guard }))
    }

    /// A panic in a handler is that request's 500.
    async fn route(&mut self, request: Request<Body>) -> Response<Body> {
        let mut future = Box::pin(self.router.call(request));
        poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(Ok(response))) => Poll::Ready(response),
            Ok(Poll::Ready(Err(never))) => match never {},
            Err(_) => {
                tracing::error!("a request panicked: this is a bug");
                Poll::Ready(ApiError::internal().into_response())
            }
        })
        .await
    }

    /// The client's own identifier when it is harmless, else a new one.
    fn request_id(&self, request: &Request<Incoming>) -> String {
        let given = request.headers().get(REQUEST_ID).and_then(|v| v.to_str().ok());
        let harmless = |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
        given.filter(harmless).map_or_else(|| self.server.id("req-"), str::to_owned)
    }
}

/// What the router itself refused, a path that is no text for one, has a status and no words of ours.
fn unsaid(response: &Response<Body>) -> Option<ApiError> {
    let said = response.headers().get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().ends_with(b"json"));
    let message = "The request cannot be read: look at its method, path and headers.";
    let refused = response.status().is_client_error() && !said;
    refused.then(|| ApiError::new(response.status(), "invalid_request_error", message))
}

/// Clients given a base URL that ends in a slash double it.
fn single_slashes(uri: &mut Uri) {
    if !uri.path().contains("//") {
        return;
    }
    let mut path = String::with_capacity(uri.path().len());
    for c in uri.path().chars() {
        if !(c == '/' && path.ends_with('/')) {
            path.push(c);
        }
    }
    if let Some(query) = uri.query() {
        path.push('?');
        path.push_str(query);
    }
    if let Ok(single) = path.parse() {
        *uri = single;
    }
}

/// Counts requests from their head to the last byte of their body.
#[derive(Clone)]
struct Active(Arc<watch::Sender<usize>>);

struct Guard(Arc<watch::Sender<usize>>);

impl Active {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    fn enter(&self) -> Guard {
        self.0.send_modify(|n| *n += 1);
        Guard(Arc::clone(&self.0))
    }

    fn count(&self) -> usize {
        *self.0.borrow()
    }

    async fn none(&self) {
        let _ = self.0.subscribe().wait_for(|n| *n == 0).await;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

/// A body that holds its request's place in the count.
struct Counted {
    body: Body,
    _guard: Guard,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubled_slashes_become_one() {
        for (given, wanted) in [
            ("//v1//models", "/v1/models"),
            ("/v1/models?a=//b", "/v1/models?a=//b"),
            ("///health?x", "/health?x"),
            ("//", "/"),
        ] {
            // As it stands in a request line: a path, not an authority.
            let mut uri = Uri::builder().path_and_query(given).build().expect("a path");
            single_slashes(&mut uri);
            assert_eq!(uri.to_string(), wanted);
        }
    }
}
