//! Owns the endpoints of the Gemini API: body in, response out.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::convert;
use super::reply::{Frame, Pieces, Reply};
use super::types::{Count, Generate};
use crate::answer::Answer;
use crate::app::Server;
use crate::body::parse;
use crate::error::ApiError;
use crate::run::{accept, count, start};
use crate::stream::{Choices, SERVER_SENT_EVENTS, collect, respond};

/// Under `/v1beta`. Newer clients use `/v1/models`, which is shared with others.
pub fn routes() -> Router<Arc<Server>> {
    Router::new().route("/v1beta/models", get(models)).route("/v1beta/models/{*id}", get(model).merge(post(act)))
}

/// `{model}:{verb}`.
pub async fn act(
    State(server): State<Arc<Server>>,
    Path(path): Path<String>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Response, ApiError> {
    let (name, verb) = path.rsplit_once(':').unwrap_or((&path, ""));
    let model = convert::model(&server, name)?.to_owned();
    let events = query.is_some_and(|q| q.split('&').any(|pair| pair == "alt=sse"));
    match verb {
        "generateContent" => generate(server, model, None, body).await,
        "streamGenerateContent" => {
            generate(server, model, Some(if events { Frame::Events } else { Frame::Array }), body).await
        }
        "countTokens" => {
            let counted = accept(&server, body, |server, body| {
                count(server, "contents", &convert::counted(server, parse::<Count>(body)?)?)
            });
            Ok(axum::Json(json!({"totalTokens": counted.await?})).into_response())
        }
        "embedContent" | "batchEmbedContents" => {
            Err(ApiError::unsupported("model", format!("The model '{model}' makes no embeddings.")))
        }
        other => {
            let message = format!("'{other}' is nothing that a model can be asked for.");
            Err(ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", message))
        }
    }
}

async fn generate(server: Arc<Server>, model: String, stream: Option<Frame>, body: Body) -> Result<Response, ApiError> {
    let submit = move |server: &Server, body: &[u8]| {
        let job = convert::job(server, parse::<Generate>(body)?)?;
        let reply = Reply {
            id: server.id(""),
            model,
            thoughts: job.thoughts,
            logprobs: job.logprobs,
            text: server.app.frontend.text().clone(),
        };
        let generations: Result<Vec<_>, _> =
            job.requests.into_iter().map(|request| start(server, "contents", request)).collect();
        Ok((reply, generations?))
    };
    let (reply, generations) = accept(&server, body, submit).await?;
    let candidates = generations.len();
    let pieces = Choices::new(generations);
    if let Some(frame) = stream {
        let kind = if frame == Frame::Events { SERVER_SENT_EVENTS } else { "application/json" };
        return respond(Pieces::new(reply, frame, candidates), kind, pieces).await;
    }
    let mut answers: Vec<Answer> = (0..candidates).map(|_| Answer::default()).collect();
    collect(pieces, |at, piece| answers[at].take(piece)).await?;
    Ok(axum::Json(reply.whole(&answers)).into_response())
}

pub async fn models(State(server): State<Arc<Server>>) -> Response {
    let models: Vec<Value> = server.app.names.iter().map(|name| entry(&server, name)).collect();
    axum::Json(json!({"models": models})).into_response()
}

pub async fn model(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let name = convert::model(&server, &id)?;
    Ok(axum::Json(entry(&server, name)).into_response())
}

fn entry(server: &Server, name: &str) -> Value {
    let context = server.engine().max_model_len();
    json!({
        "name": format!("models/{name}"),
        "version": "1",
        "displayName": name,
        "inputTokenLimit": context,
        "outputTokenLimit": context,
        "supportedGenerationMethods": ["generateContent", "streamGenerateContent", "countTokens"],
    })
}
