//! The Anthropic Messages API: messages, count_tokens, models.

mod convert;
mod reply;
mod routes;
mod types;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::error::ApiError;

pub(crate) use routes::{answer, count_body, model, models, routes};

/// An error as the API writes it, whole or as an event of a stream.
pub(crate) fn error_body(error: &ApiError, id: &str) -> Value {
    let kind = match error.status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": error.message}, "request_id": id})
}

/// This API says with a number of its own that it cannot serve now.
pub(crate) fn status(error: &ApiError) -> StatusCode {
    match error.status {
        StatusCode::SERVICE_UNAVAILABLE => StatusCode::from_u16(529).unwrap_or(error.status),
        status => status,
    }
}
