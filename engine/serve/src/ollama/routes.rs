//! Owns the endpoints of the Ollama API: body in, response out.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::convert::{self, Job};
use super::reply::{Lines, Reply, Shape};
use super::types::{Chat, Generate, Named};
use crate::answer::Answer;
use crate::app::Server;
use crate::body::parse;
use crate::calendar::rfc3339;
use crate::error::ApiError;
use crate::run::{accept, start};
use crate::stream::{Choices, collect, respond};

const LINES_OF_JSON: &str = "application/x-ndjson";
/// The version of the API that is spoken here: editors refuse old ones.
const API_VERSION: &str = "0.12.6";

/// How clients find out that somebody is there. It needs no key and tells nothing.
pub fn open_routes() -> Router<Arc<Server>> {
    Router::new().route("/", get(async || "Ollama is running"))
}

pub fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/api/chat", post(chat))
        .route("/api/generate", post(generate))
        .route("/api/tags", get(tags))
        .route("/api/ps", get(ps))
        .route("/api/show", post(show))
        .route("/api/version", get(async || axum::Json(json!({"version": API_VERSION}))))
        .route("/api/embed", post(embed))
        .route("/api/embeddings", post(embed))
}

async fn chat(State(server): State<Arc<Server>>, body: Body) -> Result<Response, ApiError> {
    let job = |server: &Server, body: &[u8]| convert::chat(server, parse(body)?, parse::<Chat>(body)?);
    answer(server, body, Shape::Chat, job).await
}

async fn generate(State(server): State<Arc<Server>>, body: Body) -> Result<Response, ApiError> {
    let job = |server: &Server, body: &[u8]| convert::generate(server, parse(body)?, parse::<Generate>(body)?);
    answer(server, body, Shape::Generate, job).await
}

async fn answer(
    server: Arc<Server>,
    body: Body,
    shape: Shape,
    job: impl FnOnce(&Server, &[u8]) -> Result<Job, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let began = (server.app.clock)();
    let submit = move |server: &Server, body: &[u8]| {
        let job = job(server, body)?;
        let mut reply = Reply {
            model: job.model,
            shape,
            logprobs: job.request.as_ref().is_some_and(|r| r.sampling.logprobs.is_some()),
            text: server.app.frontend.text().clone(),
            context: vec![],
            clock: server.app.clock,
            began,
            first: None,
        };
        let param = if shape == Shape::Chat { "messages" } else { "prompt" };
        let generation = job.request.map(|request| start(server, param, request)).transpose()?;
        if let (Shape::Generate, Some(generation)) = (shape, &generation) {
            reply.context = generation.prompt_tokens().to_vec();
        }
        Ok((reply, generation, job.stream))
    };
    let (mut reply, generation, stream) = accept(&server, body, submit).await?;
    let Some(generation) = generation else {
        let kind = if stream { LINES_OF_JSON } else { "application/json" };
        return Ok(([(header::CONTENT_TYPE, kind)], format!("{}\n", reply.loaded())).into_response());
    };
    let pieces = Choices::new(vec![generation]);
    if stream {
        return respond(Lines::new(reply), LINES_OF_JSON, pieces).await;
    }
    let mut answer = Answer::default();
    collect(pieces, |_, piece| {
        reply.note(&piece);
        answer.take(piece);
    })
    .await?;
    Ok(axum::Json(reply.whole(&answer)).into_response())
}

async fn tags(State(server): State<Arc<Server>>) -> Response {
    let models: Vec<Value> = server.app.names.iter().map(|name| entry(&server, name)).collect();
    axum::Json(json!({"models": models})).into_response()
}

/// All served models are loaded, for as long as the server runs.
async fn ps(State(server): State<Arc<Server>>) -> Response {
    let loaded = |name: &String| {
        let mut entry = entry(&server, name);
        entry["expires_at"] = "9999-12-31T23:59:59Z".into();
        entry["size_vram"] = entry["size"].clone();
        entry["context_length"] = server.engine().max_model_len().into();
        entry
    };
    let models: Vec<Value> = server.app.names.iter().map(loaded).collect();
    axum::Json(json!({"models": models})).into_response()
}

async fn show(State(server): State<Arc<Server>>, body: Body) -> Result<Response, ApiError> {
    let shown = accept(&server, body, |server, body| {
        let named: Named = parse(body)?;
        let name = convert::model(server, named.model.or(named.name).as_deref())?;
        let spec = server.engine().spec();
        let family = spec.family;
        Ok(json!({
            "modelfile": format!("FROM {name}\n"),
            "parameters": "",
            "template": "",
            "details": details(server),
            "model_info": {
                "general.architecture": family,
                "general.parameter_count": spec.parameters,
                format!("{family}.context_length"): server.engine().max_model_len(),
                format!("{family}.vocab_size"): spec.vocab,
            },
            "capabilities": ["completion", "tools"],
            "modified_at": modified(server),
        }))
    });
    Ok(axum::Json(shown.await?).into_response())
}

async fn embed(State(server): State<Arc<Server>>, body: Body) -> Result<Response, ApiError> {
    accept(&server, body, |server, body| {
        let named: Named = parse(body)?;
        let name = convert::model(server, named.model.as_deref())?;
        Err(ApiError::unsupported("model", format!("The model '{name}' makes no embeddings.")))
    })
    .await
}

fn entry(server: &Server, name: &str) -> Value {
    let digest = Sha256::digest(name.as_bytes());
    let digest = digest.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    json!({
        "name": name,
        "model": name,
        "modified_at": modified(server),
        "size": server.engine().spec().weight_bytes,
        "digest": digest,
        "details": details(server),
    })
}

fn details(server: &Server) -> Value {
    let spec = server.engine().spec();
    let parameters = match spec.parameters {
        n @ 1_000_000_000.. => format!("{:.1}B", n as f64 / 1e9),
        n => format!("{:.2}M", n as f64 / 1e6),
    };
    json!({
        "parent_model": "",
        "format": "",
        "family": spec.family,
        "families": [spec.family],
        "parameter_size": parameters,
        "quantization_level": "",
    })
}

fn modified(server: &Server) -> String {
    rfc3339(UNIX_EPOCH + Duration::from_secs(server.started))
}
