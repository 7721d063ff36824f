//! Owns the feed-forward part of a layer. Knows no family.

use dualgauge_kernels::{Act, Recorder, Value};

use super::{Linear, Part};
use crate::loader::Loader;
use crate::{Config, Result};

/// How a feed-forward part is stored and computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MlpOptions {
    pub hidden: usize,
    pub inner: usize,
    pub act: Act,
    pub bias: bool,
    pub shape: MlpShape,
}

/// Which matrices there are, by the names they are stored under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpShape {
    /// `down(act(gate) * up)`, three matrices.
    Gated { gate: &'static str, up: &'static str, down: &'static str },
    /// The same; gate rows, then up rows, in one matrix.
    Fused { gate_up: &'static str, down: &'static str },
    /// `down(act(up))`
    Plain { up: &'static str, down: &'static str },
    /// The same, stored `[in, out]`.
    PlainColumns { up: &'static str, down: &'static str },
}

impl MlpOptions {
    /// The gated part of most models.
    pub fn of(config: &Config) -> Self {
        Self { bias: config.mlp_bias, ..Self::gated(config.hidden, config.inner, config.act) }
    }

    /// Three matrices of the usual names, without biases.
    pub fn gated(hidden: usize, inner: usize, act: Act) -> Self {
        let shape = MlpShape::Gated { gate: "gate_proj", up: "up_proj", down: "down_proj" };
        Self { hidden, inner, act, bias: false, shape }
    }
}

/// The feed-forward part of one layer.
#[derive(Clone, Debug)]
pub struct Mlp {
    first: First,
    down: Linear,
    act: Act,
    inner: usize,
}

#[derive(Clone, Debug)]
enum First {
    Gated { gate: Linear, up: Linear },
    Fused(Linear),
    Plain(Linear),
}

impl Mlp {
    /// Loads `PREFIX.gate_proj.weight` and so on.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn load(loader: &mut Loader<'_>, prefix: &str, o: &MlpOptions) -> Result<Self> {
        let of = match o.shape {
            MlpShape::PlainColumns { .. } => Linear::load_columns,
            _ => Linear::load,
        };
        let mut load = |name: &str, out, inner| of(loader, &format!("{prefix}.{name}"), out, inner, o.bias);
        let (first, down) = match o.shape {
            MlpShape::Gated { gate, up, down } => {
                let (gate, up) = (load(gate, o.inner, o.hidden)?, load(up, o.inner, o.hidden)?);
                (First::Gated { gate, up }, down)
            }
            MlpShape::Fused { gate_up, down } => (First::Fused(load(gate_up, 2 * o.inner, o.hidden)?), down),
            MlpShape::Plain { up, down } | MlpShape::PlainColumns { up, down } => {
                (First::Plain(load(up, o.inner, o.hidden)?), down)
            }
        };
        Ok(Self { first, down: load(down, o.hidden, o.inner)?, act: o.act, inner: o.inner })
    }
}

impl Part for Mlp {
    fn forward(&self, g: &Recorder, x: Value) -> Value {
        let _scope = g.scope("mlp");
        let inner = match &self.first {
            First::Gated { gate, up } => g.gated_act(gate.forward(g, x), up.forward(g, x), self.act),
            First::Fused(both) => {
                let both = both.forward(g, x); // [tokens, 2 * inner]
                g.gated_act(g.narrow(both, 0, self.inner), g.narrow(both, self.inner, self.inner), self.act)
            }
            First::Plain(up) => g.act(up.forward(g, x), self.act),
        };
        self.down.forward(g, inner)
    }
}
