//! Owns what `tokenizer_config.json` and `chat_template.jinja` of a model folder say: names of special tokens, added
//! tokens, chat templates. It runs nothing that a folder holds (`auto_map` is ignored).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tokenizers::tokenizer::AddedToken;

use crate::source::read_text;
use crate::{Error, Result};

pub(super) const FILE: &str = "tokenizer_config.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";
const TEMPLATE_JSON_FILE: &str = "chat_template.json";
/// A longer file is a broken one.
const MOST_BYTES: u64 = 64 << 20;

#[derive(Debug, Default)]
pub(super) struct TokenizerConfig {
    pub named: BTreeMap<String, String>,
    pub declared: Vec<(u32, AddedToken)>,
    pub template: Option<String>,
    /// The file that the template is from.
    pub template_file: &'static str,
}

impl TokenizerConfig {
    /// Reads a folder; missing files are no error. `chat_template.jinja` wins over `chat_template.json` and over the
    /// template in `tokenizer_config.json`.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let mut this = Self { template_file: FILE, ..Self::default() };
        if let Some(config) = json(folder, FILE)? {
            this.named = named(&config);
            this.declared = declared(&config);
            this.template = template(&config);
        }
        let other = json(folder, TEMPLATE_JSON_FILE)?;
        if let Some(template) = other.as_ref().and_then(template) {
            (this.template, this.template_file) = (Some(template), TEMPLATE_JSON_FILE);
        }
        if let Some(text) = read_text(&folder.join(TEMPLATE_FILE), MOST_BYTES)? {
            (this.template, this.template_file) = (Some(text), TEMPLATE_FILE);
        }
        Ok(this)
    }
}

fn json(folder: &Path, name: &str) -> Result<Option<Value>> {
    let Some(text) = read_text(&folder.join(name), MOST_BYTES)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| Error::file(name, error))
}

/// `bos_token` and its kin, each a string or an object with `content`.
fn named(config: &Value) -> BTreeMap<String, String> {
    ["bos_token", "eos_token", "pad_token", "unk_token"]
        .into_iter()
        .filter_map(|name| {
            let token = config.get(name)?;
            let text = token.as_str().or_else(|| token.get("content")?.as_str())?;
            Some((name.to_owned(), text.to_owned()))
        })
        .collect()
}

fn declared(config: &Value) -> Vec<(u32, AddedToken)> {
    let Some(tokens) = config.get("added_tokens_decoder").and_then(Value::as_object) else { return Vec::new() };
    tokens
        .iter()
        .filter_map(|(id, token)| {
            let flag = |name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
            let added = AddedToken::from(token.get("content")?.as_str()?, flag("special"))
                .single_word(flag("single_word"))
                .lstrip(flag("lstrip"))
                .rstrip(flag("rstrip"))
                .normalized(flag("normalized"));
            Some((id.parse().ok()?, added))
        })
        .collect()
}

/// A template as a string, or the one named `default` of a list (else the first).
fn template(config: &Value) -> Option<String> {
    match config.get("chat_template")? {
        Value::String(text) => Some(text.clone()),
        Value::Array(list) => {
            let name = |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
            let entry = list.iter().find(name).or_else(|| list.first())?;
            entry.get("template")?.as_str().map(str::to_owned)
        }
        _ => None,
    }
}
