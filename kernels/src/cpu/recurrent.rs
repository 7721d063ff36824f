//! Owns the operations that keep a state: short convolution, Mamba 2's scan, the gated delta rule. Formulas and shapes are
//! beside their specs.
//!
//! Tokens of a sequence are taken one after another, so that a result does not depend on how a sequence was cut; work is
//! cut by sequence and by head or channels. Lanes are channels, values of a head's `dim` or `v_dim`: a sum over `n` or
//! `k_dim` is four chains within a lane, in one fixed order. A block of sixteen columns of a head's state stays in the L1
//! cache while all tokens of the step pass. Tolerance against the reference: 1e-5 of the largest result.

use std::ops::Range;

use super::lanes::{self, Kernel, LANES, Lanes, Vectors};
use super::math;
use super::pool::Pool;
use super::rows::Apart;
use super::state::Cells;
use crate::{Act, Batch};

/// Multiply-adds below which a fork costs more than it saves.
const FORK_WORK: usize = 100_000;
/// Channels of a piece of a convolution.
const CHANNELS: usize = 256;
/// Independent sums over `n` or `k_dim`.
const CHAINS: usize = 4;

/// Where recurrent operations run, and on which states.
#[derive(Clone, Copy)]
pub(crate) struct Recurrent<'a> {
    pub(crate) vectors: Vectors,
    pub(crate) pool: &'a Pool,
    pub(crate) batch: &'a Batch,
    pub(crate) cells: Cells,
}

/// A short convolution. Weights as in [`crate::ConvSpec`].
#[derive(Clone, Copy)]
pub(crate) struct Conv<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) channels: usize,
    pub(crate) taps: usize,
    pub(crate) weight: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) act: Option<Act>,
}

/// Mamba 2's scan. Vectors as in [`crate::ScanSpec`].
#[derive(Clone, Copy)]
pub(crate) struct Scan<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) dt: &'a [f32],
    pub(crate) b: &'a [f32],
    pub(crate) c: &'a [f32],
    pub(crate) heads: usize,
    pub(crate) dim: usize,
    pub(crate) groups: usize,
    pub(crate) n: usize,
    pub(crate) a: &'a [f32],
    pub(crate) d: &'a [f32],
    pub(crate) dt_bias: &'a [f32],
    pub(crate) dt_limit: (f32, f32),
}

/// The gated delta rule. Vectors as in [`crate::DeltaSpec`].
#[derive(Clone, Copy)]
pub(crate) struct Delta<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    pub(crate) dt: &'a [f32],
    pub(crate) beta: &'a [f32],
    pub(crate) heads: usize,
    pub(crate) v_dim: usize,
    pub(crate) k_heads: usize,
    pub(crate) k_dim: usize,
    pub(crate) a: &'a [f32],
    pub(crate) dt_bias: &'a [f32],
}

impl Recurrent<'_> {
    /// # Safety
    /// `out` has room for what `x` holds; the batch is verified against the states, which have this layer's shape and
    /// which nobody else uses.
    pub(crate) unsafe fn conv(&self, conv: &Conv<'_>, out: Apart<f32>) {
        let pieces = conv.channels.div_ceil(CHANNELS);
        // SAFETY: the caller's; pieces have channels of their own.
        unsafe {
            self.each(pieces, CHANNELS * conv.taps, conv.channels, out, &|run, piece| {
                let channels = piece * CHANNELS..conv.channels.min((piece + 1) * CHANNELS);
                lanes::run(self.vectors, ConvRun { conv, run, channels, out });
            });
        }
    }

    /// # Safety
    /// As for [`Self::conv`].
    pub(crate) unsafe fn scan(&self, scan: &Scan<'_>, out: Apart<f32>) {
        // SAFETY: the caller's; heads are apart.
        unsafe {
            self.each(scan.heads, 2 * scan.n * scan.dim, scan.heads * scan.dim, out, &|run, head| {
                lanes::run(self.vectors, ScanRun { scan, run, head, out });
            });
        }
    }

    /// # Safety
    /// As for [`Self::conv`], with `v` for `x`.
    pub(crate) unsafe fn delta(&self, delta: &Delta<'_>, out: Apart<f32>) {
        // SAFETY: the caller's; heads are apart.
        unsafe {
            self.each(delta.heads, 4 * delta.k_dim * delta.v_dim, delta.heads * delta.v_dim, out, &|run, head| {
                lanes::run(self.vectors, DeltaRun { delta, run, head, out });
            });
        }
    }

    /// Runs `job` for each sequence and piece of `pieces`; `work` is that of a token and piece. Tokens of no sequence get
    /// rows of zeros, `row` wide.
    ///
    /// # Safety
    /// `out` has room for a row a token.
    unsafe fn each(
        &self,
        pieces: usize,
        work: usize,
        row: usize,
        out: Apart<f32>,
        job: &(dyn Fn(SequenceRun, usize) + Sync),
    ) {
        let batch = self.batch;
        let runs: Vec<SequenceRun> = (0..batch.shape.seqs)
            .filter(|seq| !batch.query(*seq).is_empty())
            .map(|seq| SequenceRun {
                tokens: batch.query(seq),
                begins: batch.begins(seq),
                state: Apart(self.cells.slot(batch.states[seq] as usize)),
            })
            .collect();
        let end = batch.query_start[batch.shape.seqs] as usize;
        // SAFETY: the caller's.
        unsafe { out.get().add(end * row).write_bytes(0, (batch.shape.tokens - end) * row) };
        let all = |range: Range<usize>| {
            for i in range {
                job(runs[i / pieces].clone(), i % pieces);
            }
        };
        match end * pieces * work < FORK_WORK {
            true => all(0..runs.len() * pieces),
            false => self.pool.split(runs.len() * pieces, 4, &all),
        }
    }
}

/// The tokens of one sequence in this step, and its state.
#[derive(Clone)]
struct SequenceRun {
    tokens: Range<usize>,
    begins: bool,
    state: Apart<f32>,
}

struct ConvRun<'a> {
    conv: &'a Conv<'a>,
    run: SequenceRun,
    channels: Range<usize>,
    out: Apart<f32>,
}

impl Kernel for ConvRun<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { conv, run, channels, out } = self;
        let (n, kept) = (conv.channels, conv.taps - 1);
        let padded = n.next_multiple_of(LANES);
        for first in channels.step_by(LANES) {
            let width = LANES.min(n - first);
            // SAFETY: vectors of the state lie inside its rows, which are padded; nobody else has these channels.
            unsafe {
                let state = run.state.get().add(first);
                if run.begins {
                    for row in 0..kept {
                        L::splat(0.0).store(state.add(row * padded));
                    }
                }
                // The input `back` tokens before token `t`.
                macro_rules! input {
                    ($t:expr, $back:expr) => {{
                        let (t, back): (usize, usize) = ($t, $back);
                        match t >= run.tokens.start + back {
                            true => L::load_part(&conv.x[(t - back) * n + first..][..width]),
                            false => L::load(state.add((kept + t - run.tokens.start - back) * padded)),
                        }
                    }};
                }
                for t in run.tokens.clone() {
                    let mut y = match conv.bias {
                        Some(bias) => L::load_part(&bias[first..first + width]),
                        None => L::splat(0.0),
                    };
                    for tap in 0..conv.taps {
                        let weight = L::load_part(&conv.weight[tap * n + first..][..width]);
                        y = weight.fma(input!(t, kept - tap), y);
                    }
                    if let Some(act) = conv.act {
                        y = math::act(act, y, None);
                    }
                    y.store_part(std::slice::from_raw_parts_mut(out.get().add(t * n + first), width));
                }
                // Ascending: a row is read before it is written.
                for row in 0..kept {
                    input!(run.tokens.end - 1, kept - 1 - row).store(state.add(row * padded));
                }
            }
        }
    }
}

struct ScanRun<'a> {
    scan: &'a Scan<'a>,
    run: SequenceRun,
    head: usize,
    out: Apart<f32>,
}

impl Kernel for ScanRun<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { scan, run, head, out } = self;
        let &Scan { heads, dim, groups, n, .. } = scan;
        let group = head / (heads / groups);
        let (least, most) = scan.dt_limit;
        let mut steps = vec![(0.0, 0.0); run.tokens.len()];
        for (t, step) in run.tokens.clone().zip(&mut steps) {
            let size = softplus(scan.dt[t * heads + head] + scan.dt_bias[head]).max(least).min(most);
            *step = (size, (size * scan.a[head]).exp());
        }
        let padded = dim.next_multiple_of(LANES);
        for first in (0..dim).step_by(LANES) {
            let width = LANES.min(dim - first);
            // SAFETY: vectors of the state lie inside its rows, which are padded; nobody else has this head.
            unsafe {
                let state = run.state.get().add(head * n * padded + first * n);
                if run.begins {
                    zero::<L>(state, n);
                }
                for (t, (size, fade)) in run.tokens.clone().zip(&steps) {
                    let at = (t * heads + head) * dim + first;
                    let x = L::load_part(&scan.x[at..at + width]);
                    let (scaled, fade) = (x.mul(L::splat(*size)), L::splat(*fade));
                    let b = &scan.b[(t * groups + group) * n..][..n];
                    let c = &scan.c[(t * groups + group) * n..][..n];
                    let mut sums = [L::splat(0.0); CHAINS];
                    for i in 0..n {
                        let s = L::load(state.add(i * LANES)).mul(fade);
                        let s = scaled.fma(L::splat(b[i]), s);
                        s.store(state.add(i * LANES));
                        sums[i % CHAINS] = s.fma(L::splat(c[i]), sums[i % CHAINS]);
                    }
                    let y = x.fma(L::splat(scan.d[head]), total(sums));
                    y.store_part(std::slice::from_raw_parts_mut(out.get().add(at), width));
                }
            }
        }
    }
}

struct DeltaRun<'a> {
    delta: &'a Delta<'a>,
    run: SequenceRun,
    head: usize,
    out: Apart<f32>,
}

impl Kernel for DeltaRun<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { delta, run, head, out } = self;
        let &Delta { heads, v_dim, k_heads, k_dim, .. } = delta;
        let k_head = head / (heads / k_heads);
        let mut gates = vec![(0.0, 0.0); run.tokens.len()];
        for (t, gate) in run.tokens.clone().zip(&mut gates) {
            let at = t * heads + head;
            let fade = (delta.a[head] * softplus(delta.dt[at] + delta.dt_bias[head])).exp();
            *gate = (fade, 1.0 / (1.0 + (-delta.beta[at]).exp()));
        }
        let padded = v_dim.next_multiple_of(LANES);
        for first in (0..v_dim).step_by(LANES) {
            let width = LANES.min(v_dim - first);
            // SAFETY: vectors of the state lie inside its rows, which are padded; nobody else has this head.
            unsafe {
                let state = run.state.get().add(head * k_dim * padded + first * k_dim);
                if run.begins {
                    zero::<L>(state, k_dim);
                }
                for (t, (fade, beta)) in run.tokens.clone().zip(&gates) {
                    let at = (t * heads + head) * v_dim + first;
                    let q = &delta.q[(t * k_heads + k_head) * k_dim..][..k_dim];
                    let k = &delta.k[(t * k_heads + k_head) * k_dim..][..k_dim];
                    let fade = L::splat(*fade);
                    let mut sums = [L::splat(0.0); CHAINS];
                    for i in 0..k_dim {
                        let s = L::load(state.add(i * LANES)).mul(fade);
                        s.store(state.add(i * LANES));
                        sums[i % CHAINS] = s.fma(L::splat(k[i]), sums[i % CHAINS]);
                    }
                    let v = L::load_part(&delta.v[at..at + width]);
                    let change = v.sub(total(sums)).mul(L::splat(*beta));
                    let mut sums = [L::splat(0.0); CHAINS];
                    for i in 0..k_dim {
                        let s = change.fma(L::splat(k[i]), L::load(state.add(i * LANES)));
                        s.store(state.add(i * LANES));
                        sums[i % CHAINS] = s.fma(L::splat(q[i]), sums[i % CHAINS]);
                    }
                    total(sums).store_part(std::slice::from_raw_parts_mut(out.get().add(at), width));
                }
            }
        }
    }
}

/// # Safety
/// `rows` vectors at `state`.
#[inline(always)]
unsafe fn zero<L: Lanes>(state: *mut f32, rows: usize) {
    for row in 0..rows {
        // SAFETY: the caller's.
        unsafe { L::splat(0.0).store(state.add(row * LANES)) };
    }
}

#[inline(always)]
fn total<L: Lanes>(sums: [L; CHAINS]) -> L {
    sums[0].add(sums[1]).add(sums[2].add(sums[3]))
}

/// `ln(1 + exp(x))`
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
