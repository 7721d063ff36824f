//! Owns where models come from: files of each format, and the places they are found in.

mod gguf;
mod mapping;
mod metadata;
pub mod random;
mod safetensors;

pub use gguf::Gguf;
pub(crate) use mapping::{file_name, read_text};
pub use metadata::{Metadata, MetadataValue};
pub use safetensors::Safetensors;
