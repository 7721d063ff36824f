//! Owns where models come from: files of each format, and the places they are found in.

mod gguf;
mod hub;
mod locate;
mod lock;
mod mapping;
mod metadata;
mod pip;
mod preset;
pub mod random;
mod safetensors;

pub use gguf::Gguf;
pub use locate::{DEFAULT_PRESET, Locations, Report, locate};
pub(crate) use mapping::{file_name, read_text};
pub use metadata::{Metadata, MetadataValue};
pub(crate) use safetensors::Part;
pub use safetensors::Safetensors;
