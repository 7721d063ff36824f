//! Owns the way of a request into the engine, for every API: read the body, make a request of it, submit it. What a body
//! means is the API's.

use std::sync::Arc;

use axum::body::Body;
use dualgauge::{Generation, Prompt, TextRequest};
use dualgauge_models::Conversation;

use crate::app::Server;
use crate::body::off_thread;
use crate::error::ApiError;

/// Reads a body within the limits and makes something of it, on a thread of its own.
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

/// Submits a request; `param` is what its prompt is called on the wire.
///
/// # Errors
/// When the prompt is refused or the engine does not take the request.
pub fn start(server: &Server, param: &str, request: TextRequest) -> Result<Generation, ApiError> {
    refuse_hopeless(server, param, prompt_bytes(&request.prompt))?;
    server.app.frontend.generate(request).map_err(|e| of_prompt(param, e.into()))
}

/// Tokens of the prompt that [`start`] would send.
///
/// # Errors
/// When the prompt is refused.
pub fn count(server: &Server, param: &str, request: &TextRequest) -> Result<usize, ApiError> {
    refuse_hopeless(server, param, prompt_bytes(&request.prompt))?;
    let tokens = server.app.frontend.prompt_tokens(request).map_err(|e| of_prompt(param, e.into()))?;
    Ok(tokens.len())
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

/// What is refused without a field of its own is the prompt's fault.
fn of_prompt(param: &str, error: ApiError) -> ApiError {
    let ours = error.status.as_u16() == 400;
    ApiError { param: error.param.or_else(|| ours.then(|| param.to_owned())), ..error }
}

fn prompt_bytes(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Text { text, .. } => text.len(),
        Prompt::Tokens(_) => 0,
        Prompt::Chat(Conversation { messages, .. }) => {
            messages.iter().filter_map(|m| m.content.as_ref()).map(String::len).sum()
        }
    }
}
