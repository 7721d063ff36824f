//! f32 rows x plain weights -> f32, with AVX-512 multiply-add: exact but for the sum. Blocks are in `decoded.rs`.
//!
//! tile   8 rows x 2 lines of 16 columns
//!
//! Sums run over k in order, one fused multiply-add each.

use std::arch::x86_64::*;

use super::bf16::store;
use super::{Format, Tile, decoded};

/// Most rows of a block.
pub(super) const BLOCK_ROWS: usize = 8;

const F32: u8 = Format::F32 as u8;
const F16: u8 = Format::F16 as u8;
const BF16: u8 = Format::Bf16 as u8;

/// # Safety
/// The machine has the path `avx512`; the pointers of `t` are as [`Tile`] says, for `count` rows.
pub(super) unsafe fn run(format: Format, t: &Tile, count: usize) {
    macro_rules! rows {
        ($kernel:ident, $format:ident, $($mr:literal)*) => {
            match count {
                $($mr => unsafe { $kernel::<$format, $mr>(t) },)*
                _ => unreachable!("a block has 1 to 8 rows: this is a bug"),
            }
        };
    }
    // SAFETY: the caller's promise.
    match format {
        Format::F32 => rows!(plain, F32, 1 2 3 4 5 6 7 8),
        Format::F16 => rows!(plain, F16, 1 2 3 4 5 6 7 8),
        Format::Bf16 => rows!(plain, BF16, 1 2 3 4 5 6 7 8),
        _ => unsafe { decoded::run512(format, t, count) },
    }
}

type Sums<const MR: usize> = [[__m512; 2]; MR];

/// `sum += x[k] * w` for all rows.
///
/// # Safety
/// AVX-512 F; `rows` are those of one k.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn accumulate<const MR: usize>(sum: &mut Sums<MR>, rows: *const f32, w: [__m512; 2]) {
    for (r, sum) in sum.iter_mut().enumerate() {
        // SAFETY: `MR` rows.
        let x = _mm512_set1_ps(unsafe { rows.add(r).read_unaligned() });
        for n in 0..2 {
            sum[n] = _mm512_fmadd_ps(x, w[n], sum[n]);
        }
    }
}

/// # Safety
/// As [`run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn finish<const MR: usize>(t: &Tile, sum: Sums<MR>) {
    for (r, sum) in sum.into_iter().enumerate() {
        // SAFETY: a row of the tile.
        unsafe { store(t, r, sum) };
    }
}

/// # Safety
/// As [`run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn plain<const F: u8, const MR: usize>(t: &Tile) {
    // SAFETY: `units` units, and rows padded to an even k.
    unsafe {
        let mut sum = [[_mm512_setzero_ps(); 2]; MR];
        let (rows, lines) = (t.rows.cast::<f32>(), if F == F16 { 1 } else { 2 });
        let fetching = t.fetch.lines.div_ceil(lines);
        for unit in 0..t.units {
            let w = t.weights.add(unit * lines * 64);
            if unit < fetching {
                for i in 0..lines {
                    _mm_prefetch::<_MM_HINT_T1>(t.fetch.from.wrapping_add((unit * lines + i) * 64).cast());
                }
            }
            if F == F32 {
                accumulate(&mut sum, rows.add(unit * MR), [0, 1].map(|n| _mm512_loadu_ps(w.add(n * 64).cast())));
            } else if F == F16 {
                let w = [0, 1].map(|n| _mm512_cvtph_ps(_mm256_loadu_si256(w.add(n * 32).cast())));
                accumulate(&mut sum, rows.add(unit * MR), w);
            } else {
                let pairs = [0, 1].map(|n| _mm512_loadu_si512(w.add(n * 64).cast()));
                let even = pairs.map(|p| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(p)));
                let top = _mm512_set1_epi32(0xffff_0000_u32 as i32);
                let odd = pairs.map(|p| _mm512_castsi512_ps(_mm512_and_si512(p, top)));
                accumulate(&mut sum, rows.add(unit * 2 * MR), even);
                accumulate(&mut sum, rows.add((unit * 2 + 1) * MR), odd);
            }
        }
        finish(t, sum);
    }
}
