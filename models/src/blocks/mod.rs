//! Owns what families share: parts of a model, chosen by explicit options. A part loads its weights and records its
//! step; it knows no family.

mod attention;
mod decoder;
mod linear;
mod mlp;
mod moe;
mod norm;
mod rope;

pub use attention::{Attention, AttentionNames, AttentionOptions, Projections, QkNorm};
pub use decoder::{Decoder, DecoderNames, DecoderOptions, LayerNorms, Part, Parts};
pub use linear::Linear;
pub use mlp::{Mlp, MlpOptions, MlpShape};
pub use moe::{Moe, MoeOptions};
pub use norm::{Norm, NormKind};
pub use rope::rope;
