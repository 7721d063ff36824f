//! The OpenAI API: models, chat completions, completions, and vLLM's tokenize and detokenize.

mod convert;
mod format;
mod messages;
mod reply;
mod routes;
mod sampling;
mod stream;
mod tools;
mod types;

use crate::error::ApiError;

pub(crate) use convert::Shape;
pub(crate) use routes::{count_body, embed, generate, model, models, routes};

/// An error as the API writes it, whole or as an event of a stream.
pub(crate) fn error_body(error: &ApiError) -> serde_json::Value {
    serde_json::json!({"error": {
        "message": error.message,
        "type": error.kind,
        "param": error.param,
        "code": error.code,
    }})
}
