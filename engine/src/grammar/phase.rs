//! Owns which parts of an answer may be any text, so that no mask has to be computed for them: reasoning, and the text
//! before a call. This only saves work: a mask computed there would allow the same, so it is computed again as soon as
//! the text may have begun to leave the part. Knows no tokens, only their bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use llguidance::toktrie::SimpleVob;

/// A part of an answer.
#[derive(Clone)]
pub struct Phase {
    /// It ends where one of these texts does; with none it does not end.
    pub until: Vec<Vec<u8>>,
    /// What may come in it; `None`: what the grammar says.
    pub free: Option<Arc<SimpleVob>>,
}

/// The parts of an answer, from the one it is in.
#[derive(Clone, Default)]
pub struct Phases {
    phases: VecDeque<Phase>,
    /// The end of the text, as far as it may matter.
    tail: Vec<u8>,
}

impl Phases {
    pub fn new(phases: Vec<Phase>) -> Self {
        Self { phases: phases.into(), tail: vec![] }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        if self.phases.is_empty() {
            return;
        }
        self.tail.extend_from_slice(bytes);
        while let Some(end) = self.phases.front().and_then(|phase| phase.end(&self.tail)) {
            self.tail.drain(..end);
            self.phases.pop_front();
        }
        let longest = self.phases.front().map_or(0, |phase| phase.until.iter().map(Vec::len).max().unwrap_or(0));
        // A character has at most four bytes.
        let kept = longest.max(4).min(self.tail.len());
        self.tail.drain(..self.tail.len() - kept);
    }

    /// What may come next, if that needs no computing.
    pub fn free_mask(&self) -> Option<Arc<SimpleVob>> {
        let phase = self.phases.front()?;
        let free = phase.free.as_ref()?;
        (!phase.may_end(&self.tail) && !inside_character(&self.tail)).then(|| free.clone())
    }
}

impl Phase {
    /// Behind the first text that ends the phase.
    fn end(&self, tail: &[u8]) -> Option<usize> {
        let found = self.until.iter().filter_map(|text| {
            let at = tail.windows(text.len().max(1)).position(|window| window == text)?;
            Some(at + text.len())
        });
        found.min()
    }

    /// `tail` ends with the beginning of a text that ends the phase.
    fn may_end(&self, tail: &[u8]) -> bool {
        self.until.iter().any(|text| (1..text.len()).any(|length| tail.ends_with(&text[..length])))
    }
}

fn inside_character(tail: &[u8]) -> bool {
    let last = &tail[tail.len().saturating_sub(3)..];
    let Some(at) = last.iter().rposition(|byte| *byte >= 0xc0) else { return false };
    std::str::from_utf8(&last[at..]).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phases() -> Phases {
        let free = Some(Arc::new(SimpleVob::alloc(8)));
        Phases::new(vec![
            Phase { until: vec![b"</think>".to_vec()], free: free.clone() },
            Phase { until: vec![b"<call>".to_vec(), b"[go]".to_vec()], free },
        ])
    }

    #[test]
    fn a_phase_is_free_until_it_may_end() {
        let mut p = phases();
        assert!(p.free_mask().is_some());
        p.push(b"so be it <");
        assert!(p.free_mask().is_none(), "the next token may end it");
        p.push(b"b>");
        assert!(p.free_mask().is_some());
        p.push(b"x</think>y[");
        assert!(p.free_mask().is_none(), "the next phase may end");
        p.push(b"go");
        assert!(p.free_mask().is_none());
        p.push(b"]");
        assert!(p.phases.is_empty() && p.free_mask().is_none());
    }

    #[test]
    fn inside_a_character_nothing_is_free() {
        let mut p = phases();
        let euro = "€".as_bytes();
        p.push(&euro[..1]);
        assert!(p.free_mask().is_none());
        p.push(&euro[1..2]);
        assert!(p.free_mask().is_none());
        p.push(&euro[2..]);
        assert!(p.free_mask().is_some());
    }
}
