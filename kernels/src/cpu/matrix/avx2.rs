//! f32 rows x weights decoded in registers -> f32, with AVX2 multiply-add: every format, exact but for the sum.
//!
//! tile   up to 3 rows x 4 lines of 8 columns, or up to 6 rows x 2 lines, twice: 12 accumulators of 16 registers
//! weight `fma(q, scale, base)`: base is -offset * scale or the minimum, so one rounding at most, as the format says
//!
//! Sums run over k in order, one fused multiply-add each.

use std::arch::x86_64::*;

use super::panel::{NIBBLES, Q6K_GROUP, unit_bytes};
use super::{Format, Tile};

/// Most rows of a block.
pub(super) const BLOCK_ROWS: usize = 6;

const F32: u8 = Format::F32 as u8;
const F16: u8 = Format::F16 as u8;
const BF16: u8 = Format::Bf16 as u8;
const Q8_0: u8 = Format::Q8_0 as u8;
const Q4_0: u8 = Format::Q4_0 as u8;
const Q4_1: u8 = Format::Q4_1 as u8;
const Q6K: u8 = Format::Q6K as u8;
const MXFP4: u8 = Format::Mxfp4 as u8;

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
        Format::Q8_0 => rows!(blocks, Q8_0),
        Format::Q4_0 => rows!(blocks, Q4_0),
        Format::Q4_1 => rows!(blocks, Q4_1),
        Format::Q6K => rows!(blocks, Q6K),
        Format::Mxfp4 => rows!(blocks, MXFP4),
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

/// Lines `line..line + NR` of the panel.
///
/// # Safety
/// As [`run`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn blocks<const F: u8, const MR: usize, const NR: usize>(t: &Tile, line: usize) {
    // SAFETY: `units` units, and 32 k of rows a group.
    unsafe {
        let mut sum = [[_mm256_setzero_ps(); NR]; MR];
        let (mut rows, mut group) = (t.rows.cast::<f32>(), t.weights);
        let groups = t.units * if F == Q6K { 8 } else { 1 };
        let mut fetch = (t.fetch.from, t.fetch.lines);
        let lines_a_group = t.fetch.lines.div_ceil(groups);
        for g in 0..groups {
            for _ in 0..lines_a_group.min(fetch.1) {
                _mm_prefetch::<_MM_HINT_T1>(fetch.0.cast());
                fetch = (fetch.0.wrapping_add(64), fetch.1 - 1);
            }
            for half in 0..2 {
                // A line at a time, so that its scale and base stay in registers over the half's 16 k.
                for n in 0..NR {
                    let (scale, base) = scale_of::<F>(group, g, half, line + n);
                    for quad in half * 4..half * 4 + 4 {
                        let quads = quad_of::<F>(group, quad, line + n);
                        for k in 0..4 {
                            let q = _mm256_srl_epi32(quads, _mm_cvtsi32_si128(k * 8));
                            let q = _mm256_cvtepi32_ps(_mm256_and_si256(q, _mm256_set1_epi32(255)));
                            let w = _mm256_fmadd_ps(q, scale, base);
                            let rows = rows.add((quad % 4 * 4 + k as usize) * MR);
                            for (r, sum) in sum.iter_mut().enumerate() {
                                let x = _mm256_set1_ps(rows.add(r).read_unaligned());
                                sum[n] = _mm256_fmadd_ps(x, w, sum[n]);
                            }
                        }
                    }
                }
                rows = rows.add(16 * MR);
            }
            group = group.add(match F {
                Q8_0 => unit_bytes(Format::Q8_0),
                Q4_0 => unit_bytes(Format::Q4_0),
                Q4_1 => unit_bytes(Format::Q4_1),
                MXFP4 => unit_bytes(Format::Mxfp4),
                _ => Q6K_GROUP + if g % 8 == 7 { 64 } else { 0 },
            });
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

/// 8 columns x 4 k of line `n`, unsigned bytes.
///
/// # Safety
/// `group` starts a group of 32 k.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn quad_of<const F: u8>(group: *const u8, quad: usize, n: usize) -> __m256i {
    // SAFETY: lines of the group.
    unsafe {
        let line = |at: usize| _mm256_loadu_si256(group.add(at + n * 32).cast());
        if F == Q8_0 {
            return line(quad * 128);
        }
        let shift = |v: __m256i, by: usize| _mm256_srl_epi16(v, _mm_cvtsi32_si128(by as i32));
        let nibbles = _mm256_and_si256(shift(line(quad % 4 * 128), quad / 4 * 4), _mm256_set1_epi8(15));
        if F == MXFP4 {
            let codes = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
            return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(codes), nibbles);
        }
        if F != Q6K {
            return nibbles;
        }
        let pairs = _mm256_and_si256(shift(line(NIBBLES + quad / 4 * 128), quad % 4 * 2), _mm256_set1_epi8(3));
        _mm256_or_si256(nibbles, _mm256_slli_epi16::<4>(pairs))
    }
}

/// Scale and base of line `n`, for half `half` of group `g` of its panel.
///
/// # Safety
/// `group` starts group `g`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scale_of<const F: u8>(group: *const u8, g: usize, half: usize, n: usize) -> (__m256, __m256) {
    // SAFETY: scales of the group, and of its unit.
    unsafe {
        let halves = |at: usize| _mm256_cvtph_ps(_mm_loadu_si128(group.add(at + n * 16).cast()));
        let times = |v: __m256, by: f32| _mm256_mul_ps(v, _mm256_set1_ps(by));
        match F {
            Q8_0 => (halves(1024), times(halves(1024), -128.0)),
            Q4_0 => (halves(NIBBLES), times(halves(NIBBLES), -8.0)),
            Q4_1 => (halves(NIBBLES), halves(NIBBLES + 64)),
            MXFP4 => {
                let scale = mxfp4_scale(group.add(NIBBLES + n * 8));
                (scale, times(scale, -12.0))
            }
            _ => {
                let own = _mm_loadl_epi64(group.add(NIBBLES + 256 + half * 32 + n * 8).cast());
                let whole = halves((8 - g % 8) * Q6K_GROUP);
                let scale = _mm256_mul_ps(whole, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(own)));
                (scale, times(scale, -32.0))
            }
        }
    }
}

/// Half of 8 E8M0 scales, as [`crate::format::mxfp4_scale`] has them.
///
/// # Safety
/// 8 bytes at `from`.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn mxfp4_scale(from: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    let e = _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(from.cast()) });
    let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
    let small = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
    let is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
    _mm256_castsi256_ps(_mm256_blendv_epi8(normal, small, is_small))
}
