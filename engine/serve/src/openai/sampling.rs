//! Owns the ranges of sampling parameters and their way into the engine's. Errors name the field as it was sent.

use std::collections::BTreeMap;

use dualgauge::Sampling;

use super::ApiError;
use super::types::Common;
use crate::app::{Defaults, Server};
use crate::ranges::{self, integer, number, token_ids};

const MAX_STOP_IDS: usize = 128;
const MAX_BIASES: usize = 1024;

pub fn sampling(
    server: &Server,
    common: &Common,
    max_tokens: Option<usize>,
    logprobs: Option<usize>,
) -> Result<Sampling, ApiError> {
    let vocab = server.engine().spec().vocab;
    let Defaults { temperature, top_p, top_k, min_p, repetition_penalty } = server.app.defaults;
    let top_p = number("top_p", common.top_p, 0.0, 1.0)?.unwrap_or(top_p);
    let top_k = common.top_k.map_or(Ok(top_k), |k| ranges::top_k(server, "top_k", k))?;
    let min_tokens = common.min_tokens.unwrap_or(0);
    let most = max_tokens.unwrap_or(server.engine().max_model_len());
    let min_tokens = integer("min_tokens", min_tokens, 0, most as i64)? as usize;
    let stop_ids = common.stop_token_ids.clone().unwrap_or_default();
    if stop_ids.len() > MAX_STOP_IDS {
        let message = format!("stop_token_ids: has {} ids; {MAX_STOP_IDS} are allowed.", stop_ids.len());
        return Err(ApiError::invalid("stop_token_ids", message));
    }
    Ok(Sampling {
        temperature: number("temperature", common.temperature, 0.0, 2.0)?.unwrap_or(temperature),
        // A nucleus of nothing still holds its first token.
        top_p: top_p.max(f32::MIN_POSITIVE),
        top_k,
        min_p: number("min_p", common.min_p, 0.0, 1.0)?.unwrap_or(min_p),
        repetition_penalty: number("repetition_penalty", common.repetition_penalty, 0.01, 100.0)?
            .unwrap_or(repetition_penalty),
        presence_penalty: number("presence_penalty", common.presence_penalty, -2.0, 2.0)?.unwrap_or(0.0),
        frequency_penalty: number("frequency_penalty", common.frequency_penalty, -2.0, 2.0)?.unwrap_or(0.0),
        logit_bias: logit_bias(common.logit_bias.as_ref(), vocab)?,
        seed: common.seed.map_or_else(|| server.seed(), i64::cast_unsigned),
        logprobs,
        max_tokens,
        min_tokens,
        stop_ids: token_ids("stop_token_ids", stop_ids, vocab)?,
        ignore_eos: common.ignore_eos.unwrap_or(false),
    })
}

fn logit_bias(biases: Option<&BTreeMap<String, f64>>, vocab: usize) -> Result<BTreeMap<u32, f32>, ApiError> {
    let biases = biases.into_iter().flatten();
    let mut checked = BTreeMap::new();
    for (key, bias) in biases {
        let id = key.parse().ok().filter(|id: &u32| (*id as usize) < vocab).ok_or_else(|| {
            let message = format!("logit_bias: '{key}' is no token id; they go from 0 to {}.", vocab - 1);
            ApiError::invalid("logit_bias", message)
        })?;
        if !(-100.0..=100.0).contains(bias) {
            return Err(ApiError::invalid("logit_bias", format!("logit_bias: {bias} is not from -100 to 100.")));
        }
        checked.insert(id, *bias as f32);
        if checked.len() > MAX_BIASES {
            return Err(ApiError::invalid("logit_bias", format!("logit_bias: {MAX_BIASES} entries are allowed.")));
        }
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_are_bounded() {
        let biases = |n: u32| (0..n).map(|i| (i.to_string(), 1.0)).collect::<BTreeMap<_, _>>();
        assert_eq!(logit_bias(Some(&biases(1024)), 5000).map(|b| b.len()), Ok(1024));
        assert!(logit_bias(Some(&biases(1025)), 5000).is_err());
    }
}
