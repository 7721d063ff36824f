//! Weights of integer codes, 2 to 8 bits, x int8 activations -> f32, on every instruction set of x86; [`Dots`] are its
//! registers, [`super::unpack`] reads the weights.
//!
//! Activations have one f32 scale a row and 32 k: what Q8_0 x Q8_0 means, with a scale that is not rounded to f16.
//! rows     `[block][k / 32]( [8 quads][row][4 k] i8, tail )`
//! tail     weights with an offset    `[halves][row] i32, [row] f32 scale`   the i32 is -offset * sum of the values
//!          weights with a minimum    `[halves][row] f32, [row] f32 scale`   the f32 is scale * sum
//!          one half of 32 values, or two of 16 where the format has scales of 16 (q2_k, q3_k, q6_k)
//! tile     512 bits: 6 rows x 2 lines of 16 columns, int32 and f32 accumulators side by side
//!          256 bits: up to 2 rows x 4 lines of 8 columns, up to 6 rows x 2 lines, twice (pairs: 5 and 6 rows x 1)
//!
//! The weights are the unsigned operand, so their offset is paid for on the row side, once a group and row. Integer sums
//! are exact; only the f32 fold rounds, one multiply-add a half, in order, and one more for a minimum times the sum of
//! the activations. So all instruction sets give the same bits.
//!
//! Tolerance: rounding the activations to 8 bits, 0.5 % of the product's norm for smooth rows, 1.2 % with 30-fold
//! outliers; with activations on the grid, below 1e-6.
//!
//! Measured, Gop/s of one Zen 5 thread, 128 rows, q8_0 and q4_0: `vpdpbusd` on 512 bits 770 and 780, on 256 bits 370 and
//! 370; pairs on 512 bits 320 and 350, on 256 bits 165 and 280 (tiles of 6 rows x 1 line; 2 lines spill: 150 and 260).
//!
//! Tried: activation scales of powers of two (added to the exponent) gain 8 points of peak and lose 0.3 % accuracy; one
//! scale a row gains the same and triples the error with outliers; 64-column panels of 3 rows are 3 points faster.

use std::arch::x86_64::*;

use super::blocks::{Blocks, Values};
use super::dots::{Dots, Pairs256, Pairs512, Vnni256, Vnni512};
use super::panel::COLUMNS;
use super::unpack::{blocks, minimum_of, quad_of, scale_of};
use super::{Format, Tile, each_integer_format};
use crate::cpu::isa::Isa;

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
    /// scale * sum of each half, scale.
    ScaledHalves,
}

impl Tail {
    pub(super) fn of(format: Format) -> Self {
        let b = Blocks::of(format);
        match (b.values, b.halves()) {
            (Values::E4m3, _) => unreachable!("{format} is not multiplied in int8: this is a bug"),
            (Values::Plain, 1) => Self::ScaledSum,
            (Values::Plain, _) => Self::ScaledHalves,
            (_, 1) => Self::Offset(i32::from(b.offset())),
            _ => Self::Halves(i32::from(b.offset())),
        }
    }

    pub(in crate::cpu) fn bytes(self) -> usize {
        if matches!(self, Self::Halves(_) | Self::ScaledHalves) { 12 } else { 8 }
    }
}

/// Whether the format's codes are integers.
pub(super) fn multiplies(format: Format) -> bool {
    format.is_quantised() && Blocks::of(format).values != Values::E4m3
}

/// Which registers and instructions multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instructions {
    Vnni512,
    Pairs512,
    Vnni256,
    Pairs256,
}

impl Instructions {
    /// Those of a path; `None` where it multiplies in f32.
    pub(super) fn of(isa: Isa) -> Option<Self> {
        match isa {
            Isa::Avx512Bf16Vnni | Isa::Avx512Vnni => Some(Self::Vnni512),
            Isa::Avx512 => Some(Self::Pairs512),
            Isa::Avx2Vnni => Some(Self::Vnni256),
            Isa::Avx2 => Some(Self::Pairs256),
            Isa::Portable => None,
        }
    }
}

/// # Safety
/// The machine has the instructions; the pointers of `t` are as [`Tile`] says, for `count` rows.
pub(super) unsafe fn run(instructions: Instructions, format: Format, t: &Tile, count: usize) {
    macro_rules! tiles {
        ($entry:ident, $format:ident, $($mr:literal $nr:literal),*) => {
            match count {
                $($mr => unsafe { $entry::<{ Format::$format as u8 }, $mr, $nr>(t) },)*
                _ => unreachable!("a block has 1 to 6 rows: this is a bug"),
            }
        };
    }
    macro_rules! rows {
        ($format:ident) => {
            match instructions {
                Instructions::Vnni512 => tiles!(vnni512, $format, 1 2, 2 2, 3 2, 4 2, 5 2, 6 2),
                Instructions::Pairs512 => tiles!(pairs512, $format, 1 2, 2 2, 3 2, 4 2, 5 2, 6 2),
                Instructions::Vnni256 => tiles!(vnni256, $format, 1 4, 2 4, 3 2, 4 2, 5 2, 6 2),
                Instructions::Pairs256 => tiles!(pairs256, $format, 1 4, 2 4, 3 2, 4 2, 5 1, 6 1),
            }
        };
    }
    // SAFETY: the caller's promise.
    each_integer_format!(format, rows)
}

macro_rules! entry {
    ($name:ident, $dots:ident, $features:literal) => {
        /// # Safety
        /// As [`run`].
        #[target_feature(enable = $features)]
        unsafe fn $name<const F: u8, const MR: usize, const NR: usize>(t: &Tile) {
            for line in (0..COLUMNS / $dots::COLUMNS).step_by(NR) {
                // SAFETY: the caller's promise; lines of the panel.
                unsafe { kernel::<$dots, F, MR, NR>(t, line) }
            }
        }
    };
}

entry!(vnni512, Vnni512, "avx512f,avx512bw,avx512vl,avx512vnni");
entry!(pairs512, Pairs512, "avx512f,avx512bw,avx512vl");
entry!(vnni256, Vnni256, "avx2,fma,f16c,avxvnni");
entry!(pairs256, Pairs256, "avx2,fma,f16c");

/// Lines `line..line + NR` of the panel.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn kernel<D: Dots, const F: u8, const MR: usize, const NR: usize>(t: &Tile, line: usize) {
    // SAFETY: the panel and the block hold `groups` groups; stores end at `columns`.
    unsafe {
        let b = blocks::<F>();
        let (halves, scaled, largest) = (b.halves(), matches!(b.values, Values::Plain), i32::from(b.largest()));
        let quads = 8 / halves;
        let depth = 1 << D::depth(largest).min(quads).ilog2();
        let mut sum = [[D::all(0.0); NR]; MR];
        let mut rows = t.rows.cast::<i32>();
        let groups = t.units * b.groups;
        let mut fetch = (t.fetch.from, if line == 0 { t.fetch.lines } else { 0 });
        let lines_a_group = t.fetch.lines.div_ceil(groups);
        for g in 0..groups {
            let unit = t.weights.add(g / b.groups * b.unit_bytes());
            let (shared, group) = (unit.add(b.groups * b.group_bytes()), unit.add(g % b.groups * b.group_bytes()));
            for _ in 0..lines_a_group.min(fetch.1) {
                _mm_prefetch::<_MM_HINT_T1>(fetch.0.cast());
                fetch = (fetch.0.wrapping_add(64), fetch.1 - 1);
            }
            let start = rows.add(8 * MR); // [half][row]
            let row_scales = start.add(halves * MR).cast::<f32>();
            for h in 0..halves {
                let mut dot = [[D::begin(0); NR]; MR];
                if !scaled {
                    for (r, dot) in dot.iter_mut().enumerate() {
                        *dot = [D::begin(start.add(h * MR + r).read_unaligned()); NR];
                    }
                }
                for run in 0..quads / depth {
                    let mut partial = dot;
                    for partial in partial.as_flattened_mut() {
                        *partial = D::partial(*partial);
                    }
                    for quad in h * quads + run * depth..h * quads + (run + 1) * depth {
                        let mut w = [D::weights(D::splat(0), largest); NR];
                        for (n, w) in w.iter_mut().enumerate() {
                            *w = D::weights(quad_of::<D, F>(group, quad, line + n), largest);
                        }
                        for (r, partial) in partial.iter_mut().enumerate() {
                            let x = D::splat(rows.add(quad * MR + r).read_unaligned());
                            for (partial, w) in partial.iter_mut().zip(w) {
                                *partial = D::multiply(*partial, w, x, largest);
                            }
                        }
                    }
                    for (dot, partial) in dot.as_flattened_mut().iter_mut().zip(partial.as_flattened()) {
                        *dot = D::widen(*dot, *partial);
                    }
                }
                for n in 0..NR {
                    let scale = scale_of::<D, F>(group, shared, h, line + n);
                    for (r, (sum, dot)) in sum.iter_mut().zip(&dot).enumerate() {
                        let scale = D::mul(scale, D::all(row_scales.add(r).read_unaligned()));
                        let mut dot = dot[n];
                        if !scaled {
                            dot = D::end(dot, start.add(h * MR + r).read_unaligned(), largest);
                        }
                        sum[n] = D::fma(D::float(dot), scale, sum[n]);
                    }
                    if scaled {
                        let minimum = minimum_of::<D, F>(group, shared, h, line + n);
                        for (r, sum) in sum.iter_mut().enumerate() {
                            let total = D::all(start.add(h * MR + r).cast::<f32>().read_unaligned());
                            sum[n] = D::fma(total, minimum, sum[n]);
                        }
                    }
                }
            }
            rows = row_scales.add(MR).cast();
        }
        for (r, sum) in sum.into_iter().enumerate() {
            for (n, sum) in sum.into_iter().enumerate() {
                let column = (line + n) * D::COLUMNS;
                D::store(t.out.wrapping_add(r * t.stride + column), t.columns.saturating_sub(column), sum);
            }
        }
    }
}

/// Quantises and interleaves one block of rows.
///
/// # Safety
/// The machine has AVX2; `inner` is whole groups, `out` has room for `count` rows.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn pack_block(x: &[f32], inner: usize, count: usize, tail: Tail, out: *mut u8) {
    // SAFETY: groups of 32 values of each row; `out` as the head of this file says.
    unsafe {
        let group_bytes = count * (32 + tail.bytes());
        let ones = _mm256_set1_epi8(1);
        let mut words = [0i32; 8];
        for row in 0..count {
            for g in 0..inner / 32 {
                let x = x.as_ptr().add(row * inner + g * 32);
                let to = out.add(g * group_bytes).cast::<i32>();
                let v = [0, 8, 16, 24].map(|i| _mm256_loadu_ps(x.add(i)));
                // Compared as integers, so that a NaN is the largest.
                let bits = v.map(|v| _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(i32::MAX)));
                let most = _mm256_max_epu32(_mm256_max_epu32(bits[0], bits[1]), _mm256_max_epu32(bits[2], bits[3]));
                let most = _mm_max_epu32(_mm256_castsi256_si128(most), _mm256_extracti128_si256::<1>(most));
                let most = _mm_max_epu32(most, _mm_shuffle_epi32::<0b_01_00_11_10>(most));
                let most = _mm_max_epu32(most, _mm_shuffle_epi32::<0b_10_11_00_01>(most));
                let largest = f32::from_bits(_mm_cvtsi128_si32(most) as u32);
                // A group with a NaN or an infinity has no codes: they are 0, and its scale makes the result NaN.
                let scale = if largest.is_finite() { largest * (1.0 / 127.0) } else { f32::NAN };
                let coded = _mm256_castsi256_ps(_mm256_set1_epi32(-i32::from(largest.is_finite())));
                let inverse = _mm256_set1_ps(if largest > 1e-30 { 127.0 / largest } else { 0.0 });
                let q = v.map(|v| _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_and_ps(v, coded), inverse)));
                let q = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
                // Packing works in halves of a register: quads 0 2 4 6, then 1 3 5 7.
                let q = _mm256_permutevar8x32_epi32(q, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
                let sums = _mm256_madd_epi16(_mm256_maddubs_epi16(ones, q), _mm256_set1_epi16(1));
                let sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32::<0b_01_00_11_10>(sums));
                let sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32::<0b_10_11_00_01>(sums));
                let sums = [_mm256_extract_epi32::<0>(sums), _mm256_extract_epi32::<4>(sums)];
                _mm256_storeu_si256(words.as_mut_ptr().cast(), q);
                for (i, word) in words.iter().enumerate() {
                    to.add(i * count + row).write_unaligned(*word);
                }
                let sum = sums[0] + sums[1];
                let words = match tail {
                    Tail::Offset(offset) => [-offset * sum, scale.to_bits() as i32, 0],
                    Tail::ScaledSum => [(scale * sum as f32).to_bits() as i32, scale.to_bits() as i32, 0],
                    Tail::Halves(offset) => [-offset * sums[0], -offset * sums[1], scale.to_bits() as i32],
                    Tail::ScaledHalves => {
                        let [first, second] = sums.map(|sum| (scale * sum as f32).to_bits() as i32);
                        [first, second, scale.to_bits() as i32]
                    }
                };
                for (i, word) in words.iter().take(tail.bytes() / 4).enumerate() {
                    to.add((8 + i) * count + row).write_unaligned(*word);
                }
            }
        }
    }
}
