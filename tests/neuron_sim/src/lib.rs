//! A Neuron device to test against where there is none: a stand-in `libnrt.so.1` (this crate as a cdylib) and a stand-in
//! `neuronx-cc` ([`compiler`]). It shares no code with the back end: graphs are read, checked and evaluated from the
//! bytes alone, and what a device would refuse is refused here.
//!
//! Arithmetic is f32, rounded where the graph says bf16 or f16; sums run in ascending order.

mod abi;
pub mod compiler;
mod config;
mod device;
mod evaluate;
mod graph;
mod record;
mod stand;
#[cfg(test)]
mod tests;
mod value;
mod verify;
mod wire;

pub use stand::{Report, Stand};
