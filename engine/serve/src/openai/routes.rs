//! Owns the endpoints of the OpenAI API: body in, response out. What they mean is in `convert`, what they say in `reply`.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use dualgauge::{Generation, Prompt, Sampling, TextRequest};
use dualgauge_models::Conversation;
use serde_json::{Value, json};

use super::convert::{self, Job, Shape};
use super::reply::{Asked, Choice, Reply};
use super::types::{Chat, Common, Completion, Detokenize, Tokenize};
use super::{ApiError, messages, stream, tools};
use crate::app::Server;
use crate::body::parse;
use crate::ranges::token_ids;
use crate::run::{accept, count};
use crate::stream::Choices;

/// Below `/v1`, and below the base that clouds serve the same API at. `/v1/models` is shared with other APIs.
pub fn routes() -> Router<Arc<Server>> {
    let mut router = Router::new()
        .route("/openai/v1/models", get(models))
        .route("/openai/v1/models/{*id}", get(model))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize));
    for base in ["/v1", "/openai/v1"] {
        router = router
            .route(&format!("{base}/chat/completions"), post(chat_completions))
            .route(&format!("{base}/completions"), post(completions))
            .route(&format!("{base}/embeddings"), post(embeddings));
    }
    router
}

pub async fn models(State(server): State<Arc<Server>>) -> Response {
    let data: Vec<Value> = server.app.names.iter().map(|name| model_entry(&server, name)).collect();
    axum::Json(json!({"object": "list", "data": data})).into_response()
}

pub async fn model(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let name = server.model(Some(&id))?;
    Ok(axum::Json(model_entry(&server, name)).into_response())
}

fn model_entry(server: &Server, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": server.started,
        "owned_by": "dualgauge",
        "root": server.app.names[0],
        "parent": null,
        "max_model_len": server.engine().max_model_len(),
    })
}

async fn chat_completions(State(server): State<Arc<Server>>, body: Body) -> Result<Response, ApiError> {
    generate(server, body, Shape::Chat, None).await
}

async fn completions(State(server): State<Arc<Server>>, body: Body) -> Result<Response, ApiError> {
    generate(server, body, Shape::Completion, None).await
}

async fn embeddings(State(server): State<Arc<Server>>, body: Body) -> Result<Response, ApiError> {
    embed(server, body, None).await
}

/// Refuses: the served model generates. `model` stands before the body's.
pub async fn embed(server: Arc<Server>, body: Body, model: Option<String>) -> Result<Response, ApiError> {
    accept(&server, body, move |server, body| {
        let common: Common = parse(body)?;
        let name = server.model(model.as_deref().or(common.model.as_deref()))?;
        Err(ApiError::unsupported("model", format!("The model '{name}' makes no embeddings.")))
    })
    .await
}

/// Answers a chat or a completion. `model` stands before the body's.
pub async fn generate(
    server: Arc<Server>,
    body: Body,
    shape: Shape,
    model: Option<String>,
) -> Result<Response, ApiError> {
    let submit = move |server: &Server, body: &[u8]| submit(server, body, shape, model);
    let Accepted { reply, choices, generations, stream } = accept(&server, body, submit).await?;
    let pieces = Choices::new(generations);
    if stream { stream::events(reply, choices, pieces).await } else { stream::whole(reply, choices, pieces).await }
}

/// Tokens of the prompt of a chat body.
pub fn count_body(server: &Server, body: &[u8]) -> Result<usize, ApiError> {
    let job = convert::chat(server, parse(body)?, parse::<Chat>(body)?)?;
    count(server, "messages", &job.first())
}

/// A request that the engine has taken.
struct Accepted {
    reply: Reply,
    choices: Vec<Choice>,
    generations: Vec<Generation>,
    stream: bool,
}

fn submit(server: &Server, body: &[u8], shape: Shape, model: Option<String>) -> Result<Accepted, ApiError> {
    let mut common: Common = parse(body)?;
    common.model = model.or(common.model);
    let model = server.model(common.model.as_deref())?.to_owned();
    let mut job = match shape {
        Shape::Chat => convert::chat(server, common, parse::<Chat>(body)?)?,
        Shape::Completion => convert::completion(server, common, parse::<Completion>(body)?)?,
    };
    let echoed = if job.echo { echoed_texts(server, &job) } else { vec![] };
    let generations = job.start(&server.app.frontend)?;
    let prefix = if shape == Shape::Chat { "chatcmpl-" } else { "cmpl-" };
    let reply = Reply::new(server.id(prefix), server.now(), model, &job, server.app.frontend.text().clone());
    let keeps_ids = reply.return_token_ids || (reply.echo && reply.logprobs);
    let choices = generations.iter().enumerate().map(|(index, generation)| {
        let ids = if keeps_ids { generation.prompt_tokens().to_vec() } else { vec![] };
        let text = echoed.get(index / job.n).cloned().unwrap_or_default();
        Choice::new(index, Asked { ids, text })
    });
    Ok(Accepted { choices: choices.collect(), reply, generations, stream: job.stream })
}

/// Prompts as `echo` repeats them: what was sent as text word for word, ids decoded.
fn echoed_texts(server: &Server, job: &Job) -> Vec<String> {
    let text = |prompt: &Prompt| match prompt {
        Prompt::Text { text, .. } => text.clone(),
        Prompt::Tokens(ids) => server.app.frontend.text().decode(ids, job.skips_special_tokens()),
        Prompt::Chat(_) => String::new(),
    };
    job.prompts.iter().map(text).collect()
}

async fn tokenize(State(server): State<Arc<Server>>, body: Body) -> Result<Response, ApiError> {
    let answer = accept(&server, body, |server, body| {
        let request: Tokenize = parse(body)?;
        server.model(request.model.as_deref())?;
        let text = server.app.frontend.text();
        let prompt = match (request.prompt, request.messages) {
            (Some(text), None) => Prompt::Text { text, add_special: request.add_special_tokens.unwrap_or(true) },
            (None, Some(messages)) => Prompt::Chat(Conversation {
                add_generation_prompt: request.add_generation_prompt.unwrap_or(true),
                kwargs: request.chat_template_kwargs.unwrap_or_default(),
                ..server.conversation(messages::messages(messages)?, None)
            }),
            _ => return Err(ApiError::invalid("prompt", "prompt: send either prompt or messages.")),
        };
        let tools = tools::tools(server, request.tools, None, None)?;
        let asked = TextRequest { tools, ..TextRequest::new(prompt, Sampling::default()) };
        let tokens = server.app.frontend.prompt_tokens(&asked)?;
        let mut answer =
            json!({"count": tokens.len(), "max_model_len": server.engine().max_model_len(), "tokens": tokens});
        if request.return_token_strs == Some(true) {
            answer["token_strs"] = tokens.iter().map(|id| text.token_text(*id)).collect();
        }
        Ok(answer)
    });
    Ok(axum::Json(answer.await?).into_response())
}

async fn detokenize(State(server): State<Arc<Server>>, body: Body) -> Result<Response, ApiError> {
    let answer = accept(&server, body, |server, body| {
        let request: Detokenize = parse(body)?;
        server.model(request.model.as_deref())?;
        let text = server.app.frontend.text();
        let tokens = token_ids("tokens", request.tokens, server.engine().spec().vocab)?;
        Ok(json!({"prompt": text.decode(&tokens, request.skip_special_tokens.unwrap_or(false))}))
    });
    Ok(axum::Json(answer.await?).into_response())
}
