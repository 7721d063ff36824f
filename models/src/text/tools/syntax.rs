//! Owns how calls are written when an answer has to be one: the text around the arguments.

use serde_json::Value;

use super::CallFormat;

/// The text around calls whose arguments are JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallSyntax {
    /// What reads it. Forms whose arguments are not JSON are written in Hermes's instead.
    pub format: CallFormat,
    /// Before the first and after the last call.
    pub section: (&'static str, &'static str),
    /// Before the name, and between the name and the arguments.
    name: (&'static str, &'static str),
    /// After the arguments.
    pub close: &'static str,
    /// Between two calls; `None`: there is only one in an answer.
    pub separator: Option<&'static str>,
    /// Where a call begins in a text that may have one; `None`: it cannot be told.
    pub trigger: Option<&'static str>,
    /// The name stands in a JSON string.
    quoted: bool,
}

impl CallSyntax {
    /// The text before the arguments of a call.
    pub fn open(&self, name: &str) -> String {
        let quoted = Value::from(name).to_string();
        let name = if self.quoted { &quoted[1..quoted.len() - 1] } else { name };
        format!("{}{name}{}", self.name.0, self.name.1)
    }
}

impl CallFormat {
    pub fn syntax(self) -> CallSyntax {
        let object = CallSyntax {
            format: self,
            section: ("", ""),
            name: ("{\"name\": \"", "\", \"arguments\": "),
            close: "}",
            separator: Some(", "),
            trigger: None,
            quoted: true,
        };
        let named = CallSyntax { close: "", separator: Some(""), quoted: false, ..object.clone() };
        let list = |open: &'static str, close: &'static str, trigger: &'static str| CallSyntax {
            section: (open, close),
            trigger: Some(trigger),
            ..object.clone()
        };
        match self {
            Self::Hermes => CallSyntax {
                name: ("<tool_call>\n{\"name\": \"", "\", \"arguments\": "),
                close: "}\n</tool_call>",
                separator: Some("\n"),
                trigger: Some("<tool_call>"),
                ..object
            },
            Self::LlamaJson => {
                CallSyntax { name: ("{\"name\": \"", "\", \"parameters\": "), separator: None, ..object }
            }
            Self::MistralList => list("[TOOL_CALLS][", "]", "[TOOL_CALLS]"),
            Self::MistralNamed => {
                CallSyntax { name: ("[TOOL_CALLS]", "[ARGS]"), trigger: Some("[TOOL_CALLS]"), ..named }
            }
            Self::Phi => list("<|tool_call|>[", "]<|/tool_call|>", "<|tool_call|>"),
            Self::Granite => list("<|tool_call|>[", "]", "<|tool_call|>"),
            Self::Functools => list("functools[", "]", "functools"),
            Self::Nemotron => list("<TOOLCALL>[", "]</TOOLCALL>", "<TOOLCALL>"),
            Self::Cohere => CallSyntax {
                name: ("{\"tool_call_id\": \"0\", \"tool_name\": \"", "\", \"parameters\": "),
                separator: None,
                ..list("<|START_ACTION|>[\n    ", "\n]<|END_ACTION|>", "<|START_ACTION|>")
            },
            Self::DeepSeek => CallSyntax {
                section: ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
                name: ("<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "\n```json\n"),
                close: "\n```<｜tool▁call▁end｜>",
                separator: Some("\n"),
                trigger: Some("<｜tool▁calls▁begin｜>"),
                ..named
            },
            Self::DeepSeek31 => CallSyntax {
                section: ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
                name: ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
                close: "<｜tool▁call▁end｜>",
                trigger: Some("<｜tool▁calls▁begin｜>"),
                ..named
            },
            Self::Kimi => CallSyntax {
                section: ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
                name: ("<|tool_call_begin|>functions.", ":0<|tool_call_argument_begin|>"),
                close: "<|tool_call_end|>",
                // Its identifiers count the calls.
                separator: None,
                trigger: Some("<|tool_calls_section_begin|>"),
                ..named
            },
            Self::Harmony => CallSyntax {
                name: ("<|channel|>commentary to=functions.", " <|constrain|>json<|message|>"),
                separator: None,
                ..named
            },
            Self::Pythonic | Self::Lfm | Self::Gemma | Self::Glm | Self::Coder => Self::Hermes.syntax(),
        }
    }
}
