//! Owns what benches share. Knows no result.

pub mod roofline;
pub mod timing;
