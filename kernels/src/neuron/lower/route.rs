//! Owns the rules of mixtures of experts. Shapes are fixed, so every expert computes every token and the route weighs
//! the results: exact, and meant for few tokens or few experts.

use super::{Binary, Dot, Lowered, Lowering, Node, Result, Ty, Value};
use crate::neuron::hlo::{Compare, Reduce, Unary};
use crate::{ExpertsSpec, RouterGroups, RouterScore, RouterSpec};

impl Lowering<'_> {
    pub(super) fn router(&mut self, logits: Value, spec: &RouterSpec) -> Result<Lowered> {
        let logits = self.float(logits);
        let dims = self.b.dims(logits); // [tokens, experts]
        let chosen_dims = [dims[0], spec.top_k];
        let scores = match spec.score {
            RouterScore::Softmax => self.soft(logits),
            RouterScore::SoftmaxChosen => logits,
            RouterScore::Sigmoid => self.b.unary(Unary::Logistic, logits),
        };
        let biased = match spec.bias {
            Some(bias) => {
                let bias = self.float_weight(bias)?;
                let bias = self.along_last(bias, &dims);
                self.b.binary(Binary::Add, scores, bias)
            }
            None => scores,
        };
        let biased = spec.groups.map_or(biased, |groups| self.open(biased, groups));
        let experts = self.b.iota(&dims, 1);
        let (ids, best) = self.rounds(experts, biased, spec.top_k);
        let mut weights = if spec.bias.is_some() { self.picked(scores, ids) } else { best };
        if spec.score == RouterScore::SoftmaxChosen {
            weights = self.soft(weights);
        }
        if spec.normalise {
            let sum = self.b.reduce(Reduce::Add, weights, 1);
            let sum = self.along_rows(sum, &chosen_dims);
            weights = self.b.binary(Binary::Divide, weights, sum);
        }
        let mut weights = if spec.scale == 1.0 { weights } else { self.scaled(weights, spec.scale) };
        if let Some(gains) = spec.gains {
            let gains = self.float_weight(gains)?;
            let gains = self.along_last(gains, &dims);
            let gains = self.picked(gains, ids);
            weights = self.b.binary(Binary::Multiply, weights, gains);
        }
        Ok(Lowered::Pairs(ids, weights))
    }

    /// `scores [tokens, experts]`, minus infinity in all groups but the best: by the sum of a group's best, ties to the
    /// lowest.
    fn open(&mut self, scores: Node, spec: RouterGroups) -> Node {
        let (tokens, experts) = (self.b.dims(scores)[0], self.b.dims(scores)[1]);
        let cut = [tokens, spec.groups, experts / spec.groups];
        let grouped = self.b.reshape(scores, &cut);
        let least = self.b.full_f32(f32::NEG_INFINITY, &cut);
        let ids = self.b.iota(&cut, 2);
        let (mut sums, first) = self.best(grouped, ids); // [tokens, groups]
        if spec.summed > 1 && cut[2] > 1 {
            let first = self.along_rows(first, &cut);
            let taken = self.b.compare(Compare::Eq, ids, first);
            let rest = self.b.select(taken, least, grouped);
            let second = self.b.reduce(Reduce::Max, rest, 2);
            sums = self.b.binary(Binary::Add, sums, second);
        }
        let number = self.b.iota(&cut[..2], 1);
        let (kept, _) = self.rounds(number, sums, spec.kept);
        let ones = self.b.full_f32(1.0, &[tokens, spec.kept]);
        let open = self.shares(kept, ones, tokens, spec.groups);
        let zero = self.b.full_f32(0.0, &cut[..2]);
        let open = self.b.compare(Compare::Gt, open, zero);
        let open = self.b.broadcast(open, &cut, &[0, 1]);
        let scores = self.b.select(open, grouped, least);
        self.b.reshape(scores, &[tokens, experts])
    }

    pub(super) fn experts(&mut self, x: Value, route: Value, spec: &ExpertsSpec) -> Result<Node> {
        let Lowered::Pairs(ids, weights) = self.values[route.index()] else {
            unreachable!("the recorder routes by pairs: this is a bug")
        };
        let x = self.float(x); // [tokens, hidden]
        let (tokens, experts) = (self.b.dims(x)[0], spec.down.shape.first());
        let (inner, hidden) = (spec.down.shape.last(), self.b.dims(x)[1]);
        let gate_up = self.weight(spec.gate_up)?;
        let share = self.shares(ids, weights, tokens, experts); // [tokens, experts]
        let both = if spec.weigh_input {
            let wide = [tokens, experts, hidden];
            let (x, share) = (self.b.broadcast(x, &wide, &[0, 2]), self.b.broadcast(share, &wide, &[0, 1]));
            let x = self.b.binary(Binary::Multiply, x, share);
            let how = Dot { left_sum: &[2], right_sum: &[2], left_batch: &[1], right_batch: &[0] };
            let both = self.times_weight(x, gate_up, how); // [experts, tokens, 2 * inner]
            self.b.transpose(both, &[1, 0, 2])
        } else {
            self.times_weight(x, gate_up, Dot { left_sum: &[1], right_sum: &[2], ..Dot::default() })
        };
        let both = match spec.gate_up_bias {
            Some(bias) => {
                let bias = self.float_weight(bias)?;
                let bias = self.b.reshape(bias, &[experts, 2 * inner]);
                let bias = self.b.broadcast(bias, &[tokens, experts, 2 * inner], &[1, 2]);
                self.b.binary(Binary::Add, both, bias)
            }
            None => both,
        };
        let dims = [tokens, experts, inner];
        let (gate, up) = if spec.interleaved {
            let paired = self.b.reshape(both, &[tokens, experts, inner, 2]);
            let (gate, up) = (self.b.slice(paired, 3, 0, 1), self.b.slice(paired, 3, 1, 2));
            (self.b.reshape(gate, &dims), self.b.reshape(up, &dims))
        } else {
            (self.b.slice(both, 2, 0, inner), self.b.slice(both, 2, inner, 2 * inner))
        };
        let gated = self.gate(gate, Some(up), spec.act);
        let down = self.weight(spec.down)?;
        let how = Dot { left_sum: &[2], right_sum: &[2], left_batch: &[1], right_batch: &[0] };
        let mut out = self.times_weight(gated, down, how); // [experts, tokens, hidden]
        let wide = [experts, tokens, hidden];
        if let Some(bias) = spec.down_bias {
            let bias = self.float_weight(bias)?;
            let bias = self.b.reshape(bias, &[experts, hidden]);
            let bias = self.b.broadcast(bias, &wide, &[0, 2]);
            out = self.b.binary(Binary::Add, out, bias);
        }
        if spec.weigh_input {
            // What was not chosen went in as zeros, and there are no biases.
            return Ok(self.b.reduce(Reduce::Add, out, 0));
        }
        let share = self.b.transpose(share, &[1, 0]);
        let share = self.b.broadcast(share, &wide, &[0, 1]);
        let out = self.b.binary(Binary::Multiply, out, share);
        Ok(self.b.reduce(Reduce::Add, out, 0))
    }

    /// The weight of each expert for each token, 0 where it was not chosen: `[tokens, experts]`.
    fn shares(&mut self, ids: Node, weights: Node, tokens: usize, experts: usize) -> Node {
        let dims = [tokens, experts, self.b.dims(ids)[1]];
        let number = self.b.iota(&dims, 1);
        let (ids, weights) = (self.b.broadcast(ids, &dims, &[0, 2]), self.b.broadcast(weights, &dims, &[0, 2]));
        let here = self.b.compare(Compare::Eq, ids, number);
        let zero = self.b.full_f32(0.0, &dims);
        let weights = self.b.select(here, weights, zero);
        self.b.reduce(Reduce::Add, weights, 2)
    }

    /// `x [tokens, experts]` at `ids [tokens, k]`.
    fn picked(&mut self, x: Node, ids: Node) -> Node {
        let (tokens, experts, k) = (self.b.dims(x)[0], self.b.dims(x)[1], self.b.dims(ids)[1]);
        let dims = [tokens, k, experts];
        let number = self.b.iota(&dims, 2);
        let (ids, x) = (self.b.broadcast(ids, &dims, &[0, 1]), self.b.broadcast(x, &dims, &[0, 2]));
        let here = self.b.compare(Compare::Eq, ids, number);
        let zero = self.b.full_f32(0.0, &dims);
        let x = self.b.select(here, x, zero);
        self.b.reduce(Reduce::Add, x, 2)
    }

    /// Softmax over the last dimension.
    fn soft(&mut self, x: Node) -> Node {
        debug_assert_eq!(self.b.shape(x).ty, Ty::F32);
        let dims = self.b.dims(x);
        let last = dims.len() - 1;
        let most = self.b.reduce(Reduce::Max, x, last);
        let most = self.along_rows(most, &dims);
        let below = self.b.binary(Binary::Subtract, x, most);
        let parts = self.b.unary(Unary::Exponential, below);
        let sum = self.b.reduce(Reduce::Add, parts, last);
        let sum = self.along_rows(sum, &dims);
        self.b.binary(Binary::Divide, parts, sum)
    }
}
