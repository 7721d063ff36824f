//! Owns the choice of a layer's feed-forward part, for models whose layers differ. Knows no family.

use super::{Mlp, MlpOptions, Moe, MoeOptions, Part};
use crate::Result;
use crate::loader::Loader;

/// The feed-forward part of a layer: the name it is stored under, and its kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FeedOptions<'a> {
    Mlp(&'static str, MlpOptions),
    Moe(&'static str, &'a MoeOptions),
}

impl FeedOptions<'_> {
    /// Loads the part of the layer whose tensors begin with `at`.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn load(&self, loader: &mut Loader<'_>, at: &str) -> Result<Box<dyn Part>> {
        Ok(match self {
            Self::Mlp(name, options) => Box::new(Mlp::load(loader, &format!("{at}.{name}"), options)?),
            Self::Moe(name, options) => Box::new(Moe::load(loader, &format!("{at}.{name}"), options)?),
        })
    }
}
