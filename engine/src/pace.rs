//! Owns how many prompt tokens a step may take along while other sequences generate, so that a long prompt does not hold
//! up those streams. Learns from what steps took; holds no clock. What it decides changes when tokens are computed, never
//! which: a step's cut does not change its results.
//!
//! Rule: the prompts' part of a step may take as long as the generating sequences' part, so that gaps between tokens stay
//! under about twice the plain ones. It does not hold for a crowd: while three sequences still read their prompts for two
//! that generate, full steps serve more people sooner.
//!
//! What it costs and gives, SmolLM2-135M in bf16 on 2 cores: of 16 clients in turn the 99th percentile of the gaps falls
//! from 171 ms to 35 ms at the same throughput; 32 requests at once end after 3.0 s instead of 2.7 s.

use std::time::Duration;

/// Fewer tokens would read all the weights for next to nothing.
const LEAST_TOKENS: usize = 16;
/// Sequences that read for those that generate, from which on the readers are a crowd.
const CROWD: (usize, usize) = (3, 2);
/// A step beside sequences whose part is not known tells what a prompt token costs when it has this many of them for one
/// that is generated; one with fewer tells what generating costs.
const MOSTLY_PROMPT: usize = 8;
/// Weight of the newest step in what is remembered.
const NEWEST: f64 = 0.125;
/// A step that took longer than this many times the usual one tells of the machine, not of the model.
const SURPRISE: f64 = 4.0;

#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// Seconds that a number of generating sequences takes, and that number, by its binary logarithm.
    generate: [Option<(usize, f64)>; 16],
    /// Seconds a prompt token adds to a step.
    prompt_token: Option<f64>,
}

impl Pace {
    /// Most prompt tokens in a step beside `generating` sequences, when `reading` sequences have not read their prompts
    /// to the end.
    pub fn prompt_tokens(&self, generating: usize, reading: usize) -> usize {
        let (Some(step), Some(token)) = (self.generate(generating), self.prompt_token) else { return usize::MAX };
        if reading * CROWD.1 >= generating * CROWD.0 {
            return usize::MAX;
        }
        // Saturates where a token costs nothing.
        ((step / token) as usize).max(LEAST_TOKENS)
    }

    /// Remembers a step of `generating` sequences and `prompt_tokens` that took `elapsed`.
    pub fn observe(&mut self, generating: usize, prompt_tokens: usize, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        // Beside sequences whose part is known the rest is the prompts'; else what there is more of is told apart.
        let known = generating == 0 || self.generate[bucket(generating)].is_some();
        // What is known of the other part may be too much by now: a quarter is left at least.
        if prompt_tokens >= LEAST_TOKENS && (known || prompt_tokens >= MOSTLY_PROMPT * generating) {
            let others = self.generate(generating).filter(|_| generating > 0).unwrap_or(0.0);
            remember(&mut self.prompt_token, (seconds - others).max(seconds / 4.0) / prompt_tokens as f64);
        } else if generating > 0 && (prompt_tokens == 0 || self.prompt_token.is_some()) {
            let others = self.prompt_token.unwrap_or(0.0) * prompt_tokens as f64;
            let held = &mut self.generate[bucket(generating)];
            let mut usual = held.map(|(_, seconds)| seconds);
            remember(&mut usual, (seconds - others).max(seconds / 4.0));
            *held = usual.map(|usual| (generating, usual));
        }
    }

    /// Of the nearest number of sequences that was seen; each of the difference costs about what a prompt token does.
    fn generate(&self, generating: usize) -> Option<f64> {
        let wanted = bucket(generating.max(1));
        let known = self.generate.iter().enumerate().filter_map(|(i, known)| Some((i, (*known)?)));
        let (_, (known, seconds)) = known.min_by_key(|(i, _)| i.abs_diff(wanted))?;
        let difference = (generating as f64 - known as f64) * self.prompt_token.unwrap_or(0.0);
        Some((seconds + difference).max(seconds / 4.0))
    }
}

fn bucket(generating: usize) -> usize {
    (generating.ilog2() as usize).min(15)
}

fn remember(held: &mut Option<f64>, seconds: f64) {
    *held = Some(match *held {
        Some(usual) => usual + NEWEST * (seconds.min(usual * SURPRISE) - usual),
        None => seconds,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn without_experience_nothing_is_held_back() {
        let mut pace = Pace::default();
        assert_eq!(pace.prompt_tokens(4, 1), usize::MAX);
        pace.observe(4, 0, ms(10));
        assert_eq!(pace.prompt_tokens(4, 1), usize::MAX);
    }

    #[test]
    fn prompts_get_the_time_that_generating_takes() {
        let mut pace = Pace::default();
        pace.observe(16, 0, ms(20));
        pace.observe(0, 512, ms(256)); // half a millisecond a token
        assert_eq!(pace.prompt_tokens(16, 1), 40);
        assert_eq!(pace.prompt_tokens(16, 23), 40);
        assert_eq!(pace.prompt_tokens(16, 24), usize::MAX, "a crowd");
        assert_eq!(pace.prompt_tokens(24, 1), 48, "eight sequences more, half a millisecond each");
        // Beside sequences that generate only the rest is the prompt's.
        let mut pace = Pace::default();
        pace.observe(4, 0, ms(20));
        pace.observe(4, 40, ms(60));
        assert_eq!(pace.prompt_tokens(4, 1), 20);
        // And of a step with a few prompt tokens the rest is the others'.
        pace.observe(16, 20, ms(60));
        assert_eq!(pace.prompt_tokens(16, 1), 40);
    }

    #[test]
    fn a_token_that_costs_nothing_and_a_step_that_hangs_break_nothing() {
        let mut pace = Pace::default();
        pace.observe(4, 0, ms(8));
        pace.observe(0, 64, ms(0));
        assert_eq!(pace.prompt_tokens(4, 1), usize::MAX);
        let mut pace = Pace::default();
        pace.observe(4, 0, ms(80));
        pace.observe(0, 64, ms(64));
        pace.observe(4, 0, ms(100_000));
        let now = pace.prompt_tokens(4, 1);
        assert!((109..=111).contains(&now), "a surprise counts as four usual steps, an eighth of them: {now}");
    }
    #[test]
    fn a_wrong_first_impression_passes() {
        // The first prompt was read five times too slowly; sixteen streams of 60 ms; a token costs 0.9 ms in truth.
        let mut pace = Pace::default();
        pace.observe(0, 512, Duration::from_micros(512 * 4500));
        pace.observe(16, 0, ms(60));
        let steps = (0..100).map(|_| {
            let tokens = pace.prompt_tokens(16, 1);
            pace.observe(16, tokens, Duration::from_micros(60_000 + tokens as u64 * 900));
            tokens
        });
        let tokens: Vec<usize> = steps.collect();
        assert_eq!(tokens[0], LEAST_TOKENS);
        assert!((60..=68).contains(tokens.last().unwrap()), "{tokens:?}");
        // And one that gets dearer five times, deep in a prompt: the step comes back to twice the plain one.
        let mut step_ms = 0;
        for _ in 0..100 {
            let tokens = pace.prompt_tokens(16, 1);
            step_ms = 60 + tokens as u64 * 9 / 2;
            pace.observe(16, tokens, ms(step_ms));
        }
        assert!(step_ms <= 140, "{step_ms}");
    }
}
