//! Owns what families share: parts of a model, chosen by explicit options. A part loads its weights and records its
//! step; it knows no family.

mod attention;
mod decoder;
mod delta_net;
mod feed;
mod latent;
mod linear;
mod mamba;
mod mlp;
mod moe;
mod norm;
mod rope;
mod short_conv;

pub use attention::{Attention, AttentionNames, AttentionOptions, Projections, QkNorm};
pub use decoder::{Besides, Decoder, DecoderNames, DecoderOptions, LayerNorms, Part, Parts};
pub use delta_net::{DeltaNet, DeltaNetOptions, DeltaStored};
pub use feed::FeedOptions;
pub use latent::{LatentAttention, LatentOptions};
pub use linear::Linear;
pub use mamba::{GatedNorm, Mamba, MambaOptions, dt_limit};
pub use mlp::{Mlp, MlpOptions, MlpShape};
pub use moe::{ExpertsStored, Moe, MoeOptions, SharedExpert};
pub use norm::{Norm, NormKind};
pub use rope::rope;
pub use short_conv::{ConvOptions, ShortConv};
