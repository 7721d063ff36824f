//! Owns a small JSON schema validator of our own, for what the tests ask of constrained answers: an oracle that shares
//! nothing with the engine.

use serde_json::Value;

/// Whether `value` keeps to `schema`; `root` is where `$ref` begins.
///
/// # Errors
/// Where it does not, and what is there.
pub fn validate(root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let broken = |what: &str| Err(format!("{what}: {value} does not keep to {schema}"));
    let Some(fields) = schema.as_object() else { return Ok(()) };
    for (keyword, rule) in fields {
        let length = |text: &str| text.chars().count() as u64;
        let ok = match keyword.as_str() {
            "$ref" => {
                let path = rule.as_str().and_then(|path| path.strip_prefix('#')).expect("a local reference");
                validate(root, root.pointer(path).expect("it is there"), value)?;
                true
            }
            "type" => match rule {
                Value::Array(types) => types.iter().any(|t| is(t, value)),
                one => is(one, value),
            },
            "enum" => rule.as_array().expect("a list").contains(value),
            "const" => rule == value,
            "anyOf" => rule.as_array().expect("a list").iter().any(|s| validate(root, s, value).is_ok()),
            "required" => match value.as_object() {
                Some(object) => {
                    rule.as_array().expect("a list").iter().all(|k| object.contains_key(k.as_str().unwrap()))
                }
                None => true,
            },
            "properties" => {
                for (key, schema) in rule.as_object().expect("an object") {
                    if let Some(inner) = value.get(key) {
                        validate(root, schema, inner)?;
                    }
                }
                true
            }
            "additionalProperties" if rule == false => match (value.as_object(), fields["properties"].as_object()) {
                (Some(object), Some(properties)) => object.keys().all(|key| properties.contains_key(key)),
                _ => true,
            },
            "items" => {
                for inner in value.as_array().into_iter().flatten() {
                    validate(root, rule, inner)?;
                }
                true
            }
            "minItems" => value.as_array().is_none_or(|v| v.len() as u64 >= rule.as_u64().unwrap()),
            "maxItems" => value.as_array().is_none_or(|v| v.len() as u64 <= rule.as_u64().unwrap()),
            "minLength" => value.as_str().is_none_or(|v| length(v) >= rule.as_u64().unwrap()),
            "maxLength" => value.as_str().is_none_or(|v| length(v) <= rule.as_u64().unwrap()),
            "minimum" => value.as_f64().is_none_or(|v| v >= rule.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|v| v <= rule.as_f64().unwrap()),
            "exclusiveMinimum" => value.as_f64().is_none_or(|v| v > rule.as_f64().unwrap()),
            "exclusiveMaximum" => value.as_f64().is_none_or(|v| v < rule.as_f64().unwrap()),
            "multipleOf" => value.as_f64().is_none_or(|v| (v / rule.as_f64().unwrap()).fract() == 0.0),
            "$defs" | "title" | "description" => true,
            other => panic!("the oracle does not know {other}"),
        };
        if !ok {
            return broken(keyword);
        }
    }
    Ok(())
}

fn is(kind: &Value, value: &Value) -> bool {
    match kind.as_str().expect("a type") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|v| v.fract() == 0.0),
        other => panic!("the oracle does not know the type {other}"),
    }
}
