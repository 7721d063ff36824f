//! Owns the rules that read sequence structure: rope and paged attention.
//!
//! The cache of a layer is `[slots, kv_heads * dim]`. New rows are scattered to the step's slots; whole blocks are then
//! gathered through the block table, so every index names a row that exists: padding goes to block 0. Keys that a token
//! must not see are masked by position alone.

use super::{
    Binary, Cache, DType, Dot, Error, Input, Lowering, Node, Result, Shape, Ty, Value, cache_name, refuse, ty_of,
};
use crate::neuron::hlo::{Compare, Reduce, Unary};
use crate::{AttnSpec, Precision, RopeSpec, Temperature};

/// A score that the softmax turns into zero. Finite: infinities less infinities are no numbers.
const UNSEEN: f32 = -1e30;

impl Lowering<'_> {
    pub(super) fn rope(&mut self, x: Value, spec: &RopeSpec) -> Result<Node> {
        let x = self.float(x);
        let dims = self.b.dims(x); // [tokens, heads, dim]
        let (tokens, heads, pairs) = (dims[0], dims[1], spec.freqs.shape.elements());
        let (cosine, sine) = self.turns(spec)?;
        let half = [tokens, heads, pairs];
        let (cosine, sine) = (self.b.broadcast(cosine, &half, &[0, 2]), self.b.broadcast(sine, &half, &[0, 2]));
        let turned = self.b.slice(x, 2, 0, 2 * pairs);
        let (a, b) = if spec.interleaved {
            let paired = self.b.reshape(turned, &[tokens, heads, pairs, 2]);
            let (a, b) = (self.b.slice(paired, 3, 0, 1), self.b.slice(paired, 3, 1, 2));
            (self.b.reshape(a, &half), self.b.reshape(b, &half))
        } else {
            (self.b.slice(turned, 2, 0, pairs), self.b.slice(turned, 2, pairs, 2 * pairs))
        };
        let (ac, bs) = (self.b.binary(Binary::Multiply, a, cosine), self.b.binary(Binary::Multiply, b, sine));
        let (bc, r#as) = (self.b.binary(Binary::Multiply, b, cosine), self.b.binary(Binary::Multiply, a, sine));
        let (a, b) = (self.b.binary(Binary::Subtract, ac, bs), self.b.binary(Binary::Add, bc, r#as));
        let turned = if spec.interleaved {
            let single = [tokens, heads, pairs, 1];
            let (a, b) = (self.b.reshape(a, &single), self.b.reshape(b, &single));
            let paired = self.b.concatenate(&[a, b], 3);
            self.b.reshape(paired, &[tokens, heads, 2 * pairs])
        } else {
            self.b.concatenate(&[a, b], 2)
        };
        if 2 * pairs == dims[2] {
            return Ok(turned);
        }
        let rest = self.b.slice(x, 2, 2 * pairs, dims[2]);
        Ok(self.b.concatenate(&[turned, rest], 2))
    }

    pub(super) fn attention(&mut self, q: Value, k: Value, v: Value, spec: &AttnSpec) -> Result<Node> {
        let shape = self.program.shape;
        if spec.ahead {
            return Err(refuse("attention to keys ahead, as encoders have it".into()));
        }
        let one = shape.seqs == 1;
        if !one && (shape.query != 1 || shape.tokens != shape.seqs) {
            return Err(refuse("steps that mix prefill and decode".into()));
        }
        let (q, k, v) = (self.float(q), self.float(k), self.float(v));
        let (tokens, heads, dim) = (shape.tokens, self.b.dims(q)[1], self.b.dims(q)[2]);
        let (kv_heads, v_dim) = (self.b.dims(k)[1], self.b.dims(v)[2]);
        let (group, keys) = (heads / kv_heads, shape.blocks * self.program.block_tokens);
        let k = self.store(spec.layer, false, k)?; // [seqs, keys, kv_heads, dim]
        let v = self.store(spec.layer, true, v)?;
        let q = self.scaled(q, spec.scale);
        let q = spec.temperature.map_or(q, |t| self.heated(q, t));
        let q = self.b.reshape(q, &[tokens, kv_heads, group, dim]);
        // Scores of one sequence are [kv_heads, tokens, group, keys], of many [seqs, kv_heads, group, keys].
        let (k, v, row) = if one {
            let k = self.b.reshape(k, &[keys, kv_heads, dim]);
            let v = self.b.reshape(v, &[keys, kv_heads, v_dim]);
            (k, v, 1)
        } else {
            (k, v, 0)
        };
        let how = if one {
            Dot { left_sum: &[3], right_sum: &[2], left_batch: &[1], right_batch: &[1] }
        } else {
            Dot { left_sum: &[3], right_sum: &[3], left_batch: &[0, 1], right_batch: &[0, 2] }
        };
        let scores = self.against_cache(q, k, how);
        let scores = spec.softcap.map_or(scores, |cap| self.softcap(scores, cap));
        let seen = self.visible(spec, keys);
        let dims = self.b.dims(scores);
        let seen = self.b.broadcast(seen, &dims, &[row, 3]);
        let unseen = self.b.full_f32(UNSEEN, &dims);
        let scores = self.b.select(seen, scores, unseen);
        let shares = self.softmax(scores, spec, one, kv_heads, group)?;
        let how = if one {
            Dot { left_sum: &[3], right_sum: &[0], left_batch: &[0], right_batch: &[1] }
        } else {
            Dot { left_sum: &[3], right_sum: &[1], left_batch: &[0, 1], right_batch: &[0, 2] }
        };
        let out = self.against_cache(shares, v, how);
        let out = if one { self.b.transpose(out, &[1, 0, 2, 3]) } else { out };
        Ok(self.b.reshape(out, &[tokens, heads, v_dim]))
    }

    /// Writes this step's rows and reads the sequences' blocks back: `[seqs, keys, kv_heads, dim]` in the cache's type.
    fn store(&mut self, layer: usize, value: bool, rows: Node) -> Result<Node> {
        let shape = self.program.shape;
        let bug = |what: &str| Error::Record { path: format!("cache layer {layer}"), message: what.into() };
        let kv = self.target.kv.ok_or_else(|| bug("no K/V cache was reserved"))?;
        let held = kv.layers.get(layer).ok_or_else(|| bug("the K/V cache has no such layer"))?;
        let (heads, dim) = (held.kv_heads, if value { held.v_dim } else { held.k_dim });
        if self.b.dims(rows)[1..] != [heads, dim] || kv.block_tokens != self.program.block_tokens {
            return Err(bug("the K/V cache was reserved for another shape"));
        }
        let (block_tokens, width) = (kv.block_tokens, heads * dim);
        let slots = self.target.kv_blocks * block_tokens;
        let ty = ty_of(kv.dtype);
        let name = cache_name(layer, value);
        let parameter = self.inputs.len();
        // The suffix is how existing producers mark a parameter that shares its memory with an output.
        let cache = self.b.parameter(&format!("{name}.must_alias_input"), Shape::new(ty, &[slots, width]));
        self.inputs.push(Input::Cache { layer, value });
        let at = self.field(self.step.slots.clone(), &[shape.tokens]);
        let rows = self.b.reshape(rows, &[shape.tokens, width]);
        let rows = self.b.convert(rows, ty);
        let after = self.b.scatter_rows(cache, at, rows);
        self.caches.push(Cache { layer, value, parameter, after });
        let table = self.field(self.step.block_table.clone(), &[shape.seqs * shape.blocks]);
        let blocks = self.b.reshape(after, &[self.target.kv_blocks, block_tokens * width]);
        let blocks = self.b.gather_rows(blocks, table);
        Ok(self.b.reshape(blocks, &[shape.seqs, shape.blocks * block_tokens, heads, dim]))
    }

    /// A dot with cached rows: in the cache's own type when precision is native, else in f32.
    fn against_cache(&mut self, x: Node, cached: Node, how: Dot<'_>) -> Node {
        let native = self.target.precision == Precision::Native && self.b.shape(cached).ty == ty_of(DType::Bf16);
        let ty = if native { Ty::Bf16 } else { Ty::F32 };
        let (x, cached) = (self.b.convert(x, ty), self.b.convert(cached, ty));
        self.b.dot(x, cached, how)
    }

    /// `[tokens, keys]`: key j is seen from position p when j <= p and, by the kind of layer, j > p - window or j lies in
    /// the chunk of p.
    fn visible(&mut self, spec: &AttnSpec, keys: usize) -> Node {
        let key = [spec.window, spec.chunk];
        if let Some(seen) = self.visible.get(&key) {
            return *seen;
        }
        let [window, chunk] = key.map(|reach| reach.filter(|reach| *reach < keys));
        let tokens = self.program.shape.tokens;
        let dims = [tokens, keys];
        let positions = self.field(self.step.positions.clone(), &[tokens]);
        let key = self.b.iota(&dims, 1);
        let position = self.b.broadcast(positions, &dims, &[0]);
        let mut seen = self.b.compare(Compare::Le, key, position);
        if let Some(window) = window {
            let reach = self.b.full_s32(window as i32, &dims);
            let from = self.b.binary(Binary::Subtract, position, reach);
            let near = self.b.compare(Compare::Gt, key, from);
            seen = self.b.binary(Binary::And, seen, near);
        }
        if let Some(chunk) = chunk {
            let size = self.b.full_s32(chunk as i32, &dims);
            let number = self.b.binary(Binary::Divide, position, size);
            let of_key = self.b.binary(Binary::Divide, key, size);
            let same = self.b.compare(Compare::Eq, of_key, number);
            seen = self.b.binary(Binary::And, seen, same);
        }
        self.visible.insert([spec.window, spec.chunk], seen);
        seen
    }

    /// Queries `[tokens, heads, dim]` times what their positions add to the scale.
    fn heated(&mut self, q: Node, by: Temperature) -> Node {
        let (tokens, dims) = (self.program.shape.tokens, self.b.dims(q));
        let positions = self.field(self.step.positions.clone(), &[tokens]);
        let one = self.b.full_s32(1, &[tokens]);
        let every = self.b.full_s32(by.every as i32, &[tokens]);
        let next = self.b.binary(Binary::Add, positions, one);
        let steps = self.b.binary(Binary::Divide, next, every);
        let steps = self.b.convert(steps, Ty::F32);
        let steps = self.shifted(steps, 1.0);
        let log = self.b.unary(Unary::Log, steps);
        let log = self.scaled(log, by.scale);
        let factor = self.shifted(log, 1.0);
        let factor = self.b.broadcast(factor, &dims, &[0]);
        self.b.binary(Binary::Multiply, q, factor)
    }

    /// Over the last dimension of `[.., group, keys]`, with one more column a head when the layer has sinks.
    fn softmax(&mut self, scores: Node, spec: &AttnSpec, one: bool, kv_heads: usize, group: usize) -> Result<Node> {
        let dims = self.b.dims(scores);
        let mut most = self.b.reduce(Reduce::Max, scores, 3);
        let sinks = match spec.sinks {
            Some(sinks) => {
                let sinks = self.float_weight(sinks)?;
                let sinks = self.b.reshape(sinks, &[kv_heads, group]);
                let at: [usize; 2] = if one { [0, 2] } else { [1, 2] };
                let sinks = self.b.broadcast(sinks, &dims[..3], &at);
                most = self.b.binary(Binary::Maximum, most, sinks);
                Some(sinks)
            }
            None => None,
        };
        let wide = self.along_rows(most, &dims);
        let below = self.b.binary(Binary::Subtract, scores, wide);
        let parts = self.b.unary(Unary::Exponential, below);
        let mut sum = self.b.reduce(Reduce::Add, parts, 3);
        if let Some(sinks) = sinks {
            let below = self.b.binary(Binary::Subtract, sinks, most);
            let part = self.b.unary(Unary::Exponential, below);
            sum = self.b.binary(Binary::Add, sum, part);
        }
        let sum = self.along_rows(sum, &dims);
        Ok(self.b.binary(Binary::Divide, parts, sum))
    }

    /// Cosine and sine of position times frequency, `[tokens, pairs]`, times the magnitude.
    fn turns(&mut self, spec: &RopeSpec) -> Result<(Node, Node)> {
        let key = (spec.freqs.id, spec.long.map(|long| long.id), spec.magnitude.to_bits());
        if let Some(turns) = self.turns.get(&key) {
            return Ok(*turns);
        }
        let tokens = self.program.shape.tokens;
        let freqs = self.float_weight(spec.freqs)?;
        let dims = [tokens, spec.freqs.shape.elements()];
        let positions = self.field(self.step.positions.clone(), &[tokens]);
        let positions = self.b.convert(positions, Ty::F32);
        let positions = self.b.broadcast(positions, &dims, &[0]);
        let mut freqs = self.b.broadcast(freqs, &dims, &[1]);
        if let Some(long) = spec.long {
            let long = self.float_weight(long)?;
            let long = self.b.broadcast(long, &dims, &[1]);
            let kinds = self.field(self.step.long.clone(), &[tokens]);
            let kinds = self.b.broadcast(kinds, &dims, &[0]);
            let one = self.b.full_s32(1, &dims);
            let is_long = self.b.compare(Compare::Eq, kinds, one);
            freqs = self.b.select(is_long, long, freqs);
        }
        let angles = self.b.binary(Binary::Multiply, positions, freqs);
        let (cosine, sine) = (self.b.unary(Unary::Cosine, angles), self.b.unary(Unary::Sine, angles));
        let turns = if spec.magnitude == 1.0 {
            (cosine, sine)
        } else {
            (self.scaled(cosine, spec.magnitude), self.scaled(sine, spec.magnitude))
        };
        self.turns.insert(key, turns);
        Ok(turns)
    }
}
