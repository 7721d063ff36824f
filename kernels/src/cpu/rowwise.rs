//! Owns the kernels that treat each row by itself: norms, activations, sums and products, rope. Knows no program.
//!
//! All are bound by memory or by a few vectors of arithmetic. A row's result depends on that row alone, and a row is
//! summed in one fixed order: four chains of sixteen lanes, then halves onto halves.
//! Tolerance against f64: 1e-6 of the row's largest value.

use std::ops::Range;

use half::{bf16, f16};

use super::lanes::{self, Kernel, LANES, Lanes, Vectors};
use super::math;
use super::pool::Pool;
use super::rows::Apart;
use crate::{Act, Batch, DType, RopeSpec};

/// Values below which a fork costs more than it saves.
const FORK_VALUES: usize = 16_384;

/// Where row kernels run.
#[derive(Clone, Copy)]
pub(crate) struct Rowwise<'a> {
    pub(crate) vectors: Vectors,
    pub(crate) pool: &'a Pool,
}

impl Rowwise<'_> {
    /// Runs `job` over all rows, in parallel when they hold enough values.
    pub(crate) fn spread(&self, rows: usize, values: usize, job: &(dyn Fn(Range<usize>) + Sync)) {
        match rows * values < FORK_VALUES {
            true => job(0..rows),
            false => self.pool.split(rows, 4, job),
        }
    }

    /// `out = f(a, b)`; `b` as long as `a`, or one row of `n` for all, or not read (empty).
    ///
    /// # Safety
    /// `out` has room for what `a` holds, and nobody else uses it.
    pub(crate) unsafe fn map(&self, f: Map, a: &[f32], b: &[f32], n: usize, out: Apart<f32>) {
        let rows = a.len() / n;
        let shared = b.len() == n && rows > 1;
        self.spread(rows, n, &|range| {
            // SAFETY: pieces are rows of their own.
            let out = unsafe { piece(out, &range, n) };
            let a = &a[range.start * n..range.end * n];
            match (b.is_empty(), shared) {
                (true, _) => lanes::run(self.vectors, Pairwise { f, a, b, out }),
                (_, true) => {
                    for (a, out) in a.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
                        lanes::run(self.vectors, Pairwise { f, a, b, out });
                    }
                }
                _ => lanes::run(self.vectors, Pairwise { f, a, b: &b[range.start * n..range.end * n], out }),
            }
        });
    }

    /// `out = f(a, b)` on the calling thread.
    ///
    /// # Safety
    /// As for [`Self::map`].
    pub(crate) unsafe fn map_here(&self, f: Map, a: &[f32], b: &[f32], out: Apart<f32>) {
        // SAFETY: the caller's.
        let out = unsafe { piece(out, &(0..a.len()), 1) };
        lanes::run(self.vectors, Pairwise { f, a, b, out });
    }

    /// Normalises each row of `n`; with `plus`, of `x + plus`, which goes to `sum`.
    ///
    /// # Safety
    /// `out`, and `sum` when there is `plus`, have room for what `x` holds, and nobody else uses them.
    pub(crate) unsafe fn norm(
        &self,
        norm: Norm<'_>,
        x: &[f32],
        plus: Option<(&[f32], Apart<f32>)>,
        n: usize,
        out: Apart<f32>,
    ) {
        self.spread(x.len() / n, n, &|range| {
            let here = range.start * n..range.end * n;
            // SAFETY: pieces are rows of their own.
            let out = unsafe { piece(out, &range, n) };
            let x = match plus {
                None => &x[here],
                Some((plus, sum)) => {
                    // SAFETY: as above.
                    let sum = unsafe { piece(sum, &range, n) };
                    lanes::run(self.vectors, Pairwise { f: Map::Add, a: &x[here.clone()], b: &plus[here], out: sum });
                    sum
                }
            };
            lanes::run(self.vectors, NormRows { norm, x, n, first: range.start, out });
        });
    }

    /// Rotates `x [tokens, heads, dim]` by the tables of [`Rotation`], `width` values a token each.
    ///
    /// # Safety
    /// `out` has room for what `x` holds, and nobody else uses it.
    pub(crate) unsafe fn rope(&self, rotation: &Rotation, x: &[f32], heads: usize, dim: usize, out: Apart<f32>) {
        let row = heads * dim;
        self.spread(x.len() / row, row, &|range| {
            // SAFETY: pieces are rows of their own.
            let out = unsafe { piece(out, &range, row) };
            let x = &x[range.start * row..range.end * row];
            lanes::run(self.vectors, RopeRows { rotation, x, first: range.start, heads, dim, out });
        });
    }
}

/// Rows `range` of `out`.
unsafe fn piece<'a>(out: Apart<f32>, range: &Range<usize>, n: usize) -> &'a mut [f32] {
    // SAFETY: the caller's.
    unsafe { std::slice::from_raw_parts_mut(out.get().add(range.start * n), range.len() * n) }
}

/// What [`Rowwise::map`] does to each value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Map {
    Add,
    Mul,
    Scale(f32),
    Softcap(f32),
    Act(Act),
    /// Through this element type and back.
    Round(DType),
}

/// `out[i] = f(a[i], b[i])` by vectors. Not a function of a closure: see [`Kernel`].
macro_rules! each {
    ($a:expr, $b:expr, $out:expr, |$x:ident, $y:ident| $f:expr) => {{
        let (a, b, out): (&[f32], &[f32], &mut [f32]) = ($a, $b, $out);
        assert!(a.len() == out.len() && b.len() == out.len(), "operands are as long as the result: this is a bug");
        let whole = out.len() / LANES * LANES;
        for i in (0..whole).step_by(LANES) {
            // SAFETY: sixteen values from `i` on are inside all three.
            unsafe {
                let ($x, $y) = (L::load(a.as_ptr().add(i)), L::load(b.as_ptr().add(i)));
                $f.store(out.as_mut_ptr().add(i));
            }
        }
        if whole < out.len() {
            let ($x, $y) = (L::load_part(&a[whole..]), L::load_part(&b[whole..]));
            $f.store_part(&mut out[whole..]);
        }
    }};
}

struct Pairwise<'a> {
    f: Map,
    a: &'a [f32],
    b: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Pairwise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { f, a, b, out } = self;
        let alone = b.is_empty();
        // What is not read may be anything of the right length.
        let b = if alone { a } else { b };
        match f {
            Map::Add => each!(a, b, out, |x, y| x.add(y)),
            Map::Mul => each!(a, b, out, |x, y| x.mul(y)),
            Map::Scale(by) => each!(a, b, out, |x, _y| x.mul(L::splat(by))),
            Map::Softcap(cap) => each!(a, b, out, |x, _y| math::tanh(x.div(L::splat(cap))).mul(L::splat(cap))),
            Map::Act(act) if alone => each!(a, b, out, |x, _y| math::act(act, x, None)),
            Map::Act(Act::Silu) => each!(a, b, out, |x, y| math::act(Act::Silu, x, Some(y))),
            Map::Act(act) => each!(a, b, out, |x, y| math::act(act, x, Some(y))),
            Map::Round(to) => {
                let round = |x: f32| match to {
                    DType::F16 => f16::from_f32(x).to_f32(),
                    DType::Bf16 => bf16::from_f32(x).to_f32(),
                    _ => x,
                };
                out.iter_mut().zip(a).for_each(|(out, x)| *out = round(*x));
            }
        }
    }
}

/// A norm over the last dimension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm<'a> {
    /// Subtract the mean, and divide by the deviation from it.
    pub(crate) centred: bool,
    /// As long as a row, or as a number of rows that take turns.
    pub(crate) gain: Option<&'a [f32]>,
    /// Added to the gain.
    pub(crate) offset: f32,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) eps: f32,
}

struct NormRows<'a> {
    norm: Norm<'a>,
    x: &'a [f32],
    n: usize,
    /// Number of the first row.
    first: usize,
    out: &'a mut [f32],
}

impl Kernel for NormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { norm, x, n, first, out } = self;
        let groups = norm.gain.map_or(1, |gain| gain.len() / n);
        for (row, (x, out)) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)).enumerate() {
            let group = (first + row) % groups * n;
            let count = n as f32;
            let mean = if norm.centred { total::<L, false>(x, 0.0) / count } else { 0.0 };
            let m = L::splat(mean);
            let squares = total::<L, true>(x, mean);
            let factor = L::splat(1.0 / (squares / count + norm.eps).sqrt());
            for (i, (x, out)) in x.chunks(LANES).zip(out.chunks_mut(LANES)).enumerate() {
                let at = i * LANES;
                let mut y = L::load_part(x).sub(m).mul(factor);
                if let Some(gain) = norm.gain {
                    y = y.mul(L::load_part(&gain[group + at..]).add(L::splat(norm.offset)));
                }
                if let Some(bias) = norm.bias {
                    y = y.add(L::load_part(&bias[at..]));
                }
                y.store_part(out);
            }
        }
    }
}

/// Sum of `x - mean` over a row, or of its square.
#[inline(always)]
fn total<L: Lanes, const SQUARED: bool>(x: &[f32], mean: f32) -> f32 {
    const CHAINS: usize = 4;
    let m = L::splat(mean);
    let mut sums = [L::splat(0.0); CHAINS];
    let whole = x.len() / (CHAINS * LANES) * CHAINS * LANES;
    for i in (0..whole).step_by(CHAINS * LANES) {
        for (c, sum) in sums.iter_mut().enumerate() {
            // SAFETY: inside the whole groups.
            let d = unsafe { L::load(x.as_ptr().add(i + c * LANES)) }.sub(m);
            *sum = if SQUARED { d.fma(d, *sum) } else { sum.add(d) };
        }
    }
    for (x, sum) in x[whole..].chunks(LANES).zip(&mut sums) {
        // Lanes beyond the row hold the mean, so that they add nothing.
        let mut last = [mean; LANES];
        last[..x.len()].copy_from_slice(x);
        // SAFETY: a whole vector.
        let d = unsafe { L::load(last.as_ptr()) }.sub(m);
        *sum = if SQUARED { d.fma(d, *sum) } else { sum.add(d) };
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
}

/// Cosines and sines of one step, a row a token: made once, used by every layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rotation {
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Values of a row.
    width: usize,
    interleaved: bool,
}

impl Rotation {
    /// Angles are `position * freq` rounded to f32, as the models' own code has them; their functions are taken in f64.
    ///
    /// With `interleaved` each entry stands twice, the sine negative first: `x * cos + swapped(x) * sin`.
    pub(crate) fn make(&mut self, freqs: &[f32], long: &[f32], spec: &RopeSpec, batch: &Batch, pool: &Pool) {
        let (magnitude, interleaved, positions) = (spec.magnitude, spec.interleaved, &batch.positions);
        let repeat = 1 + usize::from(interleaved);
        (self.width, self.interleaved) = (freqs.len() * repeat, interleaved);
        let width = self.width;
        self.cos.resize(positions.len() * width, 0.0);
        self.sin.resize(positions.len() * width, 0.0);
        let (cos, sin) = (Apart(self.cos.as_mut_ptr()), Apart(self.sin.as_mut_ptr()));
        let job = |range: Range<usize>| {
            // SAFETY: pieces are rows of their own.
            let (cos, sin) = unsafe { (piece(cos, &range, width), piece(sin, &range, width)) };
            for (row, token) in range.enumerate() {
                let position = positions[token];
                let freqs = if batch.is_long(token) { long } else { freqs };
                for (i, freq) in freqs.iter().enumerate() {
                    let (s, c) = f64::from(position as f32 * freq).sin_cos();
                    let (s, c) = ((s * f64::from(magnitude)) as f32, (c * f64::from(magnitude)) as f32);
                    let at = row * width + i * repeat;
                    cos[at..at + repeat].fill(c);
                    sin[at..at + repeat].fill(s);
                    if interleaved {
                        sin[at] = -s;
                    }
                }
            }
        };
        match positions.len() * width < 1024 {
            true => job(0..positions.len()),
            false => pool.split(positions.len(), 4, &job),
        }
    }
}

struct RopeRows<'a> {
    rotation: &'a Rotation,
    x: &'a [f32],
    /// Token of the first row.
    first: usize,
    heads: usize,
    dim: usize,
    out: &'a mut [f32],
}

impl Kernel for RopeRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { rotation, x, first, heads, dim, out } = self;
        let width = rotation.width;
        let rows = x.chunks_exact(heads * dim).zip(out.chunks_exact_mut(heads * dim)).enumerate();
        for (t, (x, out)) in rows {
            let at = (first + t) * width;
            let (cos, sin) = (&rotation.cos[at..at + width], &rotation.sin[at..at + width]);
            for (x, out) in x.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
                let rotated = if rotation.interleaved {
                    for i in (0..width).step_by(LANES) {
                        let x = L::load_part(&x[i..width]);
                        let turned = x.swap_pairs().mul(L::load_part(&sin[i..]));
                        x.mul(L::load_part(&cos[i..])).add(turned).store_part(&mut out[i..width]);
                    }
                    width
                } else {
                    for i in (0..width).step_by(LANES) {
                        let (a, b) = (L::load_part(&x[i..width]), L::load_part(&x[width + i..2 * width]));
                        let (c, s) = (L::load_part(&cos[i..]), L::load_part(&sin[i..]));
                        a.mul(c).sub(b.mul(s)).store_part(&mut out[i..width]);
                        b.mul(c).add(a.mul(s)).store_part(&mut out[width + i..2 * width]);
                    }
                    2 * width
                };
                out[rotated..].copy_from_slice(&x[rotated..]);
            }
        }
    }
}
