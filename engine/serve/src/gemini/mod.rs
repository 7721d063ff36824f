//! The Gemini API: generateContent, streamGenerateContent, countTokens, models.

mod convert;
mod reply;
mod routes;
mod schema;
mod types;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::error::ApiError;

pub(crate) use routes::{act, model, models, routes};

/// The API answers a wrong key as a wrong argument.
pub(crate) fn status(error: &ApiError) -> StatusCode {
    match error.status {
        StatusCode::UNAUTHORIZED => StatusCode::BAD_REQUEST,
        status => status,
    }
}

/// An error as the API writes it, whole or in a stream.
pub(crate) fn error_body(error: &ApiError) -> Value {
    let name = match error.status.as_u16() {
        403 => "PERMISSION_DENIED",
        404 | 405 => "NOT_FOUND",
        408 => "DEADLINE_EXCEEDED",
        429 => "RESOURCE_EXHAUSTED",
        503 => "UNAVAILABLE",
        500.. => "INTERNAL",
        _ => "INVALID_ARGUMENT",
    };
    let mut body = json!({"error": {"code": status(error).as_u16(), "message": error.message, "status": name}});
    if error.status == StatusCode::UNAUTHORIZED {
        body["error"]["details"] = json!([{
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "API_KEY_INVALID",
            "domain": "googleapis.com",
        }]);
    }
    body
}
