//! Owns what benches share. Knows no result.

pub mod roofline;
