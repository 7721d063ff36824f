//! Owns the request bodies of the Gemini API as they are on the wire: protobuf's JSON, so names are written in either case
//! and an unknown one is an error. Checks types only; ranges and meaning are `convert`'s.

use serde::Deserialize;
use serde_json::{Map, Value};

/// `POST models/{model}:generateContent` and `:streamGenerateContent`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Generate {
    /// The path names the model.
    #[serde(rename = "model")]
    pub _model: Option<String>,
    #[serde(default)]
    pub contents: Vec<Content>,
    #[serde(alias = "system_instruction")]
    pub system_instruction: Option<Content>,
    #[serde(alias = "generation_config")]
    pub generation_config: Option<GenerationConfig>,
    pub tools: Option<Vec<Tool>>,
    #[serde(alias = "tool_config")]
    pub tool_config: Option<ToolConfig>,
    #[serde(rename = "safetySettings", alias = "safety_settings")]
    pub _safety_settings: Option<Value>,
    #[serde(rename = "cachedContent", alias = "cached_content")]
    pub cached_content: Option<String>,
    #[serde(rename = "labels")]
    pub _labels: Option<Value>,
    #[serde(rename = "serviceTier", alias = "service_tier")]
    pub _service_tier: Option<Value>,
    #[serde(rename = "store")]
    pub _store: Option<Value>,
}

/// `POST models/{model}:countTokens`: contents alone, or a whole request.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Count {
    #[serde(default)]
    pub contents: Vec<Content>,
    #[serde(alias = "generate_content_request")]
    pub generate_content_request: Option<Generate>,
    // As the cloud's own endpoint takes them.
    #[serde(alias = "system_instruction")]
    pub system_instruction: Option<Content>,
    pub tools: Option<Vec<Tool>>,
    #[serde(alias = "generation_config")]
    pub generation_config: Option<GenerationConfig>,
    #[serde(rename = "model")]
    pub _model: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    pub role: Option<String>,
    #[serde(default)]
    pub parts: Vec<Part>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Part {
    pub text: Option<String>,
    pub thought: Option<bool>,
    #[serde(alias = "function_call")]
    pub function_call: Option<FunctionCall>,
    #[serde(alias = "function_response")]
    pub function_response: Option<FunctionResponse>,
    #[serde(rename = "thoughtSignature", alias = "thought_signature")]
    pub _thought_signature: Option<Value>,
    #[serde(rename = "partMetadata", alias = "part_metadata")]
    pub _part_metadata: Option<Value>,
    // What is known and cannot be read.
    #[serde(alias = "inline_data")]
    pub inline_data: Option<Value>,
    #[serde(alias = "file_data")]
    pub file_data: Option<Value>,
    #[serde(alias = "video_metadata")]
    pub video_metadata: Option<Value>,
    #[serde(alias = "executable_code")]
    pub executable_code: Option<Value>,
    #[serde(alias = "code_execution_result")]
    pub code_execution_result: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionCall {
    pub id: Option<String>,
    pub name: String,
    pub args: Option<Map<String, Value>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FunctionResponse {
    pub id: Option<String>,
    pub name: String,
    pub response: Option<Map<String, Value>>,
    #[serde(rename = "willContinue", alias = "will_continue")]
    pub _will_continue: Option<bool>,
    #[serde(rename = "scheduling")]
    pub _scheduling: Option<Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GenerationConfig {
    pub temperature: Option<f64>,
    #[serde(alias = "top_p")]
    pub top_p: Option<f64>,
    #[serde(alias = "top_k")]
    pub top_k: Option<f64>,
    #[serde(alias = "max_output_tokens")]
    pub max_output_tokens: Option<i64>,
    #[serde(alias = "stop_sequences")]
    pub stop_sequences: Option<Vec<String>>,
    #[serde(alias = "candidate_count")]
    pub candidate_count: Option<i64>,
    pub seed: Option<i64>,
    #[serde(alias = "presence_penalty")]
    pub presence_penalty: Option<f64>,
    #[serde(alias = "frequency_penalty")]
    pub frequency_penalty: Option<f64>,
    #[serde(alias = "response_logprobs")]
    pub response_logprobs: Option<bool>,
    pub logprobs: Option<i64>,
    #[serde(alias = "response_mime_type")]
    pub response_mime_type: Option<String>,
    #[serde(alias = "response_schema")]
    pub response_schema: Option<Value>,
    #[serde(alias = "response_json_schema", alias = "_responseJsonSchema")]
    pub response_json_schema: Option<Value>,
    #[serde(alias = "thinking_config")]
    pub thinking_config: Option<ThinkingConfig>,
    #[serde(alias = "response_modalities")]
    pub response_modalities: Option<Vec<String>>,
    #[serde(rename = "mediaResolution", alias = "media_resolution")]
    pub _media_resolution: Option<Value>,
    #[serde(rename = "speechConfig", alias = "speech_config")]
    pub _speech_config: Option<Value>,
    #[serde(rename = "imageConfig", alias = "image_config")]
    pub _image_config: Option<Value>,
    #[serde(rename = "enableEnhancedCivicAnswers", alias = "enable_enhanced_civic_answers")]
    pub _enable_enhanced_civic_answers: Option<Value>,
    #[serde(rename = "audioTimestamp", alias = "audio_timestamp")]
    pub _audio_timestamp: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ThinkingConfig {
    #[serde(alias = "include_thoughts")]
    pub include_thoughts: Option<bool>,
    #[serde(alias = "thinking_budget")]
    pub thinking_budget: Option<i64>,
    #[serde(alias = "thinking_level")]
    pub thinking_level: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tool {
    #[serde(alias = "function_declarations")]
    pub function_declarations: Option<Vec<FunctionDeclaration>>,
    // What is known and cannot be done.
    #[serde(alias = "google_search")]
    pub google_search: Option<Value>,
    #[serde(alias = "google_search_retrieval")]
    pub google_search_retrieval: Option<Value>,
    #[serde(alias = "code_execution")]
    pub code_execution: Option<Value>,
    #[serde(alias = "url_context")]
    pub url_context: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FunctionDeclaration {
    pub name: String,
    pub description: Option<String>,
    pub parameters: Option<Value>,
    #[serde(alias = "parameters_json_schema")]
    pub parameters_json_schema: Option<Value>,
    #[serde(rename = "response")]
    pub _response: Option<Value>,
    #[serde(rename = "responseJsonSchema", alias = "response_json_schema")]
    pub _response_json_schema: Option<Value>,
    #[serde(rename = "behavior")]
    pub _behavior: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ToolConfig {
    #[serde(alias = "function_calling_config")]
    pub function_calling_config: Option<FunctionCallingConfig>,
    #[serde(rename = "retrievalConfig", alias = "retrieval_config")]
    pub _retrieval_config: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FunctionCallingConfig {
    pub mode: Option<String>,
    #[serde(alias = "allowed_function_names")]
    pub allowed_function_names: Option<Vec<String>>,
    #[serde(rename = "streamFunctionCallArguments", alias = "stream_function_call_arguments")]
    pub _stream_function_call_arguments: Option<Value>,
}
