//! Owns which API a request speaks, and the writing of errors in it. The dialect is that of the path; three APIs share
//! `/v1/models`, where headers decide.

use axum::http::{HeaderMap, HeaderName, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::error::ApiError;
use crate::openai;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    OpenAi,
}

impl Dialect {
    /// The API that a request speaks.
    pub fn of(_uri: &Uri, _headers: &HeaderMap) -> Self {
        Self::OpenAi
    }

    /// The header that carries the identifier of a request back, beside `x-request-id`.
    pub fn id_header(self) -> Option<HeaderName> {
        match self {
            Self::OpenAi => None,
        }
    }

    /// An error as this API writes it. Status and headers of `response` stay.
    pub fn write(self, error: &ApiError, response: Response) -> Response {
        let body: Value = match self {
            Self::OpenAi => openai::error_body(error),
        };
        let (mut parts, _) = response.into_parts();
        parts.headers.remove(header::CONTENT_LENGTH);
        let mut written = (parts.status, parts.headers, body.to_string()).into_response();
        written.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        written
    }
}
