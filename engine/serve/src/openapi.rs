//! Owns the OpenAPI document: which routes there are, which API each is of, and how a client shows its key. What bodies hold
//! is each API's own contract, which its SDKs know; it is not repeated here.

use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Map, Value, json};

use crate::app::Server;

/// Method, path, API and what it is for.
const ROUTES: &[(&str, &str, &str, &str)] = &[
    ("get", "/v1/models", "OpenAI", "List the models (Anthropic's and Gemini's headers get their forms of it)"),
    ("get", "/v1/models/{model}", "OpenAI", "One model"),
    ("post", "/v1/chat/completions", "OpenAI", "Answer a chat, whole or streamed"),
    ("post", "/v1/completions", "OpenAI", "Continue a text, whole or streamed"),
    ("post", "/v1/embeddings", "OpenAI", "Embeddings, where the model makes them"),
    ("post", "/v1/responses", "OpenAI", "Answer and keep the state, whole or streamed"),
    ("post", "/v1/responses/input_tokens", "OpenAI", "Count the tokens of an input"),
    ("get", "/v1/responses/{id}", "OpenAI", "A kept response"),
    ("delete", "/v1/responses/{id}", "OpenAI", "Forget a response"),
    ("get", "/v1/responses/{id}/input_items", "OpenAI", "What a response was asked with"),
    ("post", "/v1/responses/{id}/cancel", "OpenAI", "Cancel a response in the background"),
    ("post", "/tokenize", "OpenAI", "Tokens of a text or a chat"),
    ("post", "/detokenize", "OpenAI", "Text of tokens"),
    ("post", "/openai/deployments/{deployment}/chat/completions", "Azure", "Answer a chat, whole or streamed"),
    ("post", "/openai/deployments/{deployment}/completions", "Azure", "Continue a text, whole or streamed"),
    ("post", "/openai/deployments/{deployment}/embeddings", "Azure", "Embeddings, where the model makes them"),
    ("get", "/openai/models", "Azure", "List the models"),
    ("post", "/openai/responses", "Azure", "Answer and keep the state, whole or streamed"),
    ("post", "/openai/v1/chat/completions", "Azure", "Answer a chat, whole or streamed"),
    ("post", "/openai/v1/completions", "Azure", "Continue a text, whole or streamed"),
    ("post", "/openai/v1/responses", "Azure", "Answer and keep the state, whole or streamed"),
    ("get", "/openai/v1/models", "Azure", "List the models"),
    ("post", "/model/{modelId}/converse", "Bedrock", "Answer a conversation"),
    ("post", "/model/{modelId}/converse-stream", "Bedrock", "Answer a conversation in an event stream"),
    ("post", "/model/{modelId}/invoke", "Bedrock", "Answer a body of Anthropic, Llama or OpenAI form"),
    ("post", "/model/{modelId}/invoke-with-response-stream", "Bedrock", "The same in an event stream"),
    ("post", "/model/{modelId}/count-tokens", "Bedrock", "Count the tokens of a conversation or body"),
    ("post", "/v1/messages", "Anthropic", "Answer messages, whole or streamed"),
    ("post", "/v1/messages/count_tokens", "Anthropic", "Count the tokens of messages"),
    ("post", "/anthropic/v1/messages", "Anthropic", "Answer messages, where clouds have it"),
    ("post", "/anthropic/v1/messages/count_tokens", "Anthropic", "Count the tokens, where clouds have it"),
    ("get", "/v1beta/models", "Gemini", "List the models"),
    ("get", "/v1beta/models/{model}", "Gemini", "One model"),
    (
        "post",
        "/v1beta/models/{model}",
        "Gemini",
        "{model}:generateContent, :streamGenerateContent (?alt=sse), :countTokens; also below /v1/models",
    ),
    ("post", "/api/chat", "Ollama", "Answer a chat, in lines unless stream is false"),
    ("post", "/api/generate", "Ollama", "Answer a prompt, in lines unless stream is false"),
    ("post", "/api/show", "Ollama", "What a model is"),
    ("post", "/api/embed", "Ollama", "Embeddings, where the model makes them"),
    ("get", "/api/tags", "Ollama", "List the models"),
    ("get", "/api/ps", "Ollama", "List the loaded models"),
    ("get", "/api/version", "Ollama", "The version of the API"),
    ("get", "/health", "Operation", "Whether the server can answer; needs no key"),
    ("get", "/metrics", "Operation", "Numbers, as Prometheus text"),
    ("get", "/version", "Operation", "The version of the server"),
];

pub fn routes() -> Router<Arc<Server>> {
    Router::new().route("/openapi.json", get(document))
}

async fn document() -> Response {
    let mut paths = Map::new();
    for (method, path, api, summary) in ROUTES {
        let item = paths.entry(*path).or_insert_with(|| json!({}));
        item[*method] = operation(method, path, api, summary);
    }
    let header = |name: &str, of: &str| json!({"type": "apiKey", "in": "header", "name": name, "description": of});
    axum::Json(json!({
        "openapi": "3.1.0",
        "info": {"title": "dualgauge", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {"securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer"},
            "xApiKey": header("x-api-key", "Anthropic"),
            "apiKey": header("api-key", "Azure OpenAI"),
            "googleKey": header("x-goog-api-key", "Gemini"),
            "signature": header("authorization", "Bedrock: AWS Signature Version 4, the key as secret access key"),
        }},
        "security": [{"bearer": []}, {"xApiKey": []}, {"apiKey": []}, {"googleKey": []}, {"signature": []}, {}],
    }))
    .into_response()
}

fn operation(method: &str, path: &str, api: &str, summary: &str) -> Value {
    let names = path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    let parameters: Vec<Value> =
        names.map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}})).collect();
    let mut operation = json!({
        "tags": [api],
        "summary": summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": "The answer"},
            "default": {"description": format!("An error in the form of {api}")},
        },
    });
    if method == "post" {
        let body = json!({"application/json": {"schema": {"type": "object"}}});
        operation["requestBody"] = json!({"required": true, "content": body});
    }
    operation
}
