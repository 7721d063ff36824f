//! Owns the compile step: a program to a list of steps with offsets into one arena. Runs nothing.
//!
//! Three things are changed on the way, none of which changes a value: linears that read the same value stand together
//! and share its packed rows and one job of the pool; a sum that is normalised next is made in the norm's pass; reshapes
//! are gone. Floats are f32 in the arena whatever their type is (a cast rounds them).

use super::attention::Form;
use super::rowwise::Map;
use crate::{
    Arena, ConvSpec, DType, DeltaSpec, Error, Op, Program, Result, RopeSpec, RouterSpec, ScanSpec, Value, Weight,
};

/// Where a value lies: byte offset into the arena, and how many elements it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) w: Weight,
    pub(crate) bias: Option<Weight>,
    pub(crate) out: Span,
}

#[derive(Clone, Debug)]
pub(crate) struct NormStep {
    pub(crate) x: Span,
    /// The other summand, and where the sum goes.
    pub(crate) plus: Option<(Span, Span)>,
    pub(crate) n: usize,
    pub(crate) centred: bool,
    pub(crate) gain: Option<Weight>,
    pub(crate) offset: f32,
    pub(crate) bias: Option<Weight>,
    pub(crate) eps: f32,
    pub(crate) out: Span,
}

#[derive(Clone, Debug)]
pub(crate) struct AttentionStep {
    pub(crate) q: Span,
    pub(crate) k: Span,
    pub(crate) v: Span,
    pub(crate) out: Span,
    /// Index into [`Schedule::forms`].
    pub(crate) form: usize,
    pub(crate) layer: usize,
    pub(crate) sinks: Option<Weight>,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Tokens {
        out: Span,
    },
    Positions {
        out: Span,
    },
    Embed {
        ids: Span,
        table: Weight,
        out: Span,
    },
    Linears {
        x: Span,
        m: usize,
        parts: Vec<Part>,
    },
    Norm(NormStep),
    /// `rotation`: index into [`Schedule::rotations`].
    Rope {
        x: Span,
        heads: usize,
        dim: usize,
        rotation: usize,
        out: Span,
    },
    Attention(AttentionStep),
    Conv {
        x: Span,
        channels: usize,
        spec: ConvSpec,
        out: Span,
    },
    /// `inputs`: x, dt, b, c; `shape`: heads, dim, groups, n.
    Scan {
        inputs: [Span; 4],
        shape: [usize; 4],
        spec: ScanSpec,
        out: Span,
    },
    /// `inputs`: q, k, v, dt, beta; `shape`: heads, v_dim, k_heads, k_dim.
    Delta {
        inputs: [Span; 5],
        shape: [usize; 4],
        spec: DeltaSpec,
        out: Span,
    },
    Map {
        f: Map,
        a: Span,
        b: Option<Span>,
        n: usize,
        out: Span,
    },
    Router {
        logits: Span,
        experts: usize,
        spec: RouterSpec,
        out: Span,
    },
    Experts {
        x: Span,
        route: Span,
        tokens: usize,
        spec: crate::ExpertsSpec,
        out: Span,
    },
    SelectRows {
        x: Span,
        n: usize,
        out: Span,
    },
    /// `w`: one matrix a head.
    Heads {
        x: Span,
        tokens: usize,
        w: Weight,
        out: Span,
    },
    /// Rows of `n` values beside rows of `m`.
    Concat {
        a: Span,
        n: usize,
        b: Span,
        m: usize,
        out: Span,
    },
    Narrow {
        x: Span,
        n: usize,
        start: usize,
        len: usize,
        out: Span,
    },
    Copy {
        x: Span,
        out: Span,
    },
    Mask {
        x: Span,
        n: usize,
        out: Span,
    },
    Argmax {
        x: Span,
        n: usize,
        out: Span,
    },
    TopK {
        x: Span,
        n: usize,
        k: usize,
        out: Span,
    },
    LogSumExp {
        x: Span,
        n: usize,
        out: Span,
    },
}

/// A program ready to run.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    pub(crate) steps: Vec<Step>,
    pub(crate) arena_bytes: usize,
    /// The different attentions; layers that agree share a plan.
    pub(crate) forms: Vec<Form>,
    pub(crate) rotations: Vec<RopeSpec>,
    /// Where each value of the program lies.
    pub(crate) spans: Vec<Span>,
}

impl Schedule {
    /// With `keep`, no value's memory is used again, so that all can be read after a run.
    ///
    /// # Errors
    /// What the kernels do not do.
    pub(crate) fn make(program: &Program, keep: bool) -> Result<Self> {
        let (ordered, place) = ordered(program);
        let Arena { offsets, peak_bytes: arena_bytes } = match keep {
            true => apart(&ordered),
            false => Arena::plan_at(&ordered, &times(&ordered)),
        };
        let span = |v: Value| Span { offset: offsets[v.index()], len: ordered.node(v).shape.elements() };
        let mut made = Self { steps: vec![], arena_bytes, forms: vec![], rotations: vec![], spans: vec![] };
        for i in 0..ordered.nodes.len() {
            made.add(&ordered, Value(i as u32), &span)?;
        }
        made.spans = place.iter().map(|v| span(*v)).collect();
        Ok(made)
    }

    fn add(&mut self, program: &Program, value: Value, span: &impl Fn(Value) -> Span) -> Result<()> {
        let node = program.node(value);
        let (out, shape) = (span(value), node.shape);
        let width = |v: Value| program.node(v).shape.last();
        let heads = |v: Value| program.node(v).shape.dims()[1];
        let step = match node.op {
            Op::Reshape { .. } => return Ok(()),
            Op::Tokens => Step::Tokens { out },
            Op::Positions => Step::Positions { out },
            Op::Embed { ids, table } => Step::Embed { ids: span(ids), table, out },
            Op::Linear { x, w, bias } => {
                let (x, part) = (span(x), Part { w, bias, out });
                if let Some(Step::Linears { x: last, parts, .. }) = self.steps.last_mut()
                    && *last == x
                    && parts.iter().all(|p| disjoint(p.out, out))
                {
                    parts.push(part);
                    return Ok(());
                }
                Step::Linears { x, m: x.len / w.shape.last(), parts: vec![part] }
            }
            Op::RmsNorm { x, gain, offset, eps } => {
                let n = shape.last();
                self.norm(NormStep { x: span(x), plus: None, n, centred: false, gain, offset, bias: None, eps, out })
            }
            Op::LayerNorm { x, gain, bias, eps } => {
                let n = shape.last();
                self.norm(NormStep { x: span(x), plus: None, n, centred: true, gain, offset: 0.0, bias, eps, out })
            }
            Op::Rope { x, spec } => {
                let rotation = position(&mut self.rotations, spec);
                Step::Rope { x: span(x), heads: shape.dims()[1], dim: shape.last(), rotation, out }
            }
            Op::Attention { q, k, v, spec } => {
                let [_, kv_heads, dim] = *program.node(k).shape.dims() else {
                    return Err(unsupported("attention with keys that are not [tokens, heads, dim]"));
                };
                let (heads, v_dim) = (shape.dims()[1], shape.last());
                let (scale, window, softcap) = (spec.scale, spec.window, spec.softcap);
                let (chunk, temperature, ahead) = (spec.chunk, spec.temperature, spec.ahead);
                let form = Form { heads, kv_heads, dim, v_dim, scale, window, softcap, chunk, temperature, ahead };
                let form = position(&mut self.forms, form);
                let (layer, sinks) = (spec.layer, spec.sinks);
                Step::Attention(AttentionStep { q: span(q), k: span(k), v: span(v), out, form, layer, sinks })
            }
            Op::ShortConv { x, spec } => Step::Conv { x: span(x), channels: shape.last(), spec, out },
            Op::SsmScan { x, dt, b, c, spec } => {
                let inputs = [x, dt, b, c].map(span);
                Step::Scan { inputs, shape: [heads(value), shape.last(), heads(b), width(b)], spec, out }
            }
            Op::GatedDelta { q, k, v, dt, beta, spec } => {
                let inputs = [q, k, v, dt, beta].map(span);
                Step::Delta { inputs, shape: [heads(value), shape.last(), heads(k), width(k)], spec, out }
            }
            Op::GatedAct { gate, up, act } => {
                Step::Map { f: Map::Act(act), a: span(gate), b: up.map(span), n: shape.last(), out }
            }
            Op::Add { a, b } => Step::Map { f: Map::Add, a: span(a), b: Some(span(b)), n: shape.last(), out },
            Op::Mul { a, b } => Step::Map { f: Map::Mul, a: span(a), b: Some(span(b)), n: shape.last(), out },
            Op::Scale { x, by } => Step::Map { f: Map::Scale(by), a: span(x), b: None, n: shape.last(), out },
            Op::Softcap { x, cap } => Step::Map { f: Map::Softcap(cap), a: span(x), b: None, n: shape.last(), out },
            Op::Cast { x, to } => Step::Map { f: Map::Round(to), a: span(x), b: None, n: shape.last(), out },
            Op::Router { logits, spec } => {
                let experts = width(logits);
                let open = spec.groups.map_or(experts, |g| experts / g.groups * g.kept);
                if open < spec.top_k {
                    return Err(unsupported(&format!("a router that chooses {} of {open} experts", spec.top_k)));
                }
                Step::Router { logits: span(logits), experts, spec, out }
            }
            Op::Experts { x, route, spec } => {
                Step::Experts { x: span(x), route: span(route), tokens: shape.first(), spec, out }
            }
            Op::SelectRows { x } => Step::SelectRows { x: span(x), n: shape.elements() / shape.first(), out },
            Op::HeadLinear { x, w } => Step::Heads { x: span(x), tokens: shape.first(), w, out },
            Op::Concat { a, b } => Step::Concat { a: span(a), n: width(a), b: span(b), m: width(b), out },
            Op::Narrow { x, start, len } => Step::Narrow { x: span(x), n: width(x), start, len, out },
            Op::AllReduce { x } => Step::Copy { x: span(x), out },
            Op::MaskLogits { x } => Step::Mask { x: span(x), n: shape.last(), out },
            Op::Argmax { x } => Step::Argmax { x: span(x), n: width(x), out },
            Op::TopK { x, k } => Step::TopK { x: span(x), n: width(x), k, out },
            Op::LogSumExp { x } => Step::LogSumExp { x: span(x), n: width(x), out },
        };
        self.steps.push(step);
        Ok(())
    }

    /// A norm, which takes the sum that was made just before into its own pass.
    fn norm(&mut self, mut norm: NormStep) -> Step {
        if let Some(Step::Map { f: Map::Add, a, b: Some(b), n, out }) = self.steps.last()
            && (*out, *n) == (norm.x, norm.n)
            && a.len == b.len
            && disjoint(*a, norm.out)
            && disjoint(*b, norm.out)
        {
            (norm.x, norm.plus) = (*a, Some((*b, *out)));
            self.steps.pop();
        }
        Step::Norm(norm)
    }
}

/// The program with every linear moved up to the first that reads the same value, floats all f32; and where each value
/// of the given program is in it.
fn ordered(program: &Program) -> (Program, Vec<Value>) {
    // Linears that share their input are never far apart.
    const REACH: usize = 24;
    let count = program.nodes.len();
    let mut order = Vec::with_capacity(count);
    let mut taken = vec![false; count];
    for i in 0..count {
        if taken[i] {
            continue;
        }
        taken[i] = true;
        order.push(i);
        if let Op::Linear { x, .. } = program.nodes[i].op {
            for (j, node) in program.nodes.iter().enumerate().skip(i + 1).take(REACH) {
                if !taken[j] && matches!(node.op, Op::Linear { x: other, .. } if other == x) {
                    taken[j] = true;
                    order.push(j);
                }
            }
        }
    }
    let mut place = vec![Value(0); count];
    order.iter().enumerate().for_each(|(to, from)| place[*from] = Value(to as u32));
    let nodes = order.iter().map(|i| {
        let mut node = program.nodes[*i].clone();
        node.op = moved(node.op, &place);
        node.dtype = if node.dtype.is_float() { DType::F32 } else { node.dtype };
        node
    });
    let at = |v: Value| place[v.index()];
    let mut outputs = program.outputs;
    outputs.logits = at(outputs.logits);
    outputs.argmax = at(outputs.argmax);
    outputs.top = outputs.top.map(at);
    outputs.log_sum_exp = at(outputs.log_sum_exp);
    (Program { nodes: nodes.collect(), outputs, ..*program }, place)
}

/// `op` with its inputs at their new places.
fn moved(mut op: Op, place: &[Value]) -> Op {
    let at = |v: &mut Value| *v = place[v.index()];
    match &mut op {
        Op::Tokens | Op::Positions => {}
        Op::Embed { ids, .. } => at(ids),
        Op::Linear { x, .. }
        | Op::RmsNorm { x, .. }
        | Op::LayerNorm { x, .. }
        | Op::Rope { x, .. }
        | Op::ShortConv { x, .. }
        | Op::Scale { x, .. }
        | Op::Softcap { x, .. }
        | Op::SelectRows { x }
        | Op::Cast { x, .. }
        | Op::HeadLinear { x, .. }
        | Op::Narrow { x, .. }
        | Op::Reshape { x, .. }
        | Op::AllReduce { x }
        | Op::MaskLogits { x }
        | Op::Argmax { x }
        | Op::TopK { x, .. }
        | Op::LogSumExp { x } => at(x),
        Op::Attention { q, k, v, .. } => [q, k, v].into_iter().for_each(at),
        Op::SsmScan { x, dt, b, c, .. } => [x, dt, b, c].into_iter().for_each(at),
        Op::GatedDelta { q, k, v, dt, beta, .. } => [q, k, v, dt, beta].into_iter().for_each(at),
        Op::GatedAct { gate, up, .. } => std::iter::once(gate).chain(up).for_each(at),
        Op::Add { a, b } | Op::Mul { a, b } | Op::Concat { a, b } => [a, b].into_iter().for_each(at),
        Op::Router { logits, .. } => at(logits),
        Op::Experts { x, route, .. } => [x, route].into_iter().for_each(at),
    }
    op
}

/// When each node runs: linears of one input at one time, and a norm with the sum it reads.
fn times(program: &Program) -> Vec<usize> {
    let mut now = 0;
    let mut times = vec![];
    for (i, node) in program.nodes.iter().enumerate() {
        let before = i.checked_sub(1).map(|before| &program.nodes[before].op);
        let joined = match (before, &node.op) {
            (Some(Op::Linear { x: a, .. }), Op::Linear { x: b, .. }) => a == b,
            (Some(Op::Add { .. }), Op::RmsNorm { x, .. } | Op::LayerNorm { x, .. }) => x.index() + 1 == i,
            _ => false,
        };
        now += usize::from(!joined);
        times.push(now);
    }
    times
}

/// Every value in memory of its own.
fn apart(program: &Program) -> Arena {
    let (mut offsets, mut end) = (vec![], 0);
    for node in &program.nodes {
        if let Op::Reshape { x, .. } = node.op {
            offsets.push(offsets[x.index()]);
            continue;
        }
        offsets.push(end);
        end += (node.shape.elements() * node.dtype.bytes()).next_multiple_of(Arena::ALIGN);
    }
    Arena { offsets, peak_bytes: end }
}

/// True when two float values share no byte, as the arena's times have it: joining steps relies on it.
fn disjoint(a: Span, b: Span) -> bool {
    let size = size_of::<f32>();
    a.offset + a.len * size <= b.offset || b.offset + b.len * size <= a.offset
}

/// Place of `x` in `all`, where it is put if it is new.
fn position<T: PartialEq>(all: &mut Vec<T>, x: T) -> usize {
    all.iter().position(|y| *y == x).unwrap_or_else(|| {
        all.push(x);
        all.len() - 1
    })
}

fn unsupported(what: &str) -> Error {
    Error::Unsupported { device: "cpu", what: what.into() }
}
