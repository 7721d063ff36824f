//! Owns the metadata of a GGUF file as plain values: what the tokenizer and the configuration are read from. Knows no
//! file layout and no key.

use std::collections::HashMap;

use crate::{Error, Result};

/// A value of GGUF metadata. Integers of all widths are [`Self::Int`], floats [`Self::Float`].
#[derive(Clone, Debug, PartialEq)]
pub enum MetadataValue {
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

/// The metadata of one GGUF file, by key. A getter returns `None` for a key that is absent and an error, naming file
/// and key, for one that holds something else.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    file: String,
    values: HashMap<String, MetadataValue>,
}

impl Metadata {
    pub fn new(file: impl Into<String>, values: HashMap<String, MetadataValue>) -> Self {
        Self { file: file.into(), values }
    }

    /// Name of the file, for errors.
    pub fn file(&self) -> &str {
        &self.file
    }

    pub fn get(&self, key: &str) -> Option<&MetadataValue> {
        self.values.get(key)
    }

    /// # Errors
    /// When the key holds something else.
    pub fn int(&self, key: &str) -> Result<Option<i64>> {
        self.typed(key, "an integer", |v| match v {
            MetadataValue::Int(v) => Some(*v),
            _ => None,
        })
    }

    /// A token id: an integer from 0 to 2^32 - 1.
    ///
    /// # Errors
    /// When the key holds something else.
    pub fn id(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a token id", |v| match v {
            MetadataValue::Int(v) => u32::try_from(*v).ok(),
            _ => None,
        })
    }

    /// # Errors
    /// When the key holds something else.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |v| match v {
            MetadataValue::Float(v) => Some(*v),
            MetadataValue::Int(v) => Some(*v as f64),
            _ => None,
        })
    }

    /// # Errors
    /// When the key holds something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |v| match v {
            MetadataValue::Bool(v) => Some(*v),
            _ => None,
        })
    }

    /// # Errors
    /// When the key holds something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |v| match v {
            MetadataValue::Text(v) => Some(v.as_str()),
            _ => None,
        })
    }

    /// # Errors
    /// When the key holds something else.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "a list of strings", |v| match v {
            MetadataValue::Texts(v) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// # Errors
    /// When the key holds something else.
    pub fn ints(&self, key: &str) -> Result<Option<&[i64]>> {
        self.typed(key, "a list of integers", |v| match v {
            MetadataValue::Ints(v) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// # Errors
    /// When the key holds something else.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        self.typed(key, "a list of numbers", |v| match v {
            MetadataValue::Floats(v) => Some(v.as_slice()),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        what: &str,
        read: impl FnOnce(&'a MetadataValue) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(value) => Ok(Some(value)),
                None => Err(Error::file(&self.file, format!("{key} is not {what}"))),
            },
        }
    }
}
