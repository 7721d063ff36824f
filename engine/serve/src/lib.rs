//! The HTTP server of dualgauge as a library: [`run`] serves an [`App`] on a listener until told to stop. One folder an
//! API; what lies behind them, from tokenizer to device, is shared.

pub mod args;
pub mod openai;
pub mod start;

mod app;
mod auth;
mod defaults;
mod limits;
mod ops;
mod progress;
mod router;
mod server;
mod stalled;

pub use app::{App, Defaults};
pub use auth::Keys;
pub use limits::Limits;
pub use server::run;
