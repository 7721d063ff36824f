//! Owns the arithmetic of attention: one tile of queries against the keys of one key head, round by round
//! ([`super::round`]).
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

use super::attention::{Attention, Item, SPLIT_TOKENS, padded};
use super::kv::Cell;
use super::lanes::{Kernel, LANES, Lanes};
use super::math;
use super::round::{KEYS, Keys, LOWEST, MOST_ROWS, Sums, dot, soften, weigh};

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
            let newest = form.newest(item.position + item.queries - 1, item.end);
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
                        let last = form.newest(item.position + (row + count - 1) / group, item.end);
                        if last >= start && form.oldest(position) < start + KEYS {
                            let keys = Keys::new(attention, &item, start, form.oldest(position), last);
                            let q = q.add(row * pairs * 2);
                            dot::<L, C>(&keys, q, pairs, count, scores);
                            for r in 0..count {
                                let position = item.position + (row + r) / group;
                                let seen = form.oldest(position)..form.newest(position, item.end) + 1;
                                let scores = scores.add(r * KEYS);
                                soften::<L>(form, &keys, seen, scores, &sums, row + r, width);
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
        let scale = form.scale_at(item.position + row / group);
        // SAFETY: the caller's.
        unsafe {
            let out = out.add(tile * L::TILE_ROWS * pairs * 2 + r * 2);
            for (d, x) in q.iter().enumerate() {
                out.add(d / 2 * count * 2 + d % 2).write(x * scale);
            }
            if form.dim % 2 == 1 {
                out.add((pairs - 1) * count * 2 + 1).write(0.0);
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
