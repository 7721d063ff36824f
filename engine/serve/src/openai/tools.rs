//! Owns the way from `tools`, `tool_choice` and `parallel_tool_calls` to what the engine takes. Errors name the field.

use dualgauge::{ToolChoice as Choice, ToolUse};
use dualgauge_models::text::ToolSpec;
use serde_json::Value;

use super::ApiError;
use super::types::{Tool, ToolChoice};
use crate::app::Server;
use crate::tools::Offer;

/// The tools of a body; `None` when it has none.
///
/// # Errors
/// 400 for a tool or a choice that is wrong.
pub fn tools(
    server: &Server,
    tools: Option<Vec<Tool>>,
    choice: Option<ToolChoice>,
    parallel: Option<bool>,
) -> Result<Option<ToolUse>, ApiError> {
    let tools = tools.unwrap_or_default().into_iter().enumerate();
    let tools = tools.map(|(at, tool)| spec(at, tool)).collect::<Result<Vec<_>, _>>()?;
    let (choice, allowed) = match choice {
        None => (Choice::Auto, None),
        Some(ToolChoice::Mode(mode)) => (self::mode("tool_choice", &mode)?, None),
        Some(ToolChoice::Object(object)) => self::object(&object)?,
    };
    let offer = Offer { tools, choice, allowed, parallel: parallel.unwrap_or(true), id_prefix: "call_" };
    offer.check(server, "tools", "tool_choice")
}

fn spec(at: usize, tool: Tool) -> Result<ToolSpec, ApiError> {
    if tool.kind != "function" {
        let path = format!("tools[{at}].type");
        return Err(ApiError::unsupported(path.clone(), format!("{path}: must be 'function'.")));
    }
    let path = |field: &str| format!("tools[{at}].function.{field}");
    let wrong = |field: &str, what: &str| ApiError::invalid(path(field), format!("{}: must be {what}.", path(field)));
    let field = |name: &str| tool.function.get(name).filter(|value| !value.is_null());
    let name = field("name").and_then(Value::as_str).filter(|name| !name.is_empty());
    let description = field("description").map(|value| value.as_str().ok_or_else(|| wrong("description", "a string")));
    let parameters = field("parameters").map(|value| match value {
        Value::Object(_) => Ok(value.clone()),
        _ => Err(wrong("parameters", "a JSON schema")),
    });
    let strict = field("strict").map(|value| value.as_bool().ok_or_else(|| wrong("strict", "true or false")));
    Ok(ToolSpec {
        name: name.ok_or_else(|| wrong("name", "a string"))?.to_owned(),
        description: description.transpose()?.map(str::to_owned),
        parameters: parameters.transpose()?,
        strict: strict.transpose()?.unwrap_or(false),
    })
}

fn mode(path: &str, mode: &str) -> Result<Choice, ApiError> {
    match mode {
        "auto" => Ok(Choice::Auto),
        "none" => Ok(Choice::None),
        "required" => Ok(Choice::Required),
        _ => Err(ApiError::invalid(path, format!("{path}: must be 'none', 'auto', 'required' or name a tool."))),
    }
}

/// A named tool, or a selection of them.
fn object(choice: &Value) -> Result<(Choice, Option<Vec<String>>), ApiError> {
    let name = |value: &Value| value.pointer("/function/name")?.as_str().map(str::to_owned);
    match choice.get("type").and_then(Value::as_str) {
        Some("function") => {
            let path = "tool_choice.function.name";
            let name = name(choice).ok_or_else(|| ApiError::invalid(path, format!("{path}: must be a string.")))?;
            Ok((Choice::Named(name), None))
        }
        Some("allowed_tools") => {
            let allowed = &choice["allowed_tools"];
            let mode = match allowed["mode"].as_str() {
                Some(mode @ ("auto" | "required")) => self::mode("tool_choice.allowed_tools.mode", mode)?,
                _ => {
                    let path = "tool_choice.allowed_tools.mode";
                    return Err(ApiError::invalid(path, format!("{path}: must be 'auto' or 'required'.")));
                }
            };
            let names =
                allowed["tools"].as_array().and_then(|tools| tools.iter().map(name).collect::<Option<Vec<_>>>());
            let names = names.filter(|names| !names.is_empty()).ok_or_else(|| {
                let path = "tool_choice.allowed_tools.tools";
                ApiError::invalid(path, format!("{path}: must be a list of functions with their names."))
            })?;
            Ok((mode, Some(names)))
        }
        _ => Err(ApiError::invalid("tool_choice.type", "tool_choice.type: must be 'function' or 'allowed_tools'.")),
    }
}
