//! Owns the endpoints of the Bedrock runtime API: body in, response out. Identifiers of models come percent-encoded.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::convert;
use super::frame::EVENT_STREAM;
use super::invoke::{Family, addressed, family, reframed};
use super::reply::{self, Events, LlamaPieces, Timing};
use super::types::{Converse, Count, Llama};
use crate::answer::Answer;
use crate::anthropic;
use crate::app::Server;
use crate::body::parse;
use crate::error::ApiError;
use crate::openai::{self, Shape};
use crate::run::{accept, count, start};
use crate::stream::{Choices, collect, respond};

pub fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/model/{id}/converse", post(converse))
        .route("/model/{id}/converse-stream", post(converse_stream))
        .route("/model/{id}/invoke", post(invoke))
        .route("/model/{id}/invoke-with-response-stream", post(invoke_stream))
        .route("/model/{id}/count-tokens", post(count_tokens))
}

type Id = Path<String>;

async fn converse(State(server): State<Arc<Server>>, Path(id): Id, body: Body) -> Result<Response, ApiError> {
    let (pieces, timing) = conversation(&server, id, body).await?;
    let mut answer = Answer::default();
    collect(pieces, |_, piece| answer.take(piece)).await?;
    Ok(axum::Json(reply::converse(&answer, &timing)).into_response())
}

async fn converse_stream(State(server): State<Arc<Server>>, Path(id): Id, body: Body) -> Result<Response, ApiError> {
    let (pieces, timing) = conversation(&server, id, body).await?;
    respond(Events::new(timing), EVENT_STREAM, pieces).await
}

async fn conversation(server: &Arc<Server>, id: String, body: Body) -> Result<(Choices, Timing), ApiError> {
    let timing = timing(server);
    let submit = move |server: &Server, body: &[u8]| {
        convert::model(server, &id)?;
        start(server, "messages", convert::converse(server, parse::<Converse>(body)?)?)
    };
    let generation = accept(server, body, submit).await?;
    Ok((Choices::new(vec![generation]), timing))
}

async fn invoke(State(server): State<Arc<Server>>, Path(id): Id, body: Body) -> Result<Response, ApiError> {
    let timing = timing(&server);
    let mut response = invoked(server, id, body, false).await?;
    let latency = latency(&timing);
    response.headers_mut().insert(HeaderName::from_static("x-amzn-bedrock-invocation-latency"), latency);
    Ok(response)
}

async fn invoke_stream(State(server): State<Arc<Server>>, Path(id): Id, body: Body) -> Result<Response, ApiError> {
    invoked(server, id, body, true).await
}

/// A body of any family, to the API that it is of.
async fn invoked(server: Arc<Server>, id: String, body: Body, stream: bool) -> Result<Response, ApiError> {
    let read = move |server: &Server, body: &[u8]| {
        let model = convert::model(server, &id)?;
        let (family, fields) = family(body)?;
        let body = addressed(fields, family, &model, stream);
        Ok((model, family, body))
    };
    let (model, family, body) = accept(&server, body, read).await?;
    let response = match family {
        Family::Llama => return llama(server, body.into(), stream).await,
        Family::Anthropic => anthropic::answer(server, body.into()).await?,
        Family::OpenAi => openai::generate(server, body.into(), Shape::Chat, Some(model)).await?,
    };
    Ok(if stream { reframed(response) } else { response })
}

async fn llama(server: Arc<Server>, body: Body, stream: bool) -> Result<Response, ApiError> {
    let submit = |server: &Server, body: &[u8]| start(server, "prompt", convert::llama(server, parse::<Llama>(body)?)?);
    let generation = accept(&server, body, submit).await?;
    let prompt_tokens = Some(generation.prompt_tokens().len());
    let pieces = Choices::new(vec![generation]);
    if stream {
        return respond(LlamaPieces { prompt_tokens, generated: 0 }, EVENT_STREAM, pieces).await;
    }
    let mut answer = Answer::default();
    collect(pieces, |_, piece| answer.take(piece)).await?;
    Ok(axum::Json(reply::llama(&answer)).into_response())
}

async fn count_tokens(State(server): State<Arc<Server>>, Path(id): Id, body: Body) -> Result<Response, ApiError> {
    let counted = accept(&server, body, move |server, body| {
        let model = convert::model(server, &id)?;
        let input = parse::<Count>(body)?.input;
        match (input.converse, input.invoke_model) {
            (Some(body), None) => count(server, "messages", &convert::converse(server, body)?),
            (None, Some(invoked)) => {
                let body = STANDARD.decode(invoked.body.as_bytes());
                let body = body.map_err(|_| ApiError::invalid("body", "invokeModel.body: must be Base64."))?;
                count_invoked(server, &model, &body)
            }
            _ => Err(ApiError::invalid("input", "input: must have one of 'converse' and 'invokeModel'.")),
        }
    });
    Ok(axum::Json(json!({"inputTokens": counted.await?})).into_response())
}

fn count_invoked(server: &Server, model: &str, body: &[u8]) -> Result<usize, ApiError> {
    let (family, fields) = family(body)?;
    let body = addressed(fields, family, model, false);
    match family {
        Family::Llama => count(server, "prompt", &convert::llama(server, parse::<Llama>(&body)?)?),
        Family::Anthropic => anthropic::count_body(server, &body),
        Family::OpenAi => openai::count_body(server, &body),
    }
}

fn timing(server: &Server) -> Timing {
    Timing { clock: server.app.clock, began: (server.app.clock)() }
}

fn latency(timing: &Timing) -> HeaderValue {
    let since = (timing.clock)().duration_since(timing.began).unwrap_or_default();
    HeaderValue::from(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
