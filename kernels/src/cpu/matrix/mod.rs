//! Owns weight matrices: repacked once into panels, multiplied by packed rows with the kernels of one instruction-set
//! path. Knows no program, no sequence and no model.
//!
//! `out[M, N] = x[M, K] * w[N, K]^T`, f32 in, f32 out. **The one law:** every output element is summed over k in one
//! fixed order by one chain, whatever M is, wherever its row stands and however the work is split over threads. Only rows
//! and columns are ever split. `laws.rs` proves it for every path, format and precision.
//!
//! | path | f32, f16 | bf16 | blocks |
//! |---|---|---|---|
//! | `avx512-bf16-vnni` | f32 (`avx512.rs`) | bf16 products (`bf16.rs`) | int8 products (`int8.rs`) |
//! | `avx512-vnni`, `avx512` | f32 | f32 | int8 products |
//! | `avx2-vnni`, `avx2` | f32 (`avx2.rs`) | f32 | int8 products |
//! | `portable`; every path, exact | f32 (`portable.rs`) | f32 | f32 |
//!
//! "f32" multiplies f32 activations by exactly decoded weights: relative error of the sum only, below 1e-6 of the
//! product's norm at the sizes tested.

#[cfg(target_arch = "x86_64")]
pub(super) mod bf16;
#[cfg(target_arch = "x86_64")]
pub(super) mod int8;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod blocks;
#[cfg(target_arch = "x86_64")]
mod decoded;
#[cfg(target_arch = "x86_64")]
mod dots;
#[cfg(test)]
mod laws;
mod panel;
mod portable;
#[cfg(target_arch = "x86_64")]
mod unpack;

use std::ops::Range;

use super::buffer::{Buffer, Shelf};
use super::isa::Isa;
use super::pool::Pool;
use super::rows::{self, Apart, RowKind, RowLayout, Rows};
use crate::{Error, Format, HostTensor, Precision, Result, format};

/// Runs `$rows!(FORMAT)` for the format of `$format`, one of those whose codes are integers.
#[cfg(target_arch = "x86_64")]
macro_rules! each_integer_format {
    ($format:expr, $rows:ident) => {
        match $format {
            Format::Q8_0 => $rows!(Q8_0),
            Format::Q4_0 => $rows!(Q4_0),
            Format::Q4_1 => $rows!(Q4_1),
            Format::Q5_0 => $rows!(Q5_0),
            Format::Q5_1 => $rows!(Q5_1),
            Format::Q2K => $rows!(Q2K),
            Format::Q3K => $rows!(Q3K),
            Format::Q4K => $rows!(Q4K),
            Format::Q5K => $rows!(Q5K),
            Format::Q6K => $rows!(Q6K),
            Format::Iq4Nl => $rows!(Iq4Nl),
            Format::Iq4Xs => $rows!(Iq4Xs),
            Format::Mxfp4 => $rows!(Mxfp4),
            Format::Int8G32 => $rows!(Int8G32),
            Format::Int8G128 => $rows!(Int8G128),
            Format::Int4G32 => $rows!(Int4G32),
            Format::Int4G128 => $rows!(Int4G128),
            other => unreachable!("{other} has no integer codes: this is a bug"),
        }
    };
}
#[cfg(target_arch = "x86_64")]
use each_integer_format;

/// As [`each_integer_format`], for all block formats.
#[cfg(target_arch = "x86_64")]
macro_rules! each_block_format {
    ($format:expr, $rows:ident) => {
        match $format {
            Format::Fp8G32 => $rows!(Fp8G32),
            Format::Fp8G128 => $rows!(Fp8G128),
            format => each_integer_format!(format, $rows),
        }
    };
}
#[cfg(target_arch = "x86_64")]
use each_block_format;

/// One weight matrix `[out, in]`, in the layout its kernels want.
pub(crate) struct Matrix {
    data: Buffer,
    out: usize,
    inner: usize,
    format: Format,
    kernel: Kernel,
    /// Which input each column is, where they stand in another order.
    order: Option<Vec<u32>>,
}

/// Which file multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Bf16,
    #[cfg(target_arch = "x86_64")]
    Int8(int8::Instructions),
}

impl Matrix {
    /// Repacks `t` `[out, in]`, kept as `to`, for the kernels of `isa`, into memory of `shelf`. Reads the borrowed bytes once, panel by panel, on
    /// all threads of the pool.
    ///
    /// # Errors
    /// When `t` is no matrix, `in` does not fill whole blocks of `to`, nothing encodes `to`, or memory is out.
    pub(crate) fn pack(
        pool: &Pool,
        shelf: &mut Shelf,
        t: &HostTensor,
        to: Format,
        isa: Isa,
        precision: Precision,
    ) -> Result<Self> {
        assert!(isa.available(), "a path is chosen from those the machine has: this is a bug");
        let [out, inner] = *t.shape.dims() else {
            return Err(Error::Tensor(format!("{}: shape {} is not a matrix [out, in]", t.name, t.shape)));
        };
        if out == 0 || inner == 0 {
            return Err(Error::Tensor(format!("{}: shape {} is empty", t.name, t.shape)));
        }
        if !inner.is_multiple_of(to.block_len()) {
            let reason = format!(
                "keeping {} as {to}: its inner dimension {inner} is no whole number of blocks of {}; \
                keep it as bf16",
                t.name,
                to.block_len()
            );
            return Err(Error::Unsupported { device: "cpu", what: reason });
        }
        if !format::encodes(to) && t.format != to {
            let what = format!("converting {} from {} to {to}; keep it as {} or bf16", t.name, t.format, t.format);
            return Err(Error::Unsupported { device: "cpu", what });
        }
        let bytes = out.div_ceil(panel::COLUMNS) * panel_bytes(to, inner);
        let data = shelf.try_zeroed(bytes).ok_or_else(|| Error::OutOfMemory {
            what: format!("the weight {}", t.name),
            needed: bytes as u64,
            free: 0,
        })?;
        let mut this = Self {
            data,
            out,
            inner,
            format: to,
            kernel: Kernel::of(isa, to, precision),
            order: t.order().map(Into::into),
        };
        this.fill(pool, t);
        Ok(this)
    }

    /// Output columns, N.
    pub(crate) fn out(&self) -> usize {
        self.out
    }

    /// Input values of a row, K.
    pub(crate) fn inner(&self) -> usize {
        self.inner
    }

    /// Packs activations `x` `[m, in]` for this matrix, and for all others of its layout and order of inputs.
    pub(crate) fn pack_rows(&self, pool: &Pool, x: &[f32], m: usize, rows: &mut Rows) {
        rows::pack_rows(self.layout(), self.order.as_deref(), pool, x, m, rows);
    }

    /// Whether rows packed for this matrix are those that `other` wants.
    pub(crate) fn shares_rows(&self, other: &Self) -> bool {
        self.layout() == other.layout() && self.order == other.order
    }

    /// Panels that [`Self::apply`] can be split over.
    pub(crate) fn panels(&self) -> usize {
        self.out.div_ceil(panel::COLUMNS)
    }

    /// Output columns of a panel; the last may have fewer.
    pub(crate) fn panel_columns() -> usize {
        panel::COLUMNS
    }

    /// How [`super::rows::pack_rows`] must pack activations for this matrix.
    pub(crate) fn layout(&self) -> RowLayout {
        let (kind, block_rows) = match self.kernel {
            Kernel::Portable => (RowKind::F32, portable::BLOCK_ROWS),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => (RowKind::F32, avx2::BLOCK_ROWS),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => (RowKind::F32, avx512::BLOCK_ROWS),
            #[cfg(target_arch = "x86_64")]
            Kernel::Bf16 => (RowKind::Bf16, bf16::BLOCK_ROWS),
            #[cfg(target_arch = "x86_64")]
            Kernel::Int8(_) => (RowKind::Int8(int8::Tail::of(self.format)), int8::BLOCK_ROWS),
        };
        RowLayout { kind, inner: self.inner, block_rows }
    }

    /// Writes columns `panels.start * 32 ..` up to `panels.end * 32` (or the matrix' last) of `out[rows.count(), stride]`.
    /// May be called from a job of the pool; pieces that work on different panels write apart.
    ///
    /// Panics when `rows` were not packed for this matrix' layout.
    ///
    /// # Safety
    /// `out` has room for `rows.count() - 1` strides and one row of [`Self::out`] values more, and nobody else reads or
    /// writes the columns of `panels` meanwhile.
    pub(crate) unsafe fn apply(&self, rows: &Rows, panels: Range<usize>, out: Apart<f32>, stride: usize) {
        assert_eq!(rows.layout(), Some(self.layout()), "rows are packed for their matrix: this is a bug");
        assert!(panels.end <= self.panels() && stride >= self.out, "panels and columns exist: this is a bug");
        let (blocks, bytes) = (rows.blocks(), panel_bytes(self.format, self.inner));
        for panel in panels {
            let column = panel * panel::COLUMNS;
            for i in 0..blocks {
                let (first, count) = rows.block(i);
                // SAFETY: panel, rows and columns lie inside their buffers; the path was checked when packing.
                unsafe {
                    let weights = self.data.as_ptr().add(panel * bytes);
                    let tile = Tile {
                        units: bytes / panel::unit_bytes(self.format),
                        inner: self.inner,
                        rows: rows.block_at(first),
                        weights,
                        fetch: Fetch::plan(weights, bytes, i, blocks, count),
                        out: out.get().add(first * stride + column),
                        stride,
                        columns: (self.out - column).min(panel::COLUMNS),
                    };
                    match self.kernel {
                        Kernel::Portable => portable::run(self.format, &tile, count),
                        #[cfg(target_arch = "x86_64")]
                        Kernel::Avx2 => avx2::run(self.format, &tile, count),
                        #[cfg(target_arch = "x86_64")]
                        Kernel::Avx512 => avx512::run(self.format, &tile, count),
                        #[cfg(target_arch = "x86_64")]
                        Kernel::Bf16 => bf16::run(&tile, count),
                        #[cfg(target_arch = "x86_64")]
                        Kernel::Int8(instructions) => int8::run(instructions, self.format, &tile, count),
                    }
                }
            }
        }
    }

    /// Row `row` of the weights (an embedding), `[in]`, exactly as stored.
    ///
    /// Panics when there is no such row or `out` is no row.
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.out && out.len() == self.inner, "an embedding row exists: this is a bug");
        let bytes = panel_bytes(self.format, self.inner);
        let panel = &self.data.as_slice()[row / panel::COLUMNS * bytes..][..bytes];
        let units = panel.chunks_exact(panel::unit_bytes(self.format));
        for (unit, out) in units.zip(out.chunks_mut(panel::unit_len(self.format))) {
            for (i, out) in out.iter_mut().enumerate() {
                *out = panel::get(self.format, unit, row % panel::COLUMNS, i);
            }
        }
        if let Some(order) = &self.order {
            let stored = out.to_vec();
            order.iter().zip(stored).for_each(|(i, value)| out[*i as usize] = value);
        }
    }

    fn fill(&mut self, pool: &Pool, t: &HostTensor) {
        let (format, inner, bytes) = (self.format, self.inner, panel_bytes(self.format, self.inner));
        let row_bytes = t.format.bytes(inner).expect("a host tensor has whole rows: this is a bug");
        let out = Apart(self.data.as_mut_ptr());
        pool.split(self.panels(), Pool::CHUNKS, &|panels| {
            let mut scratch = [0.0; CHUNK];
            for panel in panels {
                // SAFETY: panels do not overlap and lie inside the buffer.
                let units = unsafe { std::slice::from_raw_parts_mut(out.get().add(panel * bytes), bytes) };
                let columns = panel * panel::COLUMNS..self.out.min((panel + 1) * panel::COLUMNS);
                for from in (0..inner).step_by(CHUNK) {
                    let len = CHUNK.min(inner - from);
                    let whole = |f: Format, n: usize| f.bytes(n).expect("chunks are whole blocks: this is a bug");
                    let units = &mut units[from / panel::unit_len(format) * panel::unit_bytes(format)..];
                    for row in columns.clone() {
                        let src = &t.bytes[row * row_bytes + whole(t.format, from)..][..whole(t.format, len)];
                        let column = row % panel::COLUMNS;
                        if t.format == format {
                            panel::put(format, units, column, src);
                        } else {
                            format::decode(t.format, src, &mut scratch[..len]);
                            panel::put(format, units, column, &format::encode(format, &scratch[..len]));
                        }
                    }
                }
            }
        });
    }
}

impl Kernel {
    fn of(isa: Isa, format: Format, precision: Precision) -> Self {
        #[cfg(target_arch = "x86_64")]
        if precision == Precision::Native {
            match int8::Instructions::of(isa) {
                Some(instructions) if int8::multiplies(format) => return Self::Int8(instructions),
                _ if format == Format::Bf16 && isa == Isa::Avx512Bf16Vnni => return Self::Bf16,
                _ => {}
            }
        }
        match isa {
            Isa::Portable => Self::Portable,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx2Vnni => Self::Avx2,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16Vnni => Self::Avx512,
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("{} for {format} {precision:?} is not available here: this is a bug", isa.name()),
        }
    }
}

/// One panel times one block of rows: what a kernel is given.
struct Tile {
    /// Units of the panel.
    units: usize,
    /// K, before padding.
    inner: usize,
    rows: *const u8,
    weights: *const u8,
    fetch: Fetch,
    /// First row and column of the block's results.
    out: *mut f32,
    stride: usize,
    /// Columns to write, 1 to 32.
    columns: usize,
}

/// What a tile prefetches into the L2 while it works.
///
/// A panel read once by few rows is left to the hardware prefetcher, which does better alone; from 6 rows on it falls
/// behind the arithmetic, so a tile fetches its own panel a little ahead. Several blocks of rows share the work of
/// fetching the next panel between them.
#[derive(Clone, Copy)]
struct Fetch {
    from: *const u8,
    /// Cache lines in all.
    lines: usize,
}

impl Fetch {
    fn plan(weights: *const u8, panel_bytes: usize, block: usize, blocks: usize, rows: usize) -> Self {
        match blocks {
            1 if rows < 6 => Self { from: weights, lines: 0 },
            1 => Self { from: weights.wrapping_add(8192), lines: panel_bytes / 64 },
            _ => {
                let lines = (panel_bytes / 64).div_ceil(blocks);
                Self { from: weights.wrapping_add(panel_bytes + block * lines * 64), lines }
            }
        }
    }
}

/// Values of a row repacked at a time: whole blocks of every format, and small enough that 32 rows stay in the L1.
const CHUNK: usize = 256;

fn panel_bytes(format: Format, inner: usize) -> usize {
    inner.div_ceil(panel::unit_len(format)) * panel::unit_bytes(format)
}
