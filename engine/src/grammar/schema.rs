//! Owns how a JSON schema is enforced: on one line, so that no answer runs on in white space, and with nothing that the
//! schema does not ask for. Keywords that cannot be enforced are refused by name.

use llguidance::JsonCompileOptions;
use serde_json::{Map, Value, json};

/// Deeper schemas are refused before anything recurses into them.
const MAX_DEPTH: usize = 64;
/// Options that a schema must not bring along.
const OPTIONS: &str = "x-guidance";

/// A schema as the grammar engine takes it. With `strict`, what cannot be enforced fails to compile; otherwise it is
/// passed over.
///
/// # Errors
/// A sentence: it is no schema, or too deep.
pub fn prepared(schema: &Value, strict: bool) -> Result<Value, String> {
    let mut schema = match schema {
        Value::Object(fields) => Value::Object(fields.clone()),
        Value::Bool(true) => json!({}),
        other => return Err(format!("a schema must be an object, not {}", kind(other))),
    };
    check_depth(&schema, 0)?;
    close(&mut schema);
    let options = JsonCompileOptions {
        item_separator: ", ?".into(),
        key_separator: ": ?".into(),
        whitespace_flexible: false,
        coerce_one_of: !strict,
        lenient: !strict,
        ..JsonCompileOptions::default()
    };
    if let Value::Object(fields) = &mut schema {
        fields.remove(OPTIONS);
    }
    options.apply_to(&mut schema);
    Ok(schema)
}

/// Objects that list their properties have no others, unless the schema speaks of others. What keeps to this keeps to
/// the schema as it was.
fn close(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    let lists = matches!(fields.get("properties"), Some(Value::Object(properties)) if !properties.is_empty());
    let speaks =
        ["additionalProperties", "patternProperties", "unevaluatedProperties", "allOf", "anyOf", "oneOf", "$ref"]
            .iter()
            .any(|keyword| fields.contains_key(*keyword))
            || asks_for_others(fields);
    if lists && !speaks {
        fields.insert("additionalProperties".into(), false.into());
    }
    for (keyword, value) in fields.iter_mut() {
        match keyword.as_str() {
            "properties" | "$defs" | "definitions" | "patternProperties" => {
                value.as_object_mut().into_iter().flat_map(|map| map.values_mut()).for_each(close);
            }
            "items" | "additionalProperties" => close(value),
            "prefixItems" | "anyOf" => value.as_array_mut().into_iter().flatten().for_each(close),
            _ => {}
        }
    }
}

/// Required properties that are not among the listed ones, or more properties than are listed.
fn asks_for_others(fields: &Map<String, Value>) -> bool {
    let Some(Value::Object(properties)) = fields.get("properties") else { return false };
    let required = fields.get("required").and_then(Value::as_array).into_iter().flatten();
    let unlisted = required.filter_map(Value::as_str).any(|name| !properties.contains_key(name));
    unlisted || fields.get("minProperties").and_then(Value::as_u64).is_some_and(|min| min > properties.len() as u64)
}

fn check_depth(value: &Value, depth: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("the schema is nested deeper than {MAX_DEPTH} levels"));
    }
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| check_depth(item, depth + 1)),
        Value::Object(fields) => fields.values().try_for_each(|field| check_depth(field, depth + 1)),
        _ => Ok(()),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_closed_where_that_changes_no_answer_to_a_wrong_one() {
        let closed = |schema: Value| {
            let mut schema = schema;
            close(&mut schema);
            schema
        };
        let inner = closed(json!({"properties": {"a": {"items": {"properties": {"b": {}}}}}}));
        assert_eq!(inner["additionalProperties"], json!(false));
        assert_eq!(inner["properties"]["a"]["items"]["additionalProperties"], json!(false));
        for open in [
            json!({"type": "object"}),
            json!({"properties": {"a": {}}, "required": ["b"]}),
            json!({"properties": {"a": {}}, "additionalProperties": {"type": "string"}}),
            json!({"properties": {"a": {}}, "minProperties": 2}),
            json!({"properties": {"a": {}}, "allOf": [{"required": ["b"]}]}),
        ] {
            assert_eq!(closed(open.clone()), open);
        }
    }

    #[test]
    fn a_schema_cannot_bring_options() {
        let schema = prepared(&json!({"type": "object", "x-guidance": {"lenient": true}}), true).expect("a schema");
        assert_eq!(schema["x-guidance"]["lenient"], json!(false));
        assert!(prepared(&json!([1]), true).is_err());
        let deep = (0..100).fold(json!({}), |inner, _| json!({"items": inner}));
        assert!(prepared(&deep, true).is_err());
    }
}
