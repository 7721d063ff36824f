//! Owns what a caller may ask of an answer's form: tools to call, a grammar to keep to, reasoning apart from the answer.
//! Knows no wire format and no grammar engine.

use dualgauge_models::text::ToolSpec;
use serde_json::{Map, Value};

/// Tools that a chat may call.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolUse {
    /// At least one; names differ.
    pub tools: Vec<ToolSpec>,
    pub choice: ToolChoice,
    /// Only these of `tools` may be called; `None`: all. The prompt shows all of them.
    pub allowed: Option<Vec<String>>,
    /// More than one call in an answer.
    pub parallel: bool,
    pub call_ids: CallIds,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model calls tools or answers.
    #[default]
    Auto,
    /// No calls; the prompt does not show the tools.
    None,
    /// At least one call; its arguments keep to the tool's schema.
    Required,
    /// As `Required`, of this tool.
    Named(String),
}

/// Where the identifiers of calls come from: the engine has no randomness of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallIds {
    /// What each begins with, as the dialect writes it (`call_`). Models whose templates want another form get that.
    pub prefix: String,
    /// Different for every request.
    pub seed: u64,
}

/// What the text of an answer must be.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputFormat {
    /// Any JSON object.
    JsonObject,
    /// JSON that the schema accepts. What cannot be enforced is refused, by name; with `strict: false` annotations
    /// that are not known are passed over.
    JsonSchema { schema: Value, strict: bool },
    /// A text that the expression matches as a whole.
    Regex(String),
    /// A grammar in the Lark syntax.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// What becomes of a model's thinking aloud.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reasoning {
    /// Hand it out as [`crate::Piece::Reasoning`]. Otherwise it stays in the text, as the model wrote it.
    pub separate: bool,
    /// How much of it, in the words of the model's template (`low`, `medium`, `high`). `none` is `enabled: Some(false)`.
    pub effort: Option<String>,
    /// Asks for it or against it, where the model's template has a switch.
    pub enabled: Option<bool>,
}

impl Reasoning {
    /// Sets the switches of chat templates, unless the caller did.
    pub(crate) fn tell(&self, switches: &mut Map<String, Value>) {
        let off = self.effort.as_deref() == Some("none");
        let enabled = if off { Some(false) } else { self.enabled };
        if let Some(enabled) = enabled {
            for name in ["enable_thinking", "thinking"] {
                switches.entry(name).or_insert(enabled.into());
            }
        }
        if let Some(effort) = self.effort.as_ref().filter(|_| !off) {
            switches.entry("reasoning_effort").or_insert(effort.as_str().into());
        }
    }
}
