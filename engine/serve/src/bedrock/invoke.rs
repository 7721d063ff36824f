//! Owns InvokeModel: which API a body is of, its way there, and the way of that API's events back, each in a message of its
//! own. Knows of those APIs how a body is told and how an event looks.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use hyper::body::Frame;
use serde_json::{Map, Value, json};

use super::frame::{self, EVENT_STREAM};
use super::reply::chunk;
use crate::body::parse;
use crate::error::ApiError;

/// What a body of InvokeModel is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Anthropic,
    Llama,
    OpenAi,
}

/// The family of a body, by the fields it has.
///
/// # Errors
/// 400 when it has none that tells.
pub fn family(body: &[u8]) -> Result<(Family, Map<String, Value>), ApiError> {
    let fields: Map<String, Value> = parse(body)?;
    let family = if fields.contains_key("anthropic_version") {
        Family::Anthropic
    } else if fields.contains_key("prompt") {
        Family::Llama
    } else if fields.contains_key("messages") {
        Family::OpenAi
    } else {
        let message = "The body must have 'anthropic_version' and 'messages', 'prompt', or 'messages'.";
        return Err(ApiError::invalid("body", message));
    };
    Ok((family, fields))
}

/// The body as its own API takes it: with the model, and told whether to stream.
pub fn addressed(mut fields: Map<String, Value>, family: Family, model: &str, stream: bool) -> Bytes {
    fields.insert("model".into(), model.into());
    fields.insert("stream".into(), stream.into());
    if stream && family == Family::OpenAi {
        fields.insert("stream_options".into(), json!({"include_usage": true}));
    } else {
        fields.remove("stream_options");
    }
    Value::Object(fields).to_string().into()
}

/// A response of server-sent events as one of messages.
pub fn reframed(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM));
    parts.headers.insert("x-amzn-bedrock-content-type", HeaderValue::from_static("application/json"));
    Response::from_parts(parts, Body::new(Reframed { events: body, pending: vec![] }))
}

struct Reframed {
    events: Body,
    /// What has come of an event that is not whole.
    pending: Vec<u8>,
}

impl Reframed {
    /// Messages of the events that are whole.
    fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.pending.extend(bytes);
        let mut out = vec![];
        while let Some(end) = self.pending.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.pending.drain(..end + 2).collect();
            let event = String::from_utf8_lossy(&event);
            // Comments, names and the mark of the end say nothing that the data does not.
            if let Some(data) = event.lines().find_map(|line| line.strip_prefix("data: ")).filter(|d| *d != "[DONE]") {
                write(&mut out, data);
            }
        }
        out
    }
}

fn write(out: &mut Vec<u8>, data: &str) {
    let event: Value = serde_json::from_str(data).unwrap_or_default();
    match event.get("error").filter(|error| !error.is_null()) {
        Some(error) => frame::failure(out, &ApiError::unavailable(error["message"].as_str().unwrap_or_default())),
        None if event["type"] == "ping" => {}
        None => chunk(out, data),
    }
}

impl hyper::body::Body for Reframed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        loop {
            let Some(frame) = ready!(hyper::body::Body::poll_frame(Pin::new(&mut self.events), cx)?) else {
                return Poll::Ready(None);
            };
            let out = frame.data_ref().map_or(vec![], |data| self.take(data));
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out.into()))));
            }
        }
    }
}
