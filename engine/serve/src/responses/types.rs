//! Owns the request bodies of the Responses API as they are on the wire. Checks types only; ranges and meaning are
//! `convert`'s. Unknown fields are accepted.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::body::TextOr;

/// `POST /v1/responses` and `/v1/responses/input_tokens`.
#[derive(Clone, Debug, Deserialize)]
pub struct Create {
    pub model: Option<String>,
    /// Items are kept as they came: `input_items` gives them back.
    pub input: Option<TextOr<Map<String, Value>>>,
    pub instructions: Option<String>,
    pub max_output_tokens: Option<i64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_logprobs: Option<i64>,
    pub text: Option<TextConfig>,
    pub tools: Option<Vec<Tool>>,
    pub tool_choice: Option<Choice>,
    pub parallel_tool_calls: Option<bool>,
    pub stream: Option<bool>,
    pub previous_response_id: Option<String>,
    pub store: Option<bool>,
    pub truncation: Option<String>,
    pub include: Option<Vec<String>>,
    pub metadata: Option<Map<String, Value>>,
    pub reasoning: Option<ReasoningConfig>,
    pub background: Option<bool>,
    /// Not of this API: the way to the same answer twice.
    pub seed: Option<i64>,
}

/// An item of the input; which fields it has is its type's.
#[derive(Clone, Debug, Deserialize)]
pub struct Item {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub role: Option<String>,
    pub content: Option<TextOr<Part>>,
    pub call_id: Option<String>,
    pub name: Option<String>,
    pub arguments: Option<String>,
    pub output: Option<TextOr<Part>>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Part {
    #[serde(rename = "type")]
    pub kind: String,
    pub text: Option<String>,
    pub refusal: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct TextConfig {
    pub format: Option<Format>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Format {
    #[serde(rename = "type")]
    pub kind: String,
    pub name: Option<String>,
    pub schema: Option<Value>,
    pub strict: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Tool {
    #[serde(rename = "type")]
    pub kind: String,
    pub name: Option<String>,
    pub description: Option<String>,
    pub parameters: Option<Value>,
    pub strict: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Choice {
    Mode(String),
    Object(ChoiceObject),
}

#[derive(Clone, Debug, Deserialize)]
pub struct ChoiceObject {
    #[serde(rename = "type")]
    pub kind: String,
    pub name: Option<String>,
    pub mode: Option<String>,
    pub tools: Option<Vec<Tool>>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ReasoningConfig {
    pub effort: Option<String>,
}
