//! When things run: tokens in, tokens out, one owner thread. This crate knows no HTTP and no wire type.

mod request;

pub use request::{Event, FinishReason, Rejected, Request, Sampling, Token, TokenLogprobs, Usage};
