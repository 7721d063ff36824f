//! Owns the translation of a program into kernel launches: for each node which kernel, over what grid, with which
//! addresses. Arithmetic on shapes; launches nothing.

use crate::cuda::driver::{Argument, Function, Launch};
use crate::cuda::staging::Staging;
use crate::op::{Act, AttnSpec, ExpertsSpec, RopeSpec, RouterGroups, RouterScore, RouterSpec};
use crate::{Arena, DType, Error, Format, KvSpec, Op, Precision, Program, Result, Shape, Value, Weight, WeightId};

use Argument::{Address, F32, U32};

/// Keys in a split of attention: `SPLIT` in `attention.cu`.
const SPLIT_TOKENS: usize = 256;
/// Query heads that share one read of K and V: `GROUP` in `attention.cu`.
const ATTENTION_GROUP: usize = 4;
/// Largest head: `LANE * 32` in `attention.cu`.
const MAX_HEAD: usize = 256;
/// The tensor-core product's tile and k step: `TILE_M`, `TILE_N`, `TILE_K` in `linear.cu`.
const TILE: usize = 64;
const TILE_K: usize = 32;
/// Rows and columns a block of the plain product makes: `ROWS` and its four warps in `linear.cu`.
const PLAIN_ROWS: usize = 8;
const PLAIN_COLUMNS: usize = 4;

/// Bytes of device memory a program needs beside weights and cache: values, then scratch of one operation at a time.
pub(super) fn arena_bytes(program: &Program, arena: &Arena) -> usize {
    let inner = program.nodes.iter().map(|n| match n.op {
        Op::Experts { route, spec, .. } => program.node(route).shape.elements() * spec.down.shape.last() * 4,
        _ => 0,
    });
    let (sums, weights) = scratch(program);
    arena.peak_bytes + inner.max().unwrap_or(0).max(sums + weights)
}

/// Where things lie and which kernels there are: what addresses are made from.
pub(super) struct Planner<'a> {
    pub program: &'a Program,
    pub arena: &'a Arena,
    pub staging: Staging,
    pub kv: Option<&'a KvSpec>,
    pub precision: Precision,
    pub arena_address: u64,
    pub staging_address: u64,
    /// Address of each cache layer's K and V.
    pub cache: &'a [(u64, u64)],
    pub weight: &'a dyn Fn(WeightId) -> u64,
    pub function: &'a mut dyn FnMut(&'static str) -> Result<Function>,
}

impl Planner<'_> {
    /// Launches in order, each with the index of the node it belongs to.
    ///
    /// # Errors
    /// An operation, format or shape without a kernel.
    pub fn launches(mut self) -> Result<Vec<(usize, Launch)>> {
        let mut out = vec![];
        for (i, node) in self.program.nodes.iter().enumerate() {
            for launch in self.node(Value(i as u32), &node.op)? {
                out.push((i, launch));
            }
        }
        Ok(out)
    }

    fn node(&mut self, v: Value, op: &Op) -> Result<Vec<Launch>> {
        let shape = self.program.node(v).shape;
        let (out, total) = (self.at(v), shape.elements());
        let last = shape.last();
        match *op {
            Op::Tokens | Op::Positions | Op::Reshape { .. } => Ok(vec![]),
            Op::Embed { ids, table } => {
                let name = match table.format {
                    Format::F32 => "embed_f32",
                    Format::F16 => "embed_f16",
                    Format::Bf16 => "embed_bf16",
                    other => return Err(no_format(other)),
                };
                let arguments = [out, self.at(ids), self.weight(table), u(last), u(total)];
                self.elements(name, total, &arguments)
            }
            Op::Linear { x, w, bias } => self.linear(out, x, w, bias, total / last),
            Op::ShortConv { .. } | Op::SsmScan { .. } | Op::GatedDelta { .. } => {
                Err(crate::backend::unsupported("cuda", op))
            }
            Op::RmsNorm { gain: Some(gain), .. } if gain.shape.elements() != last => {
                Err(Error::Unsupported { device: "cuda", what: "rms_norm with a gain for groups".into() })
            }
            Op::RmsNorm { x, gain, offset, eps } => {
                let arguments = [out, self.at(x), self.optional(gain), F32(offset), F32(eps), u(last)];
                self.rows("rms_norm", total / last, 128, &arguments)
            }
            Op::LayerNorm { x, gain, bias, eps } => {
                let arguments = [out, self.at(x), self.optional(gain), self.optional(bias), F32(eps), u(last)];
                self.rows("layer_norm", total / last, 128, &arguments)
            }
            Op::Rope { x, spec } => self.rope(out, x, spec, shape),
            Op::Attention { q, k, v: values, spec } => self.attention(out, [q, k, values], spec, shape),
            Op::GatedAct { act: Act::Sigmoid, .. } => {
                Err(Error::Unsupported { device: "cuda", what: "the activation sigmoid".into() })
            }
            Op::GatedAct { gate, up, act } => {
                let up = up.map_or(Address(0), |up| self.at(up));
                let gate = self.at(gate);
                match act {
                    Act::ClampedSwiglu { alpha, limit } => {
                        self.elements("clamped_swiglu", total, &[out, gate, up, F32(alpha), F32(limit), u(total)])
                    }
                    Act::Xielu { positive, negative, beta } => {
                        let bends = [F32(positive), F32(negative), F32(beta)];
                        let arguments = [&[out, gate, up][..], &bends, &[u(total)]].concat();
                        self.elements("xielu", total, &arguments)
                    }
                    _ => self.elements("gated_act", total, &[out, gate, up, U32(number(act)), u(total)]),
                }
            }
            Op::Add { a, b } => self.pairwise("add", out, a, b, total),
            Op::Mul { a, b } => self.pairwise("mul", out, a, b, total),
            Op::Scale { x, by } => self.elements("scale", total, &[out, self.at(x), F32(by), u(total)]),
            Op::Softcap { x, cap } => self.elements("softcap", total, &[out, self.at(x), F32(cap), u(total)]),
            Op::SelectRows { x } => {
                let rows = self.staged(self.staging.rows);
                self.elements("select_rows", total, &[out, self.at(x), rows, u(last), u(total)])
            }
            Op::Cast { to, .. } if to != DType::F32 => Err(crate::backend::unsupported("cuda", op)),
            // Values are f32 on this device, and there is one rank: both are copies.
            Op::Cast { x, .. } | Op::AllReduce { x } => {
                self.elements("scale", total, &[out, self.at(x), F32(1.0), u(total)])
            }
            Op::HeadLinear { x, w } => {
                let name = match w.format {
                    Format::F32 => "head_linear_f32",
                    Format::F16 => "head_linear_f16",
                    Format::Bf16 => "head_linear_bf16",
                    other => return Err(no_format(other)),
                };
                let (heads, k, rows) = (w.shape.first(), w.shape.last(), shape.first());
                let arguments = [out, self.at(x), self.weight(w), u(heads), u(last), u(k)];
                self.launch(name, (last.div_ceil(PLAIN_COLUMNS), heads, rows), 128, 0, &arguments)
            }
            Op::Concat { a, b } => {
                let [n, m] = [a, b].map(|v| u(self.program.node(v).shape.last()));
                self.elements("concat", total, &[out, self.at(a), self.at(b), n, m, u(total)])
            }
            Op::Narrow { x, start, len } => {
                let width = self.program.node(x).shape.last();
                self.elements("narrow", total, &[out, self.at(x), u(width), u(start), u(len), u(total)])
            }
            Op::MaskLogits { x } => {
                let masks = self.staged(self.staging.masks);
                let words = u(self.staging.mask_words);
                self.rows("mask_logits", shape.first(), 256, &[out, self.at(x), masks, u(last), words])
            }
            Op::Argmax { x } => self.rows("argmax", last, 256, &[out, self.at(x), u(self.program.vocab())]),
            Op::TopK { x, k } => {
                self.rows("top_k", shape.first(), 256, &[out, self.at(x), u(self.program.vocab()), u(k)])
            }
            Op::LogSumExp { x } => self.rows("log_sum_exp", last, 256, &[out, self.at(x), u(self.program.vocab())]),
            Op::Router { logits, spec } => self.router(out, logits, &spec, total),
            Op::Experts { x, route, spec } => self.experts(out, x, route, &spec, shape),
        }
    }

    fn linear(&mut self, out: Argument, x: Value, w: Weight, bias: Option<Weight>, rows: usize) -> Result<Vec<Launch>> {
        let (n, k) = (w.shape.first(), w.shape.last());
        let arguments = [out, self.at(x), self.weight(w), self.optional(bias), u(rows), u(n), u(k)];
        let cores = w.format == Format::Bf16 && self.precision == Precision::Native && k.is_multiple_of(TILE_K);
        let name = match w.format {
            _ if cores => "linear_mma",
            Format::F32 => "linear_f32",
            Format::F16 => "linear_f16",
            Format::Bf16 => "linear_bf16",
            other => return Err(no_format(other)),
        };
        let grid = match cores {
            true => (n.div_ceil(TILE), rows.div_ceil(TILE)),
            false => (n.div_ceil(PLAIN_COLUMNS), rows.div_ceil(PLAIN_ROWS)),
        };
        self.launch(name, (grid.0, grid.1, 1), 128, 0, &arguments)
    }

    fn rope(&mut self, out: Argument, x: Value, spec: RopeSpec, shape: Shape) -> Result<Vec<Launch>> {
        let (heads, dim, total) = (shape.dims()[1], shape.last(), shape.elements());
        let arguments = [
            out,
            self.at(x),
            self.staged(self.staging.positions),
            self.staged(self.staging.long),
            self.weight(spec.freqs),
            self.weight(spec.long.unwrap_or(spec.freqs)),
            u(heads),
            u(dim),
            u(spec.freqs.shape.elements()),
            U32(spec.interleaved.into()),
            F32(spec.magnitude),
            u(total),
        ];
        self.elements("rope", total, &arguments)
    }

    fn attention(&mut self, out: Argument, qkv: [Value; 3], spec: AttnSpec, shape: Shape) -> Result<Vec<Launch>> {
        let [q, k, v] = qkv;
        let (batch, kv) = (self.program.shape, self.kv.expect("attention is compiled after reserve_kv: this is a bug"));
        let (heads, v_dim) = (shape.dims()[1], shape.last());
        let key = self.program.node(k).shape;
        let (kv_heads, k_dim) = (key.dims()[1], key.last());
        if k_dim.max(v_dim) > MAX_HEAD {
            return Err(Error::Unsupported {
                device: "cuda",
                what: format!("heads of {} dimensions", k_dim.max(v_dim)),
            });
        }
        if spec.ahead {
            return Err(Error::Unsupported {
                device: "cuda",
                what: "attention to keys ahead, as encoders have it".into(),
            });
        }
        let splits = splits(self.program);
        let (k_cache, v_cache) = self.cache[spec.layer];
        let f32_cache = kv.dtype == DType::F32;
        let sums = self.arena_address + self.arena.peak_bytes as u64;
        let weights = sums + scratch(self.program).0 as u64;
        let store = if f32_cache { "store_kv_f32" } else { "store_kv_bf16" };
        // By the entries of a head that a lane holds.
        let attend = match (f32_cache, k_dim.max(v_dim).div_ceil(32)) {
            (true, 1) => "attend_f32_1",
            (true, 2) => "attend_f32_2",
            (true, 3..=4) => "attend_f32_4",
            (true, _) => "attend_f32_8",
            (false, 1) => "attend_bf16_1",
            (false, 2) => "attend_bf16_2",
            (false, 3..=4) => "attend_bf16_4",
            (false, _) => "attend_bf16_8",
        };
        let slots = self.staged(self.staging.slots);
        let (k_width, v_width) = (u(kv_heads * k_dim), u(kv_heads * v_dim));
        let stored = [Address(k_cache), Address(v_cache), self.at(k), self.at(v), slots, k_width, v_width];
        let mut launches = self.rows(store, batch.tokens, 128, &stored)?;
        let attended = [
            Address(sums),
            Address(weights),
            self.at(q),
            Address(k_cache),
            Address(v_cache),
            self.staged(self.staging.positions),
            self.staged(self.staging.sequence),
            self.staged(self.staging.table),
            u(heads),
            u(kv_heads),
            u(k_dim),
            u(v_dim),
            u(batch.blocks),
            u(kv.block_tokens),
            u(spec.window.unwrap_or(0)),
            u(spec.chunk.unwrap_or(0)),
            u(splits),
            u(spec.temperature.map_or(0, |t| t.every)),
            F32(spec.temperature.map_or(0.0, |t| t.scale)),
            F32(spec.scale),
            F32(spec.softcap.unwrap_or(0.0)),
        ];
        let shared = 4 * ATTENTION_GROUP * (v_dim + 2) * 4;
        launches.extend(self.launch(attend, (kv_heads, batch.tokens, splits), 128, shared, &attended)?);
        let combined = [out, Address(sums), Address(weights), self.optional(spec.sinks), u(heads), u(v_dim), u(splits)];
        launches.extend(self.launch("combine_splits", (heads, batch.tokens, 1), 128, 0, &combined)?);
        Ok(launches)
    }

    fn router(&mut self, out: Argument, logits: Value, spec: &RouterSpec, total: usize) -> Result<Vec<Launch>> {
        let experts = self.program.node(logits).shape.last();
        let groups = spec.groups.unwrap_or(RouterGroups { groups: 1, kept: 1, summed: 1 });
        let arguments = [
            out,
            self.at(logits),
            self.optional(spec.bias),
            self.optional(spec.gains),
            u(experts),
            u(spec.top_k),
            U32(match spec.score {
                RouterScore::Softmax => 0,
                RouterScore::SoftmaxChosen => 1,
                RouterScore::Sigmoid => 2,
            }),
            U32(spec.normalise.into()),
            F32(spec.scale),
            u(groups.groups),
            u(groups.kept),
            u(groups.summed),
        ];
        let shared = (2 * experts + groups.groups) * 4;
        self.launch("router", (total / spec.top_k, 1, 1), 32, shared, &arguments)
    }

    fn experts(
        &mut self,
        out: Argument,
        x: Value,
        route: Value,
        spec: &ExpertsSpec,
        shape: Shape,
    ) -> Result<Vec<Launch>> {
        let (tokens, hidden, width) = (shape.first(), shape.last(), spec.down.shape.last());
        let top_k = self.program.node(route).shape.last();
        let (gate_up, down) = match (spec.gate_up.format, spec.down.format) {
            (Format::F32, Format::F32) => ("experts_gate_up_f32", "experts_down_f32"),
            (Format::F16, Format::F16) => ("experts_gate_up_f16", "experts_down_f16"),
            (Format::Bf16, Format::Bf16) => ("experts_gate_up_bf16", "experts_down_bf16"),
            (other, _) => return Err(no_format(other)),
        };
        if let Act::Xielu { .. } = spec.act {
            return Err(Error::Unsupported { device: "cuda", what: "experts with the activation xielu".into() });
        }
        let inner = Address(self.arena_address + self.arena.peak_bytes as u64);
        let (alpha, limit) =
            if let Act::ClampedSwiglu { alpha, limit } = spec.act { (alpha, limit) } else { (0.0, 0.0) };
        let made = [
            inner,
            self.at(x),
            self.at(route),
            self.weight(spec.gate_up),
            self.optional(spec.gate_up_bias),
            u(top_k),
            u(hidden),
            u(width),
            U32(number(spec.act)),
            U32(spec.interleaved.into()),
            F32(alpha),
            F32(limit),
            U32(spec.weigh_input.into()),
        ];
        let mut launches = self.launch(gate_up, (tokens * top_k, width.div_ceil(4), 1), 128, 0, &made)?;
        let summed = [
            out,
            inner,
            self.at(route),
            self.weight(spec.down),
            self.optional(spec.down_bias),
            u(top_k),
            u(hidden),
            u(width),
            U32(spec.weigh_input.into()),
        ];
        launches.extend(self.launch(down, (tokens, hidden.div_ceil(4), 1), 128, 0, &summed)?);
        Ok(launches)
    }

    fn pairwise(&mut self, name: &'static str, out: Argument, a: Value, b: Value, total: usize) -> Result<Vec<Launch>> {
        let width = self.program.node(b).shape.elements();
        self.elements(name, total, &[out, self.at(a), self.at(b), u(width), u(total)])
    }

    /// One thread an element.
    fn elements(&mut self, name: &'static str, total: usize, arguments: &[Argument]) -> Result<Vec<Launch>> {
        self.launch(name, (total.div_ceil(256), 1, 1), 256, 0, arguments)
    }

    /// One block of `threads` a row.
    fn rows(&mut self, name: &'static str, rows: usize, threads: u32, arguments: &[Argument]) -> Result<Vec<Launch>> {
        self.launch(name, (rows, 1, 1), threads, 0, arguments)
    }

    fn launch(
        &mut self,
        name: &'static str,
        grid: (usize, usize, usize),
        threads: u32,
        shared_bytes: usize,
        arguments: &[Argument],
    ) -> Result<Vec<Launch>> {
        let function = (self.function)(name)?;
        let grid = (grid.0 as u32, grid.1 as u32, grid.2 as u32);
        let arguments = arguments.to_vec();
        Ok(vec![Launch { function, grid, block: (threads, 1, 1), shared_bytes: shared_bytes as u32, arguments }])
    }

    fn at(&self, v: Value) -> Argument {
        let root = self.root(v);
        match self.program.node(root).op {
            Op::Tokens => self.staged(self.staging.tokens),
            Op::Positions => self.staged(self.staging.positions),
            _ => Address(self.arena_address + self.arena.offset(root) as u64),
        }
    }

    /// What a chain of reshapes views.
    fn root(&self, v: Value) -> Value {
        match self.program.node(v).op {
            Op::Reshape { x, .. } => self.root(x),
            _ => v,
        }
    }

    fn staged(&self, word: usize) -> Argument {
        Address(self.staging_address + word as u64 * 4)
    }

    fn weight(&self, w: Weight) -> Argument {
        Address((self.weight)(w.id))
    }

    fn optional(&self, w: Option<Weight>) -> Argument {
        w.map_or(Address(0), |w| self.weight(w))
    }
}

/// Splits of the longest context the program's block table holds.
fn splits(program: &Program) -> usize {
    (program.shape.blocks * program.block_tokens).div_ceil(SPLIT_TOKENS)
}

/// Bytes of split sums and of split weights, for the largest attention of the program.
fn scratch(program: &Program) -> (usize, usize) {
    let attentions = || program.nodes.iter().filter(|n| matches!(n.op, Op::Attention { .. })).map(|n| n.shape);
    let bytes = |values: usize| (values * splits(program) * 4).next_multiple_of(Arena::ALIGN);
    let sums = attentions().map(|s| s.elements()).max().unwrap_or(0);
    // The largest score and the sum of exponentials of each token and head.
    let weights = attentions().map(|s| 2 * s.dims()[0] * s.dims()[1]).max().unwrap_or(0);
    (bytes(sums), bytes(weights))
}

/// As numbered in `elementwise.cu`.
fn number(act: Act) -> u32 {
    match act {
        Act::Silu => 0,
        Act::Gelu => 1,
        Act::GeluTanh => 2,
        Act::Relu => 3,
        Act::Relu2 => 4,
        Act::ClampedSwiglu { .. } => 5,
        Act::Xielu { .. } => 6,
        Act::Sigmoid => unreachable!("refused before it is numbered: this is a bug"),
    }
}

fn u(x: usize) -> Argument {
    U32(u32::try_from(x).expect("a step has fewer than 2^32 elements: this is a bug"))
}

fn no_format(format: Format) -> Error {
    Error::Unsupported {
        device: "cuda",
        what: format!("weights in {format} yet; leave out --quantize, or use --device cpu"),
    }
}
