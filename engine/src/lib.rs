//! When things run: tokens in, tokens out, one owner thread. This crate knows no HTTP and no wire type.

mod config;
mod engine;
mod error;
mod metrics;
mod request;

pub use config::EngineConfig;
pub use engine::{Engine, Events, Health, StartPlan};
pub use error::Error;
pub use metrics::{BlockCounts, Counters, Histogram, Stats};
pub use request::{Event, FinishReason, Rejected, Request, Sampling, Token, TokenLogprobs, Usage};
