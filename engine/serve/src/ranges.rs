//! Owns the checks of values that come from outside: numbers, token ids, stop texts, seeds. Errors name the field as it was sent.
//! Knows no API.

use crate::app::Server;
use crate::error::ApiError;

/// Most log-probabilities that may be asked for at a token.
pub const MAX_LOGPROBS: i64 = 20;
/// Lowest log-probability that is sent: JSON has no infinity.
pub const LOWEST_LOGPROB: f32 = -9999.0;

const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;

/// A whole number in `low..=high`.
///
/// # Errors
/// 400 that names the field and its range.
pub fn integer(param: &str, value: i64, low: i64, high: i64) -> Result<i64, ApiError> {
    if (low..=high).contains(&value) {
        return Ok(value);
    }
    Err(ApiError::invalid(param, format!("{param}: {value} is not from {low} to {high}.")))
}

/// A number in `low..=high`, when there is one.
///
/// # Errors
/// 400 that names the field and its range.
pub fn number(param: &str, value: Option<f64>, low: f64, high: f64) -> Result<Option<f32>, ApiError> {
    match value {
        Some(v) if !(low..=high).contains(&v) => {
            Err(ApiError::invalid(param, format!("{param}: {v} is not from {low} to {high}.")))
        }
        value => Ok(value.map(|v| v as f32)),
    }
}

/// The number of most likely tokens to keep: 0 keeps all.
///
/// # Errors
/// 400 that names the field and its range.
pub fn top_k(server: &Server, param: &str, value: i64) -> Result<usize, ApiError> {
    let k = integer(param, value, -1, i64::from(u32::MAX))?.max(0) as usize;
    Ok(if k >= server.engine().spec().vocab { 0 } else { k })
}

/// Token ids from outside, each in the vocabulary.
///
/// # Errors
/// 400 that names the id's place.
pub fn token_ids(path: &str, ids: Vec<i64>, vocab: usize) -> Result<Vec<u32>, ApiError> {
    let check = |(at, id): (usize, i64)| match u32::try_from(id) {
        Ok(id) if (id as usize) < vocab => Ok(id),
        _ => {
            let path = format!("{path}[{at}]");
            Err(ApiError::invalid(
                path.clone(),
                format!("{path}: {id} is no token id; they go from 0 to {}.", vocab - 1),
            ))
        }
    };
    ids.into_iter().enumerate().map(check).collect()
}

/// More than the context can never be; what a prompt leaves of it is found when it is known.
pub fn max_tokens(server: &Server, param: &str, value: i64) -> Result<usize, ApiError> {
    integer(param, value, 1, server.engine().max_model_len() as i64).map(|n| n as usize)
}

/// Texts that end an answer.
///
/// # Errors
/// 400 when they are too many, empty or too long.
pub fn stop_texts(param: &str, stops: &[String]) -> Result<Vec<String>, ApiError> {
    if stops.len() > MAX_STOPS {
        return Err(ApiError::invalid(param, format!("{param}: has {} texts; {MAX_STOPS} are allowed.", stops.len())));
    }
    if stops.iter().any(|s| s.is_empty() || s.len() > MAX_STOP_BYTES) {
        return Err(ApiError::invalid(param, format!("{param}: each text must have 1 to {MAX_STOP_BYTES} bytes.")));
    }
    Ok(stops.to_vec())
}

/// The first choice has the request's seed; the others one that follows from it (the finaliser of SplitMix64).
pub fn choice_seed(seed: u64, i: usize) -> u64 {
    if i == 0 {
        return seed;
    }
    let mut z = seed.wrapping_add((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_of_choices_differ_and_the_first_is_the_requests() {
        let seeds: std::collections::HashSet<u64> = (0..128).map(|i| choice_seed(7, i)).collect();
        assert_eq!((seeds.len(), choice_seed(7, 0)), (128, 7));
    }

    #[test]
    fn ranges_hold_their_ends() {
        assert_eq!(number("x", Some(2.0), 0.0, 2.0), Ok(Some(2.0)));
        assert_eq!(number("x", None, 0.0, 2.0), Ok(None));
        assert!(number("x", Some(2.0000001), 0.0, 2.0).is_err());
        assert!(number("x", Some(f64::NAN), 0.0, 2.0).is_err());
        assert!(integer("x", 0, 1, 9).is_err() && integer("x", 10, 1, 9).is_err() && integer("x", 9, 1, 9).is_ok());
    }
}
