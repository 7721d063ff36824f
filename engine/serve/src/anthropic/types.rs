//! Owns the request bodies of the Anthropic API as they are on the wire. Checks types only; ranges and meaning are
//! `convert`'s. Unknown fields are accepted.

use serde::Deserialize;
use serde_json::Value;

use crate::body::TextOr;

/// `POST /v1/messages`, and without `max_tokens` that of `count_tokens`.
#[derive(Clone, Debug, Deserialize)]
pub struct Messages {
    pub model: Option<String>,
    pub messages: Vec<Turn>,
    pub max_tokens: Option<i64>,
    pub system: Option<TextOr<Block>>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub stop_sequences: Option<Vec<String>>,
    pub stream: Option<bool>,
    pub tools: Option<Vec<Tool>>,
    pub tool_choice: Option<Choice>,
    pub output_config: Option<OutputConfig>,
    /// What `output_config.format` was called first.
    pub output_format: Option<Format>,
    pub thinking: Option<Thinking>,
    /// Not of this API: the way to the same answer twice.
    pub seed: Option<i64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Turn {
    pub role: String,
    pub content: TextOr<Block>,
}

/// A content block of any kind; which fields it has is its kind's.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Block {
    #[serde(rename = "type")]
    pub kind: String,
    pub text: Option<String>,
    pub id: Option<String>,
    pub name: Option<String>,
    pub input: Option<Value>,
    pub tool_use_id: Option<String>,
    pub content: Option<TextOr<Block>>,
    pub source: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Tool {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub name: String,
    pub description: Option<String>,
    pub input_schema: Option<Value>,
    pub strict: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Choice {
    #[serde(rename = "type")]
    pub kind: String,
    pub name: Option<String>,
    pub disable_parallel_tool_use: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct OutputConfig {
    pub format: Option<Format>,
    pub effort: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Format {
    #[serde(rename = "type")]
    pub kind: String,
    pub schema: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Thinking {
    #[serde(rename = "type")]
    pub kind: String,
}
