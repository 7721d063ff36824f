//! Owns the choice of a token: a function of (logits, parameters, seed, position) and nothing else, so that it does not
//! matter when, beside whom or on which device a step ran. Ties go to the lowest id. Knows no scheduler and no device.
//!
//! Order, as in vLLM: bias, forbidden stop tokens, penalties (repetition, frequency, presence), the grammar's mask;
//! log-probabilities are of this. Then temperature, min_p, top_k, top_p, and one uniform number against the cumulated rest.

use std::cmp::Ordering;
use std::collections::HashMap;

use dualgauge_kernels::{Candidate, Output};

use crate::grammar::Mask;
use crate::philox::uniform;
use crate::request::{Sampling, Token, TokenLogprobs};

pub use crate::philox::philox4x32_10;

/// Most log-probabilities a token may carry.
pub const MAX_LOGPROBS: usize = 20;

/// What a device must return so that a token can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The k best candidates; 0: the best token's id alone.
    Candidates(usize),
    Logits,
}

/// One row of a step's output.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    pub argmax: u32,
    /// Best first, ties to the lowest id; may be empty.
    pub top: &'a [Candidate],
    pub log_sum_exp: f32,
    /// `[vocab]`
    pub logits: Option<&'a [f32]>,
}

impl<'a> Row<'a> {
    /// Row `index` of an output whose tail has `top_k` candidates; `vocab` is the length of a row of logits.
    pub fn of(output: &'a Output, index: usize, top_k: usize, vocab: usize) -> Self {
        Self {
            argmax: output.argmax[index],
            top: &output.top[index * top_k..][..top_k],
            log_sum_exp: output.log_sum_exp[index],
            logits: output.logits.as_ref().map(|l| &l[index * vocab..][..vocab]),
        }
    }
}

/// Where in its sequence a token is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Of the token to choose: how many tokens are before it.
    pub position: usize,
    /// Tokens generated before it.
    pub generated: usize,
    pub stop_ids: &'a [u32],
    /// What penalties count; must be given when the parameters have penalties.
    pub seen: Option<&'a Seen>,
    /// The tokens that a grammar allows.
    pub mask: Option<&'a Mask>,
}

/// How often tokens occurred: what penalties need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Times in the output; tokens of the prompt alone have 0.
    counts: HashMap<u32, u32>,
}

impl Seen {
    pub fn new(prompt: &[u32]) -> Self {
        Self { counts: prompt.iter().map(|id| (*id, 0)).collect() }
    }

    pub fn generated(&mut self, token: u32) {
        *self.counts.entry(token).or_default() += 1;
    }
}

impl Sampling {
    pub(crate) fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    fn forbids_stop(&self, place: &Place<'_>) -> bool {
        place.generated < self.min_tokens && !place.stop_ids.is_empty()
    }

    /// The logits themselves are changed before anything is read from them.
    fn edits(&self, place: &Place<'_>) -> bool {
        place.mask.is_some() || self.has_penalties() || !self.logit_bias.is_empty() || self.forbids_stop(place)
    }
}

/// The least that suffices; `most` is how many candidates a device can return.
pub fn need(sampling: &Sampling, place: &Place<'_>, most: usize) -> Need {
    if sampling.edits(place) {
        return Need::Logits;
    }
    let shown = sampling.logprobs.map_or(0, |n| n.max(1));
    let drawn = match (sampling.temperature > 0.0, sampling.top_k) {
        (false, _) => 0,
        (true, 0) => return Need::Logits,
        (true, k) => k,
    };
    let k = shown.max(drawn);
    if k <= most { Need::Candidates(k) } else { Need::Logits }
}

/// Chooses a token from a row that has at least what [`need`] says.
///
/// # Errors
/// A sentence, when no token can be chosen: the logits are not numbers, or all are forbidden.
pub fn sample(row: &Row<'_>, sampling: &Sampling, place: &Place<'_>) -> Result<Token, String> {
    let edited = match (sampling.edits(place), row.logits) {
        (true, Some(logits)) => Some(edit(logits, sampling, place)),
        (true, None) => panic!("rows that are edited have logits: this is a bug"),
        (false, _) => None,
    };
    let logits = edited.as_deref().or(row.logits);
    let log_sum_exp = match &edited {
        Some(logits) => log_sum_exp(logits),
        None => row.log_sum_exp,
    };
    if !log_sum_exp.is_finite() {
        return Err(match log_sum_exp == f32::NEG_INFINITY {
            true => "no token is allowed: every logit is minus infinity".into(),
            false => format!("the model's logits are not finite (their log-sum-exp is {log_sum_exp})"),
        });
    }
    let source = Source { logits, top: row.top };
    let chosen = match (sampling.temperature > 0.0, &edited) {
        (true, _) => source.draw(sampling, uniform(sampling.seed, place.position as u64)),
        (false, None) => row.argmax,
        (false, Some(logits)) => best(logits),
    };
    let logprobs = sampling.logprobs.map(|n| source.logprobs(chosen, n, log_sum_exp));
    Ok(Token { id: chosen, logprobs })
}

/// Log-probabilities of `id` and of the `n` best tokens, from a row with logits.
///
/// # Errors
/// A sentence, when the logits are not numbers.
pub fn logprobs_of(row: &Row<'_>, id: u32, n: usize) -> Result<TokenLogprobs, String> {
    if !row.log_sum_exp.is_finite() {
        return Err(format!("the model's logits are not finite (their log-sum-exp is {})", row.log_sum_exp));
    }
    let source = Source { logits: Some(row.logits.expect("prompt rows have logits: this is a bug")), top: &[] };
    Ok(source.logprobs(id, n, row.log_sum_exp))
}

/// Where candidates come from: all logits, or the best of them. Either gives the same answers.
struct Source<'a> {
    logits: Option<&'a [f32]>,
    top: &'a [Candidate],
}

impl Source<'_> {
    /// The k best, best first.
    fn best(&self, k: usize) -> Vec<Candidate> {
        match self.logits {
            Some(logits) => {
                let all = logits.iter().enumerate().map(|(id, logit)| Candidate { id: id as u32, logit: *logit });
                top_of(all.collect(), k)
            }
            None => self.top[..k.min(self.top.len())].to_vec(),
        }
    }

    fn logprobs(&self, chosen: u32, n: usize, log_sum_exp: f32) -> TokenLogprobs {
        let logit = match self.logits {
            Some(logits) => logits[chosen as usize],
            None => self.top.iter().find(|c| c.id == chosen).expect("chosen from the candidates: this is a bug").logit,
        };
        let top = if n == 0 { vec![] } else { self.best(n) };
        let top = top.into_iter().map(|c| (c.id, c.logit - log_sum_exp)).collect();
        TokenLogprobs { id: chosen, logprob: logit - log_sum_exp, top }
    }

    /// Temperature, filters and the draw; `u` in [0, 1).
    fn draw(&self, sampling: &Sampling, u: f64) -> u32 {
        if sampling.top_k > 0 {
            let kept = self.best(sampling.top_k);
            let most = kept[0].logit;
            let weights: Vec<f64> = kept.iter().map(|c| f64::from(weight(c.logit, most, sampling))).collect();
            let total: f64 = weights.iter().sum();
            return kept[pick(&weights, total, sampling.top_p, u)].id;
        }
        let logits = self.logits.expect("drawing from all tokens needs all logits: this is a bug");
        let most = logits[best(logits) as usize];
        let sums: Vec<f64> =
            logits.chunks(BLOCK).map(|block| block_sum(block, |l| weight(l, most, sampling))).collect();
        let total: f64 = sums.iter().sum();
        if sampling.top_p >= 1.0 {
            return pick_in_blocks(logits, &sums, u * total, |l| weight(l, most, sampling));
        }
        // Tokens so unlikely that all of them together are less than what the nucleus leaves out.
        let negligible = 0.5 * (1.0 - f64::from(sampling.top_p)) * total / logits.len() as f64;
        let mut all: Vec<Candidate> = vec![];
        for (id, logit) in (0..).zip(logits) {
            let weight = f64::from(weight(*logit, most, sampling));
            if weight > 0.0 && weight >= negligible {
                all.push(Candidate { id, logit: *logit });
            }
        }
        // The best few usually hold the whole nucleus; more are sorted only when they do not.
        let mut k = 256;
        let mass = |c: &Candidate| f64::from(weight(c.logit, most, sampling));
        while k < all.len() {
            all.select_nth_unstable_by(k, by_rank);
            if all[..k].iter().map(mass).sum::<f64>() >= f64::from(sampling.top_p) * total {
                all.truncate(k);
            }
            k *= 4;
        }
        all.sort_unstable_by(by_rank);
        let weights: Vec<f64> = all.iter().map(mass).collect();
        all[pick(&weights, total, sampling.top_p, u)].id
    }
}

/// Probability relative to the most likely token's, 0 when `min_p` drops it.
#[inline(always)]
fn weight(logit: f32, most: f32, sampling: &Sampling) -> f32 {
    let relative = exp((logit - most) / sampling.temperature);
    if relative >= sampling.min_p { relative } else { 0.0 }
}

/// Tokens whose weights are summed before anything else is added.
const BLOCK: usize = 1024;

/// Sixteen chains, so that the sum is fast; always the same sixteen, so that it is the same.
fn block_sum(block: &[f32], weight: impl Fn(f32) -> f32) -> f64 {
    let mut lanes = [0f32; 16];
    let (whole, rest) = block.as_chunks::<16>();
    for chunk in whole {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane += weight(*logit);
        }
    }
    let rest: f64 = rest.iter().map(|l| f64::from(weight(*l))).sum();
    lanes.iter().map(|l| f64::from(*l)).sum::<f64>() + rest
}

/// The token at which the cumulated weights, in order of ids, pass `target`.
fn pick_in_blocks(logits: &[f32], sums: &[f64], target: f64, weight: impl Fn(f32) -> f32) -> u32 {
    let mut before = 0.0;
    let mut last = 0;
    for (index, sum) in sums.iter().enumerate() {
        if *sum > 0.0 && before + sum > target {
            // Added one by one the block's weights may come out a little less: then its last one is meant.
            let mut within = before;
            for (i, logit) in logits[index * BLOCK..].iter().take(BLOCK).enumerate() {
                let weight = f64::from(weight(*logit));
                within += weight;
                if weight > 0.0 {
                    last = index * BLOCK + i;
                    if within > target {
                        break;
                    }
                }
            }
            return last as u32;
        }
        if *sum > 0.0 {
            last = index * BLOCK;
        }
        before += sum;
    }
    last as u32
}

/// e^x for x <= 0, to about 1 in 10^7, of multiplications and additions alone: the same bits on every machine, and the
/// compiler makes vectors of it. 0 below -87, as f32 has no normal numbers there.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // x = n ln 2 + r, |r| <= ln 2 / 2; ln 2 in two parts, the first exact times n.
    // Not `max`: that would let go of what is no number.
    let clamped = if x < -87.0 { -87.0 } else { x };
    let n = (clamped * std::f32::consts::LOG2_E - 0.5) as i32;
    let r = clamped - n as f32 * 0.693_359_4 + n as f32 * 2.121_944_4e-4;
    let mut sum = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + c;
    }
    let power = f32::from_bits(((n + 127) as u32) << 23);
    if x < -87.0 { 0.0 } else { sum * power }
}

/// Keeps the first weights that together reach `top_p` of `total`, and draws from these.
fn pick(weights: &[f64], total: f64, top_p: f32, u: f64) -> usize {
    let (mut kept, mut mass) = (weights.len(), weights.iter().sum::<f64>());
    if top_p < 1.0 {
        (kept, mass) = (0, 0.0);
        while kept < weights.len() && (kept == 0 || mass < f64::from(top_p) * total) {
            mass += weights[kept];
            kept += 1;
        }
    }
    let target = u * mass;
    let mut sum = 0.0;
    let mut last = 0;
    for (i, weight) in weights[..kept].iter().enumerate().filter(|(_, w)| **w > 0.0) {
        sum += weight;
        last = i;
        if sum > target {
            break;
        }
    }
    last
}

/// The logits after bias, forbidden stop tokens and penalties.
fn edit(logits: &[f32], sampling: &Sampling, place: &Place<'_>) -> Vec<f32> {
    let mut out = logits.to_vec();
    for (id, bias) in &sampling.logit_bias {
        out[*id as usize] += bias;
    }
    if sampling.forbids_stop(place) {
        for id in place.stop_ids {
            // A checkpoint may name end tokens beyond its logits.
            if let Some(logit) = out.get_mut(*id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    if sampling.has_penalties() {
        let seen = place.seen.expect("requests with penalties count tokens: this is a bug");
        for (id, count) in &seen.counts {
            let logit = &mut out[*id as usize];
            let factor = sampling.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / factor } else { *logit * factor };
            *logit -= *count as f32 * sampling.frequency_penalty;
            *logit -= if *count > 0 { sampling.presence_penalty } else { 0.0 };
        }
    }
    if let Some(mask) = place.mask {
        mask.apply(&mut out);
    }
    out
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    // `max` passes over NaN, the sum below does not.
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if most == f32::NEG_INFINITY && !logits.iter().any(|l| l.is_nan()) {
        return most;
    }
    let sum: f64 = logits.chunks(BLOCK).map(|block| block_sum(block, |l| exp(l - most))).sum();
    most + sum.ln() as f32
}

/// The largest, ties to the lowest id.
fn best(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

fn top_of(mut all: Vec<Candidate>, k: usize) -> Vec<Candidate> {
    if k < all.len() {
        all.select_nth_unstable_by(k, by_rank);
        all.truncate(k);
    }
    all.sort_unstable_by(by_rank);
    all
}

fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_near_the_libraries() {
        for i in 0..1_000_000 {
            let x = -(i as f32) * 9e-5;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(x < -87.0 || (ours - exact).abs() <= 3e-7 * exact, "exp({x}) = {ours}, not {exact}");
        }
        assert_eq!((exp(0.0), exp(f32::NEG_INFINITY), exp(-88.0)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn a_broken_row_sums_to_no_number() {
        for broken in [f32::NAN, f32::INFINITY] {
            assert!(!log_sum_exp(&[1.0, broken, 2.0]).is_finite());
        }
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY; 3]), f32::NEG_INFINITY);
    }
}
