//! Azure OpenAI: the OpenAI API on other paths. A deployment's name stands in the path and is the model, whatever the body
//! says; below `/openai/v1` the body names it. Which `api-version` is asked for makes no difference.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::Value;

use crate::app::Server;
use crate::error::ApiError;
use crate::openai::{self, Shape};
use crate::responses;

pub(crate) fn routes() -> Router<Arc<Server>> {
    const DEPLOYMENT: &str = "/openai/deployments/{deployment}";
    Router::new()
        .route(&format!("{DEPLOYMENT}/chat/completions"), post(chat_completions))
        .route(&format!("{DEPLOYMENT}/completions"), post(completions))
        .route(&format!("{DEPLOYMENT}/embeddings"), post(embeddings))
        .route("/openai/models", get(openai::models))
        .route("/openai/models/{*id}", get(openai::model))
        .merge(responses::versioned())
        .route_layer(from_fn(versioned))
}

/// An error as the API writes it: OpenAI's, and its code is always a string.
pub(crate) fn error_body(error: &ApiError) -> Value {
    let code = match (error.status.as_u16(), error.code) {
        (401, _) => "401".to_owned(),
        (404, Some("model_not_found")) => "DeploymentNotFound".to_owned(),
        (_, Some(code)) => code.to_owned(),
        (status, None) => status.to_string(),
    };
    let mut body = openai::error_body(error);
    body["error"]["code"] = code.into();
    body
}

async fn chat_completions(
    State(server): State<Arc<Server>>,
    Path(deployment): Path<String>,
    body: Body,
) -> Result<Response, ApiError> {
    openai::generate(server, body, Shape::Chat, Some(deployment)).await
}

async fn completions(
    State(server): State<Arc<Server>>,
    Path(deployment): Path<String>,
    body: Body,
) -> Result<Response, ApiError> {
    openai::generate(server, body, Shape::Completion, Some(deployment)).await
}

async fn embeddings(
    State(server): State<Arc<Server>>,
    Path(deployment): Path<String>,
    body: Body,
) -> Result<Response, ApiError> {
    openai::embed(server, body, Some(deployment)).await
}

/// Without a version these paths lead nowhere.
async fn versioned(request: Request, next: Next) -> Response {
    let pairs = request.uri().query().into_iter().flat_map(|q| q.split('&'));
    if pairs.filter_map(|pair| pair.strip_prefix("api-version=")).any(|version| !version.is_empty()) {
        return next.run(request).await;
    }
    let message = format!("There is no route {} without ?api-version=.", request.uri().path());
    let error = ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", message);
    ApiError { code: Some("not_found"), ..error }.into_response()
}
