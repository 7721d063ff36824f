//! f32 rows x plain weights -> f32, with AVX2 multiply-add: exact but for the sum. Blocks are in `decoded.rs`.
//!
//! tile   up to 3 rows x 4 lines of 8 columns, or up to 6 rows x 2 lines, twice: 12 accumulators of 16 registers
//!
//! Sums run over k in order, one fused multiply-add each.

use std::arch::x86_64::*;

use super::{Format, Tile, decoded};

/// Most rows of a block.
pub(super) const BLOCK_ROWS: usize = 6;

const F32: u8 = Format::F32 as u8;
const F16: u8 = Format::F16 as u8;
const BF16: u8 = Format::Bf16 as u8;

/// # Safety
/// The machine has the path `avx2`; the pointers of `t` are as [`Tile`] says, for `count` rows.
pub(super) unsafe fn run(format: Format, t: &Tile, count: usize) {
    macro_rules! rows {
        ($kernel:ident, $format:ident) => {
            match count {
                1 => unsafe { $kernel::<$format, 1, 4>(t, 0) },
                2 => unsafe { $kernel::<$format, 2, 4>(t, 0) },
                3 => unsafe { $kernel::<$format, 3, 4>(t, 0) },
                4 => [0, 2].into_iter().for_each(|line| unsafe { $kernel::<$format, 4, 2>(t, line) }),
                5 => [0, 2].into_iter().for_each(|line| unsafe { $kernel::<$format, 5, 2>(t, line) }),
                6 => [0, 2].into_iter().for_each(|line| unsafe { $kernel::<$format, 6, 2>(t, line) }),
                _ => unreachable!("a block has 1 to 6 rows: this is a bug"),
            }
        };
    }
    // SAFETY: the caller's promise.
    match format {
        Format::F32 => rows!(plain, F32),
        Format::F16 => rows!(plain, F16),
        Format::Bf16 => rows!(plain, BF16),
        _ => unsafe { decoded::run256(format, t, count) },
    }
}

type Sums<const MR: usize, const NR: usize> = [[__m256; NR]; MR];

/// Lines `line..line + NR` of the panel.
///
/// # Safety
/// As [`run`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn plain<const F: u8, const MR: usize, const NR: usize>(t: &Tile, line: usize) {
    // SAFETY: `units` units, and rows padded to an even k.
    unsafe {
        let mut sum = [[_mm256_setzero_ps(); NR]; MR];
        let mut rows = t.rows.cast::<f32>();
        let (lines, len) = match F {
            F16 => (1, 1),
            BF16 => (2, 2),
            _ => (2, 1),
        };
        let fetching = t.fetch.lines.div_ceil(lines);
        let top = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        for unit in 0..t.units {
            let from = t.weights.add(unit * lines * 64);
            if unit < fetching {
                for i in 0..lines {
                    _mm_prefetch::<_MM_HINT_T1>(t.fetch.from.wrapping_add((unit * lines + i) * 64).cast());
                }
            }
            let mut w = [_mm256_setzero_ps(); NR];
            if F == BF16 {
                let pairs = |n: usize| _mm256_loadu_si256(from.add((line + n) * 32).cast());
                (0..NR).for_each(|n| w[n] = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs(n))));
                accumulate(&mut sum, rows, w);
                (0..NR).for_each(|n| w[n] = _mm256_castsi256_ps(_mm256_and_si256(pairs(n), top)));
                accumulate(&mut sum, rows.add(MR), w);
            } else {
                for (n, w) in w.iter_mut().enumerate() {
                    *w = match F {
                        F16 => _mm256_cvtph_ps(_mm_loadu_si128(from.add((line + n) * 16).cast())),
                        _ => _mm256_loadu_ps(from.add((line + n) * 32).cast()),
                    };
                }
                accumulate(&mut sum, rows, w);
            }
            rows = rows.add(len * MR);
        }
        finish(t, line, sum);
    }
}

/// `sum += x[k] * w` for all rows.
///
/// # Safety
/// `rows` are those of one k.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn accumulate<const MR: usize, const NR: usize>(sum: &mut Sums<MR, NR>, rows: *const f32, w: [__m256; NR]) {
    for (r, sum) in sum.iter_mut().enumerate() {
        // SAFETY: `MR` rows.
        let x = _mm256_set1_ps(unsafe { rows.add(r).read_unaligned() });
        for n in 0..NR {
            sum[n] = _mm256_fmadd_ps(x, w[n], sum[n]);
        }
    }
}

/// # Safety
/// As [`run`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn finish<const MR: usize, const NR: usize>(t: &Tile, line: usize, sum: Sums<MR, NR>) {
    for (r, sum) in sum.iter().enumerate() {
        for (n, v) in sum.iter().enumerate() {
            let column = (line + n) * 8;
            let mut values = [0f32; 8];
            // SAFETY: `columns` values of row `r` are ours to write.
            unsafe {
                _mm256_storeu_ps(values.as_mut_ptr(), *v);
                let out = t.out.wrapping_add(r * t.stride + column);
                out.copy_from_nonoverlapping(values.as_ptr(), t.columns.saturating_sub(column).min(8));
            }
        }
    }
}
