//! Owns what a request wants its answer to be: `response_format`, and the names that vLLM gave the same wishes. Whether a
//! schema or grammar can be kept to is the engine's to say.

use dualgauge::OutputFormat;
use serde_json::Value;

use super::ApiError;
use super::types::Common;

/// A form, and the field that asked for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub field: String,
    pub format: OutputFormat,
}

/// The form that a body asks for.
///
/// # Errors
/// 400 for a field that is wrong, and for two wishes at once.
pub fn wanted(common: &Common) -> Result<Option<Wanted>, ApiError> {
    let mut found: Vec<Wanted> = vec![];
    let mut want = |field: &str, format| found.push(Wanted { field: field.into(), format });
    if let Some(value) = given(&common.response_format)
        && let Some(format) = response_format(value)?
    {
        want("response_format", format);
    }
    if let Some(value) = given(&common.guided_json) {
        want("guided_json", schema("guided_json", value)?);
    }
    if let Some(value) = given(&common.guided_regex) {
        want("guided_regex", OutputFormat::Regex(text("guided_regex", value)?));
    }
    if let Some(value) = given(&common.guided_choice) {
        want("guided_choice", choice("guided_choice", value)?);
    }
    if let Some(value) = given(&common.guided_grammar) {
        want("guided_grammar", OutputFormat::Lark(text("guided_grammar", value)?));
    }
    if let Some(value) = given(&common.structured_outputs) {
        let Value::Object(fields) = value else {
            return Err(must("structured_outputs", "be an object"));
        };
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            let path = format!("structured_outputs.{name}");
            let format = match name.as_str() {
                "json" => schema(&path, value)?,
                "json_object" if *value == Value::Bool(true) => OutputFormat::JsonObject,
                "regex" => OutputFormat::Regex(text(&path, value)?),
                "choice" => choice(&path, value)?,
                "grammar" => OutputFormat::Lark(text(&path, value)?),
                "structural_tag" => {
                    return Err(ApiError::unsupported(path.clone(), format!("{path}: use tools instead.")));
                }
                // How, not what: whitespace and back ends.
                _ => continue,
            };
            want(&path, format);
        }
    }
    match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => {
            let names: Vec<&str> = found.iter().map(|wanted| wanted.field.as_str()).collect();
            let message = format!("{}: an answer has one form; send one of these.", names.join(", "));
            Err(ApiError::invalid(names[1], message))
        }
    }
}

fn response_format(value: &Value) -> Result<Option<OutputFormat>, ApiError> {
    match value.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(OutputFormat::JsonObject)),
        Some("json_schema") => {
            let inner = value.get("json_schema").filter(|inner| inner.is_object());
            let inner = inner.ok_or_else(|| must("response_format.json_schema", "be an object with a schema"))?;
            let path = "response_format.json_schema.schema";
            let schema = inner.get("schema").filter(|schema| schema.is_object());
            let schema = schema.ok_or_else(|| must(path, "be a JSON schema"))?.clone();
            let strict = match inner.get("strict") {
                None | Some(Value::Null) => false,
                Some(Value::Bool(strict)) => *strict,
                Some(_) => return Err(must("response_format.json_schema.strict", "be true or false")),
            };
            Ok(Some(OutputFormat::JsonSchema { schema, strict }))
        }
        _ => Err(must("response_format.type", "be 'text', 'json_object' or 'json_schema'")),
    }
}

/// A schema as an object, or as JSON in a string.
fn schema(path: &str, value: &Value) -> Result<OutputFormat, ApiError> {
    let schema = match value {
        Value::Object(_) => Some(value.clone()),
        Value::String(text) => serde_json::from_str(text).ok().filter(Value::is_object),
        _ => None,
    };
    let schema = schema.ok_or_else(|| must(path, "be a JSON schema"))?;
    Ok(OutputFormat::JsonSchema { schema, strict: true })
}

fn text(path: &str, value: &Value) -> Result<String, ApiError> {
    value.as_str().map(str::to_owned).ok_or_else(|| must(path, "be a string"))
}

fn choice(path: &str, value: &Value) -> Result<OutputFormat, ApiError> {
    let texts = value.as_array().filter(|texts| !texts.is_empty());
    let texts = texts.and_then(|texts| texts.iter().map(|text| text.as_str().map(str::to_owned)).collect());
    texts.map(OutputFormat::Choice).ok_or_else(|| must(path, "be a list of strings"))
}

fn given(value: &Option<Value>) -> Option<&Value> {
    value.as_ref().filter(|value| !value.is_null())
}

fn must(path: &str, what: &str) -> ApiError {
    ApiError::invalid(path, format!("{path}: must {what}."))
}
