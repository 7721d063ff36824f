//! What a checkpoint is. This crate reads model files, writes programs and speaks the model's dialect of text. It knows
//! no scheduler, no requests and no network protocol but the hub's.

mod error;
mod model;

pub use error::{Error, Result};
pub use model::{Model, ModelSpec};
