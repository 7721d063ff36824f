//! Owns what makes a request valid. Parsed at the edge, believed inside: after this nothing checks a field again.

use dualgauge_models::ModelSpec;

use crate::request::{Rejected, Request, Sampling};
use crate::sampler::MAX_LOGPROBS;

/// # Errors
/// The first field that is out of range, or a prompt that leaves no room for an answer in `context` tokens.
pub fn request(request: &Request, spec: &ModelSpec, context: usize) -> Result<(), Rejected> {
    let prompt_tokens = request.prompt.len();
    if prompt_tokens == 0 {
        return Err(invalid("prompt", "must have at least one token"));
    }
    if prompt_tokens >= context {
        return Err(Rejected::TooLong { prompt_tokens, context });
    }
    if let Some(id) = request.prompt.iter().find(|id| **id as usize >= spec.vocab) {
        return Err(unknown("prompt", *id, spec));
    }
    logprobs("prompt_logprobs", request.prompt_logprobs)?;
    sampling(&request.sampling, spec)
}

fn sampling(s: &Sampling, spec: &ModelSpec) -> Result<(), Rejected> {
    within("temperature", s.temperature, 0.0, 100.0)?;
    within("top_p", s.top_p, 0.0, 1.0)?;
    if s.top_p == 0.0 {
        return Err(invalid("top_p", "must be more than 0"));
    }
    within("min_p", s.min_p, 0.0, 1.0)?;
    within("repetition_penalty", s.repetition_penalty, 0.01, 100.0)?;
    within("presence_penalty", s.presence_penalty, -2.0, 2.0)?;
    within("frequency_penalty", s.frequency_penalty, -2.0, 2.0)?;
    for (id, bias) in &s.logit_bias {
        if *id as usize >= spec.vocab {
            return Err(unknown("logit_bias", *id, spec));
        }
        within("logit_bias", *bias, -100.0, 100.0)?;
    }
    logprobs("logprobs", s.logprobs)?;
    if let Some(max) = s.max_tokens.filter(|max| *max < s.min_tokens) {
        return Err(invalid("min_tokens", format!("{} is more than max_tokens ({max})", s.min_tokens)));
    }
    match s.stop_ids.iter().find(|id| **id as usize >= spec.vocab) {
        Some(id) => Err(unknown("stop_ids", *id, spec)),
        None => Ok(()),
    }
}

fn within(field: &'static str, value: f32, low: f32, high: f32) -> Result<(), Rejected> {
    // Not a number is in no range.
    match (low..=high).contains(&value) {
        true => Ok(()),
        false => Err(invalid(field, format!("{value} is not between {low} and {high}"))),
    }
}

fn logprobs(field: &'static str, count: Option<usize>) -> Result<(), Rejected> {
    match count.filter(|n| *n > MAX_LOGPROBS) {
        Some(n) => Err(invalid(field, format!("{n} is more than {MAX_LOGPROBS}"))),
        None => Ok(()),
    }
}

fn unknown(field: &'static str, id: u32, spec: &ModelSpec) -> Rejected {
    invalid(field, format!("token {id} does not exist: the vocabulary has {}", spec.vocab))
}

fn invalid(field: &'static str, message: impl Into<String>) -> Rejected {
    Rejected::Invalid { field, message: message.into() }
}
