//! Owns calls that give the name between marks and then the arguments as JSON: DeepSeek, Kimi, Mistral.

use super::json;
use super::parser::Head;

const DEEPSEEK_SECTION: &str = "<｜tool▁calls▁begin｜>";
const DEEPSEEK_CALL: &str = "<｜tool▁call▁begin｜>";
const DEEPSEEK_SEP: &str = "<｜tool▁sep｜>";
const KIMI_SECTION: &str = "<|tool_calls_section_begin|>";
const KIMI_CALL: &str = "<|tool_call_begin|>";
const KIMI_SEP: &str = "<|tool_call_argument_begin|>";
const MISTRAL: &str = "[TOOL_CALLS]";

/// `NAME<sep>{...}` as version 3.1 writes it, or `function<sep>NAME`, a line, and the JSON behind a fence.
pub(super) fn deepseek(text: &str) -> Head {
    let rest = match after(text, 0, &[DEEPSEEK_SECTION, DEEPSEEK_CALL]) {
        Ok(at) => at,
        Err(head) => return head,
    };
    let Some(sep) = text[rest..].find(DEEPSEEK_SEP) else { return Head::More };
    let first = text[rest..rest + sep].trim();
    let second = rest + sep + DEEPSEEK_SEP.len();
    let body = text[second..].trim_start();
    if body.is_empty() {
        return Head::More;
    }
    if body.starts_with('{') {
        return arguments(first, None, text.len() - body.len());
    }
    let Some(line) = text[second..].find('\n') else { return Head::More };
    let name = text[second..second + line].trim();
    match after(text, second + line, &["```json"]) {
        Ok(at) => object(text, name, None, at),
        Err(head) => head,
    }
}

/// `functions.NAME:0<sep>{...}`; all before the separator is the call's identifier.
pub(super) fn kimi(text: &str) -> Head {
    let rest = match after(text, 0, &[KIMI_SECTION, KIMI_CALL]) {
        Ok(at) => at,
        Err(head) => return head,
    };
    let Some(sep) = text[rest..].find(KIMI_SEP) else { return Head::More };
    let id = text[rest..rest + sep].trim();
    let name = id.strip_prefix("functions.").unwrap_or(id);
    let name = name.rsplit_once(':').map_or(name, |(name, _)| name);
    object(text, name, Some(id.to_owned()), rest + sep + KIMI_SEP.len())
}

/// `[{"name": ...}]`, or `NAME[ARGS]{...}` with an identifier between the two in some models.
pub(super) fn mistral(text: &str) -> Head {
    let body = text.strip_prefix(MISTRAL).unwrap_or(text).trim_start();
    let at = text.len() - body.len();
    match body.chars().next() {
        None => return Head::More,
        Some('{') => return json::head(text, at),
        Some('[') => return json::head(text, at + 1),
        Some(_) => {}
    }
    let Some(brace) = body.find('{') else { return Head::More };
    let before = body[..brace].trim_end();
    let before = before.strip_suffix("[ARGS]").unwrap_or(before);
    let (name, id) = match before.split_once("[CALL_ID]") {
        Some((name, id)) => (name, Some(id.trim().to_owned())),
        None => (before, None),
    };
    arguments(name.trim(), id, at + brace)
}

/// Behind marks that stand one after another; the first of several may be missing.
fn after(text: &str, at: usize, marks: &[&str]) -> Result<usize, Head> {
    let mut at = at;
    for (i, mark) in marks.iter().enumerate() {
        let rest = text[at..].trim_start();
        if rest.starts_with(mark) {
            at = text.len() - rest.len() + mark.len();
        } else if mark.starts_with(rest) || (i == 0 && marks.get(1).is_some_and(|next| next.starts_with(rest))) {
            return Err(Head::More);
        } else if i > 0 || marks.len() == 1 {
            return Err(Head::Not);
        }
    }
    Ok(at)
}

fn object(text: &str, name: &str, id: Option<String>, at: usize) -> Head {
    let body = text[at..].trim_start();
    match body.chars().next() {
        None => Head::More,
        Some('{') => arguments(name, id, text.len() - body.len()),
        Some(_) => Head::Not,
    }
}

fn arguments(name: &str, id: Option<String>, at: usize) -> Head {
    Head::Arguments { name: name.to_owned(), id, at, inside: false }
}
