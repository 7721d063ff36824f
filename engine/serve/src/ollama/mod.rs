//! The Ollama API: chat, generate, and what editors ask before they chat (tags, show, ps, version).

mod convert;
mod reply;
mod routes;
mod types;

use serde_json::{Value, json};

use crate::error::ApiError;

pub(crate) use routes::{open_routes, routes};

/// An error as the API writes it, whole or as a line of a stream.
pub(crate) fn error_body(error: &ApiError) -> Value {
    json!({"error": error.message})
}
