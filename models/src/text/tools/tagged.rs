//! Owns calls that are tags with text between them: GLM's keys and values, Qwen Coder's functions and parameters. What a
//! value is, the tool's schema says.

use serde_json::{Map, Value};

use super::ToolSpec;
use super::parser::Call;

/// `NAME`, then `<arg_key>K</arg_key><arg_value>V</arg_value>` for each argument; `text` is all between the outer tags.
pub(super) fn glm(text: &str, tools: &[ToolSpec]) -> Option<Call> {
    let head = text.find("<arg_key>").unwrap_or(text.len());
    let name = text[..head].trim();
    let tool = tools.iter().find(|tool| tool.name == name)?;
    let mut arguments = Map::new();
    let mut rest = text[head..].trim();
    while !rest.is_empty() {
        let (key, more) = rest.strip_prefix("<arg_key>")?.split_once("</arg_key>")?;
        let (value, more) = more.trim_start().strip_prefix("<arg_value>")?.split_once("</arg_value>")?;
        arguments.insert(key.trim().to_owned(), typed(tool, key.trim(), value));
        rest = more.trim_start();
    }
    Some(call(name, arguments))
}

/// `<function=NAME>`, then `<parameter=K>V</parameter>` for each argument, then `</function>`.
pub(super) fn coder(text: &str, tools: &[ToolSpec]) -> Option<Call> {
    let inner = text.trim().strip_prefix("<function=")?;
    let (name, mut rest) = inner.split_once('>')?;
    let name = name.trim();
    let tool = tools.iter().find(|tool| tool.name == name)?;
    let mut arguments = Map::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() || rest.starts_with("</function>") {
            return Some(call(name, arguments));
        }
        let (key, more) = rest.strip_prefix("<parameter=")?.split_once('>')?;
        let (value, more) = more.split_once("</parameter>")?;
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        arguments.insert(key.trim().to_owned(), typed(tool, key.trim(), value));
        rest = more;
    }
}

fn call(name: &str, arguments: Map<String, Value>) -> Call {
    Call { name: name.to_owned(), id: None, arguments: Value::Object(arguments).to_string() }
}

/// Text where the schema wants text, else JSON if it is some.
fn typed(tool: &ToolSpec, key: &str, text: &str) -> Value {
    let schema = tool.parameters.as_ref().and_then(|schema| schema.get("properties")?.get(key));
    if schema.and_then(|schema| schema.get("type")) == Some(&Value::from("string")) {
        return text.into();
    }
    let trimmed = text.trim();
    match trimmed {
        "True" => true.into(),
        "False" => false.into(),
        "None" => Value::Null,
        _ => serde_json::from_str(trimmed).unwrap_or_else(|_| text.into()),
    }
}
