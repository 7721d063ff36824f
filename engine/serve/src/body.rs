//! Owns the reading of a JSON body: into a structure, with errors that name the field, and off the sockets' threads.
//! Knows no API.

use std::fmt;
use std::marker::PhantomData;

use axum::body::Bytes;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::ApiError;

/// Reads one structure from a body.
///
/// # Errors
/// 400 that names the field, or the place at which the text stops being JSON.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    if body.trim_ascii_start().first().is_some_and(|b| *b != b'{') {
        return Err(ApiError::invalid("", "The body must be a JSON object."));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let path = e.path().to_string();
        let known = path != "." && !path.is_empty();
        match e.inner().classify() {
            serde_json::error::Category::Data if known => {
                ApiError::invalid(path.clone(), format!("{path}: {}", e.inner()))
            }
            serde_json::error::Category::Data => {
                // A field that is missing or there twice is named by the message alone.
                let message = e.inner().to_string();
                let field = message.split('`').nth(1).filter(|_| message.contains(" field `")).unwrap_or_default();
                ApiError::invalid(field.to_owned(), message)
            }
            _ => ApiError::invalid("", format!("The body is not valid JSON: {}", e.inner())),
        }
    })?;
    json.end().map_err(|e| ApiError::invalid("", format!("The body is not valid JSON: {e}")))?;
    Ok(parsed)
}

/// Runs work on a body on a thread that may take its time: encoding a prompt and making a grammar of a schema are work.
pub async fn off_thread<T: Send + 'static>(
    body: Bytes,
    work: impl FnOnce(&[u8]) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(move || work(&body)).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::internal()),
    }
}

/// A structure that is an object on the wire: serde alone would take its fields from a list too.
pub struct Fields<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Fields<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for V<T> {
            type Value = Fields<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Fields<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Fields)
            }
        }
        deserializer.deserialize_map(V(PhantomData))
    }
}

/// For fields: an object.
pub fn object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Fields::deserialize(deserializer).map(|fields| fields.0)
}

/// For fields: an object or nothing.
pub fn optional_object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Option::<Fields<T>>::deserialize(deserializer).map(|fields| fields.map(|fields| fields.0))
}

/// For fields: a list of objects.
pub fn objects<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Vec::<Fields<T>>::deserialize(deserializer).map(|list| list.into_iter().map(|fields| fields.0).collect())
}

/// For fields: a list of objects or nothing.
pub fn optional_objects<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    let list = Option::<Vec<Fields<T>>>::deserialize(deserializer)?;
    Ok(list.map(|list| list.into_iter().map(|fields| fields.0).collect()))
}

/// A string, or a list where an API takes more than text.
#[derive(Clone, Debug, PartialEq)]
pub enum TextOr<T> {
    Text(String),
    Parts(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for V<T> {
            type Value = TextOr<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string or a list")
            }

            fn visit_str<E>(self, v: &str) -> Result<TextOr<T>, E> {
                Ok(TextOr::Text(v.into()))
            }

            fn visit_string<E>(self, v: String) -> Result<TextOr<T>, E> {
                Ok(TextOr::Text(v))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<TextOr<T>, A::Error> {
                let mut parts = vec![];
                while let Some(part) = seq.next_element()? {
                    parts.push(part);
                }
                Ok(TextOr::Parts(parts))
            }
        }
        deserializer.deserialize_any(V(PhantomData))
    }
}
