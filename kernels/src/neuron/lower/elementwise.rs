//! Owns the rules of norms, activations and other work on single rows.

use std::f32::consts::{FRAC_1_SQRT_2, PI};

use super::{Binary, Lowering, Node, Result, Value, Weight};
use crate::Act;
use crate::neuron::hlo::{Compare, Reduce, Unary};
use crate::op::XIELU_EDGE;

impl Lowering<'_> {
    pub(super) fn rms_norm(&mut self, x: Value, gain: Option<Weight>, offset: f32, eps: f32) -> Result<Node> {
        let x = self.float(x);
        let y = self.by_root_mean_square(x, eps);
        let Some(gain) = gain else { return Ok(y) };
        let gain = self.float_weight(gain)?;
        let gain = if offset == 0.0 { gain } else { self.shifted(gain, offset) };
        let dims = self.b.dims(y);
        let gain = match self.b.dims(gain)[0] == dims[dims.len() - 1] {
            true => self.along_last(gain, &dims),
            false => {
                // A gain for all groups of a row.
                let at = dims.len() - 2;
                let gain = self.b.reshape(gain, &dims[at..]);
                self.b.broadcast(gain, &dims, &[at, at + 1])
            }
        };
        Ok(self.b.binary(Binary::Multiply, y, gain))
    }

    pub(super) fn layer_norm(
        &mut self,
        x: Value,
        gain: Option<Weight>,
        bias: Option<Weight>,
        eps: f32,
    ) -> Result<Node> {
        let x = self.float(x);
        let dims = self.b.dims(x);
        let mean = self.mean(x);
        let mean = self.along_rows(mean, &dims);
        let centred = self.b.binary(Binary::Subtract, x, mean);
        let mut y = self.by_root_mean_square(centred, eps);
        for (weight, op) in [(gain, Binary::Multiply), (bias, Binary::Add)] {
            if let Some(weight) = weight {
                let weight = self.float_weight(weight)?;
                let weight = self.along_last(weight, &dims);
                y = self.b.binary(op, y, weight);
            }
        }
        Ok(y)
    }

    pub(super) fn gated_act(&mut self, gate: Value, up: Option<Value>, act: Act) -> Node {
        let gate = self.float(gate);
        let up = up.map(|up| self.float(up));
        self.gate(gate, up, act)
    }

    /// `act(gate) * up`.
    pub(super) fn gate(&mut self, gate: Node, up: Option<Node>, act: Act) -> Node {
        if let (Act::ClampedSwiglu { alpha, limit }, Some(up)) = (act, up) {
            let dims = self.b.dims(gate);
            let (high, low) = (self.b.full_f32(limit, &dims), self.b.full_f32(-limit, &dims));
            let gate = self.b.binary(Binary::Minimum, gate, high);
            let up = self.b.binary(Binary::Minimum, up, high);
            let up = self.b.binary(Binary::Maximum, up, low);
            let slope = self.scaled(gate, alpha);
            let open = self.b.unary(Unary::Logistic, slope);
            let gated = self.b.binary(Binary::Multiply, gate, open);
            let up = self.shifted(up, 1.0);
            return self.b.binary(Binary::Multiply, gated, up);
        }
        let y = self.act(gate, act);
        up.map_or(y, |up| self.b.binary(Binary::Multiply, y, up))
    }

    pub(super) fn pairwise(&mut self, op: Binary, a: Value, b: Value) -> Node {
        let (a, b) = (self.float(a), self.float(b));
        let dims = self.b.dims(a);
        let b = if self.b.dims(b) == dims { b } else { self.along_last(b, &dims) };
        self.b.binary(op, a, b)
    }

    pub(super) fn softcap(&mut self, x: Node, cap: f32) -> Node {
        let dims = self.b.dims(x);
        let by = self.b.full_f32(cap, &dims);
        let share = self.b.binary(Binary::Divide, x, by);
        let bent = self.b.unary(Unary::Tanh, share);
        self.b.binary(Binary::Multiply, bent, by)
    }

    fn act(&mut self, x: Node, act: Act) -> Node {
        let dims = self.b.dims(x);
        match act {
            Act::Silu => {
                let open = self.b.unary(Unary::Logistic, x);
                self.b.binary(Binary::Multiply, x, open)
            }
            Act::Gelu => {
                let y = self.scaled(x, FRAC_1_SQRT_2);
                let y = self.b.unary(Unary::Erf, y);
                self.half_of_one_plus(x, y)
            }
            Act::GeluTanh => {
                let square = self.b.binary(Binary::Multiply, x, x);
                let cube = self.b.binary(Binary::Multiply, square, x);
                let bent = self.scaled(cube, 0.044_715);
                let sum = self.b.binary(Binary::Add, x, bent);
                let y = self.scaled(sum, (2.0 / PI).sqrt());
                let y = self.b.unary(Unary::Tanh, y);
                self.half_of_one_plus(x, y)
            }
            Act::Relu | Act::Relu2 => {
                let zero = self.b.full_f32(0.0, &dims);
                let y = self.b.binary(Binary::Maximum, x, zero);
                if act == Act::Relu { y } else { self.b.binary(Binary::Multiply, y, y) }
            }
            Act::Xielu { positive, negative, beta } => {
                let square = self.b.binary(Binary::Multiply, x, x);
                let above = self.scaled(square, positive);
                let edge = self.b.full_f32(XIELU_EDGE, &dims);
                let near = self.b.binary(Binary::Minimum, x, edge);
                let power = self.b.unary(Unary::Exponential, near);
                let below = self.shifted(power, -1.0);
                let below = self.b.binary(Binary::Subtract, below, x);
                let below = self.scaled(below, negative);
                let zero = self.b.full_f32(0.0, &dims);
                let is_above = self.b.compare(Compare::Gt, x, zero);
                let bent = self.b.select(is_above, above, below);
                let slope = self.scaled(x, beta);
                self.b.binary(Binary::Add, bent, slope)
            }
            Act::Sigmoid => self.b.unary(Unary::Logistic, x),
            Act::ClampedSwiglu { .. } => unreachable!("the recorder gives it an up value: this is a bug"),
        }
    }

    /// `x / 2 * (1 + y)`
    fn half_of_one_plus(&mut self, x: Node, y: Node) -> Node {
        let half = self.scaled(x, 0.5);
        let y = self.shifted(y, 1.0);
        self.b.binary(Binary::Multiply, half, y)
    }

    /// `x / sqrt(mean(x^2) + eps)` over the last dimension.
    fn by_root_mean_square(&mut self, x: Node, eps: f32) -> Node {
        let dims = self.b.dims(x);
        let square = self.b.binary(Binary::Multiply, x, x);
        let mean = self.mean(square);
        let mean = self.shifted(mean, eps);
        let inverse = self.b.unary(Unary::Rsqrt, mean);
        let inverse = self.along_rows(inverse, &dims);
        self.b.binary(Binary::Multiply, x, inverse)
    }

    fn mean(&mut self, x: Node) -> Node {
        let dims = self.b.dims(x);
        let (last, count) = (dims.len() - 1, dims[dims.len() - 1]);
        let sum = self.b.reduce(Reduce::Add, x, last);
        let dims = self.b.dims(sum);
        let count = self.b.full_f32(count as f32, &dims);
        self.b.binary(Binary::Divide, sum, count)
    }
}
