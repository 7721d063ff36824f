//! Owns what the routes share: the front end of the engine, the served names, keys, bounds and defaults, and the source of
//! identifiers and seeds. Reads no clock and no randomness of its own: both come in with [`App`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dualgauge::{CallIds, Engine, Frontend, Health, Sampling};
use dualgauge_models::{Conversation, Message};
use sha2::{Digest, Sha256};

use crate::auth::Keys;
use crate::error::ApiError;
use crate::limits::Limits;
use crate::responses::Store;

/// Everything a server needs to know. [`App::new`] suits tests and embedding; the fields may be changed before `run`.
#[derive(Clone)]
pub struct App {
    pub frontend: Frontend,
    /// Names that requests may call the model by, at least one; the first is used in answers to requests without one.
    pub names: Vec<String>,
    /// Further names that requests may call the model by; no list shows them.
    pub aliases: Vec<String>,
    pub keys: Keys,
    pub limits: Limits,
    pub defaults: Defaults,
    /// What running requests get to finish in at shutdown.
    pub drain_timeout: Duration,
    /// From it come the seeds of requests that bring none.
    pub seed: u64,
    /// Makes identifiers differ between servers.
    pub identity: u64,
    pub clock: fn() -> SystemTime,
}

/// Sampling of requests that leave a field out: the model's own recommendation where it has one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    pub temperature: f32,
    pub top_p: f32,
    pub top_k: usize,
    pub min_p: f32,
    pub repetition_penalty: f32,
}

impl Default for Defaults {
    /// OpenAI's: temperature 1 and no filter.
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

impl App {
    pub fn new(frontend: Frontend, name: impl Into<String>) -> Self {
        Self {
            frontend,
            names: vec![name.into()],
            aliases: vec![],
            keys: Keys::default(),
            limits: Limits::default(),
            defaults: Defaults::default(),
            drain_timeout: Duration::from_secs(30),
            seed: 0,
            identity: 0,
            clock: SystemTime::now,
        }
    }
}

/// The state of a running server.
pub(crate) struct Server {
    pub app: App,
    /// Unix time of the start.
    pub started: u64,
    /// Answers that later requests may go on from.
    pub responses: Store,
    draining: AtomicBool,
    counter: AtomicU64,
}

impl Server {
    pub fn new(app: App) -> Self {
        let started = unix_seconds(app.clock);
        Self { app, started, responses: Store::default(), draining: AtomicBool::new(false), counter: AtomicU64::new(0) }
    }

    pub fn engine(&self) -> &Engine {
        self.app.frontend.engine()
    }

    pub fn now(&self) -> u64 {
        unix_seconds(self.app.clock)
    }

    /// A chat whose next turn is the model's, as of now; it goes on from `prefill`.
    pub fn conversation(&self, messages: Vec<Message>, prefill: Option<String>) -> Conversation {
        let now = i64::try_from(self.now()).ok();
        Conversation { messages, prefill, add_generation_prompt: true, now, ..Conversation::default() }
    }

    /// An identifier that no other request has: `chatcmpl-` and 24 hexadecimal digits.
    pub fn id(&self, prefix: &str) -> String {
        let digest = self.digest(self.app.identity, b"id");
        digest[..12].iter().fold(prefix.to_owned(), |id, byte| id + &format!("{byte:02x}"))
    }

    /// A seed for a request that brings none.
    pub fn seed(&self) -> u64 {
        let digest = self.digest(self.app.seed, b"seed");
        u64::from_le_bytes(digest[..8].try_into().expect("eight bytes of a digest: this is a bug"))
    }

    /// Sampling of a request that says nothing about it.
    pub fn sampling(&self) -> Sampling {
        let Defaults { temperature, top_p, top_k, min_p, repetition_penalty } = self.app.defaults;
        // A nucleus of nothing still holds its first token.
        let top_p = top_p.max(f32::MIN_POSITIVE);
        let seed = self.seed();
        Sampling { temperature, top_p, top_k, min_p, repetition_penalty, seed, ..Sampling::default() }
    }

    /// Where the identifiers of a request's calls come from.
    pub fn call_ids(&self, prefix: &str) -> CallIds {
        let digest = self.digest(self.app.identity, b"calls");
        let seed = u64::from_le_bytes(digest[..8].try_into().expect("eight bytes of a digest: this is a bug"));
        CallIds { prefix: prefix.to_owned(), seed }
    }

    /// The served name that `model` means; without one the first.
    pub fn model<'a>(&'a self, model: Option<&'a str>) -> Result<&'a str, ApiError> {
        match model {
            None | Some("") => Ok(&self.app.names[0]),
            Some(name) if self.app.names.iter().chain(&self.app.aliases).any(|n| n == name) => Ok(name),
            Some(name) => Err(ApiError::unknown_model(name, &self.app.names)),
        }
    }

    /// New requests are refused from here on, by the engine too.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.engine().drain();
    }

    pub fn health(&self) -> Health {
        match self.engine().health() {
            Health::Ready if self.draining.load(Ordering::Acquire) => Health::Draining,
            health => health,
        }
    }

    fn digest(&self, key: u64, purpose: &[u8]) -> [u8; 32] {
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        Sha256::new()
            .chain_update(key.to_le_bytes())
            .chain_update(purpose)
            .chain_update(count.to_le_bytes())
            .finalize()
            .into()
    }
}

fn unix_seconds(clock: fn() -> SystemTime) -> u64 {
    clock().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
