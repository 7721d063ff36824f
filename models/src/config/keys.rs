//! Owns typed access to the keys of a configuration. Every error names the file and the key; every number is checked
//! against a range before anything is computed with it. Knows no key's meaning.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::source::Gguf;
use crate::{Error, Result};

/// Keys of a `config.json`, or of GGUF metadata in its words, over the defaults of a family.
///
/// A key that is left out has the default; one that is `null` is absent.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    file: String,
    /// Path of the object these keys are in: `rope_scaling.`; empty at the top.
    prefix: String,
    map: Map<String, Value>,
    defaults: Map<String, Value>,
    /// The architecture of a GGUF file, whose own names of keys are shown in errors.
    gguf: Option<String>,
}

/// Names of keys, and what models of GPT-2's time called them.
const OLDER_NAMES: &[(&str, &str)] = &[
    ("hidden_size", "n_embd"),
    ("intermediate_size", "n_inner"),
    ("num_hidden_layers", "n_layer"),
    ("num_attention_heads", "n_head"),
    ("max_position_embeddings", "n_positions"),
    ("hidden_act", "activation_function"),
    ("partial_rotary_factor", "rotary_pct"),
    ("rope_theta", "rotary_emb_base"),
];

impl Keys {
    /// Sizes of a model are at most this.
    pub const SIZE: RangeInclusive<usize> = 1..=1 << 24;

    pub fn new(file: impl Into<String>, map: Map<String, Value>) -> Self {
        Self { file: file.into(), map, ..Self::default() }
    }

    /// Parses the text of a JSON file.
    ///
    /// # Errors
    /// When it is not a JSON object.
    pub fn parse(file: impl Into<String>, text: &str) -> Result<Self> {
        let file = file.into();
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Self::new(file, map)),
            Ok(_) => Err(Error::file(file, "is not a JSON object")),
            Err(e) => Err(Error::file(file, format!("is not valid JSON: {e}"))),
        }
    }

    /// The same keys of a GGUF file of this architecture.
    pub(crate) fn of_gguf(mut self, architecture: &str) -> Self {
        self.gguf = Some(architecture.into());
        self
    }

    /// The same keys over these defaults, a JSON object.
    pub(crate) fn over(mut self, defaults: &'static str) -> Self {
        self.defaults = serde_json::from_str(defaults).expect("a family's defaults are a JSON object: this is a bug");
        self
    }

    /// The keys of the text model, where these are those of a wrapped one, which is said beside them. What the text model
    /// leaves out and the wrapper states is of the whole.
    ///
    /// # Errors
    /// When `text_config` is no object.
    pub(crate) fn unwrapped(self) -> Result<(Self, bool)> {
        let Some(mut text) = self.object("text_config")? else { return Ok((self, false)) };
        for key in ["architectures", "eos_token_id", "bos_token_id", "tie_word_embeddings", "quantization_config"] {
            if let (false, Some(value)) = (text.states(key), self.map.get(key)) {
                text.map.insert(key.into(), value.clone());
            }
        }
        Ok((text, true))
    }

    /// Name of the file, for errors.
    pub fn file(&self) -> &str {
        &self.file
    }

    pub(crate) fn is_gguf(&self) -> bool {
        self.gguf.is_some()
    }

    /// The error for a key: what it is and what is wrong with it.
    pub fn fail(&self, key: &str, reason: impl std::fmt::Display) -> Error {
        let key = format!("{}{key}", self.prefix);
        let key = self.gguf.as_ref().map_or_else(|| key.clone(), |a| Gguf::key_name(a, &key));
        Error::file(&self.file, format!("{key}: {reason}"))
    }

    /// Whether the file itself states the key, `null` included.
    pub fn states(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    pub fn value(&self, key: &str) -> Option<&Value> {
        let older = || OLDER_NAMES.iter().filter(|(name, _)| *name == key).find_map(|(_, older)| self.map.get(*older));
        self.map.get(key).or_else(older).or_else(|| self.defaults.get(key)).filter(|v| !v.is_null())
    }

    /// # Errors
    /// When the key is absent or no integer of [`Self::SIZE`].
    pub fn size(&self, key: &str) -> Result<usize> {
        self.maybe_size(key)?.ok_or_else(|| self.fail(key, "is missing"))
    }

    /// # Errors
    /// When the value is no integer of [`Self::SIZE`].
    pub fn maybe_size(&self, key: &str) -> Result<Option<usize>> {
        self.value(key).map(|v| self.to_size(key, v)).transpose()
    }

    /// A whole number from 0, which is what an absent key stands for.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn count(&self, key: &str) -> Result<usize> {
        match self.value(key) {
            Some(v) if v.as_u64() == Some(0) => Ok(0),
            Some(v) => self.to_size(key, v),
            None => Ok(0),
        }
    }

    /// # Errors
    /// When the key is absent or no finite number.
    pub fn number(&self, key: &str) -> Result<f64> {
        self.maybe_number(key)?.ok_or_else(|| self.fail(key, "is missing"))
    }

    /// # Errors
    /// When the value is no finite number.
    pub fn maybe_number(&self, key: &str) -> Result<Option<f64>> {
        self.value(key).map(|v| self.to_number(key, v)).transpose()
    }

    /// A number above zero.
    ///
    /// # Errors
    /// When the key is absent or holds something else.
    pub fn positive(&self, key: &str) -> Result<f64> {
        self.maybe_positive(key)?.ok_or_else(|| self.fail(key, "is missing"))
    }

    /// # Errors
    /// When the value is no finite number above zero.
    pub fn maybe_positive(&self, key: &str) -> Result<Option<f64>> {
        match self.maybe_number(key)? {
            Some(v) if v <= 0.0 || v as f32 == 0.0 || !(v as f32).is_finite() => {
                Err(self.fail(key, format!("{v} is not a number above zero")))
            }
            v => Ok(v),
        }
    }

    /// False when absent.
    ///
    /// # Errors
    /// When the value is neither true nor false.
    pub fn flag(&self, key: &str) -> Result<bool> {
        match self.value(key) {
            None => Ok(false),
            Some(Value::Bool(v)) => Ok(*v),
            Some(v) => Err(self.fail(key, format!("{} is not true or false", short(v)))),
        }
    }

    /// # Errors
    /// When the value is no string.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(v)) => Ok(Some(v)),
            Some(v) => Err(self.fail(key, format!("{} is not a string", short(v)))),
        }
    }

    /// # Errors
    /// When the value is no list of strings.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let read = |v: &'_ Value| v.as_array()?.iter().map(Value::as_str).collect::<Option<Vec<_>>>().map(drop);
        match self.value(key) {
            None => Ok(None),
            Some(v) if read(v).is_some() => {
                Ok(v.as_array().map(|list| list.iter().filter_map(Value::as_str).collect()))
            }
            Some(v) => Err(self.fail(key, format!("{} is not a list of strings", short(v)))),
        }
    }

    /// # Errors
    /// When the value is no list of finite numbers.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(list)) => list.iter().map(|v| self.to_number(key, v)).collect::<Result<_>>().map(Some),
            Some(v) => Err(self.fail(key, format!("{} is not a list of numbers", short(v)))),
        }
    }

    /// Token ids: one integer or a list of them; empty when absent.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let id = |v: &Value| {
            let id = v.as_u64().and_then(|v| u32::try_from(v).ok());
            id.ok_or_else(|| self.fail(key, format!("{} is not a token id", short(v))))
        };
        match self.value(key) {
            None => Ok(vec![]),
            Some(Value::Array(list)) => list.iter().map(id).collect(),
            Some(v) => Ok(vec![id(v)?]),
        }
    }

    /// Names of the keys that the file states.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// The keys of an object inside.
    ///
    /// # Errors
    /// When the value is no object.
    pub fn object(&self, key: &str) -> Result<Option<Self>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self {
                file: self.file.clone(),
                prefix: format!("{}{key}.", self.prefix),
                map: map.clone(),
                defaults: Map::new(),
                gguf: self.gguf.clone(),
            })),
            Some(v) => Err(self.fail(key, format!("{} is not an object", short(v)))),
        }
    }

    fn to_size(&self, key: &str, v: &Value) -> Result<usize> {
        // Some published files write whole numbers as 64.0.
        let whole = v.as_u64().or_else(|| v.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0).map(|f| f as u64));
        let size = whole.and_then(|v| usize::try_from(v).ok()).filter(|v| Self::SIZE.contains(v));
        size.ok_or_else(|| {
            let (low, high) = (Self::SIZE.start(), Self::SIZE.end());
            self.fail(key, format!("{} is not a whole number from {low} to {high}", short(v)))
        })
    }

    fn to_number(&self, key: &str, v: &Value) -> Result<f64> {
        v.as_f64().filter(|v| v.is_finite()).ok_or_else(|| self.fail(key, format!("{} is not a number", short(v))))
    }
}

/// A value as an error shows it: one line, not the whole file.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
