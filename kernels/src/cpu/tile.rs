//! Owns the arithmetic of attention: one tile of queries against the keys of one key head.
//!
//! A row is one (query, head). Per row, in this order and no other, whatever rows are beside it:
//! ```text
//! for each split of 512 keys that the row sees:            (m, l, acc) = (lowest, 0, 0)
//!   for each 64 keys, at positions that are multiples of 64:
//!     s[j]  = q * scale . k[j]            one chain of multiply-adds over the dimensions, then the soft cap
//!     s[j]  = -inf where masked
//!     m'    = max(m, s);  p[j] = exp(s[j] - m');  c = exp(m - m')
//!     l     = l * c + p                   16 lanes; four keys a lane are added as (0 + 1) + (2 + 3)
//!     acc   = acc * c, then + p[j] * v[j] in order of j
//!   combine (m, l, acc) into the row's total
//! out = total.acc / total.l               with the sink's share in l
//! ```
//! A masked key has p = 0 and leaves every sum as it was, so whether a tile covers it for another row's sake does not
//! matter. Keys beyond what the tile's newest row sees are never multiplied: their memory may hold anything.
//!
//! Tolerance: f32 throughout; against f64 on the rounded cache 1e-5 of the largest value.
//!
//! Measured (Zen 5, one thread, 9 heads of 64 on 3 key heads, bf16): decode 55 GB/s from the caches, 38 from memory, which
//! is its rate; prefill of 512 at 4096 191 Gop/s, 74 % of the f32 peak. Tried: six rows a tile spilled (150 Gop/s); fetching
//! the next round by software made decode 10 to 20 % slower.

use std::marker::PhantomData;

use super::attention::{Attention, Form, Item, SPLIT_TOKENS, padded};
use super::kv::{BLOCK_TOKENS, Cell, LINE};
use super::lanes::{Kernel, LANES, Lanes};
use super::math;

/// Keys that one round takes: four vectors of scores a row.
const KEYS: usize = 64;
const BLOCKS: usize = KEYS / BLOCK_TOKENS;
/// [`Lanes::TILE_ROWS`] of any path. Six rows on AVX-512 spilled: the compiler keeps the broadcast queries of a pair of
/// dimensions in registers, which is right, but leaves room for four rows of four sums.
const MOST_ROWS: usize = 4;
/// The running maximum of a row that has seen nothing: no score is below it, and it is finite, so differences are too.
const LOWEST: f32 = f32::MIN;

/// Memory of one thread.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    values: Vec<f32>,
}

/// Values of one row's partial result: maximum, sum, and the weighted values.
pub(crate) fn partial_values(v_dim: usize) -> usize {
    padded(v_dim) + LANES
}

/// The kernel for one item.
pub(crate) struct Tile<'a, C> {
    attention: &'a Attention<'a>,
    item: Item,
    partial: Option<*mut f32>,
    scratch: &'a mut Scratch,
    cell: PhantomData<C>,
}

impl<'a, C: Cell> Tile<'a, C> {
    pub(crate) fn new(
        attention: &'a Attention<'a>,
        item: Item,
        partial: Option<*mut f32>,
        scratch: &'a mut Scratch,
    ) -> Self {
        Self { attention, item, partial, scratch, cell: PhantomData }
    }
}

/// Where a tile's rows keep what they have summed, in scratch memory.
struct Sums {
    /// `[rows]` running maximum of the split.
    max: *mut f32,
    /// `[rows, 16]`
    sum: *mut f32,
    /// `[rows, v_dim padded]`
    acc: *mut f32,
}

impl<C: Cell> Kernel for Tile<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { attention, item, partial, scratch, .. } = self;
        let form = &attention.form;
        let (group, rows) = (form.group(), form.group() * item.queries);
        let (pairs, width) = (form.dim.div_ceil(2), padded(form.v_dim));
        let partial_len = partial_values(form.v_dim);
        let sizes = [rows * pairs * 2, rows, rows * LANES, rows * width, rows * partial_len, MOST_ROWS * KEYS];
        let sizes = sizes.map(|s| s.next_multiple_of(LANES));
        let needed = sizes.iter().sum::<usize>();
        if scratch.values.len() < needed {
            scratch.values.resize(needed, 0.0);
        }
        let mut next = scratch.values.as_mut_ptr();
        let [q, max, sum, acc, total, scores] = sizes.map(|s| {
            let here = next;
            // SAFETY: the sizes sum to no more than the scratch holds.
            next = unsafe { next.add(s) };
            here
        });
        let sums = Sums { max, sum, acc };
        let total = partial.unwrap_or(total);
        // SAFETY (to the end): pointers into scratch memory of the sizes above; the cache as `Attention::run` promises.
        unsafe {
            pack_queries::<L>(attention, &item, q);
            clear(total, rows, partial_len);
            let newest = item.position + item.queries - 1;
            let oldest = form.oldest(item.position);
            let splits = match item.split {
                Some((split, _)) => split..split + 1,
                None => oldest / SPLIT_TOKENS..newest / SPLIT_TOKENS + 1,
            };
            for split in splits {
                for r in 0..rows {
                    sums.max.add(r).write(LOWEST);
                }
                sums.sum.write_bytes(0, rows * LANES);
                sums.acc.write_bytes(0, rows * width);
                let first = (split * SPLIT_TOKENS).max(oldest / KEYS * KEYS);
                let end = ((split + 1) * SPLIT_TOKENS).min(newest + 1);
                for start in (first..end).step_by(KEYS) {
                    let mut row = 0;
                    while row < rows {
                        let count = L::TILE_ROWS.min(rows - row);
                        let position = item.position + row / group;
                        let last = item.position + (row + count - 1) / group;
                        if last >= start && form.oldest(position) < start + KEYS {
                            let keys = Keys::new(attention, &item, start, form.oldest(position), last);
                            let q = q.add(row * pairs * 2);
                            dot::<L, C>(&keys, q, pairs, count, scores);
                            for r in 0..count {
                                let position = item.position + (row + r) / group;
                                let scores = scores.add(r * KEYS);
                                soften::<L>(form, &keys, position, scores, &sums, row + r, width);
                            }
                            weigh::<L, C>(&keys, scores, count, sums.acc.add(row * width), width);
                        }
                        row += count;
                    }
                }
                for r in 0..rows {
                    let part = (
                        *sums.max.add(r),
                        L::load(sums.sum.add(r * LANES)).sum(),
                        sums.acc.add(r * width).cast_const(),
                    );
                    combine::<L>(total.add(r * partial_len), part, width);
                }
            }
            if partial.is_none() {
                finish::<L>(attention, &item, total);
            }
        }
    }
}

/// Partial results of one item, one a split, in order.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    pub(crate) first: *mut f32,
    pub(crate) stride: usize,
    pub(crate) count: usize,
}

/// The kernel that combines the splits of one item.
pub(crate) struct Combine<'a> {
    attention: &'a Attention<'a>,
    item: Item,
    parts: Parts,
    scratch: &'a mut Scratch,
}

impl<'a> Combine<'a> {
    pub(crate) fn new(attention: &'a Attention<'a>, item: Item, parts: Parts, scratch: &'a mut Scratch) -> Self {
        Self { attention, item, parts, scratch }
    }
}

impl Kernel for Combine<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { attention, item, parts, scratch } = self;
        let form = &attention.form;
        let (rows, width) = (form.group() * item.queries, padded(form.v_dim));
        let partial_len = partial_values(form.v_dim);
        if scratch.values.len() < rows * partial_len {
            scratch.values.resize(rows * partial_len, 0.0);
        }
        let total = scratch.values.as_mut_ptr();
        // SAFETY: each partial result holds `rows` rows; `total` as many.
        unsafe {
            clear(total, rows, partial_len);
            for part in 0..parts.count {
                for r in 0..rows {
                    let row = parts.first.add(part * parts.stride + r * partial_len);
                    combine::<L>(total.add(r * partial_len), (*row, *row.add(1), row.add(LANES)), width);
                }
            }
            finish::<L>(attention, &item, total);
        }
    }
}

/// Queries of the item times the scale: `[tile of rows][dim / 2][row][2]`, one stream for [`dot`].
#[inline(always)]
unsafe fn pack_queries<L: Lanes>(attention: &Attention<'_>, item: &Item, out: *mut f32) {
    let form = &attention.form;
    let (group, rows) = (form.group(), form.group() * item.queries);
    let pairs = form.dim.div_ceil(2);
    for row in 0..rows {
        let (tile, r) = (row / L::TILE_ROWS, row % L::TILE_ROWS);
        let count = L::TILE_ROWS.min(rows - tile * L::TILE_ROWS);
        let (token, head) = (item.first + row / group, item.kv_head * group + row % group);
        let q = &attention.q[(token * form.heads + head) * form.dim..][..form.dim];
        // SAFETY: the caller's.
        unsafe {
            let out = out.add(tile * L::TILE_ROWS * pairs * 2 + r * 2);
            for (d, x) in q.iter().enumerate() {
                out.add(d / 2 * count * 2 + d % 2).write(x * form.scale);
            }
            if form.dim % 2 == 1 {
                out.add((pairs - 1) * count * 2 + 1).write(0.0);
            }
        }
    }
}

/// The keys of one round, of which a tile of rows sees some.
struct Keys<C> {
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
    unsafe fn new(attention: &Attention<'_>, item: &Item, start: usize, oldest: usize, newest: usize) -> Self {
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
unsafe fn dot<L: Lanes, C: Cell>(keys: &Keys<C>, q: *const f32, pairs: usize, count: usize, scores: *mut f32) {
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
unsafe fn soften<L: Lanes>(
    form: &Form,
    keys: &Keys<impl Cell>,
    position: usize,
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
        let (oldest, start) = (form.oldest(position), keys.start);
        if oldest > start || position < start + KEYS - 1 {
            let from = oldest.saturating_sub(start);
            let to = (position + 1).saturating_sub(start);
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
unsafe fn weigh<L: Lanes, C: Cell>(keys: &Keys<C>, weights: *const f32, count: usize, acc: *mut f32, width: usize) {
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

/// Totals of rows that have seen nothing: `[rows](maximum, sum, .. 16, acc)`.
unsafe fn clear(total: *mut f32, rows: usize, partial_len: usize) {
    // SAFETY: the caller's.
    unsafe {
        total.write_bytes(0, rows * partial_len);
        for r in 0..rows {
            total.add(r * partial_len).write(LOWEST);
        }
    }
}

/// Adds one split's `(maximum, sum, acc)` to a row's total.
#[inline(always)]
unsafe fn combine<L: Lanes>(total: *mut f32, (max, sum, acc): (f32, f32, *const f32), width: usize) {
    // SAFETY: the caller's.
    unsafe {
        let (old, old_sum) = (*total, *total.add(1));
        let new = if max > old { max } else { old };
        let (kept, added) = (math::exp(L::splat(old - new)), math::exp(L::splat(max - new)));
        total.write(new);
        let sums = L::splat(old_sum).mul(kept).add(L::splat(sum).mul(added));
        total.add(1).write(sums.to_array()[0]);
        for c in (0..width).step_by(LANES) {
            let to = total.add(LANES + c);
            L::load(to).mul(kept).add(L::load(acc.add(c)).mul(added)).store(to);
        }
    }
}

/// `out = acc / sum`, the sink's share in the sum.
#[inline(always)]
unsafe fn finish<L: Lanes>(attention: &Attention<'_>, item: &Item, total: *const f32) {
    let form = &attention.form;
    let group = form.group();
    let partial_len = partial_values(form.v_dim);
    for row in 0..group * item.queries {
        let (token, head) = (item.first + row / group, item.kv_head * group + row % group);
        // SAFETY: the caller's; each row of `out` belongs to one item.
        unsafe {
            let total = total.add(row * partial_len);
            let (max, sum) = (*total, L::splat(*total.add(1)));
            let factor = match attention.sinks {
                None => L::splat(1.0).div(sum),
                Some(sinks) => {
                    let new = if sinks[head] > max { sinks[head] } else { max };
                    let kept = math::exp(L::splat(max - new));
                    kept.div(sum.fma(kept, math::exp(L::splat(sinks[head] - new))))
                }
            };
            let out = attention.out.get().add((token * form.heads + head) * form.v_dim);
            let out = std::slice::from_raw_parts_mut(out, form.v_dim);
            for (c, out) in out.chunks_mut(LANES).enumerate() {
                L::load(total.add(LANES + c * LANES)).mul(factor).store_part(out);
            }
        }
    }
}
