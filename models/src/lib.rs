//! What a checkpoint is. This crate reads model files, writes programs and speaks the model's dialect of text. It knows
//! no scheduler, no requests and no network protocol but the hub's.

pub mod blocks;
mod checkpoint;
mod config;
mod error;
mod families;
mod family;
mod loader;
mod model;
mod pooling;
mod quant;
pub mod source;
pub mod text;

pub use checkpoint::Checkpoint;
pub use config::{Config, Keys, RopeConfig, RopeScaling, RopeTable};
pub use error::{Error, Result};
pub use family::{FAMILIES, Family};
pub use loader::{Loader, WeightDtype};
pub use model::{Model, ModelSpec};
pub use pooling::{Pool, Pooling};
pub use text::{Conversation, Detokenizer, Message, Text};
