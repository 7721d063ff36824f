//! Owns attention over the paged cache: how a step is cut into work, and where results go. The arithmetic is in
//! [`super::tile`].
//!
//! `out[h] = sum_j softmax_j(cap(scale * q[h] . k[j])) * v[j]`, over the keys j that the mask shows, plus a sink in the sum.
//!
//! Work is cut by sequence, key head, tile of queries, and, when a step has few sequences, by splits of [`SPLIT_TOKENS`]
//! keys. Results do not depend on the cut: splits lie at fixed positions and are always combined in order, and inside a
//! split every (query, head) runs the same chain of operations whatever else is in its tile.

use std::sync::Mutex;

use half::bf16;

use super::kv::{Cell, LayerCells};
use super::lanes::{self, LANES, Vectors};
use super::pool::Pool;
use super::rows::Apart;
use super::tile::{self, Tile};
use crate::{Batch, DType, Temperature};

/// Keys of a split: partial results are combined at multiples of this position.
pub(crate) const SPLIT_TOKENS: usize = 512;
/// Rows (queries times heads of one key head) that a tile aims at: enough to reuse keys, few enough for the L1 cache.
const TILE_ROWS: usize = 48;
/// Multiply-adds below which a fork costs more than it saves.
const FORK_WORK: usize = 100_000;

/// What an attention looks like, apart from where its values lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Form {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) dim: usize,
    pub(crate) v_dim: usize,
    pub(crate) scale: f32,
    pub(crate) window: Option<usize>,
    pub(crate) softcap: Option<f32>,
    pub(crate) chunk: Option<usize>,
    pub(crate) temperature: Option<Temperature>,
    pub(crate) ahead: bool,
}

impl Form {
    /// Query heads that share a key head.
    pub(crate) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The oldest position that a query at `position` sees.
    #[inline(always)]
    pub(crate) fn oldest(&self, position: usize) -> usize {
        match (self.window, self.chunk) {
            (Some(window), _) => (position + 1).saturating_sub(window),
            (None, Some(chunk)) => position / chunk * chunk,
            (None, None) => 0,
        }
    }

    /// The newest position that a query at `position` sees, of a sequence that ends before `end`.
    #[inline(always)]
    pub(crate) fn newest(&self, position: usize, end: usize) -> usize {
        match (self.ahead, self.window) {
            (false, _) => position,
            (true, Some(window)) => (position + window).min(end) - 1,
            (true, None) => end - 1,
        }
    }

    /// What multiplies the scores of a query at `position`.
    pub(crate) fn scale_at(&self, position: usize) -> f32 {
        self.scale * self.temperature.map_or(1.0, |t| t.at(position))
    }
}

/// One tile of queries of one sequence and key head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) seq: usize,
    pub(crate) kv_head: usize,
    /// First query, an index into the step's tokens.
    pub(crate) first: usize,
    pub(crate) queries: usize,
    /// Position of the first query.
    pub(crate) position: usize,
    /// Tokens that the sequence has.
    pub(crate) end: usize,
    /// The only split to compute, and which partial result it makes; or all of them, combined.
    pub(crate) split: Option<(usize, usize)>,
    work: usize,
}

/// The work of one step for one form; its memory is reused from step to step.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    items: Vec<Item>,
    /// With splits: for each tile its item without a split, and its partial results.
    tiles: Vec<(Item, std::ops::Range<usize>)>,
    work: usize,
}

impl Plan {
    /// Cuts `batch` for `threads` threads.
    pub(crate) fn make(&mut self, form: &Form, batch: &Batch, threads: usize) {
        self.items.clear();
        self.tiles.clear();
        let per_tile = (TILE_ROWS / form.group()).max(1);
        for seq in 0..batch.shape.seqs {
            let query = batch.query(seq);
            for first in query.clone().step_by(per_tile) {
                let queries = per_tile.min(query.end - first);
                let end = batch.context[seq] as usize;
                let position = end - (query.end - first);
                let keys = form.newest(position + queries - 1, end) + 1 - form.oldest(position);
                let work = keys * queries * form.group() * (form.dim + form.v_dim);
                let item = Item { seq, kv_head: 0, first, queries, position, end, split: None, work };
                self.items.extend((0..form.kv_heads).map(|kv_head| Item { kv_head, ..item }));
            }
        }
        self.work = self.items.iter().map(|i| i.work).sum();
        if threads > 1 && self.items.len() < 4 * threads && self.work > FORK_WORK {
            self.split(form);
        }
        // The longest first, so that no thread is left with one at the end.
        self.items.sort_unstable_by_key(|i| std::cmp::Reverse(i.work));
    }

    fn split(&mut self, form: &Form) {
        let newest = |i: &Item| form.newest(i.position + i.queries - 1, i.end);
        let splits = |i: &Item| form.oldest(i.position) / SPLIT_TOKENS..newest(i) / SPLIT_TOKENS + 1;
        if self.items.iter().all(|i| splits(i).len() == 1) {
            return;
        }
        let mut parts = vec![];
        for item in &self.items {
            let start = parts.len();
            let work = item.work / splits(item).len();
            parts.extend(splits(item).enumerate().map(|(i, s)| Item { split: Some((s, start + i)), work, ..*item }));
            self.tiles.push((*item, start..parts.len()));
        }
        self.items = parts;
    }

    /// Most rows of a tile.
    fn rows(&self, form: &Form) -> usize {
        self.items.iter().map(|i| i.queries).max().unwrap_or(0) * form.group()
    }
}

/// Memory that attention needs while it runs; kept from step to step.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// One a thread.
    threads: Vec<Mutex<tile::Scratch>>,
    partials: Vec<f32>,
}

impl Scratch {
    pub(crate) fn new(threads: usize) -> Self {
        Self { threads: (0..threads).map(|_| Mutex::default()).collect(), partials: vec![] }
    }
}

/// One attention of a step.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub(crate) form: Form,
    pub(crate) batch: &'a Batch,
    pub(crate) cells: LayerCells,
    pub(crate) dtype: DType,
    /// `[tokens, heads, dim]`
    pub(crate) q: &'a [f32],
    /// `[tokens, kv_heads, dim]`
    pub(crate) k: &'a [f32],
    /// `[tokens, kv_heads, v_dim]`
    pub(crate) v: &'a [f32],
    /// `[heads]`
    pub(crate) sinks: Option<&'a [f32]>,
    /// `[tokens, heads, v_dim]`
    pub(crate) out: Apart<f32>,
}

impl Attention<'_> {
    /// Stores the step's K/V, then attends. Tokens of no sequence store nothing and give zeros.
    ///
    /// # Safety
    /// `out` has room; the batch is verified against the cache, which nobody else uses and whose element type is `dtype`.
    pub(crate) unsafe fn run(&self, vectors: Vectors, pool: &Pool, plan: &Plan, scratch: &mut Scratch) {
        // SAFETY: the caller's.
        unsafe {
            match self.dtype {
                DType::F32 => self.run_with::<f32>(vectors, pool, plan, scratch),
                _ => self.run_with::<bf16>(vectors, pool, plan, scratch),
            }
        }
    }

    unsafe fn run_with<C: Cell>(&self, vectors: Vectors, pool: &Pool, plan: &Plan, scratch: &mut Scratch) {
        let form = &self.form;
        let starts = &self.batch.query_start;
        let ends = [starts[0] as usize, starts[self.batch.shape.seqs] as usize];
        let (row_k, row_v) = (form.kv_heads * form.dim, form.kv_heads * form.v_dim);
        let store = |tokens: std::ops::Range<usize>| {
            for t in tokens.start + ends[0]..tokens.end + ends[0] {
                let (k, v) = (&self.k[t * row_k..][..row_k], &self.v[t * row_v..][..row_v]);
                // SAFETY: a verified batch gives each token of a sequence a slot of its own.
                unsafe { self.cells.store::<C>(self.batch.slots[t] as usize, k, v) };
            }
        };
        let stored = ends[1] - ends[0];
        if stored * (row_k + row_v) < FORK_WORK / 10 {
            store(0..stored)
        } else {
            pool.split(stored, 4, &store)
        }
        let row = form.heads * form.v_dim;
        for t in (0..ends[0]).chain(ends[1]..self.batch.shape.tokens) {
            // SAFETY: `out` holds a row for each token of the step.
            unsafe { self.out.get().add(t * row).write_bytes(0, row) };
        }

        let partial_rows = plan.rows(form);
        let partial_len = partial_rows * tile::partial_values(form.v_dim);
        let partials = if plan.tiles.is_empty() { 0 } else { plan.items.len() * partial_len };
        if scratch.partials.len() < partials {
            scratch.partials.resize(partials, 0.0);
        }
        let partials = Apart(scratch.partials.as_mut_ptr());
        let threads = &scratch.threads;
        let work = |range: std::ops::Range<usize>| {
            let mut scratch = free(threads);
            for item in &plan.items[range] {
                // SAFETY: each item has rows of `out`, or a partial result, of its own.
                let partial = item.split.map(|(_, i)| unsafe { partials.get().add(i * partial_len) });
                lanes::run(vectors, Tile::<C>::new(self, *item, partial, &mut scratch));
            }
        };
        match plan.work < FORK_WORK {
            true => work(0..plan.items.len()),
            false => pool.split(plan.items.len(), plan.items.len().div_ceil(pool.threads()), &work),
        }
        if plan.tiles.is_empty() {
            return;
        }
        let combine = |range: std::ops::Range<usize>| {
            let mut scratch = free(threads);
            for (item, parts) in &plan.tiles[range] {
                let first = partials.get().wrapping_add(parts.start * partial_len);
                let parts = tile::Parts { first, stride: partial_len, count: parts.len() };
                lanes::run(vectors, tile::Combine::new(self, *item, parts, &mut scratch));
            }
        };
        pool.split(plan.tiles.len(), 1, &combine);
    }
}

/// The scratch memory that no other thread holds; there is one for each.
fn free(threads: &[Mutex<tile::Scratch>]) -> std::sync::MutexGuard<'_, tile::Scratch> {
    let held = threads.iter().find_map(|s| match s.try_lock() {
        Ok(scratch) => Some(scratch),
        Err(std::sync::TryLockError::Poisoned(scratch)) => Some(scratch.into_inner()),
        Err(std::sync::TryLockError::WouldBlock) => None,
    });
    held.expect("as many scratches as threads: this is a bug")
}

/// Values of a row of `v_dim` padded to whole vectors.
#[inline(always)]
pub(crate) fn padded(v_dim: usize) -> usize {
    v_dim.next_multiple_of(LANES)
}
