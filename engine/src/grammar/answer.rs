//! Owns the grammar of a whole answer: reasoning first, then calls of tools, text of a wanted form, or either. Knows how
//! a model writes calls from the model crate alone.

use dualgauge_models::Text;
use dualgauge_models::text::{CallSyntax, ReasoningFormat, Tags, ToolSpec};
use serde_json::json;

use super::source::{Source, SourcePhase, literal};
use crate::form::{OutputFormat, ToolChoice, ToolUse};

/// What an answer may be. `begun`: the prompt ends inside of the reasoning; `closed`: behind it, so that none follows.
pub struct Wish<'a> {
    pub tools: Option<&'a ToolUse>,
    pub format: Option<&'a OutputFormat>,
    pub begun: bool,
    pub closed: bool,
    /// A chat's answer, which may have reasoning and calls.
    pub chat: bool,
}

const HARMONY_ANALYSIS: (&str, &str) = ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant");
const HARMONY_FINAL: &str = "<|channel|>final<|message|>";

impl Wish<'_> {
    /// The answer must be calls.
    fn forced(&self) -> bool {
        self.tools.is_some_and(|tools| matches!(tools.choice, ToolChoice::Required | ToolChoice::Named(_)))
    }

    /// Calls may come in any text, and some keep to their schemas.
    fn strict(&self) -> bool {
        self.tools.is_some_and(|tools| tools.choice == ToolChoice::Auto && tools.tools.iter().any(|tool| tool.strict))
    }

    /// The syntax that calls of the answer are written in; `None` when they are not constrained.
    pub fn syntax(&self, text: &Text) -> Option<CallSyntax> {
        let tools = self.tools.filter(|tools| tools.choice != ToolChoice::None)?;
        let syntax = text.call_format().syntax();
        let native = syntax.format == text.call_format();
        let strict = self.strict() && native && syntax.trigger.is_some();
        let constrained = self.forced() || self.format.is_some() || strict;
        (constrained && !tools.tools.is_empty()).then_some(syntax)
    }

    /// The grammar; `None` when the answer may be anything.
    ///
    /// # Errors
    /// A sentence, when a schema or the format is wrong.
    pub fn source(&self, text: &Text) -> Result<Option<Source>, (&'static str, String)> {
        let mut source = Source::default();
        let of_format = |message: String| ("format", message);
        let answer = self.format.map(|format| source.format(format)).transpose().map_err(of_format)?;
        let calls = match (self.syntax(text), self.tools) {
            (Some(syntax), Some(tools)) => Some((add_calls(&mut source, text, &syntax, tools)?, syntax)),
            _ => None,
        };
        let harmony = self.chat && text.reasoning_format() == Some(ReasoningFormat::Harmony);
        let answer = match (answer, harmony) {
            (Some(answer), true) => Some(format!("{} {answer}", written(text, HARMONY_FINAL))),
            (answer, _) => answer,
        };
        let body = match (calls, answer) {
            (Some((calls, _)), _) if self.forced() => calls,
            (Some((calls, _)), Some(answer)) => format!("{calls} | {answer}"),
            (None, Some(answer)) => answer,
            (Some((_, syntax)), None) => return Ok(Some(self.in_text(source, text, &syntax))),
            (None, None) => return Ok(None),
        };
        source.rule("body", &body);
        let lead = self.lead(&mut source, text, harmony);
        source.rule("start", &format!("{lead}body"));
        Ok(Some(source))
    }

    /// Any text, and calls in it.
    fn in_text(&self, mut source: Source, text: &Text, syntax: &CallSyntax) -> Source {
        let trigger = syntax.trigger.expect("calls in text have a mark: this is a bug");
        let head = until(&mut source, text, "head", trigger);
        let many = if self.tools.is_some_and(|tools| tools.parallel) { "*" } else { "?" };
        source.rule("segment", &format!("{head} tail_of_call"));
        source.rule("start", &format!("segment{many} rest"));
        source.rule("rest", "/(?s:.*)/");
        if let (true, Some(tags)) = (self.begun, tags(text)) {
            source.phases.push(free(tags.close, false));
        }
        source.phases.push(free(trigger, true));
        source
    }

    /// Reasoning before the body.
    fn lead(&self, source: &mut Source, text: &Text, harmony: bool) -> String {
        if harmony {
            let (open, close) = HARMONY_ANALYSIS;
            let analysis = format!("{} /(?s:.*)/ {}", written(text, open), written(text, close));
            source.rule("analysis", &analysis);
            source.phases.push(SourcePhase { until: vec![open.into()], free: None });
            source.phases.push(free("<|end|>", false));
            return "analysis? ".into();
        }
        let Some(tags) = tags(text).filter(|_| self.chat && !self.closed) else { return String::new() };
        let thought = until(source, text, "thought", tags.close);
        source.rule("gap", "/[ \\n]{1,3}/");
        if self.begun {
            source.phases.push(free(tags.close, false));
            return format!("{thought} gap? ");
        }
        source.rule("reasoning", &format!("{} {thought} gap?", written(text, tags.open)));
        source.phases.push(SourcePhase { until: vec![tags.open.into()], free: None });
        source.phases.push(free(tags.close, false));
        "reasoning? ".into()
    }
}

/// Adds the rules of calls, and returns what names them. After a trigger the rest of them is `tail_of_call`.
fn add_calls(
    source: &mut Source,
    text: &Text,
    syntax: &CallSyntax,
    tools: &ToolUse,
) -> Result<String, (&'static str, String)> {
    let named = if let ToolChoice::Named(name) = &tools.choice { Some(name) } else { None };
    let callable = |tool: &&ToolSpec| {
        let allowed = tools.allowed.as_ref().is_none_or(|allowed| allowed.contains(&tool.name));
        allowed && named.is_none_or(|name| *name == tool.name)
    };
    let mut alternatives = vec![];
    let mut tails = vec![];
    for (at, tool) in tools.tools.iter().enumerate().filter(|(_, tool)| callable(tool)) {
        let any = json!({"type": "object"});
        let schema = tool.parameters.as_ref().unwrap_or(&any);
        let schema = object(schema);
        let arguments = source
            .schema(&format!("arguments_{at}"), &schema, tool.strict)
            .map_err(|message| ("tools", format!("tools[{at}]: {message}")))?;
        let (open, close) = (syntax.open(&tool.name), syntax.close);
        alternatives.push(format!("{} {arguments} {}", written(text, &open), written(text, close)));
        let whole = format!("{}{open}", syntax.section.0);
        if let Some(tail) = syntax.trigger.and_then(|trigger| whole.strip_prefix(trigger)) {
            let close = format!("{close}{}", syntax.section.1);
            tails.push(format!("{} {arguments} {}", written(text, tail), written(text, &close)));
        }
    }
    if alternatives.is_empty() {
        return Err(("tools", "none of the tools may be called".into()));
    }
    source.rule("call", &alternatives.join(" | "));
    if !tails.is_empty() {
        source.rule("tail_of_call", &tails.join(" | "));
    }
    let more = match syntax.separator {
        Some(separator) if tools.parallel && named.is_none() => format!("({} call){{0,15}}", written(text, separator)),
        _ => String::new(),
    };
    let (open, close) = syntax.section;
    source.rule("calls", &format!("{} call {more} {}", written(text, open), written(text, close)));
    Ok("calls".into())
}

/// Arguments are an object, whatever the schema leaves open.
fn object(schema: &serde_json::Value) -> serde_json::Value {
    let mut schema = schema.clone();
    if let Some(fields) = schema.as_object_mut()
        && !["type", "$ref", "anyOf", "allOf", "oneOf", "enum", "const"]
            .iter()
            .any(|keyword| fields.contains_key(*keyword))
    {
        fields.insert("type".into(), "object".into());
    }
    schema
}

/// A rule for any text up to a mark and with it.
fn until(source: &mut Source, text: &Text, name: &str, mark: &str) -> String {
    if text.id_of(mark).is_some_and(|id| text.is_special(id)) {
        source.rule(name, &format!("/(?s:.*)/ {}", written(text, mark)));
    } else {
        let escaped: String = mark
            .chars()
            .flat_map(|c| {
                if c.is_alphanumeric() || c == '_' {
                    vec![c]
                } else {
                    format!("\\x{{{:x}}}", u32::from(c)).chars().collect()
                }
            })
            .collect();
        source.rule(&format!("{name}[lazy]"), &format!("/(?s:.*){escaped}/"));
    }
    name.to_owned()
}

/// A text as a row of terminals: control tokens by their number, all else as it is.
fn written(text: &Text, wanted: &str) -> String {
    let mut out: Vec<String> = vec![];
    let mut plain = String::new();
    let mut rest = wanted;
    while let Some(first) = rest.chars().next() {
        match control_at(text, rest) {
            Some((id, length)) => {
                if !plain.is_empty() {
                    out.push(literal(&std::mem::take(&mut plain)));
                }
                out.push(format!("<[{id}]>"));
                rest = &rest[length..];
            }
            None => {
                plain.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    if !plain.is_empty() {
        out.push(literal(&plain));
    }
    out.join(" ")
}

/// A control token that the text begins with, as marks look: between brackets.
fn control_at(text: &Text, rest: &str) -> Option<(u32, usize)> {
    let close = match rest.as_bytes()[0] {
        b'<' => '>',
        b'[' => ']',
        _ => return None,
    };
    let length = rest.find(close)? + 1;
    let id = text.id_of(&rest[..length]).filter(|id| text.is_special(*id))?;
    Some((id, length))
}

fn tags(text: &Text) -> Option<Tags> {
    text.reasoning_format().and_then(ReasoningFormat::tags)
}

fn free(until: &str, end: bool) -> SourcePhase {
    SourcePhase { until: vec![until.into()], free: Some(end) }
}
