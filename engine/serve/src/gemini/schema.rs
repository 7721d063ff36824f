//! Owns the way from the API's schemas, a subset of OpenAPI, to JSON schemas.

use serde_json::{Map, Value, json};

/// Deepest nesting that is followed; deeper ones no grammar would take.
const MAX_DEPTH: usize = 64;

/// A schema with types in capitals, `nullable` and `propertyOrdering` as a JSON schema.
///
/// # Errors
/// The place and the fault of what is no such schema.
pub fn json_schema(schema: &Value) -> Result<Value, String> {
    convert(schema, "", 0)
}

fn convert(schema: &Value, path: &str, depth: usize) -> Result<Value, String> {
    let Value::Object(schema) = schema else { return Err(format!("{path}: must be an object")) };
    if depth > MAX_DEPTH {
        return Err(format!("{path}: more than {MAX_DEPTH} levels"));
    }
    let below = |value: &Value, name: &str| convert(value, &format!("{path}.{name}"), depth + 1);
    let mut made = Map::new();
    let mut nullable = false;
    let mut order = None;
    for (key, value) in schema {
        match key.as_str() {
            "type" => {
                let name = value.as_str().ok_or_else(|| format!("{path}.type: must be a string"))?.to_lowercase();
                if !["string", "number", "integer", "boolean", "array", "object", "null"].contains(&name.as_str()) {
                    return Err(format!("{path}.type: '{name}' is no type"));
                }
                made.insert("type".into(), name.into());
            }
            "nullable" => nullable = value == true,
            "propertyOrdering" | "property_ordering" => order = value.as_array(),
            "properties" => {
                let Value::Object(properties) = value else {
                    return Err(format!("{path}.properties: must be an object"));
                };
                let converted = properties.iter().map(|(name, value)| Ok((name.clone(), below(value, name)?)));
                made.insert("properties".into(), Value::Object(converted.collect::<Result<_, String>>()?));
            }
            "items" => {
                made.insert("items".into(), below(value, "items")?);
            }
            "anyOf" | "any_of" => {
                let list = value.as_array().ok_or_else(|| format!("{path}.anyOf: must be a list"))?;
                let list = list.iter().map(|value| below(value, "anyOf")).collect::<Result<Vec<_>, _>>()?;
                made.insert("anyOf".into(), list.into());
            }
            // Whole numbers are strings in protobuf's JSON.
            "minItems" | "maxItems" | "minLength" | "maxLength" | "min_items" | "max_items" | "min_length"
            | "max_length" => {
                let number = value.as_u64().or_else(|| value.as_str().and_then(|text| text.parse().ok()));
                let number = number.ok_or_else(|| format!("{path}.{key}: must be a whole number"))?;
                let name = key.replace("_items", "Items").replace("_length", "Length");
                made.insert(name, number.into());
            }
            "additionalProperties" | "additional_properties" => {
                let value = if value.is_boolean() { value.clone() } else { below(value, "additionalProperties")? };
                made.insert("additionalProperties".into(), value);
            }
            "enum" | "required" | "pattern" | "minimum" | "maximum" | "title" | "description" => {
                made.insert(key.clone(), value.clone());
            }
            // Shape of numbers and dates, samples: nothing that an answer must keep to.
            "format" | "example" | "default" => {}
            // Written as in JSON schema, by clients that have one.
            "$ref" | "$defs" | "defs" | "ref" | "const" | "multipleOf" => {
                made.insert(key.clone(), value.clone());
            }
            other => return Err(format!("{path}.{other}: this field is not known")),
        }
    }
    if let (Some(order), Some(Value::Object(properties))) = (order, made.get_mut("properties")) {
        let mut ordered = Map::new();
        for name in order.iter().filter_map(Value::as_str) {
            if let Some(value) = properties.shift_remove(name) {
                ordered.insert(name.to_owned(), value);
            }
        }
        ordered.append(properties);
        *properties = ordered;
    }
    if nullable {
        return Ok(json!({"anyOf": [Value::Object(made), {"type": "null"}]}));
    }
    Ok(Value::Object(made))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_small_and_order_is_kept() {
        let schema = json!({
            "type": "OBJECT",
            "properties": {
                "a": {"type": "INTEGER", "format": "int32"},
                "b": {"type": "ARRAY", "items": {"type": "STRING", "enum": ["x"]}, "maxItems": "3"},
                "c": {"type": "STRING", "nullable": true},
            },
            "propertyOrdering": ["c", "a"],
            "required": ["a"],
        });
        let made = json_schema(&schema).unwrap();
        assert_eq!(
            made.to_string(),
            r#"{"type":"object","properties":{"c":{"anyOf":[{"type":"string"},{"type":"null"}]},"a":{"type":"integer"},"b":{"type":"array","items":{"type":"string","enum":["x"]},"maxItems":3}},"required":["a"]}"#
        );
    }

    #[test]
    fn faults_are_placed() {
        for (schema, place) in [
            (json!({"type": "DATE"}), ".type"),
            (json!({"properties": {"a": {"kind": 1}}}), ".a.kind"),
            (json!({"items": []}), ".items"),
            (json!({"minItems": "few"}), ".minItems"),
        ] {
            assert!(json_schema(&schema).unwrap_err().starts_with(place), "{schema}");
        }
        let deep = (0..100).fold(json!({"type": "STRING"}), |inner, _| json!({"items": inner}));
        assert!(json_schema(&deep).is_err());
    }
}
