//! What operators and their tools ask: is it alive, is it ready, which version, which numbers. Health needs no key.

mod metrics;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use dualgauge::Health;
use serde_json::json;

use crate::app::Server;

/// Routes that answer without a key. They tell nothing but the state.
pub(crate) fn open_routes() -> Router<Arc<Server>> {
    Router::new().route("/health", get(health)).route("/ready", get(health)).route("/ping", get(health))
}

pub(crate) fn guarded_routes() -> Router<Arc<Server>> {
    Router::new().route("/version", get(version)).route("/metrics", get(metrics_text))
}

async fn health(State(server): State<Arc<Server>>) -> Response {
    let (status, word) = match server.health() {
        Health::Ready => (StatusCode::OK, "ready"),
        Health::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        Health::Lost(_) => (StatusCode::SERVICE_UNAVAILABLE, "device lost"),
    };
    (status, axum::Json(json!({"status": word}))).into_response()
}

async fn version() -> Response {
    axum::Json(json!({"version": env!("CARGO_PKG_VERSION"), "name": "dualgauge"})).into_response()
}

async fn metrics_text(State(server): State<Arc<Server>>) -> Response {
    let engine = server.engine();
    let text = metrics::render(&engine.stats(), engine.plan(), &server.app.names[0]);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
