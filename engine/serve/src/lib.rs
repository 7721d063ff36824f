//! The HTTP server of dualgauge as a library: [`run`] serves an [`App`] on a listener until told to stop. One folder an
//! API; what lies behind them, from tokenizer to device, is shared.

pub mod args;
pub mod neuron;
pub mod start;

mod answer;
mod anthropic;
mod app;
mod auth;
mod azure;
mod bedrock;
mod body;
mod calendar;
mod defaults;
mod dialect;
mod error;
mod gemini;
mod limits;
mod ollama;
mod openai;
mod openapi;
mod ops;
mod progress;
mod ranges;
mod responses;
mod router;
mod run;
mod server;
mod stalled;
mod stream;
mod tools;
mod turns;

pub use app::{App, Defaults};
pub use auth::Keys;
pub use limits::Limits;
pub use server::run;
