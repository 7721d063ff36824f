//! Owns the request bodies of the OpenAI API as they are on the wire, with the extensions that vLLM made customary.
//! Checks types only; ranges and meaning are `convert`'s. Unknown fields are accepted.
//!
//! One body is read as two structures, [`Common`] and the endpoint's own: so an error names the very field, which
//! serde's flattening would lose.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::body::{Fields, object, objects, optional_object, optional_objects};

/// Fields that every generating endpoint takes.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Common {
    pub model: Option<String>,
    pub n: Option<i64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub logit_bias: Option<BTreeMap<String, f64>>,
    pub seed: Option<i64>,
    pub stop: Option<OneOrMany>,
    pub stop_token_ids: Option<Vec<i64>>,
    pub include_stop_str_in_output: Option<bool>,
    pub max_tokens: Option<i64>,
    pub min_tokens: Option<i64>,
    pub ignore_eos: Option<bool>,
    pub skip_special_tokens: Option<bool>,
    pub add_special_tokens: Option<bool>,
    pub return_token_ids: Option<bool>,
    pub cache_salt: Option<String>,
    pub stream: Option<bool>,
    #[serde(default, deserialize_with = "optional_object")]
    pub stream_options: Option<StreamOptions>,
    // What the answer must be: see `format`.
    pub response_format: Option<Value>,
    pub structured_outputs: Option<Value>,
    pub guided_json: Option<Value>,
    pub guided_regex: Option<Value>,
    pub guided_choice: Option<Value>,
    pub guided_grammar: Option<Value>,
}

/// `POST /v1/chat/completions`, beside [`Common`].
#[derive(Clone, Debug, Deserialize)]
pub struct Chat {
    #[serde(deserialize_with = "objects")]
    pub messages: Vec<ChatMessage>,
    pub max_completion_tokens: Option<i64>,
    pub logprobs: Option<bool>,
    pub top_logprobs: Option<i64>,
    #[serde(default, deserialize_with = "optional_objects")]
    pub tools: Option<Vec<Tool>>,
    pub tool_choice: Option<ToolChoice>,
    pub parallel_tool_calls: Option<bool>,
    pub reasoning_effort: Option<String>,
    pub include_reasoning: Option<bool>,
    pub add_generation_prompt: Option<bool>,
    pub continue_final_message: Option<bool>,
    pub chat_template: Option<Value>,
    pub chat_template_kwargs: Option<Map<String, Value>>,
    pub modalities: Option<Vec<String>>,
}

/// One message. What a template may want beside role and content is kept in `extra`.
#[derive(Clone, Debug, Deserialize)]
pub struct ChatMessage {
    pub role: String,
    #[serde(default)]
    pub content: Content,
    pub name: Option<String>,
    #[serde(default, deserialize_with = "optional_objects")]
    pub tool_calls: Option<Vec<ToolCall>>,
    pub tool_call_id: Option<String>,
    pub reasoning_content: Option<String>,
}

/// A call that an earlier answer made.
#[derive(Clone, Debug, Deserialize)]
pub struct ToolCall {
    pub id: Option<String>,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    #[serde(deserialize_with = "object")]
    pub function: CalledFunction,
}

#[derive(Clone, Debug, Deserialize)]
pub struct CalledFunction {
    pub name: String,
    /// JSON in a string.
    pub arguments: Option<String>,
}

/// A tool the model may call.
#[derive(Clone, Debug, Deserialize)]
pub struct Tool {
    #[serde(rename = "type")]
    pub kind: String,
    pub function: Map<String, Value>,
}

/// `"auto"`, `"none"`, `"required"`, or an object that names a tool.
#[derive(Clone, Debug, PartialEq)]
pub enum ToolChoice {
    Mode(String),
    Object(Value),
}

/// Text of a message.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Content {
    #[default]
    Null,
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Part {
    #[serde(rename = "type")]
    pub kind: String,
    pub text: Option<String>,
    pub refusal: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct StreamOptions {
    pub include_usage: Option<bool>,
}

/// `POST /v1/completions`, beside [`Common`].
#[derive(Clone, Debug, Deserialize)]
pub struct Completion {
    pub prompt: Prompts,
    pub echo: Option<bool>,
    pub logprobs: Option<i64>,
    pub best_of: Option<i64>,
    pub suffix: Option<String>,
    pub prompt_embeds: Option<Value>,
}

/// `POST /tokenize`: text, or a chat that the template renders first.
#[derive(Clone, Debug, Deserialize)]
pub struct Tokenize {
    pub model: Option<String>,
    pub prompt: Option<String>,
    #[serde(default, deserialize_with = "optional_objects")]
    pub messages: Option<Vec<ChatMessage>>,
    pub add_special_tokens: Option<bool>,
    pub add_generation_prompt: Option<bool>,
    pub return_token_strs: Option<bool>,
    #[serde(default, deserialize_with = "optional_objects")]
    pub tools: Option<Vec<Tool>>,
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// `POST /detokenize`.
#[derive(Clone, Debug, Deserialize)]
pub struct Detokenize {
    pub model: Option<String>,
    pub tokens: Vec<i64>,
    pub skip_special_tokens: Option<bool>,
}

/// `"a"` or `["a", "b"]`.
#[derive(Clone, Debug, PartialEq)]
pub struct OneOrMany(pub Vec<String>);

/// The prompt of a completion: a string, strings, token ids, or lists of ids.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompts {
    Texts(Vec<String>),
    Tokens(Vec<Vec<i64>>),
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = OneOrMany;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E>(self, v: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![v.into()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMany, A::Error> {
                let mut items = vec![];
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(OneOrMany(items))
            }
        }
        deserializer.deserialize_any(V)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string, null or a list of content parts")
            }

            fn visit_unit<E>(self) -> Result<Content, E> {
                Ok(Content::Null)
            }

            fn visit_str<E>(self, v: &str) -> Result<Content, E> {
                Ok(Content::Text(v.into()))
            }

            fn visit_string<E>(self, v: String) -> Result<Content, E> {
                Ok(Content::Text(v))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
                let mut parts = vec![];
                while let Some(Fields(part)) = seq.next_element()? {
                    parts.push(part);
                }
                Ok(Content::Parts(parts))
            }
        }
        deserializer.deserialize_any(V)
    }
}

impl<'de> Deserialize<'de> for ToolChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(mode) => Ok(Self::Mode(mode)),
            object @ Value::Object(_) => Ok(Self::Object(object)),
            _ => Err(D::Error::custom("expected a string or an object")),
        }
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Prompts;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string, a list of strings, a list of token ids or a list of such lists")
            }

            fn visit_str<E>(self, v: &str) -> Result<Prompts, E> {
                Ok(Prompts::Texts(vec![v.into()]))
            }

            fn visit_string<E>(self, v: String) -> Result<Prompts, E> {
                Ok(Prompts::Texts(vec![v]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
                match seq.next_element::<Item>()? {
                    None => Ok(Prompts::Tokens(vec![])),
                    Some(Item::Text(first)) => Ok(Prompts::Texts(rest(first, seq)?)),
                    Some(Item::Token(first)) => Ok(Prompts::Tokens(vec![rest(first, seq)?])),
                    Some(Item::Tokens(first)) => Ok(Prompts::Tokens(rest(first, seq)?)),
                }
            }
        }
        deserializer.deserialize_any(V)
    }
}

/// The first element of a list, which decides what the others must be.
enum Item {
    Text(String),
    Token(i64),
    Tokens(Vec<i64>),
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Item;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string, a token id or a list of token ids")
            }

            fn visit_str<E>(self, v: &str) -> Result<Item, E> {
                Ok(Item::Text(v.into()))
            }

            fn visit_i64<E>(self, v: i64) -> Result<Item, E> {
                Ok(Item::Token(v))
            }

            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Item, E> {
                i64::try_from(v).map(Item::Token).map_err(|_| E::custom("token id is out of range"))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Item, A::Error> {
                let mut ids = vec![];
                while let Some(id) = seq.next_element()? {
                    ids.push(id);
                }
                Ok(Item::Tokens(ids))
            }
        }
        deserializer.deserialize_any(V)
    }
}

fn rest<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(first: T, mut seq: A) -> Result<Vec<T>, A::Error> {
    let mut items = vec![first];
    while let Some(item) = seq.next_element()? {
        items.push(item);
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::parse;
    use crate::error::ApiError;

    fn prompt(json: &str) -> Result<Prompts, ApiError> {
        parse::<Completion>(format!(r#"{{"prompt": {json}}}"#).as_bytes()).map(|c| c.prompt)
    }

    #[test]
    fn prompts_have_four_forms() {
        assert_eq!(prompt(r#""a""#).unwrap(), Prompts::Texts(vec!["a".into()]));
        assert_eq!(prompt(r#"["a", "b"]"#).unwrap(), Prompts::Texts(vec!["a".into(), "b".into()]));
        assert_eq!(prompt("[1, 2]").unwrap(), Prompts::Tokens(vec![vec![1, 2]]));
        assert_eq!(prompt("[[1], [2, 3]]").unwrap(), Prompts::Tokens(vec![vec![1], vec![2, 3]]));
    }

    #[test]
    fn errors_name_the_field() {
        let param = |json: &str| prompt(json).unwrap_err().param;
        for bad in ["5", "null", "true", "{}", "1.5"] {
            assert_eq!(param(bad).as_deref(), Some("prompt"), "{bad}");
        }
        assert_eq!(param(r#"["a", 5]"#).as_deref(), Some("prompt[1]"));
        assert_eq!(param("[[1], 5]").as_deref(), Some("prompt[1]"));
        assert_eq!(param("[18446744073709551615]").as_deref(), Some("prompt[0]"));

        let chat = |json: &str| parse::<Chat>(json.as_bytes()).unwrap_err().param.unwrap_or_default();
        assert_eq!(chat(r#"{"messages": [{"role": "user", "content": 5}]}"#), "messages[0].content");
        assert_eq!(
            chat(r#"{"messages": [{"role": "user", "content": [{"type": 1}]}]}"#),
            "messages[0].content[0].type"
        );
        assert_eq!(chat(r#"{"messages": [], "top_logprobs": "x"}"#), "top_logprobs");

        let common = |json: &str| parse::<Common>(json.as_bytes()).unwrap_err().param.unwrap_or_default();
        assert_eq!(common(r#"{"temperature": "hot"}"#), "temperature");
        assert_eq!(common(r#"{"max_tokens": 1.5}"#), "max_tokens");
        assert_eq!(common(r#"{"logit_bias": {"5": "x"}}"#), "logit_bias.5");
        assert_eq!(common(r#"{"stop": ["a", 5]}"#), "stop[1]");
    }

    #[test]
    fn what_is_not_json_is_said_to_be_so() {
        for bad in ["", "{", "[]", "nonsense", r#"{"a": NaN}"#, r#"{"n": 1} x"#, r#"{"n": 1e999}"#, "\u{feff}{}"] {
            let error = parse::<Common>(bad.as_bytes()).unwrap_err();
            assert_eq!(error.status.as_u16(), 400, "{bad}");
        }
        let deep = format!(r#"{{"response_format": {}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert!(parse::<Common>(deep.as_bytes()).is_err());
        assert!(parse::<Common>(&[b'{', b'"', 0xff, b'"', b':', b'1', b'}']).is_err());
    }

    #[test]
    fn unknown_fields_are_accepted() {
        assert!(parse::<Common>(br#"{"user": {"a": 1}, "x_y": [1, {"b": null}]}"#).is_ok());
    }
}
