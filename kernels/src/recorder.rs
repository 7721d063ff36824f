//! Owns recording: a model's `forward` calls these methods and the program grows. Methods return a `Copy` handle and
//! never a `Result`; the first broken shape rule is kept with its layer path and comes out of [`Recorder::finish`].
//! The reader of a model sees mathematics.

mod recurrent;

use std::cell::RefCell;
use std::fmt::Display;

use crate::op::{Act, AttnSpec, ExpertsSpec, RopeSpec, RouterSpec};
use crate::program::{Node, Outputs, Program, Tail};
use crate::{BatchShape, DType, Error, Op, Result, Shape, Value, Weight};

/// Records one program for one [`BatchShape`].
pub struct Recorder {
    shape: BatchShape,
    block_tokens: usize,
    inner: RefCell<Inner>,
}

struct Inner {
    nodes: Vec<Node>,
    path: Vec<String>,
    error: Option<Error>,
}

/// While it lives, what is recorded belongs to its layer. Serves error paths, profiler ranges and parity bisecting.
pub struct Scope<'a>(&'a Recorder);

impl Drop for Scope<'_> {
    fn drop(&mut self) {
        self.0.inner.borrow_mut().path.pop();
    }
}

impl Recorder {
    pub fn new(shape: BatchShape, block_tokens: usize) -> Self {
        let inner = Inner { nodes: vec![], path: vec![], error: None };
        Self { shape, block_tokens, inner: RefCell::new(inner) }
    }

    pub fn shape(&self) -> BatchShape {
        self.shape
    }

    /// A scope named `layers.INDEX`.
    pub fn layer(&self, index: usize) -> Scope<'_> {
        self.scope(format!("layers.{index}"))
    }

    pub fn scope(&self, name: impl Into<String>) -> Scope<'_> {
        self.inner.borrow_mut().path.push(name.into());
        Scope(self)
    }

    /// The shape of a value, for models that compute with it.
    pub fn shape_of(&self, v: Value) -> Shape {
        self.inner.borrow().nodes[v.index()].shape
    }

    /// `[tokens]` u32: the step's token ids.
    pub fn tokens(&self) -> Value {
        self.push(Op::Tokens, [self.shape.tokens].into(), DType::U32)
    }

    /// `[tokens]` u32: the position of each token in its sequence, for models that have learned embeddings of positions.
    pub fn positions(&self) -> Value {
        self.push(Op::Positions, [self.shape.tokens].into(), DType::U32)
    }

    /// `ids [tokens]`, `table [vocab, hidden]` -> `[tokens, hidden]`
    pub fn embed(&self, ids: Value, table: Weight) -> Value {
        self.rule(self.dtype(ids) == DType::U32, "embed", || "ids are not u32".into());
        self.matrix("embed", table);
        let shape = [self.shape_of(ids).elements(), table.shape.last()];
        self.push(Op::Embed { ids, table }, shape.into(), DType::F32)
    }

    /// `x [.., in]`, `w [out, in]` -> `[.., out]`
    pub fn linear(&self, x: Value, w: Weight) -> Value {
        self.linear_bias(x, w, None)
    }

    /// As [`Self::linear`], plus `bias [out]`.
    pub fn linear_bias(&self, x: Value, w: Weight, bias: Option<Weight>) -> Value {
        let shape = self.floats("linear", x);
        self.matrix("linear", w);
        let (out, inner) = (w.shape.first(), w.shape.last());
        self.rule(shape.last() == inner, "linear", || format!("x {shape} does not fit w {}", w.shape));
        if let Some(bias) = bias {
            self.vector("linear", bias, out);
        }
        self.push(Op::Linear { x, w, bias }, shape.with_last(out), DType::F32)
    }

    /// Over the last dimension, which `gain [n]` must match, or `gain [groups * n]` the last two of `x [.., groups, n]`.
    /// The factor is `offset + gain` (Gemma stores gain - 1).
    pub fn rms_norm(&self, x: Value, gain: Option<Weight>, offset: f32, eps: f32) -> Value {
        let shape = self.floats("rms_norm", x);
        if let Some(gain) = gain {
            let last_two = shape.dims().iter().rev().take(2).product::<usize>();
            let grouped = shape.rank() > 2 && gain.shape.elements() == last_two;
            self.vector("rms_norm", gain, if grouped { last_two } else { shape.last() });
        }
        self.push(Op::RmsNorm { x, gain, offset, eps }, shape, DType::F32)
    }

    /// Over the last dimension, which gain and bias `[n]` must match.
    pub fn layer_norm(&self, x: Value, gain: Option<Weight>, bias: Option<Weight>, eps: f32) -> Value {
        let shape = self.floats("layer_norm", x);
        for w in gain.into_iter().chain(bias) {
            self.vector("layer_norm", w, shape.last());
        }
        self.push(Op::LayerNorm { x, gain, bias, eps }, shape, DType::F32)
    }

    /// `x [tokens, heads, dim]` -> the same, its first `2 * freqs` dimensions rotated by the step's positions.
    pub fn rope(&self, x: Value, spec: RopeSpec) -> Value {
        let shape = self.floats("rope", x);
        let fits = shape.rank() == 3 && shape.first() == self.shape.tokens;
        self.rule(fits, "rope", || format!("x {shape} is not [tokens, heads, dim]"));
        let rotated = 2 * spec.freqs.shape.elements();
        for freqs in std::iter::once(spec.freqs).chain(spec.long) {
            self.vector("rope", freqs, rotated / 2);
        }
        self.rule(rotated <= shape.last(), "rope", || format!("rotates {rotated} of {} dimensions", shape.last()));
        self.push(Op::Rope { x, spec }, shape, DType::F32)
    }

    /// `q [tokens, heads, dim]`, `k [tokens, kv_heads, dim]`, `v [tokens, kv_heads, v_dim]` -> `[tokens, heads, v_dim]`
    pub fn attention(&self, q: Value, k: Value, v: Value, spec: AttnSpec) -> Value {
        let (qs, ks, vs) = (self.floats("attention", q), self.floats("attention", k), self.floats("attention", v));
        let ranks = [qs, ks, vs].iter().all(|s| s.rank() == 3 && s.first() == self.shape.tokens);
        self.rule(ranks, "attention", || format!("q {qs}, k {ks}, v {vs} are not [tokens, heads, dim]"));
        let mut out = qs;
        if ranks {
            let (heads, kv_heads) = (qs.dims()[1], ks.dims()[1]);
            self.rule(kv_heads > 0 && heads.is_multiple_of(kv_heads), "attention", || {
                format!("{heads} query heads are not a multiple of {kv_heads} key heads")
            });
            self.rule(qs.last() == ks.last() && kv_heads == vs.dims()[1], "attention", || {
                format!("k {ks} and v {vs} do not fit q {qs}")
            });
            if let Some(sinks) = spec.sinks {
                self.vector("attention", sinks, heads);
            }
            self.rule(spec.window != Some(0), "attention", || "the window is 0".into());
            let cut = spec.chunk != Some(0) && (spec.chunk.is_none() || spec.window.is_none());
            self.rule(cut, "attention", || "a chunk of 0, or beside a window".into());
            let whole = !spec.ahead || spec.chunk.is_none();
            self.rule(whole, "attention", || "a chunk beside keys ahead".into());
            let grows = spec.temperature.is_none_or(|t| t.every > 0);
            self.rule(grows, "attention", || "the temperature grows every 0 tokens".into());
            out = qs.with_last(vs.last());
        }
        self.push(Op::Attention { q, k, v, spec }, out, DType::F32)
    }

    /// `act(gate) * up`, shapes equal.
    pub fn gated_act(&self, gate: Value, up: Value, act: Act) -> Value {
        let (shape, other) = (self.floats("gated_act", gate), self.floats("gated_act", up));
        self.rule(shape == other, "gated_act", || format!("gate {shape} and up {other} differ"));
        self.push(Op::GatedAct { gate, up: Some(up), act }, shape, DType::F32)
    }

    /// `act(x)`
    pub fn act(&self, x: Value, act: Act) -> Value {
        let shape = self.floats("gated_act", x);
        let gated = matches!(act, Act::ClampedSwiglu { .. });
        self.rule(!gated, "gated_act", || "the clamped SwiGLU needs an up value".into());
        self.push(Op::GatedAct { gate: x, up: None, act }, shape, DType::F32)
    }

    /// Same shapes, or `b` a vector of a's last dimension.
    pub fn add(&self, a: Value, b: Value) -> Value {
        let shape = self.pairwise("add", a, b);
        self.push(Op::Add { a, b }, shape, DType::F32)
    }

    /// Same shapes, or `b` a vector of a's last dimension.
    pub fn mul(&self, a: Value, b: Value) -> Value {
        let shape = self.pairwise("mul", a, b);
        self.push(Op::Mul { a, b }, shape, DType::F32)
    }

    pub fn scale(&self, x: Value, by: f32) -> Value {
        let shape = self.floats("scale", x);
        self.push(Op::Scale { x, by }, shape, DType::F32)
    }

    /// `cap * tanh(x / cap)`
    pub fn softcap(&self, x: Value, cap: f32) -> Value {
        let shape = self.floats("softcap", x);
        self.rule(cap > 0.0, "softcap", || format!("the cap is {cap}"));
        self.push(Op::Softcap { x, cap }, shape, DType::F32)
    }

    /// `logits [tokens, experts]` -> `[tokens, top_k]` pairs
    pub fn router(&self, logits: Value, spec: RouterSpec) -> Value {
        let shape = self.floats("router", logits);
        let experts = shape.last();
        self.rule(shape.rank() == 2 && spec.top_k > 0 && spec.top_k <= experts, "router", || {
            format!("cannot choose {} of logits {shape}", spec.top_k)
        });
        for vector in spec.bias.into_iter().chain(spec.gains) {
            self.vector("router", vector, experts);
        }
        if let Some(g) = spec.groups {
            let fits = g.groups > 0
                && (1..=2).contains(&g.summed)
                && experts.is_multiple_of(g.groups)
                && (1..=g.groups).contains(&g.kept);
            let enough = fits && g.kept * (experts / g.groups) >= spec.top_k;
            self.rule(enough, "router", || {
                format!("{} of {experts} experts in {} groups, {} kept", spec.top_k, g.groups, g.kept)
            });
        }
        self.push(Op::Router { logits, spec }, shape.with_last(spec.top_k), DType::Pair)
    }

    /// `x [tokens, hidden]`, `route [tokens, top_k]` -> `[tokens, hidden]`
    pub fn experts(&self, x: Value, route: Value, spec: ExpertsSpec) -> Value {
        let shape = self.floats("experts", x);
        let (up, down) = (spec.gate_up.shape, spec.down.shape);
        let routes = self.shape_of(route);
        let paired = self.dtype(route) == DType::Pair && routes.rank() == 2 && routes.first() == shape.first();
        self.rule(paired, "experts", || "route is not one row of pairs a token".into());
        let fits = shape.rank() == 2
            && up.rank() == 3
            && down.rank() == 3
            && up.first() == down.first()
            && up.last() == shape.last()
            && up.dims()[1] == 2 * down.last()
            && down.dims()[1] == shape.last();
        self.rule(fits, "experts", || format!("gate_up {up} and down {down} do not fit x {shape}"));
        let biased = spec.gate_up_bias.is_some() || spec.down_bias.is_some();
        self.rule(!spec.weigh_input || !biased, "experts", || "weighed inputs beside biases".into());
        for (bias, like) in [(spec.gate_up_bias, up), (spec.down_bias, down)] {
            if let (Some(bias), true) = (bias, fits) {
                self.vector("experts", bias, like.first() * like.dims()[1]);
            }
        }
        self.push(Op::Experts { x, route, spec }, shape, DType::F32)
    }

    /// `x [tokens, heads, in]`, `w [heads, out, in]` -> `[tokens, heads, out]`
    pub fn head_linear(&self, x: Value, w: Weight) -> Value {
        let shape = self.floats("head_linear", x);
        let fits = shape.rank() == 3
            && w.shape.rank() == 3
            && shape.dims()[1] == w.shape.first()
            && shape.last() == w.shape.last();
        self.rule(fits, "head_linear", || format!("x {shape} does not fit w {}", w.shape));
        let out = if fits { shape.with_last(w.shape.dims()[1]) } else { shape };
        self.push(Op::HeadLinear { x, w }, out, DType::F32)
    }

    /// `a [.., n]`, `b [.., m]` -> `[.., n + m]`
    pub fn concat(&self, a: Value, b: Value) -> Value {
        let (x, y) = (self.floats("concat", a), self.floats("concat", b));
        let fits = x.rank() == y.rank() && x.with_last(1) == y.with_last(1);
        self.rule(fits, "concat", || format!("{x} and {y} do not fit"));
        self.push(Op::Concat { a, b }, x.with_last(x.last() + y.last()), DType::F32)
    }

    /// `x [tokens, n]` -> `[rows, n]`: only the tokens whose logits are wanted.
    pub fn select_rows(&self, x: Value) -> Value {
        let shape = self.floats("select_rows", x);
        self.rule(shape.first() == self.shape.tokens, "select_rows", || format!("x {shape} is not one row a token"));
        self.push(Op::SelectRows { x }, shape.with_first(self.shape.rows), DType::F32)
    }

    pub fn cast(&self, x: Value, to: DType) -> Value {
        let shape = self.floats("cast", x);
        self.rule(to.is_float(), "cast", || format!("cannot cast to {to}"));
        self.push(Op::Cast { x, to }, shape, to)
    }

    /// Entries `start .. start + len` of the last dimension.
    pub fn narrow(&self, x: Value, start: usize, len: usize) -> Value {
        let shape = self.floats("narrow", x);
        let fits = len > 0 && start.checked_add(len).is_some_and(|end| end <= shape.last());
        self.rule(fits, "narrow", || format!("{start} + {len} is beyond x {shape}"));
        self.push(Op::Narrow { x, start, len }, shape.with_last(len), DType::F32)
    }

    /// Another view of the same elements.
    pub fn reshape(&self, x: Value, shape: impl Into<Shape>) -> Value {
        let (from, shape) = (self.shape_of(x), shape.into());
        let fits = shape.rank() > 0 && from.elements() == shape.elements();
        self.rule(fits, "reshape", || format!("{from} has other elements than {shape}"));
        let dtype = self.dtype(x);
        // A broken rule must not break the next one: no later operation expects a scalar.
        let shape = if shape.rank() == 0 { from } else { shape };
        self.push(Op::Reshape { x, shape }, shape, dtype)
    }

    /// Sum over the ranks of a tensor-parallel group.
    pub fn all_reduce(&self, x: Value) -> Value {
        let shape = self.floats("all_reduce", x);
        self.push(Op::AllReduce { x }, shape, DType::F32)
    }

    /// Ends the program: `logits [rows, vocab]` and what the tail asks for.
    ///
    /// # Errors
    /// The first shape rule that was broken, with its layer path.
    pub fn finish(self, logits: Value, tail: Tail) -> Result<Program> {
        self.logits("logits", logits);
        let logits = if tail.masked { self.mask_logits(logits) } else { logits };
        let argmax = self.argmax(logits);
        let top = (tail.top_k > 0).then(|| self.top_k(logits, tail.top_k));
        let log_sum_exp = self.log_sum_exp(logits);
        let outputs = Outputs { logits, argmax, top, log_sum_exp };
        let Inner { nodes, error, .. } = self.inner.into_inner();
        if let Some(error) = error {
            return Err(error);
        }
        let program = Program { shape: self.shape, nodes, tail, outputs, block_tokens: self.block_tokens };
        program.verify()?;
        Ok(program)
    }

    /// No rule was broken yet.
    pub(crate) fn is_sound(&self) -> bool {
        self.inner.borrow().error.is_none()
    }

    /// The first broken rule.
    pub(crate) fn into_error(self) -> Option<Error> {
        self.inner.into_inner().error
    }

    /// Records the operation of another program's node, whose values have the same numbers. So a rewritten program
    /// answers to the same rules as a recorded one.
    pub(crate) fn replay(&self, node: &Node) -> Value {
        self.inner.borrow_mut().path = if node.path.is_empty() { vec![] } else { vec![node.path.clone()] };
        match node.op.clone() {
            Op::Tokens => self.tokens(),
            Op::Positions => self.positions(),
            Op::Embed { ids, table } => self.embed(ids, table),
            Op::Linear { x, w, bias } => self.linear_bias(x, w, bias),
            Op::RmsNorm { x, gain, offset, eps } => self.rms_norm(x, gain, offset, eps),
            Op::LayerNorm { x, gain, bias, eps } => self.layer_norm(x, gain, bias, eps),
            Op::Rope { x, spec } => self.rope(x, spec),
            Op::Attention { q, k, v, spec } => self.attention(q, k, v, spec),
            Op::ShortConv { x, spec } => self.short_conv(x, spec),
            Op::SsmScan { x, dt, b, c, spec } => self.ssm_scan(x, dt, [b, c], spec),
            Op::GatedDelta { q, k, v, dt, beta, spec } => self.gated_delta([q, k, v], dt, beta, spec),
            Op::GatedAct { gate, up: Some(up), act } => self.gated_act(gate, up, act),
            Op::GatedAct { gate, up: None, act } => self.act(gate, act),
            Op::Add { a, b } => self.add(a, b),
            Op::Mul { a, b } => self.mul(a, b),
            Op::Scale { x, by } => self.scale(x, by),
            Op::Softcap { x, cap } => self.softcap(x, cap),
            Op::Router { logits, spec } => self.router(logits, spec),
            Op::Experts { x, route, spec } => self.experts(x, route, spec),
            Op::SelectRows { x } => self.select_rows(x),
            Op::Cast { x, to } => self.cast(x, to),
            Op::HeadLinear { x, w } => self.head_linear(x, w),
            Op::Concat { a, b } => self.concat(a, b),
            Op::Narrow { x, start, len } => self.narrow(x, start, len),
            Op::Reshape { x, shape } => self.reshape(x, shape),
            Op::AllReduce { x } => self.all_reduce(x),
            Op::MaskLogits { x } => self.mask_logits(x),
            Op::Argmax { x } => self.argmax(x),
            Op::TopK { x, k } => self.top_k(x, k),
            Op::LogSumExp { x } => self.log_sum_exp(x),
        }
    }

    fn mask_logits(&self, x: Value) -> Value {
        let shape = self.logits("mask_logits", x);
        self.push(Op::MaskLogits { x }, shape, DType::F32)
    }

    fn argmax(&self, x: Value) -> Value {
        let rows = self.logits("argmax", x).first();
        self.push(Op::Argmax { x }, [rows].into(), DType::U32)
    }

    fn top_k(&self, x: Value, k: usize) -> Value {
        let shape = self.logits("top_k", x);
        self.rule((1..=shape.last()).contains(&k), "top_k", || format!("{k} of {} tokens", shape.last()));
        self.push(Op::TopK { x, k }, [shape.first(), k].into(), DType::Pair)
    }

    fn log_sum_exp(&self, x: Value) -> Value {
        let rows = self.logits("log_sum_exp", x).first();
        self.push(Op::LogSumExp { x }, [rows].into(), DType::F32)
    }

    fn logits(&self, op: &str, x: Value) -> Shape {
        let (shape, rows) = (self.floats(op, x), self.shape.rows);
        self.rule(shape.rank() == 2 && shape.first() == rows, op, || format!("{shape} is not [rows, vocab]"));
        shape
    }

    fn push(&self, op: Op, shape: Shape, dtype: DType) -> Value {
        let mut inner = self.inner.borrow_mut();
        let path = inner.path.join(".");
        inner.nodes.push(Node { op, shape, dtype, path });
        Value(inner.nodes.len() as u32 - 1)
    }

    pub(crate) fn dtype(&self, v: Value) -> DType {
        self.inner.borrow().nodes[v.index()].dtype
    }

    /// Keeps the first broken rule.
    fn rule(&self, holds: bool, op: &str, message: impl FnOnce() -> String) {
        let mut inner = self.inner.borrow_mut();
        if !holds && inner.error.is_none() {
            let path = if inner.path.is_empty() { "model".into() } else { inner.path.join(".") };
            inner.error = Some(Error::Record { path, message: format!("{op}: {}", message()) });
        }
    }

    fn floats(&self, op: &str, x: Value) -> Shape {
        let (shape, dtype) = (self.shape_of(x), self.dtype(x));
        self.rule(dtype.is_float(), op, || format!("a {dtype} value where floats are needed"));
        shape
    }

    fn matrix(&self, op: &str, w: Weight) {
        self.rule(w.shape.rank() == 2, op, || format!("weight {} is not a matrix", w.shape));
    }

    fn vector(&self, op: &str, w: Weight, len: impl Display + PartialEq<usize>) {
        let held = w.shape.elements();
        self.rule(w.shape.rank() == 1 && len == held, op, || format!("vector {} is not of length {len}", w.shape));
    }

    fn pairwise(&self, op: &str, a: Value, b: Value) -> Shape {
        let (x, y) = (self.floats(op, a), self.floats(op, b));
        self.rule(x == y || (y.rank() == 1 && y.last() == x.last()), op, || format!("{x} and {y} do not fit"));
        x
    }
}
