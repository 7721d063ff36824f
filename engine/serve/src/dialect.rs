//! Owns which API a request speaks, and the writing of errors in it. The dialect is that of the path; three APIs share
//! `/v1/models`, where headers decide.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::error::ApiError;
use crate::{anthropic, azure, bedrock, gemini, ollama, openai};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    OpenAi,
    Azure,
    Bedrock,
    Anthropic,
    Gemini,
    Ollama,
}

impl Dialect {
    /// The API that a request speaks.
    pub fn of(uri: &Uri, headers: &HeaderMap) -> Self {
        let path = uri.path();
        let below = |base: &str| path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if below("/v1/messages") || below("/anthropic") {
            return Self::Anthropic;
        }
        if below("/model") {
            return Self::Bedrock;
        }
        if below("/openai") {
            return Self::Azure;
        }
        if path == "/" || below("/api") {
            return Self::Ollama;
        }
        if below("/v1beta") {
            return Self::Gemini;
        }
        if below("/v1/models") {
            let keyed = uri.query().is_some_and(|q| q.split('&').any(|pair| pair.starts_with("key=")));
            let google = ["x-goog-api-key", "x-goog-api-client"].iter().any(|name| headers.contains_key(*name));
            if headers.contains_key("anthropic-version") {
                return Self::Anthropic;
            }
            // Of the three only this one has verbs, and posts.
            if google || keyed || path.contains(':') {
                return Self::Gemini;
            }
        }
        Self::OpenAi
    }

    /// The header that carries the identifier of a request back, beside `x-request-id`.
    pub fn id_header(self) -> Option<HeaderName> {
        match self {
            Self::Anthropic => Some(HeaderName::from_static("request-id")),
            Self::Bedrock => Some(HeaderName::from_static("x-amzn-requestid")),
            Self::OpenAi | Self::Azure | Self::Gemini | Self::Ollama => None,
        }
    }

    /// An error as this API writes it, for the request `id`. What `response` says in headers stays.
    pub fn write(self, error: &ApiError, id: &str, response: Response) -> Response {
        let (mut parts, _) = response.into_parts();
        let (status, body): (StatusCode, Value) = match self {
            Self::OpenAi => (error.status, openai::error_body(error)),
            Self::Azure => (error.status, azure::error_body(error)),
            Self::Bedrock => {
                let (name, status, body) = bedrock::exception(error);
                parts.headers.insert("x-amzn-errortype", HeaderValue::from_static(name));
                (status, body)
            }
            Self::Gemini => (gemini::status(error), gemini::error_body(error)),
            Self::Ollama => (error.status, ollama::error_body(error)),
            Self::Anthropic => (anthropic::status(error), anthropic::error_body(error, id)),
        };
        parts.headers.remove(header::CONTENT_LENGTH);
        let mut written = (status, parts.headers, body.to_string()).into_response();
        written.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str, header: Option<&'static str>) -> Dialect {
        let uri = Uri::builder().path_and_query(path).build().expect("a path");
        let headers = header.map(|name| (HeaderName::from_static(name), HeaderValue::from_static("x")));
        Dialect::of(&uri, &headers.into_iter().collect())
    }

    #[test]
    fn the_path_decides_and_on_models_a_header() {
        assert_eq!(of("/v1/chat/completions", Some("anthropic-version")), Dialect::OpenAi);
        assert_eq!(of("/v1/messages", None), Dialect::Anthropic);
        assert_eq!(of("/v1/messages/count_tokens?beta=true", None), Dialect::Anthropic);
        assert_eq!(of("/v1/messages_x", None), Dialect::OpenAi);
        assert_eq!(of("/anthropic/v1/models", None), Dialect::Anthropic);
        assert_eq!(of("/v1/models", None), Dialect::OpenAi);
        assert_eq!(of("/openai/deployments/x/chat/completions?api-version=1", None), Dialect::Azure);
        assert_eq!(of("/model/a%2Fb/converse", None), Dialect::Bedrock);
        assert_eq!(of("/api/chat", None), Dialect::Ollama);
        assert_eq!(of("/", None), Dialect::Ollama);
        assert_eq!(of("/v1beta/models/x:generateContent", None), Dialect::Gemini);
        assert_eq!(of("/v1/models/x:generateContent", None), Dialect::Gemini);
        assert_eq!(of("/v1/models", Some("x-goog-api-key")), Dialect::Gemini);
        assert_eq!(of("/v1/models?pageSize=5&key=K", None), Dialect::Gemini);
        assert_eq!(of("/v1/models/x", Some("anthropic-version")), Dialect::Anthropic);
    }
}
