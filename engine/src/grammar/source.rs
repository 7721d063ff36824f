//! Owns grammars before they are compiled: Lark text with JSON schemas and other grammars beside it.

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::regex_to_lark;
use serde_json::json;

use super::schema::prepared;
use crate::form::OutputFormat;

/// A grammar to compile. `start` is the rule of the whole answer.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// Lines of Lark.
    pub rules: String,
    /// Grammars that the rules name with `@`.
    parts: Vec<GrammarWithLexer>,
    /// Parts of the answer; see [`super::phase`].
    pub phases: Vec<SourcePhase>,
}

/// A part of the answer with any text, or one to watch for the end of.
#[derive(Clone, Debug, PartialEq)]
pub struct SourcePhase {
    pub until: Vec<String>,
    /// Any text; with `Some(true)` the answer may end in it.
    pub free: Option<bool>,
}

/// Most alternatives of a choice.
const MAX_CHOICES: usize = 2000;

impl Source {
    /// Adds what describes this form, and returns what names it in a rule. In expressions `\d` is a digit of ASCII.
    pub fn format(&mut self, format: &OutputFormat) -> Result<String, String> {
        match format {
            OutputFormat::JsonObject => self.schema("answer", &json!({"type": "object"}), true),
            OutputFormat::JsonSchema { schema, strict } => self.schema("answer", schema, *strict),
            OutputFormat::Regex(expression) => {
                self.rule("answer", &format!("/{}/", regex_to_lark(expression, "d")));
                Ok("answer".into())
            }
            OutputFormat::Lark(grammar) => {
                if grammar.contains("::=") {
                    return Err("grammars are written in the Lark syntax (rule: a | b), not with ::=".into());
                }
                Ok(self.part("answer", GrammarWithLexer::from_lark(grammar.clone())))
            }
            OutputFormat::Choice(choices) => {
                if choices.is_empty() || choices.len() > MAX_CHOICES {
                    return Err(format!("a choice has 1 to {MAX_CHOICES} texts, not {}", choices.len()));
                }
                let choices: Vec<String> = choices.iter().map(|choice| literal(choice)).collect();
                self.rule("answer", &choices.join(" | "));
                Ok("answer".into())
            }
        }
    }

    /// Adds a JSON schema, and returns what names it in a rule.
    pub fn schema(&mut self, name: &str, schema: &serde_json::Value, strict: bool) -> Result<String, String> {
        Ok(self.part(name, GrammarWithLexer::from_json_schema(prepared(schema, strict)?)))
    }

    pub fn rule(&mut self, name: &str, body: &str) {
        self.rules.push_str(name);
        self.rules.push_str(": ");
        self.rules.push_str(body);
        self.rules.push('\n');
    }

    pub fn grammars(self) -> TopLevelGrammar {
        let mut grammars = vec![GrammarWithLexer::from_lark(self.rules)];
        grammars.extend(self.parts);
        TopLevelGrammar { grammars, max_tokens: None }
    }

    /// What makes two sources the same.
    pub fn key(&self) -> String {
        let mut key = format!("{}\0{:?}", self.rules, self.phases);
        for part in &self.parts {
            key.push('\0');
            key.push_str(part.lark_grammar.as_deref().unwrap_or_default());
            key.push('\0');
            key.extend(part.json_schema.as_ref().map(ToString::to_string));
        }
        key
    }

    fn part(&mut self, name: &str, grammar: GrammarWithLexer) -> String {
        self.parts.push(GrammarWithLexer { name: Some(name.into()), ..grammar });
        format!("@{name}")
    }
}

/// A text in a rule.
pub fn literal(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
