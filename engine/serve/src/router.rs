//! Owns which routes there are and which of them need a key: all that are not listed as open. The decision is the router's
//! own match, never a path that is looked at again.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};

use crate::app::Server;
use crate::dialect::Dialect;
use crate::error::ApiError;
use crate::{anthropic, azure, bedrock, gemini, ollama, openai, openapi, ops, responses};

pub fn router(server: Arc<Server>) -> Router {
    let guarded = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model).merge(post(gemini::act)))
        .merge(openai::routes())
        .merge(responses::routes())
        .merge(azure::routes())
        .merge(bedrock::routes())
        .merge(anthropic::routes())
        .merge(gemini::routes())
        .merge(ollama::routes())
        .merge(ops::guarded_routes())
        .merge(openapi::routes())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(Arc::clone(&server), need_key));
    ops::open_routes()
        .merge(ollama::open_routes())
        .method_not_allowed_fallback(method_not_allowed)
        .merge(guarded)
        .with_state(server)
}

/// Several APIs have their models here.
async fn models(Extension(dialect): Extension<Dialect>, server: State<Arc<Server>>) -> Response {
    match dialect {
        Dialect::Anthropic => anthropic::models(server).await,
        Dialect::Gemini => gemini::models(server).await,
        _ => openai::models(server).await,
    }
}

async fn model(Extension(dialect): Extension<Dialect>, server: State<Arc<Server>>, id: Path<String>) -> Response {
    match dialect {
        Dialect::Anthropic => anthropic::model(server, id).await.into_response(),
        Dialect::Gemini => gemini::model(server, id).await.into_response(),
        _ => openai::model(server, id).await.into_response(),
    }
}

async fn need_key(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    if server.app.keys.admit(request.headers(), request.uri().query()) {
        return next.run(request).await;
    }
    if *request.extensions().get::<Dialect>().unwrap_or(&Dialect::OpenAi) != Dialect::Bedrock {
        return ApiError::unauthorized().into_response();
    }
    if bedrock::is_signed(request.headers()) {
        return match bedrock::verify(&server, request).await {
            Ok(request) => next.run(request).await,
            Err(error) => error.into_response(),
        };
    }
    let code = if request.headers().contains_key("authorization") { "invalid_api_key" } else { "missing_credentials" };
    ApiError { code: Some(code), ..ApiError::unauthorized() }.into_response()
}

async fn not_found(uri: Uri) -> ApiError {
    let message = format!("There is no route {}.", uri.path());
    ApiError { code: Some("not_found"), ..ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", message) }
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} cannot be asked for with {method}.", uri.path());
    let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message);
    ApiError { code: Some("method_not_allowed"), ..error }
}
