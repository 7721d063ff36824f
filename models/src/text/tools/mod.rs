//! Owns tool calls as models write them. It knows no requests and no wire format.

use serde_json::{Value, json};

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
