//! Owns one run of a program: walks its nodes in order and keeps every value for the microscope.

use candle_core::{Device, Result, Tensor};

use super::attention::{self, Cache};
use super::recurrent::{self, States};
use super::{dense, experts, tail};
use crate::backend::{Candidate, Output};
use crate::{Batch, DType, Op, Program, Value, Weight};

/// What a node made.
pub enum Held {
    /// Floats of the node's shape. `f16` and `bf16` values are f32 numbers that those types can hold.
    Floats(Tensor),
    Ids(Vec<u32>),
    Pairs(Vec<Candidate>),
}

impl Held {
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self {
            Self::Floats(x) => x.flatten_all()?.to_vec1(),
            Self::Ids(ids) => Ok(ids.iter().map(|id| *id as f32).collect()),
            Self::Pairs(pairs) => Ok(pairs.iter().flat_map(|p| [p.id as f32, p.logit]).collect()),
        }
    }
}

pub struct Step<'a> {
    pub program: &'a Program,
    pub batch: &'a Batch,
    pub weights: &'a [Tensor],
    pub values: Vec<Held>,
}

impl Step<'_> {
    /// Runs all nodes. A program with attention needs the cache, one that keeps a state the states.
    pub fn run(&mut self, mut cache: Option<&mut Cache>, mut states: Option<&mut States>) -> Result<()> {
        for node in &self.program.nodes {
            let value = self.evaluate(&node.op, cache.as_deref_mut(), states.as_deref_mut())?;
            self.values.push(value);
        }
        Ok(())
    }

    pub fn output(&self) -> Result<Output> {
        let outputs = self.program.outputs;
        let top = outputs.top.map_or(vec![], |v| self.pairs(v).to_vec());
        let logits = match self.program.tail.logits {
            true => Some(self.floats(outputs.logits).flatten_all()?.to_vec1()?),
            false => None,
        };
        let log_sum_exp = self.floats(outputs.log_sum_exp).to_vec1()?;
        Ok(Output { argmax: self.ids(outputs.argmax).to_vec(), top, log_sum_exp, logits })
    }

    fn evaluate(&self, op: &Op, cache: Option<&mut Cache>, states: Option<&mut States>) -> Result<Held> {
        let kept = || states.expect("compile asks for states where one is kept: this is a bug");
        let float = |x: Result<Tensor>| x.map(Held::Floats);
        let x = |v: Value| self.floats(v);
        let w = |w: &Weight| &self.weights[w.id.0 as usize];
        let maybe = |w: &Option<Weight>| w.as_ref().map(|w| &self.weights[w.id.0 as usize]);
        match op {
            Op::Tokens => Ok(Held::Ids(self.batch.tokens.clone())),
            Op::Positions => Ok(Held::Ids(self.batch.positions.clone())),
            Op::Embed { ids, table } => {
                let ids = self.ids(*ids);
                float(w(table).index_select(&Tensor::from_slice(ids, ids.len(), &Device::Cpu)?, 0))
            }
            Op::Linear { x: v, w: m, bias } => float(dense::linear(x(*v), w(m), maybe(bias))),
            Op::RmsNorm { x: v, gain, offset, eps } => float(dense::rms_norm(x(*v), maybe(gain), *offset, *eps)),
            Op::LayerNorm { x: v, gain, bias, eps } => float(dense::layer_norm(x(*v), maybe(gain), maybe(bias), *eps)),
            Op::Rope { x: v, spec } => float(dense::rope(x(*v), self.batch, w(&spec.freqs), maybe(&spec.long), spec)),
            Op::Attention { q, k, v, spec } => {
                let cache = cache.expect("compile asks for a cache where there is attention: this is a bug");
                let sinks = spec.sinks.map(|s| w(&s).to_vec1()).transpose()?;
                cache.store(self.batch, spec.layer, x(*k), x(*v))?;
                float(attention::attend(cache, self.batch, x(*q), spec, sinks.as_deref()))
            }
            Op::ShortConv { x: v, spec } => {
                let (weight, bias) = (w(&spec.weight), maybe(&spec.bias));
                float(recurrent::short_conv(kept(), self.batch, x(*v), weight, bias, spec))
            }
            Op::SsmScan { x: v, dt, b, c, spec } => {
                let (inputs, vectors) = ([x(*v), x(*dt), x(*b), x(*c)], [&spec.a, &spec.d, &spec.dt_bias].map(w));
                float(recurrent::ssm_scan(kept(), self.batch, inputs, vectors, spec))
            }
            Op::GatedDelta { q, k, v, dt, beta, spec } => {
                let inputs = [q, k, v, dt, beta].map(|v| x(*v));
                float(recurrent::gated_delta(kept(), self.batch, inputs, [&spec.a, &spec.dt_bias].map(w), spec))
            }
            Op::GatedAct { gate, up, act } => float(dense::gated_act(x(*gate), up.map(x), *act)),
            Op::Add { a, b } => float(x(*a).broadcast_add(x(*b))),
            Op::Mul { a, b } => float(x(*a).broadcast_mul(x(*b))),
            Op::Scale { x: v, by } => float(dense::times(x(*v), *by)),
            Op::Softcap { x: v, cap } => float(dense::softcap(x(*v), *cap)),
            Op::Router { logits, spec } => {
                experts::router(x(*logits), maybe(&spec.bias), maybe(&spec.gains), spec).map(Held::Pairs)
            }
            Op::Experts { x: v, route, spec } => {
                let weights = experts::Weights {
                    gate_up: w(&spec.gate_up),
                    gate_up_bias: maybe(&spec.gate_up_bias),
                    down: w(&spec.down),
                    down_bias: maybe(&spec.down_bias),
                };
                float(experts::experts(x(*v), self.pairs(*route), &weights, spec))
            }
            Op::SelectRows { x: v } => {
                let rows = &self.batch.rows;
                float(x(*v).index_select(&Tensor::from_slice(rows, rows.len(), &Device::Cpu)?, 0))
            }
            Op::Cast { x: v, to } => float(dense::round_to(x(*v), *to)),
            Op::HeadLinear { x: v, w: m } => float(dense::head_linear(x(*v), w(m))),
            Op::Concat { a, b } => float(Tensor::cat(&[x(*a), x(*b)], candle_core::D::Minus1)),
            Op::Narrow { x: v, start, len } => {
                float(x(*v).narrow(candle_core::D::Minus1, *start, *len).and_then(|x| x.contiguous()))
            }
            Op::Reshape { x: v, shape } => self.reshape(*v, shape.dims()),
            Op::AllReduce { x: v } => float(Ok(x(*v).clone())),
            Op::MaskLogits { x: v } => float(tail::mask(x(*v), &self.batch.masks)),
            Op::Argmax { x: v } => tail::argmax(x(*v)).map(Held::Ids),
            Op::TopK { x: v, k } => tail::top_k(x(*v), *k).map(Held::Pairs),
            Op::LogSumExp { x: v } => float(tail::log_sum_exp(x(*v))),
        }
    }

    fn reshape(&self, v: Value, dims: &[usize]) -> Result<Held> {
        match &self.values[v.index()] {
            Held::Floats(x) => x.reshape(dims).map(Held::Floats),
            Held::Ids(ids) => Ok(Held::Ids(ids.clone())),
            Held::Pairs(pairs) => Ok(Held::Pairs(pairs.clone())),
        }
    }

    fn floats(&self, v: Value) -> &Tensor {
        match &self.values[v.index()] {
            Held::Floats(x) => x,
            _ => panic!("the recorder checks that %{} is of floats: this is a bug", v.0),
        }
    }

    fn ids(&self, v: Value) -> &[u32] {
        match &self.values[v.index()] {
            Held::Ids(ids) => ids,
            _ => panic!("the recorder checks that %{} is {}: this is a bug", v.0, DType::U32),
        }
    }

    fn pairs(&self, v: Value) -> &[Candidate] {
        match &self.values[v.index()] {
            Held::Pairs(pairs) => pairs,
            _ => panic!("the recorder checks that %{} is {}: this is a bug", v.0, DType::Pair),
        }
    }
}
