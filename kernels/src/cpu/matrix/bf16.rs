//! bf16 weights x bf16-rounded activations -> f32, with `vdpbf16ps` (32 multiply-adds an instruction).
//!
//! weights  `[panel][k / 2][2][16 columns][2 k]`   one 64-byte line = 16 columns x 2 k
//! rows     `[block][k / 2][row][2 k]`             one broadcast = 1 row x 2 k
//! tile     12 rows x 2 lines: 24 accumulators leave registers for the weights and a broadcast
//!
//! Tolerance: activations are rounded to bf16 (2^-9 relative), as the weights were; the sum is f32, in k order, two k an
//! instruction. With activations that are bf16 already, below 1e-6 of the product's norm.
//!
//! Tried: panels of 48 and 64 columns are within noise of 32, which divides more N and splits more evenly. Software
//! prefetch of a panel read once slows it down; see [`Fetch`](super::Fetch). At 512 rows, within noise: multiplying 48 or
//! 220 rows by all panels in turn, so that they stay in the L2 (at 128 rows the former loses 12 %); fetching the lines of
//! the results ahead. Widths that are multiples of 1024 cost some 10 % there, for results and not for weights.

use std::arch::x86_64::*;

use super::Tile;

/// Most rows of a block.
pub(in crate::cpu) const BLOCK_ROWS: usize = 12;

/// # Safety
/// The machine has the path `avx512-bf16-vnni`; the pointers of `t` are as [`Tile`] says, for `count` rows.
pub(super) unsafe fn run(t: &Tile, count: usize) {
    macro_rules! rows {
        ($($mr:literal)*) => {
            match count {
                $($mr => unsafe { kernel::<$mr>(t) },)*
                _ => unreachable!("a block has 1 to 12 rows: this is a bug"),
            }
        };
    }
    // SAFETY: the caller's promise.
    rows!(1 2 3 4 5 6 7 8 9 10 11 12)
}

/// # Safety
/// As [`run`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn kernel<const MR: usize>(t: &Tile) {
    // SAFETY: `units` pairs of lines, `units * MR` pairs of activations; stores are masked to `columns`.
    unsafe {
        let mut sum = [[_mm512_setzero_ps(); 2]; MR];
        let (weights, rows) = (t.weights, t.rows.cast::<i32>());
        let mut step = |step: usize| {
            let w = [0, 1].map(|n| _mm512_load_si512(weights.add((step * 2 + n) * 64).cast()));
            for (r, sum) in sum.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(rows.add(step * MR + r).read_unaligned());
                for (sum, w) in sum.iter_mut().zip(w) {
                    *sum = _mm512_dpbf16_ps(*sum, bh(x), bh(w));
                }
            }
        };
        // The first steps fetch two lines each until the plan is done.
        let fetching = t.fetch.lines.div_ceil(2).min(t.units);
        for i in 0..fetching {
            _mm_prefetch::<_MM_HINT_T1>(t.fetch.from.wrapping_add(i * 128).cast());
            _mm_prefetch::<_MM_HINT_T1>(t.fetch.from.wrapping_add(i * 128 + 64).cast());
            step(i);
        }
        for i in fetching..t.units {
            step(i);
        }
        for (r, sum) in sum.into_iter().enumerate() {
            store(t, r, sum);
        }
    }
}

/// Rounds and interleaves one block of rows.
///
/// # Safety
/// The machine has the path `avx512-bf16-vnni`; `out` has room for `count` padded rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(in crate::cpu) unsafe fn pack_block(x: &[f32], inner: usize, count: usize, out: *mut u32) {
    // SAFETY: masked loads stay inside the row; `out` is written at pairs below the padded row's.
    unsafe {
        let mut pairs = [0u32; 16];
        for row in 0..count {
            for i in (0..inner).step_by(32) {
                let from = x.as_ptr().add(row * inner + i);
                let left = (inner - i).min(32);
                let mask = ((1u64 << left) - 1) as u32;
                let low = _mm512_maskz_loadu_ps(mask as __mmask16, from);
                let high = _mm512_maskz_loadu_ps((mask >> 16) as __mmask16, from.wrapping_add(16));
                let v = _mm512_cvtne2ps_pbh(high, low);
                _mm512_storeu_si512(pairs.as_mut_ptr().cast(), std::mem::transmute::<__m512bh, __m512i>(v));
                let to = out.add(i / 2 * count + row);
                for (j, pair) in pairs.iter().take(left.div_ceil(2)).enumerate() {
                    to.add(j * count).write(*pair);
                }
            }
        }
    }
}

/// Writes the columns of row `r`, as far as they are there.
///
/// # Safety
/// AVX-512 F; row `r` is one of the tile's.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn store(t: &Tile, r: usize, lines: [__m512; 2]) {
    for (n, v) in lines.into_iter().enumerate() {
        let left = t.columns.saturating_sub(n * 16).min(16);
        let mask = ((1u32 << left) - 1) as __mmask16;
        // SAFETY: masked to the columns that are there.
        unsafe { _mm512_mask_storeu_ps(t.out.wrapping_add(r * t.stride + n * 16), mask, v) };
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn bh(v: __m512i) -> __m512bh {
    // SAFETY: both are 64 plain bytes.
    unsafe { std::mem::transmute(v) }
}
