//! Owns the checks of tools that a request offers, whatever its API: names are there, differ, and a named choice is among
//! them.

use dualgauge::{ToolChoice, ToolUse};
use dualgauge_models::text::ToolSpec;

use crate::app::Server;
use crate::error::ApiError;

/// Longest name of a tool.
const MAX_NAME_BYTES: usize = 128;
const MAX_TOOLS: usize = 256;

/// What an API says about tools.
pub struct Offer {
    pub tools: Vec<ToolSpec>,
    pub choice: ToolChoice,
    pub allowed: Option<Vec<String>>,
    pub parallel: bool,
    /// What identifiers of calls begin with.
    pub id_prefix: &'static str,
}

impl Offer {
    /// The tools as the engine takes them; `None` when there are none. `param` and `choice_param` are what list and choice
    /// are called on the wire.
    ///
    /// # Errors
    /// 400 for a tool without a name, two of one name, and for a choice that is not among them.
    pub fn check(self, server: &Server, param: &str, choice_param: &str) -> Result<Option<ToolUse>, ApiError> {
        let Self { tools, choice, allowed, parallel, id_prefix } = self;
        let known = |name: &String| tools.iter().any(|tool| tool.name == *name);
        for (at, tool) in tools.iter().enumerate() {
            if tool.name.is_empty() || tool.name.len() > MAX_NAME_BYTES {
                let message = format!("{param}[{at}]: its name must have 1 to {MAX_NAME_BYTES} bytes.");
                return Err(ApiError::invalid(format!("{param}[{at}]"), message));
            }
            if tools[..at].iter().any(|other| other.name == tool.name) {
                let message = format!("{param}[{at}]: there are two tools of the name '{}'.", tool.name);
                return Err(ApiError::invalid(format!("{param}[{at}]"), message));
            }
        }
        if tools.len() > MAX_TOOLS {
            let message = format!("{param}: has {} tools; {MAX_TOOLS} are allowed.", tools.len());
            return Err(ApiError::invalid(param, message));
        }
        let named = if let ToolChoice::Named(name) = &choice { Some(name) } else { None };
        if let Some(name) = named.into_iter().chain(allowed.iter().flatten()).find(|name| !known(name)) {
            let message = format!("{choice_param}: there is no tool of the name '{name}'.");
            return Err(ApiError::invalid(choice_param, message));
        }
        if tools.is_empty() {
            if choice == ToolChoice::Required {
                let message = format!("{choice_param}: a call is required, and there are no tools.");
                return Err(ApiError::invalid(choice_param, message));
            }
            return Ok(None);
        }
        Ok(Some(ToolUse { tools, choice, allowed, parallel, call_ids: server.call_ids(id_prefix) }))
    }
}
