//! Owns the bounds of what a connection may send, and the reading of a body under them. Knows no API.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, Uri};
use http_body_util::BodyExt;

use crate::error::ApiError;

/// Bounds of one connection. The defaults suit any client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A longer URL is answered with 414.
    pub url_bytes: usize,
    /// More header bytes are answered with 431.
    pub header_bytes: usize,
    /// A longer body is answered with 413.
    pub body_bytes: usize,
    /// Until the headers of a request are whole; also how long an idle connection is kept.
    pub header_timeout: Duration,
    /// Until the body is whole: 408 after it.
    pub body_timeout: Duration,
    /// A stream whose reader takes nothing for so long is cut.
    pub write_timeout: Duration,
    /// Connections at once; further ones wait to be accepted.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            url_bytes: 8 << 10,
            header_bytes: 32 << 10,
            body_bytes: 16 << 20,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            connections: 4096,
        }
    }
}

impl Limits {
    /// What is wrong with the size of a request's head.
    ///
    /// # Errors
    /// 414 or 431.
    pub fn check_head(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        let url_bytes = uri.path_and_query().map_or(0, |p| p.as_str().len());
        if url_bytes > self.url_bytes {
            let message = format!("The URL has {url_bytes} bytes; {} are allowed.", self.url_bytes);
            return Err(ApiError::new(StatusCode::URI_TOO_LONG, "invalid_request_error", message));
        }
        let header_bytes: usize = headers.iter().map(|(n, v)| n.as_str().len() + v.len() + 4).sum();
        if header_bytes > self.header_bytes {
            let message = format!("The headers have {header_bytes} bytes; {} are allowed.", self.header_bytes);
            return Err(ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "invalid_request_error", message));
        }
        Ok(())
    }

    /// Reads a whole body. One that is too long is read on and thrown away for a while, because a client that is still
    /// writing would not see the answer.
    ///
    /// # Errors
    /// 408, 413, or 400 when the connection broke.
    pub async fn read_body(&self, body: Body) -> Result<Bytes, ApiError> {
        match tokio::time::timeout(self.body_timeout, self.collect(body)).await {
            Ok(read) => read,
            Err(_) => Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "invalid_request_error",
                format!("The body did not arrive within {} seconds.", self.body_timeout.as_secs()),
            )),
        }
    }

    async fn collect(&self, mut body: Body) -> Result<Bytes, ApiError> {
        let mut kept: Vec<u8> = vec![];
        let mut read = 0usize;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::invalid("", "The body could not be read to its end."))?;
            let Some(data) = frame.data_ref() else { continue };
            read = read.saturating_add(data.len());
            if read <= self.body_bytes {
                kept.extend_from_slice(data);
            } else if read > self.body_bytes.saturating_mul(4) {
                break;
            }
        }
        if read > self.body_bytes {
            let message = format!("The body has more than the {} bytes that are allowed.", self.body_bytes);
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message));
        }
        Ok(kept.into())
    }
}
