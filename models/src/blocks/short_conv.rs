//! Owns short convolutions: how their weights are stored, and the part that mixes tokens by one between two gates. Knows no
//! family.

use dualgauge_kernels::{Act, ConvSpec, Recorder, StateLayer, Value};

use super::{Linear, Part};
use crate::Result;
use crate::loader::Loader;

/// How a convolution over each channel is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConvOptions {
    pub channels: usize,
    /// Tokens that a channel sees, its own included.
    pub taps: usize,
    pub bias: bool,
    pub act: Option<Act>,
}

impl ConvOptions {
    /// Loads `NAME.weight` `[channels, 1, taps]` and perhaps `NAME.bias`; `scale` multiplies what goes into each channel.
    /// `state` is the index of its state layer.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn load(
        &self,
        loader: &mut Loader<'_>,
        name: &str,
        state: usize,
        scale: impl Fn(usize) -> f32,
    ) -> Result<ConvSpec> {
        let (channels, taps) = (self.channels, self.taps);
        let stored = loader.values_of(&format!("{name}.weight"), &[channels, 1, taps])?;
        let by_tap = |i: usize| stored[i % channels * taps + i / channels] * scale(i % channels);
        let weight: Vec<f32> = (0..taps * channels).map(by_tap).collect();
        let weight = loader.constant(&format!("{name}.weight"), &weight)?;
        let bias = self.bias.then(|| loader.vector(&format!("{name}.bias"), channels)).transpose()?;
        Ok(ConvSpec { state, taps, weight, bias, act: self.act })
    }

    /// What it keeps of a sequence.
    pub fn state(&self) -> StateLayer {
        StateLayer { shape: [self.taps - 1, self.channels].into() }
    }
}

/// `out(c * conv(b * x))`, where `b`, `c` and `x` are made of the part's input.
pub struct ShortConv {
    input: Linear,
    conv: ConvSpec,
    out: Linear,
    options: ConvOptions,
}

impl ShortConv {
    /// Loads `PREFIX.in_proj`, `PREFIX.conv` and `PREFIX.out_proj`.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn load(loader: &mut Loader<'_>, prefix: &str, state: usize, o: &ConvOptions) -> Result<Self> {
        let hidden = o.channels;
        Ok(Self {
            input: Linear::load(loader, &format!("{prefix}.in_proj"), 3 * hidden, hidden, o.bias)?,
            conv: o.load(loader, &format!("{prefix}.conv"), state, |_| 1.0)?,
            out: Linear::load(loader, &format!("{prefix}.out_proj"), hidden, hidden, o.bias)?,
            options: *o,
        })
    }
}

impl Part for ShortConv {
    fn forward(&self, g: &Recorder, x: Value) -> Value {
        let _scope = g.scope("conv");
        let hidden = self.options.channels;
        let all = self.input.forward(g, x); // [tokens, 3 * hidden]
        let [b, c, x] = [0, 1, 2].map(|i| g.narrow(all, i * hidden, hidden));
        self.out.forward(g, g.mul(c, g.short_conv(g.mul(b, x), self.conv)))
    }

    fn states(&self) -> Vec<StateLayer> {
        vec![self.options.state()]
    }
}
