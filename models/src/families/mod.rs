//! Owns the families: one file each, which reads as the model's mathematics. A new one also needs its line in
//! [`crate::FAMILIES`].

pub(crate) mod gemma;
pub(crate) mod granite;
pub(crate) mod llama;
pub(crate) mod mistral;
pub(crate) mod mixtral;
pub(crate) mod olmo2;
pub(crate) mod qwen2;
pub(crate) mod qwen3;
pub(crate) mod smollm3;
