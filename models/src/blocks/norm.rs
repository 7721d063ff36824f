//! Owns normalisation of the residual stream and of heads. Knows no family.

use dualgauge_kernels::{Recorder, Value, Weight};

use crate::Result;
use crate::loader::Loader;

/// Which norm a model has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// The gain is `offset + weight`: 0 for most, 1 for Gemma.
    Rms { offset: f32 },
    /// Mean and variance, with or without a bias. The gain is `offset + weight`: 0 for most, 1 for Nemotron.
    Layer { bias: bool, offset: f32 },
}

impl NormKind {
    /// The root-mean-square norm of most models.
    pub const RMS: Self = Self::Rms { offset: 0.0 };
    /// Mean and variance, with a bias.
    pub const LAYER: Self = Self::Layer { bias: true, offset: 0.0 };
}

/// A norm over the last dimension.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    kind: NormKind,
    gain: Weight,
    bias: Option<Weight>,
    eps: f32,
}

impl Norm {
    /// Loads `NAME.weight` `[len]`, and `NAME.bias` where the kind has one.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn load(loader: &mut Loader<'_>, name: &str, len: usize, kind: NormKind, eps: f32) -> Result<Self> {
        let name_of_gain = format!("{name}.weight");
        let gain = match kind {
            NormKind::Layer { offset, .. } if offset != 0.0 => {
                let gains: Vec<f32> = loader.values(&name_of_gain, len)?.iter().map(|w| w + offset).collect();
                loader.constant(&name_of_gain, &gains)?
            }
            _ => loader.vector(&name_of_gain, len)?,
        };
        let bias = match kind {
            NormKind::Layer { bias: true, .. } => Some(loader.vector(&format!("{name}.bias"), len)?),
            _ => None,
        };
        Ok(Self { kind, gain, bias, eps })
    }

    /// The same shape.
    pub fn forward(&self, g: &Recorder, x: Value) -> Value {
        match self.kind {
            NormKind::Rms { offset } => g.rms_norm(x, Some(self.gain), offset, self.eps),
            NormKind::Layer { .. } => g.layer_norm(x, Some(self.gain), self.bias, self.eps),
        }
    }
}
