//! Owns the end of a step: masks, the largest logit, the best candidates, the logarithm of the sum of exponentials. Knows
//! no sampling.
//!
//! Sums cut a row into pieces of [`PIECE`] logits at fixed places, whatever the number of threads, and combine them in
//! order. Candidates are ordered by logit, then by id, which is a total order: NaN counts as the lowest of all.
//! Tolerance of `log_sum_exp`: 1e-6 relative (f32 terms, f64 sums of pieces).

use super::lanes::{self, Kernel, LANES, Lanes};
use super::math;
use super::rows::Apart;
use super::rowwise::Rowwise;
use crate::Candidate;

/// Logits of a piece.
const PIECE: usize = 4096;

/// `out = x`, -inf where the row's bit is not set. `masks [rows, ceil(n / 32)]`, or empty: no row has a mask.
///
/// # Safety
/// `out` has room for what `x` holds, and nobody else uses it.
pub(crate) unsafe fn mask(rowwise: Rowwise<'_>, x: &[f32], masks: &[u32], n: usize, out: Apart<f32>) {
    let words = n.div_ceil(32);
    rowwise.spread(x.len() / n, n, &|range| {
        for row in range {
            // SAFETY: pieces are rows of their own.
            let out = unsafe { std::slice::from_raw_parts_mut(out.get().add(row * n), n) };
            let x = &x[row * n..][..n];
            if masks.is_empty() {
                out.copy_from_slice(x);
                continue;
            }
            let bits = &masks[row * words..][..words];
            for ((x, out), bits) in x.chunks(32).zip(out.chunks_mut(32)).zip(bits) {
                for (i, (x, out)) in x.iter().zip(out).enumerate() {
                    *out = if bits >> i & 1 == 1 { *x } else { f32::NEG_INFINITY };
                }
            }
        }
    });
}

/// Index of the largest logit of each row, ties to the lowest.
pub(crate) fn argmax(rowwise: Rowwise<'_>, x: &[f32], n: usize) -> Vec<u32> {
    let pieces = n.div_ceil(PIECE);
    let found = each_piece(rowwise, x, n, PIECE, Candidate { id: 0, logit: f32::NAN }, |first, x| {
        let (place, logit) = lanes::run(rowwise.vectors, Largest(x));
        Candidate { id: (first + place) as u32, logit }
    });
    let best = |row: &[Candidate]| row.iter().copied().reduce(|a, b| if rank(b.logit) > rank(a.logit) { b } else { a });
    found.chunks_exact(pieces).map(|row| best(row).map_or(0, |c| c.id)).collect()
}

/// The `k` largest logits of each row, largest first, ties to the lowest id. `[rows, k]`
pub(crate) fn top_k(rowwise: Rowwise<'_>, x: &[f32], n: usize, k: usize) -> Vec<Candidate> {
    // The order is total, so pieces may be of any size; a long one inserts less.
    let threads = rowwise.pool.threads();
    let piece = if x.len() / n >= threads { n } else { n.div_ceil(threads).max(PIECE) };
    let pieces = n.div_ceil(piece);
    let found = each_piece(rowwise, x, n, piece, vec![], |first, x| lanes::run(rowwise.vectors, Best { x, first, k }));
    let mut out = Vec::with_capacity(x.len() / n * k);
    for row in found.chunks_exact(pieces) {
        let mut all: Vec<Candidate> = row.concat();
        // Sorted by logit, and stable: pieces follow each other by id.
        all.sort_by_key(|c| std::cmp::Reverse(rank(c.logit)));
        out.extend(&all[..k]);
    }
    out
}

/// `ln(sum(exp(x)))` of each row.
pub(crate) fn log_sum_exp(rowwise: Rowwise<'_>, x: &[f32], n: usize) -> Vec<f32> {
    let pieces = n.div_ceil(PIECE);
    let found = each_piece(rowwise, x, n, PIECE, (0.0, 0.0), |_, x| {
        let (_, max) = lanes::run(rowwise.vectors, Largest(x));
        let max = if max == f32::NEG_INFINITY { f32::MIN } else { max };
        (max, lanes::run(rowwise.vectors, SumExp { x, max }))
    });
    let whole = |row: &[(f32, f32)]| {
        let max = row.iter().fold(f32::MIN, |m, (max, _)| if *max > m { *max } else { m });
        let sum: f64 = row.iter().map(|(m, sum)| f64::from(*sum) * (f64::from(*m) - f64::from(max)).exp()).sum();
        (f64::from(max) + sum.ln()) as f32
    };
    found.chunks_exact(pieces).map(whole).collect()
}

/// `f(first index, logits)` of every piece of `piece` logits of every row, rows one after another.
fn each_piece<T: Clone + Send>(
    rowwise: Rowwise<'_>,
    x: &[f32],
    n: usize,
    piece: usize,
    empty: T,
    f: impl Fn(usize, &[f32]) -> T + Sync,
) -> Vec<T> {
    let pieces = n.div_ceil(piece);
    let total = x.len() / n * pieces;
    let mut found = vec![empty; total];
    let out = &Apart(found.as_mut_ptr());
    rowwise.spread(total, piece.min(n), &|range| {
        for i in range {
            let (row, first) = (i / pieces, i % pieces * piece);
            let x = &x[row * n..][first..n.min(first + piece)];
            // SAFETY: each piece has a place of its own.
            unsafe { *out.0.add(i) = f(first, x) };
        }
    });
    found
}

/// A logit's place in the order of candidates: NaN below everything, both zeros equal.
fn rank(logit: f32) -> i64 {
    if logit.is_nan() {
        return i64::MIN;
    }
    // The bits of positive numbers ascend, those of negative ones descend.
    let bits = i64::from((logit + 0.0).to_bits());
    if bits >> 31 == 1 { -(bits & 0x7fff_ffff) } else { bits }
}

/// Place and value of the first largest; (0, NaN) when all are NaN.
struct Largest<'a>(&'a [f32]);

impl Kernel for Largest<'_> {
    type Output = (usize, f32);

    #[inline(always)]
    fn run<L: Lanes>(self) -> (usize, f32) {
        let x = self.0;
        let lowest = L::splat(f32::NEG_INFINITY);
        let mut best = [lowest; 4];
        let whole = x.len() / (4 * LANES) * 4 * LANES;
        for i in (0..whole).step_by(4 * LANES) {
            for (c, best) in best.iter_mut().enumerate() {
                // SAFETY: inside the whole groups.
                *best = unsafe { L::load(x.as_ptr().add(i + c * LANES)) }.max(*best);
            }
        }
        let mut largest = best[0].max(best[1]).max(best[2].max(best[3])).largest();
        for x in &x[whole..] {
            largest = if *x > largest { *x } else { largest };
        }
        match x.iter().position(|x| *x == largest) {
            Some(place) => (place, largest),
            None => (0, f32::NAN),
        }
    }
}

struct SumExp<'a> {
    x: &'a [f32],
    max: f32,
}

impl Kernel for SumExp<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self) -> f32 {
        let max = L::splat(self.max);
        let mut sums = [L::splat(0.0); 4];
        let whole = self.x.len() / (4 * LANES) * 4 * LANES;
        for i in (0..whole).step_by(4 * LANES) {
            for (c, sum) in sums.iter_mut().enumerate() {
                // SAFETY: inside the whole groups.
                let x = unsafe { L::load(self.x.as_ptr().add(i + c * LANES)) };
                *sum = sum.add(math::exp(x.sub(max)));
            }
        }
        for (x, sum) in self.x[whole..].chunks(LANES).zip(&mut sums) {
            let inside = ((1u32 << x.len()) - 1) as u16;
            *sum = sum.add(math::exp(L::load_part(x).sub(max)).keep(inside, L::splat(0.0)));
        }
        sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
    }
}

/// The best `k` of a piece (fewer when it is shorter), best first.
struct Best<'a> {
    x: &'a [f32],
    first: usize,
    k: usize,
}

impl Kernel for Best<'_> {
    type Output = Vec<Candidate>;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Vec<Candidate> {
        let Self { x, first, k } = self;
        let mut best: Vec<Candidate> = Vec::with_capacity(k + 1);
        let insert = |best: &mut Vec<Candidate>, i: usize| {
            let logit = x[i];
            // Ids ascend, so an equal candidate goes behind those that are there.
            let place = best.partition_point(|c| rank(c.logit) >= rank(logit));
            if place < k {
                best.truncate(k - 1);
                best.insert(place, Candidate { id: (first + i) as u32, logit });
            }
        };
        let start = k.min(x.len());
        (0..start).for_each(|i| insert(&mut best, i));
        let mut i = start;
        while i < x.len() {
            let end = (i + LANES).min(x.len());
            let last = best.last().map_or(f32::NAN, |c| c.logit);
            // A NaN among the best gives way to any number.
            let last = if last.is_nan() { f32::MIN } else { last };
            let mut above = L::load_part(&x[i..end]).above(L::splat(last));
            if last == f32::MIN {
                above = u16::MAX;
            }
            while above != 0 {
                let lane = above.trailing_zeros() as usize;
                if i + lane < end {
                    insert(&mut best, i + lane);
                }
                above &= above - 1;
            }
            i = end;
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::Pool;
    use super::*;

    /// A plain generator of repeatable values.
    fn noise(seed: &mut u64) -> f32 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((*seed >> 40) as f32 / (1 << 24) as f32) * 20.0 - 10.0
    }

    fn on_each(check: impl Fn(Rowwise<'_>)) {
        for threads in [1, 3] {
            let pool = Pool::new(threads, 100).expect("threads start");
            super::super::vectors_of_this_machine()
                .into_iter()
                .for_each(|vectors| check(Rowwise { vectors, pool: &pool }));
        }
    }

    #[test]
    fn candidates_follow_a_plain_sort_with_ties_to_the_lowest_id() {
        on_each(|rowwise| {
            let mut seed = 7;
            for (n, rows) in [(1, 1), (5, 2), (64, 1), (4095, 2), (4096, 1), (9001, 3)] {
                // Rounded, so that ties abound.
                let x: Vec<f32> = (0..n * rows).map(|_| noise(&mut seed).round()).collect();
                for k in [1, 2, 20, 64].into_iter().filter(|k| *k <= n) {
                    let mut wanted = vec![];
                    for row in x.chunks_exact(n) {
                        let mut all: Vec<_> =
                            row.iter().enumerate().map(|(i, x)| Candidate { id: i as u32, logit: *x }).collect();
                        all.sort_by(|a, b| b.logit.partial_cmp(&a.logit).expect("no NaN").then(a.id.cmp(&b.id)));
                        wanted.extend(&all[..k]);
                    }
                    assert_eq!(top_k(rowwise, &x, n, k), wanted);
                    let first: Vec<u32> = wanted.chunks_exact(k).map(|row| row[0].id).collect();
                    assert_eq!(argmax(rowwise, &x, n), first);
                }
            }
        });
    }

    #[test]
    fn log_sum_exp_is_that_of_f64_and_of_the_row_alone() {
        on_each(|rowwise| {
            let mut seed = 9;
            for (n, rows) in [(1, 1), (5, 3), (4096, 2), (49_152, 2)] {
                let x: Vec<f32> = (0..n * rows).map(|_| noise(&mut seed)).collect();
                let all = log_sum_exp(rowwise, &x, n);
                for (row, got) in x.chunks_exact(n).zip(&all) {
                    let wanted = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
                    assert!((f64::from(*got) - wanted).abs() < 2e-6 * wanted.abs().max(1.0), "{got} {wanted}");
                    assert_eq!(log_sum_exp(rowwise, row, n)[0].to_bits(), got.to_bits());
                }
            }
        });
    }

    #[test]
    fn masked_rows_keep_only_what_is_allowed() {
        on_each(|rowwise| {
            let x: Vec<f32> = (0..2 * 70).map(|i| i as f32).collect();
            let mut masks = vec![u32::MAX; 6];
            masks[3..].copy_from_slice(&[1 << 5 | 1, 0, 1 << 2]); // row 1 may have 0, 5, 66
            let mut out = vec![0.0; x.len()];
            // SAFETY: `out` is as long as `x`.
            unsafe { mask(rowwise, &x, &masks, 70, Apart(out.as_mut_ptr())) };
            assert_eq!(out[..70], x[..70]);
            let top: Vec<u32> = top_k(rowwise, &out, 70, 4)[4..].iter().map(|c| c.id).collect();
            assert_eq!(top, [66, 5, 0, 1]); // then what is forbidden, by id
            assert_eq!(argmax(rowwise, &out, 70), [69, 66]);
            let wanted = f64::from(x[70 + 66]) + (1.0 + (-61f64).exp() + (-66f64).exp()).ln();
            assert!((f64::from(log_sum_exp(rowwise, &out, 70)[1]) - wanted).abs() < 1e-4);
        });
    }

    #[test]
    fn logits_that_are_no_numbers_do_not_break_the_tail() {
        on_each(|rowwise| {
            let mut x = vec![f32::NAN; 100];
            assert_eq!(argmax(rowwise, &x, 100), [0]);
            assert_eq!(top_k(rowwise, &x, 100, 3).len(), 3);
            x[40] = f32::NEG_INFINITY;
            x[90] = -3.0;
            assert_eq!(argmax(rowwise, &x, 100), [90]);
            let top: Vec<u32> = top_k(rowwise, &x, 100, 3).iter().map(|c| c.id).collect();
            assert_eq!(top, [90, 40, 0]);
            let none = vec![f32::NEG_INFINITY; 50];
            assert_eq!((argmax(rowwise, &none, 50)[0], log_sum_exp(rowwise, &none, 50)[0]), (0, f32::NEG_INFINITY));
        });
    }
}
