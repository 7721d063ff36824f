//! Owns what benches share. Knows no result.

pub mod neuron;
pub mod roofline;
pub mod timing;
