//! Owns the responses that later requests may go on from: the latest ones, within a bound of number and size. Nothing is
//! written to disk; who needs a conversation for long keeps it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};

const MOST_RESPONSES: usize = 4096;
const MOST_BYTES: usize = 64 << 20;

/// A response and what it took to make it.
#[derive(Debug)]
pub struct Kept {
    pub id: String,
    /// The body, as it was sent.
    pub response: Value,
    /// What the request brought.
    pub input: Vec<Map<String, Value>>,
    /// All items of the conversation, from the first request to this response's output.
    pub history: Vec<Map<String, Value>>,
}

#[derive(Default)]
pub struct Store {
    kept: Mutex<Shelf>,
}

#[derive(Default)]
struct Shelf {
    /// Oldest first, with the bytes of each.
    responses: VecDeque<(Arc<Kept>, usize)>,
    bytes: usize,
}

impl Store {
    pub fn put(&self, kept: Kept) {
        let bytes = kept.response.to_string().len()
            + kept
                .history
                .iter()
                .map(|item| item.iter().map(|(k, v)| k.len() + v.to_string().len()).sum::<usize>())
                .sum::<usize>();
        let mut shelf = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.bytes += bytes;
        shelf.responses.push_back((Arc::new(kept), bytes));
        while shelf.responses.len() > MOST_RESPONSES || (shelf.bytes > MOST_BYTES && !shelf.responses.is_empty()) {
            if let Some((_, bytes)) = shelf.responses.pop_front() {
                shelf.bytes -= bytes;
            }
        }
    }

    pub fn get(&self, id: &str) -> Option<Arc<Kept>> {
        let shelf = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.responses.iter().rev().find(|(kept, _)| kept.id == id).map(|(kept, _)| Arc::clone(kept))
    }

    /// An item of any conversation, by its identifier.
    pub fn item(&self, id: &str) -> Option<Map<String, Value>> {
        let shelf = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut items = shelf.responses.iter().rev().flat_map(|(kept, _)| &kept.history);
        items.find(|item| item.get("id").and_then(Value::as_str) == Some(id)).cloned()
    }

    /// True when it was there.
    pub fn delete(&self, id: &str) -> bool {
        let mut shelf = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = shelf.responses.iter().position(|(kept, _)| kept.id == id) else { return false };
        if let Some((_, bytes)) = shelf.responses.remove(at) {
            shelf.bytes -= bytes;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(id: usize, bytes: usize) -> Kept {
        Kept { id: id.to_string(), response: Value::String("x".repeat(bytes)), input: vec![], history: vec![] }
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let store = Store::default();
        (0..=MOST_RESPONSES).for_each(|id| store.put(kept(id, 1)));
        assert!(store.get("0").is_none() && store.get("1").is_some());
        assert!(store.delete("1") && !store.delete("1") && store.get("1").is_none());
    }

    #[test]
    fn the_oldest_go_when_they_are_too_large() {
        let store = Store::default();
        (0..5).for_each(|id| store.put(kept(id, MOST_BYTES / 4)));
        assert!(store.get("1").is_none() && store.get("2").is_some() && store.get("4").is_some());
        store.put(kept(5, MOST_BYTES));
        assert!(store.get("4").is_none() && store.get("5").is_none());
    }
}
