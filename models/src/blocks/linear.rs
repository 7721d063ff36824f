//! Owns the linear map of a model part: a matrix and perhaps a bias. Knows no formats.

use dualgauge_kernels::{Recorder, Value, Weight};

use crate::Result;
use crate::loader::Loader;

/// `x . w^T + bias`
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Weight,
    /// `[out]`
    pub bias: Option<Weight>,
}

impl Linear {
    /// Loads `NAME.weight` `[out, inner]`, and `NAME.bias` `[out]` when there is to be one.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn load(loader: &mut Loader<'_>, name: &str, out: usize, inner: usize, bias: bool) -> Result<Self> {
        let weight = loader.matrix(&format!("{name}.weight"), out, inner)?;
        let bias = bias.then(|| loader.vector(&format!("{name}.bias"), out)).transpose()?;
        Ok(Self { weight, bias })
    }

    /// As [`Self::load`], of a matrix that is stored `[in, out]`.
    ///
    /// # Errors
    /// As [`Self::load`]; when the matrix is in blocks, which cannot be turned.
    pub fn load_columns(loader: &mut Loader<'_>, name: &str, out: usize, inner: usize, bias: bool) -> Result<Self> {
        let weight = loader.turned(&format!("{name}.weight"), &[out, inner])?;
        let bias = bias.then(|| loader.vector(&format!("{name}.bias"), out)).transpose()?;
        Ok(Self { weight, bias })
    }

    /// `[.., in]` -> `[.., out]`
    pub fn forward(&self, g: &Recorder, x: Value) -> Value {
        g.linear_bias(x, self.weight, self.bias)
    }
}
