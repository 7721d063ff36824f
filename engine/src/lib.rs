//! When things run: tokens in, tokens out, one owner thread. This crate knows no HTTP and no wire type.
//!
//! [`Engine`] serves many callers from a thread of its own; [`Frontend`] puts text around it; [`Core`] is the same engine
//! without a thread, for a loop of one's own.

mod ahead;
mod check;
mod config;
mod core;
mod embedder;
mod engine;
mod error;
mod form;
mod frontend;
mod grammar;
mod kv;
mod metrics;
mod owner;
mod pace;
mod parts;
mod philox;
mod request;
mod runner;
pub mod sampler;
mod scheduler;
mod sequence;
mod sizing;
mod stop;

pub use config::EngineConfig;
pub use core::{Core, Step};
pub use embedder::Embedder;
pub use engine::{Engine, Events, Health};
pub use error::Error;
pub use form::{CallIds, OutputFormat, Reasoning, ToolChoice, ToolUse};
pub use frontend::{Frontend, Generation, Piece, Prompt, Refused, Stop, TextRequest};
pub use grammar::{Grammar, Mask};
pub use metrics::{BlockCounts, Counters, Histogram, Stats};
pub use request::{Event, FinishReason, Rejected, Request, Sampling, Token, TokenLogprobs, Usage};
pub use sequence::RequestId;
pub use sizing::StartPlan;
