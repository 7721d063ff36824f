//! Owns the families: one file each, which reads as the model's mathematics. A new one also needs its line in
//! [`crate::FAMILIES`].

pub(crate) mod llama;
