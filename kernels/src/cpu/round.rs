//! Owns one round of attention: sixty-four keys of one key head against a few rows. Scores, weights, and the weighted
//! values; the order of sums is told in [`super::tile`].

use super::attention::{Attention, Form, Item};
use super::kv::{BLOCK_TOKENS, Cell, LINE};
use super::lanes::{LANES, Lanes};
use super::math;

/// Keys that one round takes: four vectors of scores a row.
pub(crate) const KEYS: usize = 64;
const BLOCKS: usize = KEYS / BLOCK_TOKENS;
/// [`Lanes::TILE_ROWS`] of any path. Six rows on AVX-512 spilled: the compiler keeps the broadcast queries of a pair of
/// dimensions in registers, which is right, but leaves room for four rows of four sums.
pub(crate) const MOST_ROWS: usize = 4;
/// The running maximum of a row that has seen nothing: no score is below it, and it is finite, so differences are too.
pub(crate) const LOWEST: f32 = f32::MIN;

/// Where a tile's rows keep what they have summed, in scratch memory.
pub(crate) struct Sums {
    /// `[rows]` running maximum of the split.
    pub(crate) max: *mut f32,
    /// `[rows, 16]`
    pub(crate) sum: *mut f32,
    /// `[rows, v_dim padded]`
    pub(crate) acc: *mut f32,
}

/// The keys of one round, of which a tile of rows sees some.
pub(crate) struct Keys<C> {
    keys: [*const C; BLOCKS],
    values: [*const C; BLOCKS],
    /// Position of the first.
    start: usize,
    /// From `start`: what any row sees.
    seen: std::ops::Range<usize>,
}

impl<C: Cell> Keys<C> {
    /// Blocks that no row sees are replaced by one that a row does see: read, and masked.
    #[inline(always)]
    pub(crate) unsafe fn new(
        attention: &Attention<'_>,
        item: &Item,
        start: usize,
        oldest: usize,
        newest: usize,
    ) -> Self {
        let seen = oldest.max(start)..(newest + 1).min(start + KEYS);
        let table = attention.batch.blocks(item.seq);
        let block = |i: usize| {
            let wanted = start / BLOCK_TOKENS + i;
            table[wanted.clamp(seen.start / BLOCK_TOKENS, (seen.end - 1) / BLOCK_TOKENS)] as usize
        };
        // SAFETY: a verified table names blocks of the cache.
        unsafe {
            Self {
                keys: std::array::from_fn(|i| attention.cells.keys::<C>(block(i), item.kv_head).cast_const()),
                values: std::array::from_fn(|i| attention.cells.values::<C>(block(i), item.kv_head).cast_const()),
                start,
                seen: seen.start - start..seen.end - start,
            }
        }
    }
}

/// `scores[count, 64] = q . k`
#[inline(always)]
pub(crate) unsafe fn dot<L: Lanes, C: Cell>(
    keys: &Keys<C>,
    q: *const f32,
    pairs: usize,
    count: usize,
    scores: *mut f32,
) {
    // SAFETY: the caller's.
    unsafe {
        match count {
            1 => dot_rows::<L, C, 1>(keys, q, pairs, scores),
            2 => dot_rows::<L, C, 2>(keys, q, pairs, scores),
            3 => dot_rows::<L, C, 3>(keys, q, pairs, scores),
            _ => dot_rows::<L, C, MOST_ROWS>(keys, q, pairs, scores),
        }
    }
}

#[inline(always)]
unsafe fn dot_rows<L: Lanes, C: Cell, const R: usize>(keys: &Keys<C>, q: *const f32, pairs: usize, scores: *mut f32) {
    if R > L::TILE_ROWS {
        return; // not reached; keeps what does not fit the registers out of the binary
    }
    // SAFETY: the caller's.
    unsafe {
        let mut acc = [[L::splat(0.0); BLOCKS]; R];
        for i in 0..pairs {
            let q = q.add(i * R * 2);
            for b in 0..BLOCKS {
                let (even, odd) = C::line::<L>(keys.keys[b].add(i * LINE));
                for (r, acc) in acc.iter_mut().enumerate() {
                    acc[b] = even.fma(L::splat(*q.add(r * 2)), acc[b]);
                    acc[b] = odd.fma(L::splat(*q.add(r * 2 + 1)), acc[b]);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (b, acc) in acc.iter().enumerate() {
                acc.store(scores.add(r * KEYS + b * LANES));
            }
        }
    }
}

/// Scores of one row to weights, in place; the row's sums follow the new maximum.
#[inline(always)]
pub(crate) unsafe fn soften<L: Lanes>(
    form: &Form,
    keys: &Keys<impl Cell>,
    seen: std::ops::Range<usize>,
    scores: *mut f32,
    sums: &Sums,
    row: usize,
    width: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut s = [L::splat(0.0); BLOCKS];
        for (b, s) in s.iter_mut().enumerate() {
            *s = L::load(scores.add(b * LANES));
        }
        if let Some(cap) = form.softcap {
            for s in &mut s {
                *s = math::tanh(s.div(L::splat(cap))).mul(L::splat(cap));
            }
        }
        let start = keys.start;
        if seen.start > start || seen.end < start + KEYS {
            let from = seen.start.saturating_sub(start);
            let to = seen.end.saturating_sub(start);
            for (b, s) in s.iter_mut().enumerate() {
                *s = s.keep(shown(from, to, b * LANES), L::splat(f32::NEG_INFINITY));
            }
        }
        let (old, sum) = (*sums.max.add(row), sums.sum.add(row * LANES));
        let new = s[0].max(s[1]).max(s[2].max(s[3])).largest();
        // In this order a NaN is not lost in the maximum: it comes back in the weights.
        let new = if new > old { new } else { old };
        let mut before = L::load(sum);
        if new > old {
            sums.max.add(row).write(new);
            let correction = math::exp(L::splat(old - new));
            before = before.mul(correction);
            let acc = sums.acc.add(row * width);
            for c in (0..width).step_by(LANES) {
                L::load(acc.add(c)).mul(correction).store(acc.add(c));
            }
        }
        for (b, s) in s.iter_mut().enumerate() {
            *s = math::exp(s.sub(L::splat(new)));
            s.store(scores.add(b * LANES));
        }
        before.add(s[0].add(s[1]).add(s[2].add(s[3]))).store(sum);
    }
}

/// Lanes of the sixteen keys from `base` that lie in `from..to`.
#[inline(always)]
fn shown(from: usize, to: usize, base: usize) -> u16 {
    let below = |end: usize| ((1u32 << end.saturating_sub(base).min(LANES)) - 1) as u16;
    below(to) & !below(from)
}

/// `acc[count, width] += weights[count, 64] . v`
#[inline(always)]
pub(crate) unsafe fn weigh<L: Lanes, C: Cell>(
    keys: &Keys<C>,
    weights: *const f32,
    count: usize,
    acc: *mut f32,
    width: usize,
) {
    let columns = width / LANES;
    let mut c = 0;
    while c < columns {
        // SAFETY: the caller's.
        unsafe {
            let acc = acc.add(c * LANES);
            macro_rules! rows {
                ($n:literal) => {
                    match count {
                        1 => weigh_rows::<L, C, 1, $n>(keys, weights, acc, width, c),
                        2 => weigh_rows::<L, C, 2, $n>(keys, weights, acc, width, c),
                        3 => weigh_rows::<L, C, 3, $n>(keys, weights, acc, width, c),
                        _ => weigh_rows::<L, C, MOST_ROWS, $n>(keys, weights, acc, width, c),
                    }
                };
            }
            if columns - c >= 4 {
                rows!(4);
                c += 4;
            } else {
                rows!(1);
                c += 1;
            }
        }
    }
}

#[inline(always)]
unsafe fn weigh_rows<L: Lanes, C: Cell, const R: usize, const N: usize>(
    keys: &Keys<C>,
    weights: *const f32,
    out: *mut f32,
    width: usize,
    column: usize,
) {
    if R > L::TILE_ROWS {
        return; // as in `dot_rows`
    }
    let columns = width / LANES;
    // SAFETY: the caller's.
    unsafe {
        let mut acc = [[L::splat(0.0); N]; R];
        for (r, acc) in acc.iter_mut().enumerate() {
            for (n, acc) in acc.iter_mut().enumerate() {
                *acc = L::load(out.add(r * width + n * LANES));
            }
        }
        // A pair begins at an even key; one before the first that is seen is an older token of the same block.
        let mut j = keys.seen.start / 2 * 2;
        while j + 1 < keys.seen.end {
            let lines = keys.values[j / BLOCK_TOKENS].add((j % BLOCK_TOKENS / 2 * columns + column) * LINE);
            for n in 0..N {
                let (even, odd) = C::line::<L>(lines.add(n * LINE));
                for (r, acc) in acc.iter_mut().enumerate() {
                    acc[n] = even.fma(L::splat(*weights.add(r * KEYS + j)), acc[n]);
                    acc[n] = odd.fma(L::splat(*weights.add(r * KEYS + j + 1)), acc[n]);
                }
            }
            j += 2;
        }
        if j < keys.seen.end {
            let lines = keys.values[j / BLOCK_TOKENS].add((j % BLOCK_TOKENS / 2 * columns + column) * LINE);
            for n in 0..N {
                let (even, _) = C::line::<L>(lines.add(n * LINE));
                for (r, acc) in acc.iter_mut().enumerate() {
                    acc[n] = even.fma(L::splat(*weights.add(r * KEYS + j)), acc[n]);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (n, acc) in acc.iter().enumerate() {
                acc.store(out.add(r * width + n * LANES));
            }
        }
    }
}
