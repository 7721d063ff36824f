//! Owns the endpoints of the Anthropic API: body in, response out.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::convert;
use super::reply::{Events, Reply};
use crate::answer::Answer;
use crate::app::Server;
use crate::body::parse;
use crate::calendar::rfc3339;
use crate::error::ApiError;
use crate::run::{accept, count, start};
use crate::stream::{Choices, SERVER_SENT_EVENTS, collect, respond};

/// Under `/v1`; the same API is served below `/anthropic`, where clouds have it. `/v1/models` is shared with others.
pub fn routes() -> Router<Arc<Server>> {
    let mut router = Router::new().route("/anthropic/v1/models", get(models));
    router = router.route("/anthropic/v1/models/{*id}", get(model));
    for base in ["/v1", "/anthropic/v1"] {
        router = router
            .route(&format!("{base}/messages"), post(messages))
            .route(&format!("{base}/messages/count_tokens"), post(count_tokens));
    }
    router
}

async fn messages(State(server): State<Arc<Server>>, body: Body) -> Result<Response, ApiError> {
    answer(server, body).await
}

/// Answers a Messages body.
pub async fn answer(server: Arc<Server>, body: Body) -> Result<Response, ApiError> {
    let submit = |server: &Server, body: &[u8]| {
        let job = convert::job(server, parse(body)?, false)?;
        let generation = start(server, "messages", job.request)?;
        let input_tokens = generation.prompt_tokens().len();
        let reply = Reply { id: server.id("msg_"), model: job.model, thinking: job.thinking, input_tokens };
        Ok((reply, generation, job.stream))
    };
    let (reply, generation, stream) = accept(&server, body, submit).await?;
    let pieces = Choices::new(vec![generation]);
    if stream {
        return respond(Events::new(reply), SERVER_SENT_EVENTS, pieces).await;
    }
    let mut answer = Answer::default();
    collect(pieces, |_, piece| answer.take(piece)).await?;
    Ok(axum::Json(reply.whole(&answer)).into_response())
}

async fn count_tokens(State(server): State<Arc<Server>>, body: Body) -> Result<Response, ApiError> {
    let counted = accept(&server, body, count_body).await?;
    Ok(axum::Json(json!({"input_tokens": counted})).into_response())
}

/// Tokens of the prompt of a Messages body.
pub fn count_body(server: &Server, body: &[u8]) -> Result<usize, ApiError> {
    let job = convert::job(server, parse(body)?, true)?;
    count(server, "messages", &job.request)
}

pub async fn models(State(server): State<Arc<Server>>) -> Response {
    let names = &server.app.names;
    let data: Vec<Value> = names.iter().map(|name| entry(&server, name)).collect();
    axum::Json(json!({"data": data, "has_more": false, "first_id": names.first(), "last_id": names.last()}))
        .into_response()
}

pub async fn model(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let name = server.model(Some(&id))?;
    Ok(axum::Json(entry(&server, name)).into_response())
}

fn entry(server: &Server, name: &str) -> Value {
    let context = server.engine().max_model_len();
    json!({
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": rfc3339(UNIX_EPOCH + Duration::from_secs(server.started)),
        "lifecycle": "active",
        "max_input_tokens": context,
        "max_tokens": context,
    })
}
