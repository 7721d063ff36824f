//! Owns tool calls as models write them: which form a model uses, reading it while it is written, and writing it for
//! models that must. It knows no requests and no wire format.

mod generic;
mod harmony;
mod json;
mod named;
mod parser;
mod pythonic;
mod syntax;
mod tagged;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};

pub(super) use generic::instructed;
pub(super) use harmony::Harmony;
pub(super) use parser::{CallParser, beginning_at_end};
pub use syntax::CallSyntax;

/// A tool that a model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolSpec {
    pub name: String,
    pub description: Option<String>,
    /// JSON schema of the arguments; `None`: an object of any kind.
    pub parameters: Option<Value>,
    /// Calls keep to the schema also when the model may choose not to call.
    pub strict: bool,
}

impl ToolSpec {
    /// As chat templates take it: `{"type": "function", "function": {...}}`.
    pub fn described(&self) -> Value {
        let mut function = json!({"name": self.name});
        if let Some(description) = &self.description {
            function["description"] = description.as_str().into();
        }
        if let Some(parameters) = &self.parameters {
            function["parameters"] = parameters.clone();
        }
        json!({"type": "function", "function": function})
    }
}

/// How a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFormat {
    /// `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen, and models that know no form of their own.
    Hermes,
    /// The bare object, with `parameters`: Llama 3.
    LlamaJson,
    /// `[f(a=1), g(b="x")]`: Llama 3.2 and 4.
    Pythonic,
    /// The same between `<|tool_call_start|>` and `<|tool_call_end|>`: LFM2.
    Lfm,
    /// `[TOOL_CALLS]` and a list of objects.
    MistralList,
    /// `[TOOL_CALLS]name[ARGS]{...}`.
    MistralNamed,
    /// With a fenced block: DeepSeek V3 and R1.
    DeepSeek,
    /// Without: DeepSeek V3.1.
    DeepSeek31,
    Kimi,
    /// `<|tool_call>call:name{key:value}<tool_call|>`: Gemma 4.
    Gemma,
    /// `<|tool_call|>[{...}]`, closed by `<|/tool_call|>`: Phi 4.
    Phi,
    /// `<|tool_call|>[{...}]`: Granite 3.
    Granite,
    /// `functools[{...}]`.
    Functools,
    /// `<TOOLCALL>[{...}]</TOOLCALL>`: Nemotron.
    Nemotron,
    /// `<|START_ACTION|>[{"tool_name": ...}]<|END_ACTION|>`: Command R.
    Cohere,
    /// Keys and values in tags: GLM 4.5 and later.
    Glm,
    /// `<function=name><parameter=key>`: Qwen Coder.
    Coder,
    /// Channels: gpt-oss.
    Harmony,
}

/// Names for flags, in the order of the enumeration.
const NAMED: [(&str, CallFormat); 18] = [
    ("hermes", CallFormat::Hermes),
    ("llama3_json", CallFormat::LlamaJson),
    ("pythonic", CallFormat::Pythonic),
    ("lfm2", CallFormat::Lfm),
    ("mistral_list", CallFormat::MistralList),
    ("mistral", CallFormat::MistralNamed),
    ("deepseek_v3", CallFormat::DeepSeek),
    ("deepseek_v31", CallFormat::DeepSeek31),
    ("kimi_k2", CallFormat::Kimi),
    ("gemma4", CallFormat::Gemma),
    ("phi4", CallFormat::Phi),
    ("granite", CallFormat::Granite),
    ("functools", CallFormat::Functools),
    ("nemotron", CallFormat::Nemotron),
    ("cohere", CallFormat::Cohere),
    ("glm", CallFormat::Glm),
    ("qwen3_coder", CallFormat::Coder),
    ("harmony", CallFormat::Harmony),
];

/// What templates hold that write this form: all of the texts. The first row that fits decides.
const SIGNS: &[(&[&str], CallFormat)] = &[
    (&["<|channel|>", "<|start|>"], CallFormat::Harmony),
    (&["<tool_call>", "<arg_key>"], CallFormat::Glm),
    (&["<tool_call>", "<function="], CallFormat::Coder),
    (&["<seed:tool_call>"], CallFormat::Coder),
    (&["[TOOL_CALLS]", "[ARGS]"], CallFormat::MistralNamed),
    (&["[TOOL_CALLS]"], CallFormat::MistralList),
    (&["<｜tool▁calls▁begin｜>", "```json"], CallFormat::DeepSeek),
    (&["<｜tool▁calls▁begin｜>"], CallFormat::DeepSeek31),
    (&["<|tool_calls_section_begin|>"], CallFormat::Kimi),
    (&["<|tool_call>call:"], CallFormat::Gemma),
    (&["<tool_call>"], CallFormat::Hermes),
    (&["<|tool|>"], CallFormat::Phi),
    (&["<|tool_call|>"], CallFormat::Granite),
    (&["functools"], CallFormat::Functools),
    (&["<TOOLCALL>"], CallFormat::Nemotron),
    (&["<|START_ACTION|>"], CallFormat::Cohere),
    (&["<|tool_call_start|>"], CallFormat::Lfm),
    (&["[func_name1("], CallFormat::Pythonic),
    (&["<|python_start|>"], CallFormat::Pythonic),
    (&["<|python_tag|>"], CallFormat::LlamaJson),
    (&["dictionary of argument name and its value"], CallFormat::LlamaJson),
];

impl CallFormat {
    /// The form that a chat template writes. Hermes's where it shows no other.
    pub fn of_template(source: &str) -> Self {
        let fits = |signs: &[&str]| signs.iter().all(|sign| source.contains(sign));
        SIGNS.iter().find(|(signs, _)| fits(signs)).map_or(Self::Hermes, |(_, format)| *format)
    }

    /// By the name that flags use.
    pub fn named(name: &str) -> Option<Self> {
        NAMED.iter().find(|(known, _)| *known == name).map(|(_, format)| *format)
    }

    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMED.iter().map(|(name, _)| *name)
    }

    /// Texts that may be control tokens and that a reader of calls must see.
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Glm => &["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
            Self::Coder => &["<tool_call>", "</tool_call>", "<seed:tool_call>", "</seed:tool_call>"],
            Self::LlamaJson => &["<|python_tag|>"],
            Self::Pythonic => &["<|python_start|>", "<|python_end|>"],
            Self::Lfm => &["<|tool_call_start|>", "<|tool_call_end|>"],
            Self::MistralList | Self::MistralNamed => &["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"],
            Self::DeepSeek | Self::DeepSeek31 => &[
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁call▁begin｜>",
                "<｜tool▁sep｜>",
                "<｜tool▁call▁end｜>",
                "<｜tool▁calls▁end｜>",
            ],
            Self::Kimi => &[
                "<|tool_calls_section_begin|>",
                "<|tool_call_begin|>",
                "<|tool_call_argument_begin|>",
                "<|tool_call_end|>",
                "<|tool_calls_section_end|>",
            ],
            Self::Gemma => &["<|tool_call>", "<tool_call|>", "<|\"|>"],
            Self::Phi | Self::Granite => &["<|tool_call|>", "<|/tool_call|>"],
            Self::Functools => &[],
            Self::Nemotron => &["<TOOLCALL>", "</TOOLCALL>"],
            Self::Cohere => &["<|START_ACTION|>", "<|END_ACTION|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"],
            Self::Harmony => {
                &["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"]
            }
        }
    }
}
