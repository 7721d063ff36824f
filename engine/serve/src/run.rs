//! Owns the way of a request into the engine, for every API: read the body and make a request of it. What a body means
//! is the API's.

use std::sync::Arc;

use axum::body::Body;

use crate::app::Server;
use crate::body::off_thread;
use crate::error::ApiError;

/// Reads a body within the limits and makes something of it, on a thread of its own if it is large.
///
/// # Errors
/// When the body is too large or too slow, and what `make` finds wrong.
pub async fn accept<T: Send + 'static>(
    server: &Arc<Server>,
    body: Body,
    make: impl FnOnce(&Server, &[u8]) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let body = server.app.limits.read_body(body).await?;
    let server = Arc::clone(server);
    off_thread(body, move |body| make(&server, body)).await
}

/// Text so long that it cannot fit, whatever its tokens are, is refused before time goes into encoding it.
///
/// # Errors
/// 400 with the code of a prompt that is too long.
pub fn refuse_hopeless(server: &Server, param: &str, bytes: usize) -> Result<(), ApiError> {
    let context = server.engine().max_model_len();
    let most = server.app.frontend.text().most_bytes(context);
    if bytes <= most {
        return Ok(());
    }
    let message = format!("{param}: {bytes} bytes of text cannot fit the model's context of {context} tokens.");
    Err(ApiError { code: Some("context_length_exceeded"), ..ApiError::invalid(param, message) })
}
