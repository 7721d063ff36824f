//! The Amazon Bedrock runtime API: Converse, InvokeModel, both streamed, and CountTokens, with signed requests and typed
//! exceptions.

mod convert;
mod frame;
mod invoke;
mod reply;
mod routes;
mod signature;
mod types;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::error::ApiError;

pub(crate) use routes::routes;
pub(crate) use signature::{Sent, is_signed, verify};

/// Name, status and body of an error as the API writes it.
pub(crate) fn exception(error: &ApiError) -> (&'static str, StatusCode, Value) {
    let (name, status) = match (error.status.as_u16(), error.code) {
        (_, Some("invalid_signature")) => ("InvalidSignatureException", StatusCode::FORBIDDEN),
        (_, Some("missing_credentials")) => ("MissingAuthenticationTokenException", StatusCode::FORBIDDEN),
        (401 | 403, _) => ("AccessDeniedException", StatusCode::FORBIDDEN),
        (404, _) => ("ResourceNotFoundException", error.status),
        (408, _) => ("ModelTimeoutException", error.status),
        (429, _) => ("ThrottlingException", error.status),
        (503, _) => ("ServiceUnavailableException", error.status),
        (500.., _) => ("InternalServerException", error.status),
        // What a client sends that cannot be used is one error, whatever HTTP calls it.
        _ => ("ValidationException", StatusCode::BAD_REQUEST),
    };
    (name, status, json!({"message": error.message}))
}
