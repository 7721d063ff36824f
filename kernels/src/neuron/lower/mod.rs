//! Owns the translation of a program into an HLO graph: one rule an operation. Values between operations are f32;
//! weights and cache are converted where they are used. Knows no device and no compiler.
//!
//! The graph's inputs are the packed step, the weights it reads and the K/V cache; its outputs are the tail and the
//! same cache, aliased in place.

mod attention;
mod elementwise;
mod matrix;
mod quant;
mod route;
mod tail;

use std::collections::BTreeMap;

use super::hlo::{Binary, Builder, Dot, Module, Node, Shape, Ty};
use super::planes;
use super::step::StepLayout;
use crate::{DType, Error, KvSpec, Op, Precision, Program, Result, Value, Weight, WeightId};

/// What the lowering has to know beside the program.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub kv: Option<&'a KvSpec>,
    /// Cache blocks reserved, block 0 included.
    pub kv_blocks: usize,
    pub precision: Precision,
}

/// A lowered program: the module, and what each of its inputs and outputs is, in order.
#[derive(Clone, Debug)]
pub(super) struct Graph {
    pub module: Module,
    pub inputs: Vec<Input>,
    pub outputs: Vec<Output>,
    pub step: StepLayout,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    Step,
    /// One plane of a weight; a plain weight is one plane.
    Weight {
        id: WeightId,
        plane: usize,
    },
    Cache {
        layer: usize,
        value: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    Argmax,
    TopIds,
    TopValues,
    LogSumExp,
    Logits,
    /// The value that a probe asked for, as f32.
    Probe,
    Cache {
        layer: usize,
        value: bool,
    },
}

/// Lowers `program`; with `probe`, that value becomes one more output.
///
/// # Errors
/// [`Error::Unsupported`], naming the operation and its place.
pub(super) fn lower(program: &Program, target: Target<'_>, probe: Option<Value>) -> Result<Graph> {
    let masked = program.tail.masked.then(|| program.vocab());
    let step = StepLayout::new(&program.shape, masked);
    let mut b = Builder::default();
    let packed = b.parameter("step", Shape::new(Ty::S32, &[step.len()]));
    let mut lowering = Lowering {
        program,
        target,
        step,
        b,
        packed,
        inputs: vec![Input::Step],
        weights: BTreeMap::new(),
        values: Vec::with_capacity(program.nodes.len()),
        caches: vec![],
        turns: BTreeMap::new(),
        visible: BTreeMap::new(),
    };
    for (i, node) in program.nodes.iter().enumerate() {
        let place = if node.path.is_empty() { format!("%{i}") } else { node.path.clone() };
        lowering.b.at(format!("{place}.{}", node.op.name()));
        let lowered = lowering.op(&node.op).map_err(|e| match e {
            Error::Unsupported { device, what } => Error::Unsupported { device, what: format!("{what} ({place})") },
            other => other,
        })?;
        lowering.values.push(lowered);
    }
    Ok(lowering.finish(probe))
}

/// What an operation left behind.
#[derive(Clone, Copy)]
enum Lowered {
    One(Node),
    /// Ids s32 and values f32, of one shape.
    Pairs(Node, Node),
}

struct Lowering<'a> {
    program: &'a Program,
    target: Target<'a>,
    step: StepLayout,
    b: Builder,
    packed: Node,
    inputs: Vec<Input>,
    /// The planes of each weight.
    weights: BTreeMap<WeightId, Vec<Node>>,
    values: Vec<Lowered>,
    caches: Vec<Cache>,
    /// Cosine and sine `[tokens, pairs]`, once a set of frequencies.
    turns: BTreeMap<(WeightId, Option<WeightId>, u32), (Node, Node)>,
    /// Which keys each token sees, once a window or chunk.
    visible: BTreeMap<[Option<usize>; 2], Node>,
}

/// One cache tensor: its parameter's number and its content after this step.
struct Cache {
    layer: usize,
    value: bool,
    parameter: usize,
    after: Node,
}

impl Lowering<'_> {
    fn op(&mut self, op: &Op) -> Result<Lowered> {
        let one = match *op {
            Op::Tokens => self.field(self.step.tokens.clone(), &[self.program.shape.tokens]),
            Op::Positions => self.field(self.step.positions.clone(), &[self.program.shape.tokens]),
            Op::Embed { ids, table } => self.embed(ids, table)?,
            Op::Linear { x, w, bias } => self.linear(x, w, bias)?,
            Op::RmsNorm { x, gain, offset, eps } => self.rms_norm(x, gain, offset, eps)?,
            Op::LayerNorm { x, gain, bias, eps } => self.layer_norm(x, gain, bias, eps)?,
            Op::Rope { x, spec } => self.rope(x, &spec)?,
            Op::Attention { q, k, v, spec } => self.attention(q, k, v, &spec)?,
            Op::ShortConv { .. } | Op::SsmScan { .. } | Op::GatedDelta { .. } => {
                return Err(crate::backend::unsupported("neuron", op));
            }
            Op::GatedAct { gate, up, act } => self.gated_act(gate, up, act),
            Op::Add { a, b } => self.pairwise(Binary::Add, a, b),
            Op::Mul { a, b } => self.pairwise(Binary::Multiply, a, b),
            Op::Scale { x, by } => {
                let x = self.float(x);
                self.scaled(x, by)
            }
            Op::Softcap { x, cap } => {
                let x = self.float(x);
                self.softcap(x, cap)
            }
            Op::Router { logits, spec } => return self.router(logits, &spec),
            Op::Experts { x, route, spec } => self.experts(x, route, &spec)?,
            Op::SelectRows { x } => self.select_rows(x),
            Op::Cast { x, to } => {
                let x = self.float(x);
                self.b.convert(x, ty_of(to))
            }
            Op::HeadLinear { x, w } => self.head_linear(x, w)?,
            Op::Concat { a, b } => {
                let (a, b) = (self.float(a), self.float(b));
                let last = self.b.dims(a).len() - 1;
                self.b.concatenate(&[a, b], last)
            }
            Op::Narrow { x, start, len } => {
                let x = self.float(x);
                let last = self.b.dims(x).len() - 1;
                self.b.slice(x, last, start, start + len)
            }
            Op::Reshape { x, shape } => match self.values[x.index()] {
                Lowered::One(x) => self.b.reshape(x, shape.dims()),
                Lowered::Pairs(ids, values) => {
                    let (ids, values) = (self.b.reshape(ids, shape.dims()), self.b.reshape(values, shape.dims()));
                    return Ok(Lowered::Pairs(ids, values));
                }
            },
            // One rank: the sum over the group is the value itself.
            Op::AllReduce { x } => self.float(x),
            Op::MaskLogits { x } => self.mask_logits(x),
            Op::Argmax { x } => self.argmax(x),
            Op::TopK { x, k } => return Ok(self.top_k(x, k)),
            Op::LogSumExp { x } => self.log_sum_exp(x),
        };
        Ok(Lowered::One(one))
    }

    fn finish(mut self, probe: Option<Value>) -> Graph {
        let out = self.program.outputs;
        let mut outputs = vec![];
        let mut put = |name: &str, what: Output, node: Node| outputs.push((what, (name.to_string(), node)));
        put("argmax", Output::Argmax, self.node(out.argmax));
        if let Some(Lowered::Pairs(ids, values)) = out.top.map(|v| self.values[v.index()]) {
            put("top_ids", Output::TopIds, ids);
            put("top_values", Output::TopValues, values);
        }
        put("log_sum_exp", Output::LogSumExp, self.node(out.log_sum_exp));
        if self.program.tail.logits {
            put("logits", Output::Logits, self.node(out.logits));
        }
        if let Some(v) = probe {
            let probed = self.probed(v);
            put("probe", Output::Probe, probed);
        }
        let mut aliases = vec![];
        for cache in &self.caches {
            aliases.push((outputs.len(), cache.parameter));
            let name = cache_name(cache.layer, cache.value);
            outputs.push((Output::Cache { layer: cache.layer, value: cache.value }, (name, cache.after)));
        }
        let (outputs, ports): (Vec<Output>, Vec<(String, Node)>) = outputs.into_iter().unzip();
        Graph { module: self.b.finish(&ports, &aliases), inputs: self.inputs, outputs, step: self.step }
    }

    /// Any value as f32; pairs as id, value, id, value. A sum with zero keeps an output from being a bare parameter or
    /// another output.
    fn probed(&mut self, v: Value) -> Node {
        self.b.at("probe".into());
        let x = match self.values[v.index()] {
            Lowered::One(x) => self.b.convert(x, Ty::F32),
            Lowered::Pairs(ids, values) => {
                let dims = [self.b.dims(ids), vec![1]].concat();
                let ids = self.b.convert(ids, Ty::F32);
                let (ids, values) = (self.b.reshape(ids, &dims), self.b.reshape(values, &dims));
                self.b.concatenate(&[ids, values], dims.len() - 1)
            }
        };
        let dims = self.b.dims(x);
        let zero = self.b.full_f32(0.0, &dims);
        self.b.binary(Binary::Add, x, zero)
    }

    fn node(&self, v: Value) -> Node {
        match self.values[v.index()] {
            Lowered::One(x) => x,
            Lowered::Pairs(..) => unreachable!("the recorder keeps pairs apart from values: this is a bug"),
        }
    }

    /// A value as f32.
    fn float(&mut self, v: Value) -> Node {
        let x = self.node(v);
        self.b.convert(x, Ty::F32)
    }

    /// A field of the packed step.
    fn field(&mut self, range: std::ops::Range<usize>, dims: &[usize]) -> Node {
        let flat = self.b.slice(self.packed, 0, range.start, range.end);
        self.b.reshape(flat, dims)
    }

    /// The parameters of a weight, in the types they are stored in: one for each plane.
    fn planes(&mut self, w: Weight) -> Result<Vec<Node>> {
        if let Some(nodes) = self.weights.get(&w.id) {
            return Ok(nodes.clone());
        }
        let fields = planes::fields(w.format).ok_or_else(|| refuse(format!("weights in {}", w.format)))?;
        let mut nodes = vec![];
        for (plane, field) in fields.iter().enumerate() {
            let shape = planes::shape(w.format, w.shape.dims(), *field);
            let part = if fields.len() > 1 { format!("w{}p{plane}", w.id.0) } else { format!("w{}", w.id.0) };
            nodes.push(self.b.parameter(&part, shape));
            self.inputs.push(Input::Weight { id: w.id, plane });
        }
        self.weights.insert(w.id, nodes.clone());
        Ok(nodes)
    }

    /// A weight as numbers: a plain one in the type it is stored in, a quantised one decoded to f32, or to bf16 where
    /// precision is native: that is what it is multiplied in.
    fn weight(&mut self, w: Weight) -> Result<Node> {
        let nodes = self.planes(w)?;
        if !w.format.is_quantised() {
            return Ok(nodes[0]);
        }
        let lead = &w.shape.dims()[..w.shape.rank() - 1];
        let values = self.dequantised(w.format, &nodes, lead);
        let native = self.target.precision == Precision::Native;
        Ok(self.b.convert(values, if native { Ty::Bf16 } else { Ty::F32 }))
    }

    /// A weight as f32.
    fn float_weight(&mut self, w: Weight) -> Result<Node> {
        let node = self.weight(w)?;
        Ok(self.b.convert(node, Ty::F32))
    }

    /// `x` summed with `w` over `x`'s dimension `sum` and the weight's last, in the precision asked for: `[.., out]`.
    fn times_weight(&mut self, x: Node, w: Node, how: Dot<'_>) -> Node {
        let native = self.target.precision == Precision::Native && self.b.shape(w).ty == Ty::Bf16;
        let ty = if native { Ty::Bf16 } else { Ty::F32 };
        let (x, w) = (self.b.convert(x, ty), self.b.convert(w, ty));
        self.b.dot(x, w, how)
    }

    /// A vector over the last of `dims`.
    fn along_last(&mut self, vector: Node, dims: &[usize]) -> Node {
        self.b.broadcast(vector, dims, &[dims.len() - 1])
    }

    /// A value for each row, over the last of `dims`.
    fn along_rows(&mut self, x: Node, dims: &[usize]) -> Node {
        let at: Vec<usize> = (0..dims.len() - 1).collect();
        self.b.broadcast(x, dims, &at)
    }

    fn scaled(&mut self, x: Node, by: f32) -> Node {
        let dims = self.b.dims(x);
        let by = self.b.full_f32(by, &dims);
        self.b.binary(Binary::Multiply, x, by)
    }

    fn shifted(&mut self, x: Node, by: f32) -> Node {
        let dims = self.b.dims(x);
        let by = self.b.full_f32(by, &dims);
        self.b.binary(Binary::Add, x, by)
    }
}

/// The name of a cache tensor in a compiled program.
fn cache_name(layer: usize, value: bool) -> String {
    format!("{}{layer}", if value { "v" } else { "k" })
}

fn refuse(what: String) -> Error {
    Error::Unsupported { device: "neuron", what }
}

fn ty_of(dtype: DType) -> Ty {
    match dtype {
        DType::F32 => Ty::F32,
        DType::F16 => Ty::F16,
        DType::Bf16 => Ty::Bf16,
        DType::U32 => Ty::S32,
        DType::Pair => unreachable!("the recorder casts to floats only: this is a bug"),
    }
}
