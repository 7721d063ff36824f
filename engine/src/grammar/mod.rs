//! Owns constrained decoding: which tokens a grammar lets come next. A grammar is compiled once for a vocabulary, away
//! from the owner thread; each sequence has a state of its own, which follows its tokens and so outlives a preemption.
//! Knows no scheduler, no device and no wire format. The grammar engine is the `llguidance` crate, which nothing outside
//! of this folder sees.

mod answer;
mod compile;
mod phase;
mod schema;
mod source;
mod vocabulary;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use phase::Phases;
use vocabulary::Vocabulary;

pub(crate) use answer::Wish;
pub(crate) use compile::Compiler;

/// A compiled grammar. Clones share it.
#[derive(Clone)]
pub struct Grammar(Arc<Compiled>);

struct Compiled {
    vocabulary: Arc<Vocabulary>,
    /// Cloned for each sequence; not every part of it may be looked at from two threads.
    fresh: Mutex<Matcher>,
    phases: Phases,
}

impl Grammar {
    /// The state before the first token.
    pub(crate) fn start(&self) -> GrammarState {
        let matcher = self.0.fresh.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        GrammarState { vocabulary: self.0.vocabulary.clone(), matcher, phases: self.0.phases.clone(), mask: None }
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

/// The same grammar, not an equivalent one.
impl PartialEq for Grammar {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Where one sequence is in its grammar.
pub struct GrammarState {
    vocabulary: Arc<Vocabulary>,
    matcher: Matcher,
    phases: Phases,
    /// For the next token, once it was asked for.
    mask: Option<Result<Mask, String>>,
}

/// What making masks took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MaskCost {
    pub masks: u64,
    pub microseconds: u64,
}

impl std::ops::AddAssign for MaskCost {
    fn add_assign(&mut self, more: Self) {
        self.masks += more.masks;
        self.microseconds += more.microseconds;
    }
}

impl GrammarState {
    /// Makes the mask for the next token; nothing when it is made. Returns what it took.
    pub fn prepare(&mut self) -> MaskCost {
        if self.mask.is_some() {
            return MaskCost::default();
        }
        if let Some(free) = self.phases.free_mask() {
            self.mask = Some(Ok(Mask(free)));
            return MaskCost { masks: 1, microseconds: 0 };
        }
        let mask = self.matcher.compute_mask_or_eos().map(|mask| Mask(Arc::new(mask)));
        // The library keeps the time; this crate's steps have no clock.
        let total = self.matcher.last_step_stats().map_or(0, |stats| stats.compute_time_us);
        self.mask = Some(mask.map_err(|error| failed(&error.to_string())));
        MaskCost { masks: 1, microseconds: total }
    }

    /// The mask for the next token.
    ///
    /// # Errors
    /// A sentence, when the grammar cannot go on.
    pub fn mask(&self) -> Result<&Mask, String> {
        self.mask
            .as_ref()
            .expect("masks are made before tokens are chosen: this is a bug")
            .as_ref()
            .map_err(Clone::clone)
    }

    /// Takes a token that the mask allowed. True when nothing can follow it: the text is complete.
    pub fn push(&mut self, token: u32) -> bool {
        self.mask = None;
        self.phases.push(self.vocabulary.bytes(token));
        if let Err(error) = self.matcher.consume_token(token) {
            self.mask = Some(Err(failed(&error.to_string())));
            return false;
        }
        self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }
}

fn failed(error: &str) -> String {
    let line = error.lines().next().unwrap_or_default();
    format!("the grammar of the answer cannot go on: {line}")
}

/// The tokens that may come next.
#[derive(Clone, Debug)]
pub struct Mask(Arc<SimpleVob>);

impl Mask {
    /// Sets the logits of all other tokens to minus infinity.
    pub fn apply(&self, logits: &mut [f32]) {
        let words = self.0.as_slice();
        for (at, chunk) in logits.chunks_mut(32).enumerate() {
            let word = words.get(at).copied().unwrap_or(0);
            if word == u32::MAX {
                continue;
            }
            for (bit, logit) in chunk.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}
