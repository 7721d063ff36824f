//! 8-, 6- and 4-bit weights x int8 activations -> f32, with `vpdpbusd` (64 multiply-adds an instruction).
//!
//! Activations have one f32 scale a row and 32 k: what Q8_0 x Q8_0 means, with a scale that is not rounded to f16.
//! rows     `[block][k / 32]( [8 quads][row][4 k] i8, tail )`
//! tail     q8_0, q4_0   `[row] i32, [row] f32 scale`      the i32 is -offset * sum of the 32 values
//!          q4_1         `[row] f32, [row] f32 scale`      the f32 is scale * sum
//!          q6_k         `[2 halves][row] i32, [row] f32 scale`   the i32 are -32 * sum of 16 values
//! tile     6 rows x 2 lines: int32 and f32 accumulators side by side
//!
//! The weights are the unsigned operand, so their offset is paid for on the row side, once a group and row: the int32
//! accumulator starts there instead of at zero. Integer sums are exact; only the f32 fold rounds, one multiply-add a
//! group, groups in order (two for q4_1: its minimum times the sum of the activations; two for q6_k: its halves).
//!
//! Tolerance: rounding the activations to 8 bits, 0.5 % of the product's norm for smooth rows, 1.2 % with 30-fold
//! outliers; with activations on the grid, below 1e-6.
//!
//! Tried: activation scales of powers of two (added to the exponent) gain 8 points of peak and lose 0.3 % accuracy; one
//! scale a row gains the same and triples the error with outliers; 64-column panels of 3 rows are 3 points faster.

use std::arch::x86_64::*;

use super::bf16::store;
use super::panel::{NIBBLES, Q6K_GROUP, unit_bytes};
use super::{Format, Tile};

/// Most rows of a block.
pub(in crate::cpu) const BLOCK_ROWS: usize = 6;

/// What follows the 32 bytes of a row's group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) enum Tail {
    /// -offset * sum, scale.
    Offset(i32),
    /// scale * sum, scale.
    ScaledSum,
    /// -offset * sum of each half, scale.
    Halves(i32),
}

impl Tail {
    pub(super) fn of(format: Format) -> Self {
        match format {
            Format::Q8_0 => Self::Offset(128),
            Format::Q4_0 => Self::Offset(8),
            Format::Q4_1 => Self::ScaledSum,
            Format::Q6K => Self::Halves(32),
            _ => unreachable!("{format} is not multiplied in int8: this is a bug"),
        }
    }

    pub(in crate::cpu) fn bytes(self) -> usize {
        if matches!(self, Self::Halves(_)) { 12 } else { 8 }
    }
}

const Q8_0: u8 = Format::Q8_0 as u8;
const Q4_0: u8 = Format::Q4_0 as u8;
const Q4_1: u8 = Format::Q4_1 as u8;
const Q6K: u8 = Format::Q6K as u8;

/// # Safety
/// The machine has the path `avx512-bf16-vnni`; the pointers of `t` are as [`Tile`] says, for `count` rows.
pub(super) unsafe fn run(format: Format, t: &Tile, count: usize) {
    macro_rules! rows {
        ($format:ident, $($mr:literal)*) => {
            match count {
                $($mr => unsafe { kernel::<$format, $mr>(t) },)*
                _ => unreachable!("a block has 1 to 6 rows: this is a bug"),
            }
        };
    }
    // SAFETY: the caller's promise.
    match format {
        Format::Q8_0 => rows!(Q8_0, 1 2 3 4 5 6),
        Format::Q4_0 => rows!(Q4_0, 1 2 3 4 5 6),
        Format::Q4_1 => rows!(Q4_1, 1 2 3 4 5 6),
        Format::Q6K => rows!(Q6K, 1 2 3 4 5 6),
        _ => unreachable!("{format} is not multiplied in int8: this is a bug"),
    }
}

/// # Safety
/// As [`run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn kernel<const F: u8, const MR: usize>(t: &Tile) {
    // SAFETY: the panel and the block hold `groups` groups; stores are masked to `columns`.
    unsafe {
        let (halves, groups_of_unit) = if F == Q6K { (2, 8) } else { (1, 1) };
        let mut sum = [[_mm512_setzero_ps(); 2]; MR];
        let (mut rows, mut weights) = (t.rows.cast::<i32>(), t.weights);
        let groups = t.units * groups_of_unit;
        let mut fetch = (t.fetch.from, t.fetch.lines);
        let lines_a_group = t.fetch.lines.div_ceil(groups);
        for g in 0..groups {
            for _ in 0..lines_a_group.min(fetch.1) {
                _mm_prefetch::<_MM_HINT_T1>(fetch.0.cast());
                fetch = (fetch.0.wrapping_add(64), fetch.1 - 1);
            }
            let start = rows.add(8 * MR); // [half][row]
            let row_scales = start.add(halves * MR).cast::<f32>();
            for h in 0..halves {
                let mut dot = [[_mm512_setzero_si512(); 2]; MR];
                if F != Q4_1 {
                    for (r, dot) in dot.iter_mut().enumerate() {
                        *dot = [_mm512_set1_epi32(start.add(h * MR + r).read_unaligned()); 2];
                    }
                }
                for quad in h * 8 / halves..(h + 1) * 8 / halves {
                    let w = [quad_of::<F>(weights, quad, 0), quad_of::<F>(weights, quad, 1)];
                    for (r, dot) in dot.iter_mut().enumerate() {
                        let x = _mm512_set1_epi32(rows.add(quad * MR + r).read_unaligned());
                        for (dot, w) in dot.iter_mut().zip(w) {
                            *dot = _mm512_dpbusd_epi32(*dot, w, x);
                        }
                    }
                }
                for n in 0..2 {
                    let scale = scale_of::<F>(weights, g, h, n);
                    for (r, (sum, dot)) in sum.iter_mut().zip(&dot).enumerate() {
                        let scale = _mm512_mul_ps(scale, _mm512_set1_ps(row_scales.add(r).read_unaligned()));
                        sum[n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[n]), scale, sum[n]);
                    }
                    if F == Q4_1 {
                        let minimum = _mm512_cvtph_ps(_mm256_loadu_si256(weights.add(NIBBLES + 64 + n * 32).cast()));
                        for (r, sum) in sum.iter_mut().enumerate() {
                            let total = _mm512_set1_ps(start.add(r).cast::<f32>().read_unaligned());
                            sum[n] = _mm512_fmadd_ps(total, minimum, sum[n]);
                        }
                    }
                }
            }
            rows = row_scales.add(MR).cast();
            weights = weights.add(match F {
                Q8_0 => unit_bytes(Format::Q8_0),
                Q4_0 => unit_bytes(Format::Q4_0),
                Q4_1 => unit_bytes(Format::Q4_1),
                _ => Q6K_GROUP + if g % 8 == 7 { 64 } else { 0 },
            });
        }
        for (r, sum) in sum.into_iter().enumerate() {
            store(t, r, sum);
        }
    }
}

/// 16 columns x 4 k, unsigned.
///
/// # Safety
/// `group` starts a group of 32 k.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn quad_of<const F: u8>(group: *const u8, quad: usize, n: usize) -> __m512i {
    // SAFETY: lines of the group.
    unsafe {
        let line = |at: usize| _mm512_loadu_si512(group.add(at + n * 64).cast());
        if F == Q8_0 {
            return line(quad * 128);
        }
        let both = line(quad % 4 * 128);
        let nibbles = if quad < 4 { both } else { _mm512_srli_epi16::<4>(both) };
        let nibbles = _mm512_and_si512(nibbles, _mm512_set1_epi8(15));
        if F != Q6K {
            return nibbles;
        }
        let pairs = line(NIBBLES + quad / 4 * 128);
        let pairs = match quad % 4 {
            0 => _mm512_slli_epi16::<4>(pairs),
            1 => _mm512_slli_epi16::<2>(pairs),
            2 => pairs,
            _ => _mm512_srli_epi16::<2>(pairs),
        };
        _mm512_or_si512(nibbles, _mm512_and_si512(pairs, _mm512_set1_epi8(0x30)))
    }
}

/// The weights' scales of 16 columns, for half `h` of group `g` of its panel.
///
/// # Safety
/// `group` starts group `g`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn scale_of<const F: u8>(group: *const u8, g: usize, h: usize, n: usize) -> __m512 {
    // SAFETY: scales of the group, and of its unit.
    unsafe {
        let at = match F {
            Q8_0 => 1024,
            Q6K => (8 - g % 8) * Q6K_GROUP,
            _ => NIBBLES,
        };
        let scale = _mm512_cvtph_ps(_mm256_loadu_si256(group.add(at + n * 32).cast()));
        if F != Q6K {
            return scale;
        }
        let own = _mm_loadu_si128(group.add(NIBBLES + 256 + h * 32 + n * 16).cast());
        _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(own)))
    }
}

/// Quantises and interleaves one block of rows.
///
/// # Safety
/// The machine has the path `avx512-bf16-vnni`; `inner` is whole groups, `out` has room for `count` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(in crate::cpu) unsafe fn pack_block(x: &[f32], inner: usize, count: usize, tail: Tail, out: *mut u8) {
    // SAFETY: groups of 32 values of each row; `out` as the head of this file says.
    unsafe {
        let group_bytes = count * (32 + tail.bytes());
        for row in 0..count {
            for g in 0..inner / 32 {
                let x = x.as_ptr().add(row * inner + g * 32);
                let to = out.add(g * group_bytes).cast::<i32>();
                let v = [_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(16))];
                // Compared as integers, so that a NaN is the largest and reaches the result through the scale.
                let bits = v.map(|v| _mm512_castps_si512(_mm512_abs_ps(v)));
                let largest = f32::from_bits(_mm512_reduce_max_epu32(_mm512_max_epu32(bits[0], bits[1])));
                let scale = largest * (1.0 / 127.0);
                let inverse = _mm512_set1_ps(if largest > 1e-30 { 127.0 / largest } else { 0.0 });
                let mut sums = [0i32; 2];
                for b in 0..2 {
                    let q = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(v[b], inverse)));
                    let sum = _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), q);
                    let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b_01_00_11_10>(sum));
                    let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b_10_11_00_01>(sum));
                    sums[b] = _mm_cvtsi128_si32(sum);
                    let to = to.add(b * 4 * count + row);
                    to.write_unaligned(_mm_extract_epi32::<0>(q));
                    to.add(count).write_unaligned(_mm_extract_epi32::<1>(q));
                    to.add(count * 2).write_unaligned(_mm_extract_epi32::<2>(q));
                    to.add(count * 3).write_unaligned(_mm_extract_epi32::<3>(q));
                }
                let sum = sums[0] + sums[1];
                let words = match tail {
                    Tail::Offset(offset) => [-offset * sum, scale.to_bits() as i32, 0],
                    Tail::ScaledSum => [(scale * sum as f32).to_bits() as i32, scale.to_bits() as i32, 0],
                    Tail::Halves(offset) => [-offset * sums[0], -offset * sums[1], scale.to_bits() as i32],
                };
                for (i, word) in words.iter().take(tail.bytes() / 4).enumerate() {
                    to.add((8 + i) * count + row).write_unaligned(*word);
                }
            }
        }
    }
}
