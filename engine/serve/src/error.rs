//! Owns why a request fails, for every API: status, message, the field at fault. How that is written is the dialect's.
//! Messages hold what the client sent and what it may send, nothing of ours.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dualgauge::{Refused, Rejected};

/// Longest message; what a client sent is quoted in some.
const MESSAGE_BYTES: usize = 500;

#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    pub status: StatusCode,
    pub kind: &'static str,
    pub message: String,
    /// The field at fault, as it was sent: `messages[0].content`.
    pub param: Option<String>,
    pub code: Option<&'static str>,
    pub retry_after_seconds: Option<u32>,
}

impl ApiError {
    /// 400: the field `param` cannot be used.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let param = Some(param.into()).filter(|p| !p.is_empty());
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message) }
    }

    /// 400: a field that other servers know and this one does not yet.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::invalid(param, message) }
    }

    /// Any status with an explanation.
    pub fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MESSAGE_BYTES {
            let end = (0..=MESSAGE_BYTES).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
            message.truncate(end);
            message.push_str("...");
        }
        Self { status, kind, message, param: None, code: None, retry_after_seconds: None }
    }

    pub fn unauthorized() -> Self {
        let message = "The API key is missing or wrong. Send it as 'Authorization: Bearer KEY'.";
        let error = Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message);
        Self { code: Some("invalid_api_key"), ..error }
    }

    pub fn unknown_model(name: &str, served: &[String]) -> Self {
        let message = format!("The model '{name}' does not exist here. Served: {}.", served.join(", "));
        let error = Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message);
        Self { param: Some("model".into()), code: Some("model_not_found"), ..error }
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", message);
        Self { code: Some("unavailable"), retry_after_seconds: Some(5), ..error }
    }

    /// 500: ours to explain in the log, not to the client.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "The server failed; its log says why.")
    }

    /// 503: the server stops while the answer is made.
    pub fn cut_off() -> Self {
        Self::unavailable("The server is shutting down; the answer was cut off.")
    }

    /// 500: a generation failed. The reason goes to the log.
    pub fn failed(message: &str) -> Self {
        tracing::error!("a generation failed: {message}");
        Self::internal()
    }
}

/// A response without a body: it travels as an extension to where the dialect of the path is known, and is written there.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Rejected(rejected) => rejected.into(),
            Refused::Text(message) => Self::invalid("", message),
        }
    }
}

impl From<Rejected> for ApiError {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Invalid { field, message } => Self::invalid(wire_name(field), format!("{field}: {message}")),
            Rejected::TooLong { prompt_tokens, context } => Self {
                code: Some("context_length_exceeded"),
                ..Self::invalid(
                    "",
                    format!(
                        "The prompt has {prompt_tokens} tokens, and the model's context of {context} must hold the \
                         prompt and at least one token of the answer. Shorten the prompt."
                    ),
                )
            },
            Rejected::QueueFull { waiting } => Self {
                code: Some("queue_full"),
                retry_after_seconds: Some(1),
                ..Self::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "rate_limit_error",
                    format!("{waiting} requests are waiting and the queue holds no more. Try again soon."),
                )
            },
            Rejected::ShuttingDown => Self::unavailable("The server is shutting down."),
            Rejected::Dead(_) => {
                Self::unavailable("The device failed; the server cannot answer until it is restarted.")
            }
            other => Self::invalid("", other.to_string()),
        }
    }
}

/// The engine's field names that differ on the wire.
fn wire_name(field: &'static str) -> &'static str {
    match field {
        "stop_ids" => "stop_token_ids",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let error = ApiError::invalid("x", "é".repeat(1000));
        assert!(error.message.len() <= MESSAGE_BYTES + 3);
        assert!(error.message.ends_with("é..."));
    }

    #[test]
    fn each_rejection_has_its_status() {
        let status = |r: Rejected| ApiError::from(r).status.as_u16();
        assert_eq!(status(Rejected::Invalid { field: "top_k", message: "bad".into() }), 400);
        assert_eq!(status(Rejected::TooLong { prompt_tokens: 9, context: 8 }), 400);
        assert_eq!(status(Rejected::QueueFull { waiting: 3 }), 429);
        assert_eq!(status(Rejected::ShuttingDown), 503);
        assert_eq!(status(Rejected::Dead("Xid 79".into())), 503);
    }

    #[test]
    fn the_device_is_not_named_to_clients() {
        assert!(!ApiError::from(Rejected::Dead("0xdeadbeef".into())).message.contains("0xdead"));
    }
}
