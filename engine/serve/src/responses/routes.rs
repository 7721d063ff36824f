//! Owns the endpoints of the Responses API: body in, response out.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Map, Value, json};

use super::convert;
use super::reply::{Growing, Reply};
use super::store::Kept;
use super::types::Create;
use crate::app::Server;
use crate::body::parse;
use crate::error::ApiError;
use crate::run::{accept, count, start};
use crate::stream::{Choices, SERVER_SENT_EVENTS, Writer, collect, respond};

/// Below `/v1`, and below the base that clouds serve the same API at.
pub fn routes() -> Router<Arc<Server>> {
    below("/v1").merge(below("/openai/v1"))
}

/// The same, where a cloud asks for a version in the query.
pub fn versioned() -> Router<Arc<Server>> {
    below("/openai")
}

fn below(base: &str) -> Router<Arc<Server>> {
    Router::new()
        .route(&format!("{base}/responses"), post(create))
        .route(&format!("{base}/responses/input_tokens"), post(input_tokens))
        .route(&format!("{base}/responses/{{id}}"), get(retrieve).delete(delete))
        .route(&format!("{base}/responses/{{id}}/input_items"), get(input_items))
        .route(&format!("{base}/responses/{{id}}/cancel"), post(cancel))
}

async fn create(State(server): State<Arc<Server>>, body: Body) -> Result<Response, ApiError> {
    let shared = Arc::clone(&server);
    let submit = move |server: &Server, body: &[u8]| {
        let job = convert::job(server, parse::<Create>(body)?)?;
        let logprobs = job.request.sampling.logprobs.is_some();
        let generation = start(server, "input", job.request)?;
        let reply = Reply {
            id: server.id("resp_"),
            created: server.now(),
            model: job.model,
            echo: job.echo,
            text: server.app.frontend.text().clone(),
            logprobs,
            store: job.store,
            input: job.input,
            before: job.before,
            growing: Growing::default(),
            server: shared,
        };
        Ok((reply, generation, job.stream))
    };
    let (mut reply, generation, stream) = accept(&server, body, submit).await?;
    let pieces = Choices::new(vec![generation]);
    if stream {
        return respond(reply, SERVER_SENT_EVENTS, pieces).await;
    }
    let mut unsent = vec![];
    collect(pieces, |at, piece| {
        reply.piece(at, piece, &mut unsent);
        unsent.clear();
    })
    .await?;
    reply.end(&mut vec![]);
    Ok(axum::Json(reply.body()).into_response())
}

async fn input_tokens(State(server): State<Arc<Server>>, body: Body) -> Result<Response, ApiError> {
    let counted = accept(&server, body, |server, body| {
        count(server, "input", &convert::job(server, parse::<Create>(body)?)?.request)
    });
    Ok(axum::Json(json!({"object": "response.input_tokens", "input_tokens": counted.await?})).into_response())
}

async fn retrieve(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    Ok(axum::Json(&kept(&server, &id)?.response).into_response())
}

async fn delete(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    if !server.responses.delete(&id) {
        return Err(lost(&id));
    }
    Ok(axum::Json(json!({"id": id, "object": "response", "deleted": true})).into_response())
}

/// The latest first, unless told otherwise.
async fn input_items(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let mut data: Vec<Map<String, Value>> = kept(&server, &id)?.input.clone();
    if !query.is_some_and(|q| q.split('&').any(|pair| pair == "order=asc")) {
        data.reverse();
    }
    let id_of = |item: Option<&Map<String, Value>>| item.and_then(|item| item.get("id")).cloned();
    let (first, last) = (id_of(data.first()), id_of(data.last()));
    let list = json!({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": false});
    Ok(axum::Json(list).into_response())
}

async fn cancel(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    kept(&server, &id)?;
    Err(ApiError::invalid("", "Only a response in the background can be cancelled; hang up to end one that is made."))
}

fn kept(server: &Server, id: &str) -> Result<Arc<Kept>, ApiError> {
    server.responses.get(id).ok_or_else(|| lost(id))
}

fn lost(id: &str) -> ApiError {
    let message = format!("There is no response '{id}' here any more.");
    let error = ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", message);
    ApiError { code: Some("not_found"), ..error }
}
