//! Owns the request bodies of the Ollama API as they are on the wire. Checks types only; ranges and meaning are
//! `convert`'s. Unknown fields are accepted.
//!
//! One body is read as two structures, [`Common`] and the endpoint's own: so an error names the very field.

use serde::Deserialize;
use serde_json::Value;

use crate::body::TextOr;

/// `POST /api/chat`, beside [`Common`].
#[derive(Clone, Debug, Deserialize)]
pub struct Chat {
    pub messages: Option<Vec<Turn>>,
    pub tools: Option<Vec<Tool>>,
}

/// `POST /api/generate`, beside [`Common`].
#[derive(Clone, Debug, Deserialize)]
pub struct Generate {
    pub prompt: Option<String>,
    pub system: Option<String>,
    pub template: Option<String>,
    pub suffix: Option<String>,
    pub raw: Option<bool>,
    pub context: Option<Vec<i64>>,
    pub images: Option<Vec<Value>>,
}

/// Fields of both.
#[derive(Clone, Debug, Deserialize)]
pub struct Common {
    pub model: Option<String>,
    pub format: Option<Value>,
    pub options: Option<Options>,
    pub stream: Option<bool>,
    pub think: Option<Think>,
    pub logprobs: Option<bool>,
    pub top_logprobs: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Options {
    pub num_predict: Option<i64>,
    pub num_ctx: Option<i64>,
    pub temperature: Option<f64>,
    pub top_k: Option<i64>,
    pub top_p: Option<f64>,
    pub min_p: Option<f64>,
    pub seed: Option<i64>,
    pub stop: Option<TextOr<String>>,
    pub repeat_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Think {
    Switch(bool),
    Effort(String),
}

#[derive(Clone, Debug, Deserialize)]
pub struct Turn {
    pub role: String,
    pub content: Option<String>,
    pub thinking: Option<String>,
    pub tool_calls: Option<Vec<Call>>,
    pub tool_name: Option<String>,
    pub tool_call_id: Option<String>,
    pub images: Option<Vec<Value>>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Call {
    pub id: Option<String>,
    pub function: CalledFunction,
}

#[derive(Clone, Debug, Deserialize)]
pub struct CalledFunction {
    pub name: String,
    pub arguments: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Tool {
    pub function: Function,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Function {
    pub name: String,
    pub description: Option<String>,
    pub parameters: Option<Value>,
}

/// `POST /api/show` and what else names a model and no more.
#[derive(Clone, Debug, Deserialize)]
pub struct Named {
    pub model: Option<String>,
    /// What `model` was called first.
    pub name: Option<String>,
}
