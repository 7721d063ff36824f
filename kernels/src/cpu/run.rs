//! Owns the interpreter: runs a schedule's steps, one after another, over one arena. Decides nothing; every choice was made
//! when the program was compiled.

use super::attention::{self, Attention};
use super::buffer::Buffer;
use super::experts;
use super::heads;
use super::kv::KvCache;
use super::lanes::Vectors;
use super::matrix::Matrix;
use super::pool::Pool;
use super::product::{self, Product};
use super::recurrent::{Conv, Delta, Recurrent, Scan};
use super::rows::{Apart, Rows};
use super::rowwise::{Norm, Rotation, Rowwise};
use super::schedule::{AttentionStep, NormStep, Part, Schedule, Span, Step};
use super::state::States;
use super::tail;
use crate::{Batch, Candidate, Error, ExpertsSpec, Result, Weight, WeightId};

/// A weight as the kernels want it.
pub(crate) enum Stored {
    Vector(Vec<f32>),
    Matrix(Matrix),
    Experts(Vec<Matrix>),
}

/// All weights of the device.
#[derive(Default)]
pub(crate) struct Weights(pub(crate) Vec<Stored>);

impl Weights {
    fn get(&self, id: WeightId) -> &Stored {
        self.0.get(id.0 as usize).expect("weights are uploaded before they are used: this is a bug")
    }

    pub(crate) fn vector(&self, w: Weight) -> &[f32] {
        match self.get(w.id) {
            Stored::Vector(v) => v,
            _ => panic!("{} is not a vector: this is a bug", w.shape),
        }
    }

    pub(crate) fn matrix(&self, w: Weight) -> &Matrix {
        match self.get(w.id) {
            Stored::Matrix(m) => m,
            _ => panic!("{} is not a matrix: this is a bug", w.shape),
        }
    }

    fn experts(&self, w: Weight) -> &[Matrix] {
        match self.get(w.id) {
            Stored::Experts(e) => e,
            _ => panic!("{} is not one matrix an expert: this is a bug", w.shape),
        }
    }
}

/// Memory that steps need while they run; kept from step to step.
pub(crate) struct Scratch {
    rows: Rows,
    attention: attention::Scratch,
    plans: Vec<attention::Plan>,
    rotations: Vec<Rotation>,
    experts: experts::Scratch,
    heads: heads::Scratch,
}

impl Scratch {
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            rows: Rows::new(),
            attention: attention::Scratch::new(threads),
            plans: vec![],
            rotations: vec![],
            experts: experts::Scratch::default(),
            heads: heads::Scratch::default(),
        }
    }
}

/// The values of a step, in one block of memory.
///
/// Slices of different values may be held together: the plan keeps values that are alive at one step apart.
#[derive(Clone, Copy)]
pub(crate) struct Values(*mut u8);

impl Values {
    /// The arena must hold what the schedule asks for while the values are used.
    pub(crate) fn new(arena: &mut Buffer) -> Self {
        Self(arena.as_mut_ptr())
    }

    fn to<T>(self, span: Span) -> Apart<T> {
        Apart(self.0.wrapping_add(span.offset).cast())
    }

    /// # Safety
    /// The span is one of the schedule's, of this type, and nobody writes it while the slice is held.
    pub(crate) unsafe fn read<'a, T>(self, span: Span) -> &'a [T] {
        // SAFETY: the caller's; offsets are aligned to 64 bytes and memory is never uninitialised.
        unsafe { std::slice::from_raw_parts(self.to::<T>(span).get(), span.len) }
    }

    /// # Safety
    /// As for [`Self::read`], and nobody reads it while the slice is held.
    unsafe fn write<'a, T>(self, span: Span) -> &'a mut [T] {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.to::<T>(span).get(), span.len) }
    }
}

/// What a step runs with.
pub(crate) struct Runner<'a> {
    pub(crate) vectors: Vectors,
    pub(crate) pool: &'a Pool,
    pub(crate) weights: &'a Weights,
    pub(crate) cache: Option<&'a mut KvCache>,
    pub(crate) states: Option<&'a mut States>,
    pub(crate) scratch: &'a mut Scratch,
    pub(crate) batch: &'a Batch,
    pub(crate) values: Values,
}

impl Runner<'_> {
    /// Runs all steps. The batch has been verified.
    ///
    /// # Errors
    /// [`Error::Launch`] for a token or an expert that does not exist.
    pub(crate) fn run(&mut self, schedule: &Schedule) -> Result<()> {
        let (plans, rotations) = (&mut self.scratch.plans, &mut self.scratch.rotations);
        plans.resize_with(plans.len().max(schedule.forms.len()), Default::default);
        for (form, plan) in schedule.forms.iter().zip(plans) {
            plan.make(form, self.batch, self.pool.threads());
        }
        rotations.resize_with(rotations.len().max(schedule.rotations.len()), Default::default);
        for (spec, rotation) in schedule.rotations.iter().zip(rotations) {
            let freqs = self.weights.vector(spec.freqs);
            let long = spec.long.map_or(freqs, |long| self.weights.vector(long));
            rotation.make(freqs, long, spec, self.batch, self.pool);
        }
        for step in &schedule.steps {
            // SAFETY: spans are the schedule's, made for an arena of its size; inputs and results of a step lie apart.
            unsafe { self.step(step, schedule)? };
        }
        Ok(())
    }

    /// # Safety
    /// `step` is one of `schedule`, and the arena is as large as it asks for.
    unsafe fn step(&mut self, step: &Step, schedule: &Schedule) -> Result<()> {
        let (values, rowwise) = (self.values, Rowwise { vectors: self.vectors, pool: self.pool });
        // SAFETY: the caller's.
        unsafe {
            match step {
                Step::Tokens { out } => values.write(*out).copy_from_slice(&self.batch.tokens),
                Step::Positions { out } => values.write(*out).copy_from_slice(&self.batch.positions),
                Step::Embed { ids, table, out } => {
                    let (ids, table) = (values.read(*ids), self.weights.matrix(*table));
                    embed(rowwise, ids, table, values.to(*out))?;
                }
                Step::Linears { x, m, parts } => self.linears(values.read(*x), *m, parts),
                Step::Norm(norm) => self.norm(norm),
                Step::Rope { x, heads, dim, rotation, out } => {
                    let rotation = &self.scratch.rotations[*rotation];
                    rowwise.rope(rotation, values.read(*x), *heads, *dim, values.to(*out));
                }
                Step::Attention(attention) => self.attention(attention, schedule),
                Step::Conv { .. } | Step::Scan { .. } | Step::Delta { .. } => self.recurrent(step),
                Step::Map { f, a, b, n, out } => {
                    let b = b.map_or(&[][..], |b| values.read(b));
                    rowwise.map(*f, values.read(*a), b, *n, values.to(*out));
                }
                Step::Router { logits, experts, spec, out } => {
                    let vectors = [spec.bias, spec.gains].map(|w| w.map(|w| self.weights.vector(w)));
                    super::router::route(rowwise, spec, vectors, values.read(*logits), *experts, values.to(*out));
                }
                Step::Experts { x, route, tokens, spec, out } => self.experts(*x, *route, *tokens, spec, *out)?,
                Step::SelectRows { x, n, out } => {
                    let (x, out) = (values.read::<f32>(*x), values.write::<f32>(*out));
                    for (row, out) in self.batch.rows.iter().zip(out.chunks_exact_mut(*n)) {
                        out.copy_from_slice(&x[*row as usize * n..][..*n]);
                    }
                }
                Step::Heads { x, tokens, w, out } => {
                    let (x, matrices) = (values.read(*x), self.weights.experts(*w));
                    heads::run(rowwise, matrices, x, *tokens, &mut self.scratch.heads, values.to(*out));
                }
                Step::Concat { a, n, b, m, out } => {
                    let (a, b, to) = (values.read::<f32>(*a), values.read::<f32>(*b), values.to::<f32>(*out));
                    rowwise.spread(a.len() / n, n + m, &|range| {
                        for row in range {
                            let to = to.get().add(row * (n + m));
                            to.copy_from_nonoverlapping(a[row * n..][..*n].as_ptr(), *n);
                            to.add(*n).copy_from_nonoverlapping(b[row * m..][..*m].as_ptr(), *m);
                        }
                    });
                }
                Step::Narrow { x, n, start, len, out } => {
                    let (x, to) = (values.read::<f32>(*x), values.to::<f32>(*out));
                    rowwise.spread(x.len() / n, *len, &|range| {
                        for row in range {
                            let from = &x[row * n + start..][..*len];
                            to.get().add(row * len).copy_from_nonoverlapping(from.as_ptr(), *len);
                        }
                    });
                }
                Step::Copy { x, out } => values.write::<f32>(*out).copy_from_slice(values.read(*x)),
                Step::Mask { x, n, out } => {
                    tail::mask(rowwise, values.read(*x), &self.batch.masks, *n, values.to(*out));
                }
                Step::Argmax { x, n, out } => {
                    values.write(*out).copy_from_slice(&tail::argmax(rowwise, values.read(*x), *n));
                }
                Step::TopK { x, n, k, out } => {
                    let top = tail::top_k(rowwise, values.read(*x), *n, *k);
                    values.write::<Candidate>(*out).copy_from_slice(&top);
                }
                Step::LogSumExp { x, n, out } => {
                    values.write(*out).copy_from_slice(&tail::log_sum_exp(rowwise, values.read(*x), *n));
                }
            }
        }
        Ok(())
    }

    /// # Safety
    /// As for [`Self::step`].
    unsafe fn linears(&mut self, x: &[f32], m: usize, parts: &[Part]) {
        let rows = &mut self.scratch.rows;
        let mut parts = parts;
        // Matrices of one layout share the packed rows; other formats of the same input come after.
        while let Some(first) = parts.first() {
            let matrix = self.weights.matrix(first.w);
            let same = parts.iter().take_while(|p| self.weights.matrix(p.w).shares_rows(matrix)).count();
            let (now, later) = parts.split_at(same);
            matrix.pack_rows(self.pool, x, m, rows);
            let products: Vec<Product<'_>> = now
                .iter()
                .map(|p| Product {
                    matrix: self.weights.matrix(p.w),
                    rows,
                    bias: p.bias.map(|b| self.weights.vector(b)),
                    out: self.values.to(p.out),
                })
                .collect();
            // SAFETY: the results lie apart.
            unsafe { product::multiply(self.vectors, self.pool, &products) };
            parts = later;
        }
    }

    /// # Safety
    /// As for [`Self::step`].
    unsafe fn norm(&self, step: &NormStep) {
        let vector = |w: Option<Weight>| w.map(|w| self.weights.vector(w));
        let NormStep { centred, offset, eps, .. } = *step;
        let norm = Norm { centred, gain: vector(step.gain), offset, bias: vector(step.bias), eps };
        let rowwise = Rowwise { vectors: self.vectors, pool: self.pool };
        // SAFETY: the caller's.
        unsafe {
            let plus = step.plus.map(|(b, sum)| (self.values.read(b), self.values.to(sum)));
            rowwise.norm(norm, self.values.read(step.x), plus, step.n, self.values.to(step.out));
        }
    }

    /// # Safety
    /// As for [`Self::step`].
    unsafe fn attention(&mut self, step: &AttentionStep, schedule: &Schedule) {
        let cache = self.cache.as_mut().expect("compiled after the cache was reserved: this is a bug");
        let values = self.values;
        // SAFETY: the caller's; the batch was verified against this cache.
        unsafe {
            let attention = Attention {
                form: schedule.forms[step.form],
                batch: self.batch,
                dtype: cache.dtype,
                cells: cache.layer(step.layer),
                q: values.read(step.q),
                k: values.read(step.k),
                v: values.read(step.v),
                sinks: step.sinks.map(|s| self.weights.vector(s)),
                out: values.to(step.out),
            };
            let plan = &self.scratch.plans[step.form];
            attention.run(self.vectors, self.pool, plan, &mut self.scratch.attention);
        }
    }

    /// # Safety
    /// As for [`Self::step`].
    unsafe fn recurrent(&mut self, step: &Step) {
        let states = self.states.as_mut().expect("compiled after the states were reserved: this is a bug");
        let (weights, values) = (self.weights, self.values);
        let mut on =
            |state| Recurrent { vectors: self.vectors, pool: self.pool, batch: self.batch, cells: states.layer(state) };
        // SAFETY: the caller's; the batch was verified against these states.
        unsafe {
            match step {
                Step::Conv { x, channels, spec, out } => {
                    let (weight, bias) = (weights.vector(spec.weight), spec.bias.map(|b| weights.vector(b)));
                    let (channels, taps, act) = (*channels, spec.taps, spec.act);
                    let conv = Conv { x: values.read(*x), channels, taps, weight, bias, act };
                    on(spec.state).conv(&conv, values.to(*out));
                }
                Step::Scan { inputs, shape, spec, out } => {
                    let [x, dt, b, c] = inputs.map(|span| values.read(span));
                    let [heads, dim, groups, n] = *shape;
                    let [a, d, dt_bias] = [spec.a, spec.d, spec.dt_bias].map(|w| weights.vector(w));
                    let dt_limit = spec.dt_limit;
                    let scan = Scan { x, dt, b, c, heads, dim, groups, n, a, d, dt_bias, dt_limit };
                    on(spec.state).scan(&scan, values.to(*out));
                }
                Step::Delta { inputs, shape, spec, out } => {
                    let [q, k, v, dt, beta] = inputs.map(|span| values.read(span));
                    let [heads, v_dim, k_heads, k_dim] = *shape;
                    let [a, dt_bias] = [spec.a, spec.dt_bias].map(|w| weights.vector(w));
                    let delta = Delta { q, k, v, dt, beta, heads, v_dim, k_heads, k_dim, a, dt_bias };
                    on(spec.state).delta(&delta, values.to(*out));
                }
                _ => unreachable!("only recurrent steps come here: this is a bug"),
            }
        }
    }

    /// # Safety
    /// As for [`Self::step`].
    unsafe fn experts(&mut self, x: Span, route: Span, tokens: usize, spec: &ExpertsSpec, out: Span) -> Result<()> {
        let vector = |w: Option<Weight>| w.map(|w| self.weights.vector(w));
        let weights = experts::Weights {
            gate_up: self.weights.experts(spec.gate_up),
            gate_up_bias: vector(spec.gate_up_bias),
            down: self.weights.experts(spec.down),
            down_bias: vector(spec.down_bias),
            act: spec.act,
            interleaved: spec.interleaved,
            weigh_input: spec.weigh_input,
        };
        let rowwise = Rowwise { vectors: self.vectors, pool: self.pool };
        // SAFETY: the caller's.
        unsafe {
            let (x, route) = (self.values.read(x), self.values.read(route));
            experts::run(rowwise, &weights, x, route, tokens, &mut self.scratch.experts, self.values.to(out))
        }
    }
}

/// # Safety
/// `out` has room for a row of the table for each id, and nobody else uses it.
unsafe fn embed(rowwise: Rowwise<'_>, ids: &[u32], table: &Matrix, out: Apart<f32>) -> Result<()> {
    if let Some(id) = ids.iter().find(|id| **id as usize >= table.out()) {
        let reason = format!("token {id} is not in the vocabulary of {}", table.out());
        return Err(Error::Launch { device: "cpu", reason });
    }
    let n = table.inner();
    rowwise.spread(ids.len(), n * 4, &|range| {
        for i in range {
            // SAFETY: each id has a row of its own.
            let out = unsafe { std::slice::from_raw_parts_mut(out.get().add(i * n), n) };
            table.read_row(ids[i] as usize, out);
        }
    });
    Ok(())
}
