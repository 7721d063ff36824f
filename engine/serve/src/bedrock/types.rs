//! Owns the request bodies of the Bedrock runtime API as they are on the wire. Checks types only; ranges and meaning are
//! `convert`'s. Unknown fields are accepted.

use serde::Deserialize;
use serde_json::{Map, Value};

/// `POST /model/{id}/converse` and `/converse-stream`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Converse {
    pub messages: Option<Vec<Turn>>,
    pub system: Option<Vec<Block>>,
    pub inference_config: Option<InferenceConfig>,
    pub tool_config: Option<ToolConfig>,
    pub output_config: Option<OutputConfig>,
    pub additional_model_request_fields: Option<Additional>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Turn {
    pub role: String,
    pub content: Vec<Block>,
}

/// A content block: exactly one of its members is there.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    pub text: Option<String>,
    pub tool_use: Option<CalledTool>,
    pub tool_result: Option<ToolResult>,
    pub reasoning_content: Option<Value>,
    pub cache_point: Option<Value>,
    pub guard_content: Option<GuardContent>,
    pub document: Option<Document>,
    /// In the result of a tool.
    pub json: Option<Value>,
    // What is known and cannot be read.
    pub image: Option<Value>,
    pub video: Option<Value>,
    pub audio: Option<Value>,
    pub citations_content: Option<Value>,
    pub search_result: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CalledTool {
    pub tool_use_id: String,
    pub name: String,
    pub input: Value,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolResult {
    pub tool_use_id: String,
    pub content: Vec<Block>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct GuardContent {
    pub text: Option<GuardText>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct GuardText {
    pub text: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Document {
    pub source: Option<DocumentSource>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct DocumentSource {
    pub text: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InferenceConfig {
    pub max_tokens: Option<i64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub stop_sequences: Option<Vec<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolConfig {
    pub tools: Vec<Tool>,
    pub tool_choice: Option<Choice>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tool {
    pub tool_spec: Option<Spec>,
    pub cache_point: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    pub name: String,
    pub description: Option<String>,
    pub input_schema: Option<InputSchema>,
    pub strict: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct InputSchema {
    pub json: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Choice {
    pub auto: Option<Value>,
    pub any: Option<Value>,
    pub tool: Option<Named>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Named {
    pub name: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutputConfig {
    pub text_format: Option<TextFormat>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct TextFormat {
    #[serde(rename = "type")]
    pub kind: String,
    pub structure: Option<Structure>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Structure {
    pub json_schema: Option<JsonSchema>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct JsonSchema {
    /// JSON in a string.
    pub schema: String,
}

/// Fields that only some models know; of others nothing is asked.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Additional {
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,
    pub seed: Option<i64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub reasoning_effort: Option<String>,
    pub thinking: Option<Map<String, Value>>,
}

/// `POST /model/{id}/invoke` of a Llama model.
#[derive(Clone, Debug, Deserialize)]
pub struct Llama {
    pub prompt: String,
    pub max_gen_len: Option<i64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
}

/// `POST /model/{id}/count-tokens`: one of the two is there.
#[derive(Clone, Debug, Deserialize)]
pub struct Count {
    pub input: CountInput,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CountInput {
    pub converse: Option<Converse>,
    pub invoke_model: Option<Invoked>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Invoked {
    /// Base64 of the body that InvokeModel would get.
    pub body: String,
}
