//! f32 rows x blocks decoded in registers -> f32: every block format, exact but for the sum; [`Dots`] are the registers.
//!
//! tile   512 bits: up to 8 rows x 2 lines of 16 columns: 16 accumulators leave registers to decode with
//!        256 bits: up to 3 rows x 4 lines of 8 columns, or up to 6 rows x 2 lines, twice: 12 accumulators of 16 registers
//! weight `fma(q, scale, base)`: base is -offset * scale or the minimum, so one rounding at most, as the format says;
//!        8-bit floats are widened by their bits and one multiplication, then scaled
//!
//! Sums run over k in order, one fused multiply-add each.

use std::arch::x86_64::*;

use super::blocks::Values;
use super::dots::{Dots, Pairs256, Pairs512};
use super::panel::COLUMNS;
use super::unpack::{blocks, minimum_of, quad_of, scale_of};
use super::{Tile, each_block_format, each_integer_format};
use crate::Format;

/// # Safety
/// The machine has the path `avx512`; the pointers of `t` are as [`Tile`] says, for `count` rows.
pub(super) unsafe fn run512(format: Format, t: &Tile, count: usize) {
    macro_rules! rows {
        ($format:ident) => {
            rows!($format, 1 2 3 4 5 6 7 8)
        };
        ($format:ident, $($mr:literal)*) => {
            match count {
                $($mr => unsafe { entry512::<{ Format::$format as u8 }, $mr>(t) },)*
                _ => unreachable!("a block has 1 to 8 rows: this is a bug"),
            }
        };
    }
    // SAFETY: the caller's promise.
    each_block_format!(format, rows)
}

/// # Safety
/// The machine has the path `avx2`; the pointers of `t` are as [`Tile`] says, for `count` rows.
pub(super) unsafe fn run256(format: Format, t: &Tile, count: usize) {
    macro_rules! rows {
        ($format:ident) => {
            rows!($format, 1 4, 2 4, 3 4, 4 2, 5 2, 6 2)
        };
        ($format:ident, $($mr:literal $nr:literal),*) => {
            match count {
                $($mr => unsafe { entry256::<{ Format::$format as u8 }, $mr, $nr>(t) },)*
                _ => unreachable!("a block has 1 to 6 rows: this is a bug"),
            }
        };
    }
    // SAFETY: the caller's promise.
    each_block_format!(format, rows)
}

/// # Safety
/// As [`run512`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn entry512<const F: u8, const MR: usize>(t: &Tile) {
    // SAFETY: the caller's promise.
    unsafe { kernel::<Pairs512, F, MR, 2>(t, 0) }
}

/// # Safety
/// As [`run256`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn entry256<const F: u8, const MR: usize, const NR: usize>(t: &Tile) {
    for line in (0..4).step_by(NR) {
        // SAFETY: the caller's promise; lines of the panel.
        unsafe { kernel::<Pairs256, F, MR, NR>(t, line) }
    }
}

/// Lines `line..line + NR` of the panel.
///
/// # Safety
/// As [`run512`] and [`run256`].
#[inline(always)]
unsafe fn kernel<D: Dots, const F: u8, const MR: usize, const NR: usize>(t: &Tile, line: usize) {
    // SAFETY: `units` units, and 32 k of rows a group.
    unsafe {
        let b = blocks::<F>();
        let mut sum = [[D::all(0.0); NR]; MR];
        let mut rows = t.rows.cast::<f32>();
        let mut fetch = (t.fetch.from, t.fetch.lines);
        let lines_a_group = t.fetch.lines.div_ceil(t.units * b.groups);
        for unit in 0..t.units {
            let unit = t.weights.add(unit * b.unit_bytes());
            let shared = unit.add(b.groups * b.group_bytes());
            for g in 0..b.groups {
                let group = unit.add(g * b.group_bytes());
                for _ in 0..lines_a_group.min(fetch.1) {
                    _mm_prefetch::<_MM_HINT_T1>(fetch.0.cast());
                    fetch = (fetch.0.wrapping_add(64), fetch.1 - 1);
                }
                for half in 0..2 {
                    // A line at a time, so that its scale and base stay in registers over the half's 16 k.
                    for n in 0..NR {
                        let scale = scale_of::<D, F>(group, shared, half, line + n);
                        let base = match b.values {
                            Values::Plain => minimum_of::<D, F>(group, shared, half, line + n),
                            _ => D::mul(scale, D::all(-f32::from(b.offset()))),
                        };
                        for quad in half * 4..half * 4 + 4 {
                            let quads = quad_of::<D, F>(group, quad, line + n);
                            for k in 0..4 {
                                let w = match (b.values, D::byte(quads, k)) {
                                    (Values::E4m3, q) => D::mul(D::of_e4m3(q), scale),
                                    (_, q) => D::fma(D::float(q), scale, base),
                                };
                                let rows = rows.add((quad % 4 * 4 + k) * MR);
                                for (r, sum) in sum.iter_mut().enumerate() {
                                    sum[n] = D::fma(D::all(rows.add(r).read_unaligned()), w, sum[n]);
                                }
                            }
                        }
                    }
                    rows = rows.add(16 * MR);
                }
            }
        }
        debug_assert!((line + NR) * D::COLUMNS <= COLUMNS);
        for (r, sum) in sum.into_iter().enumerate() {
            for (n, sum) in sum.into_iter().enumerate() {
                let column = (line + n) * D::COLUMNS;
                D::store(t.out.wrapping_add(r * t.stride + column), t.columns.saturating_sub(column), sum);
            }
        }
    }
}
