//! Owns the packed activations: their layouts, and how rows are cut into kernel-sized blocks. Knows no weights.
//!
//! Rows of a block are interleaved so that a kernel reads one stream: `[block][k step][row in block]`.
//! A block's first byte is `first row * row_bytes`, so no table of offsets is needed.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::matrix::{bf16, int8};
use super::{buffer::Buffer, pool::Pool};

/// How activations must be packed for a matrix. Matrices of equal layouts share packed rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowLayout {
    pub(super) kind: RowKind,
    /// Values of a row, before padding.
    pub(super) inner: usize,
    /// Most rows of a block.
    pub(super) block_rows: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowKind {
    /// `[block][k][row] f32`, k padded to an even count.
    F32,
    /// `[block][k / 2][row][2 k] bf16`, k padded to an even count.
    #[cfg(target_arch = "x86_64")]
    Bf16,
    /// `[block][k / 32]([8 quads][row][4 k] i8, tail)`.
    #[cfg(target_arch = "x86_64")]
    Int8(int8::Tail),
}

impl RowLayout {
    pub(super) fn row_bytes(self) -> usize {
        match self.kind {
            RowKind::F32 => self.inner.next_multiple_of(2) * 4,
            #[cfg(target_arch = "x86_64")]
            RowKind::Bf16 => self.inner.next_multiple_of(2) * 2,
            #[cfg(target_arch = "x86_64")]
            RowKind::Int8(tail) => self.inner / 32 * (32 + tail.bytes()),
        }
    }
}

/// Packed activations. Keeps its memory from step to step.
pub(crate) struct Rows {
    data: Buffer,
    layout: Option<RowLayout>,
    count: usize,
}

impl Rows {
    pub(crate) fn new() -> Self {
        Self { data: Buffer::zeroed(64), layout: None, count: 0 }
    }

    /// Rows packed last.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Layout of the rows packed last.
    pub(crate) fn layout(&self) -> Option<RowLayout> {
        self.layout
    }

    pub(super) fn blocks(&self) -> usize {
        self.layout.map_or(0, |layout| self.count.div_ceil(layout.block_rows))
    }

    /// First row and row count of block `i`. As even as they come: 32 rows at 12 a block are 11 + 11 + 10.
    pub(super) fn block(&self, i: usize) -> (usize, usize) {
        let (each, larger) = (self.count / self.blocks(), self.count % self.blocks());
        (i * each + i.min(larger), each + usize::from(i < larger))
    }

    /// Where the block that begins with row `first` is stored.
    pub(super) fn block_at(&self, first: usize) -> *const u8 {
        let row_bytes = self.layout.map_or(0, RowLayout::row_bytes);
        debug_assert!(first * row_bytes <= self.data.len());
        // SAFETY: rows stand one after another inside the buffer.
        unsafe { self.data.as_ptr().add(first * row_bytes) }
    }
}

impl Default for Rows {
    fn default() -> Self {
        Self::new()
    }
}

/// Rounds or quantises `x` `[m, inner]` into `layout`, its inputs in `order` where one is given. Each row's bytes depend
/// on that row alone.
///
/// Panics when the length of `x` is not `m * inner`.
pub(crate) fn pack_rows(layout: RowLayout, order: Option<&[u32]>, pool: &Pool, x: &[f32], m: usize, rows: &mut Rows) {
    let (inner, row_bytes) = (layout.inner, layout.row_bytes());
    assert_eq!(x.len(), m * inner, "activations fill their rows: this is a bug");
    if rows.data.len() < m * row_bytes {
        rows.data = Buffer::zeroed(m * row_bytes);
    }
    (rows.layout, rows.count) = (Some(layout), m);
    let out = Apart(rows.data.as_mut_ptr());
    let rows = &*rows;
    let job = |blocks: Range<usize>| {
        let mut ordered = vec![];
        for i in blocks {
            let (first, count) = rows.block(i);
            let mut x = &x[first * inner..][..count * inner];
            if let Some(order) = order {
                ordered.clear();
                ordered.extend(x.chunks_exact(inner).flat_map(|row| order.iter().map(|i| row[*i as usize])));
                x = &ordered;
            }
            // SAFETY: the block lies inside the buffer and no other piece writes it; a layout for a path's kernels comes
            // only from a matrix packed for that path, which checked that the machine has it.
            unsafe {
                let to = out.get().add(first * row_bytes);
                match layout.kind {
                    RowKind::F32 => interleave(x, inner, count, to.cast()),
                    #[cfg(target_arch = "x86_64")]
                    RowKind::Bf16 => bf16::pack_block(x, inner, count, to.cast()),
                    #[cfg(target_arch = "x86_64")]
                    RowKind::Int8(tail) => int8::pack_block(x, inner, count, tail, to),
                }
            }
        }
    };
    if rows.blocks() <= 1 { job(0..rows.blocks()) } else { pool.split(rows.blocks(), 4, &job) }
}

/// # Safety
/// `out` has room for `count` padded rows.
unsafe fn interleave(x: &[f32], inner: usize, count: usize, out: *mut f32) {
    for (r, row) in x.chunks_exact(inner).enumerate() {
        // SAFETY: `count` values for each of the padded k.
        unsafe {
            row.iter().enumerate().for_each(|(k, v)| *out.add(k * count + r) = *v);
            (inner..inner.next_multiple_of(2)).for_each(|k| *out.add(k * count + r) = 0.0);
        }
    }
}

/// A pointer that may cross into the pool; whoever uses it promises that threads write apart.
#[derive(Clone, Copy)]
pub(crate) struct Apart<T>(pub(crate) *mut T);

// SAFETY: only a pointer; every use is unsafe, and says why threads write apart.
unsafe impl<T> Send for Apart<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Apart<T> {}

impl<T> Apart<T> {
    pub(crate) fn get(self) -> *mut T {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_even_and_cover_all_rows() {
        for block_rows in [1, 3, 6, 12] {
            for count in 1..100 {
                let layout = RowLayout { kind: RowKind::F32, inner: 2, block_rows };
                let rows = Rows { data: Buffer::zeroed(count * 8), layout: Some(layout), count };
                let blocks: Vec<_> = (0..rows.blocks()).map(|i| rows.block(i)).collect();
                let mut next = 0;
                for (first, count) in &blocks {
                    assert_eq!(*first, next);
                    assert!((1..=block_rows).contains(count));
                    next += count;
                }
                assert_eq!(next, count);
                let sizes = || blocks.iter().map(|b| b.1);
                assert!(sizes().max().unwrap_or(0) - sizes().min().unwrap_or(0) <= 1);
            }
        }
    }
}
