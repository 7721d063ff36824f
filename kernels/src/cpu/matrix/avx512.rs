//! f32 rows x weights decoded in registers -> f32, with AVX-512 multiply-add: every format, exact but for the sum.
//!
//! tile   8 rows x 2 lines of 16 columns: 16 accumulators leave registers to decode with
//! weight `fma(q, scale, base)`: base is -offset * scale or the minimum, so one rounding at most, as the format says
//!
//! Sums run over k in order, one fused multiply-add each.

use std::arch::x86_64::*;

use super::bf16::store;
use super::panel::{NIBBLES, Q6K_GROUP, unit_bytes};
use super::{Format, Tile};

/// Most rows of a block.
pub(super) const BLOCK_ROWS: usize = 8;

const F32: u8 = Format::F32 as u8;
const F16: u8 = Format::F16 as u8;
const BF16: u8 = Format::Bf16 as u8;
const Q8_0: u8 = Format::Q8_0 as u8;
const Q4_0: u8 = Format::Q4_0 as u8;
const Q4_1: u8 = Format::Q4_1 as u8;
const Q6K: u8 = Format::Q6K as u8;
const MXFP4: u8 = Format::Mxfp4 as u8;

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
        Format::Q8_0 => rows!(blocks, Q8_0, 1 2 3 4 5 6 7 8),
        Format::Q4_0 => rows!(blocks, Q4_0, 1 2 3 4 5 6 7 8),
        Format::Q4_1 => rows!(blocks, Q4_1, 1 2 3 4 5 6 7 8),
        Format::Q6K => rows!(blocks, Q6K, 1 2 3 4 5 6 7 8),
        Format::Mxfp4 => rows!(blocks, MXFP4, 1 2 3 4 5 6 7 8),
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

/// # Safety
/// As [`run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn blocks<const F: u8, const MR: usize>(t: &Tile) {
    // SAFETY: `units` units, and 32 k of rows a group.
    unsafe {
        let mut sum = [[_mm512_setzero_ps(); 2]; MR];
        let (mut rows, mut group) = (t.rows.cast::<f32>(), t.weights);
        let groups = t.units * if F == Q6K { 8 } else { 1 };
        let mut fetch = (t.fetch.from, t.fetch.lines);
        let lines_a_group = t.fetch.lines.div_ceil(groups);
        for g in 0..groups {
            for _ in 0..lines_a_group.min(fetch.1) {
                _mm_prefetch::<_MM_HINT_T1>(fetch.0.cast());
                fetch = (fetch.0.wrapping_add(64), fetch.1 - 1);
            }
            for h in 0..2 {
                let (scale, base) = scales_of::<F>(group, g, h);
                for quad in h * 4..h * 4 + 4 {
                    let quads = [quad_of::<F>(group, quad, 0), quad_of::<F>(group, quad, 1)];
                    for k in 0..4 {
                        let w = [0, 1].map(|n| {
                            let q = _mm512_srl_epi32(quads[n], _mm_cvtsi32_si128(k * 8));
                            let q = _mm512_cvtepi32_ps(_mm512_and_si512(q, _mm512_set1_epi32(255)));
                            _mm512_fmadd_ps(q, scale[n], base[n])
                        });
                        accumulate(&mut sum, rows, w);
                        rows = rows.add(MR);
                    }
                }
            }
            group = group.add(match F {
                Q8_0 => unit_bytes(Format::Q8_0),
                Q4_0 => unit_bytes(Format::Q4_0),
                Q4_1 => unit_bytes(Format::Q4_1),
                MXFP4 => unit_bytes(Format::Mxfp4),
                _ => Q6K_GROUP + if g % 8 == 7 { 64 } else { 0 },
            });
        }
        finish(t, sum);
    }
}

/// 16 columns x 4 k of line `n`, unsigned bytes.
///
/// # Safety
/// `group` starts a group of 32 k.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn quad_of<const F: u8>(group: *const u8, quad: usize, n: usize) -> __m512i {
    // SAFETY: lines of the group.
    unsafe {
        let line = |at: usize| _mm512_loadu_si512(group.add(at + n * 64).cast());
        if F == Q8_0 {
            return line(quad * 128);
        }
        let shift = |v: __m512i, by: usize| _mm512_srl_epi16(v, _mm_cvtsi32_si128(by as i32));
        let nibbles = _mm512_and_si512(shift(line(quad % 4 * 128), quad / 4 * 4), _mm512_set1_epi8(15));
        if F == MXFP4 {
            return mxfp4_codes(nibbles);
        }
        if F != Q6K {
            return nibbles;
        }
        let pairs = _mm512_and_si512(shift(line(NIBBLES + quad / 4 * 128), quad % 4 * 2), _mm512_set1_epi8(3));
        _mm512_or_si512(nibbles, _mm512_slli_epi16::<4>(pairs))
    }
}

/// Scale and base of both lines, for half `h` of group `g` of its panel.
///
/// # Safety
/// `group` starts group `g`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn scales_of<const F: u8>(group: *const u8, g: usize, h: usize) -> ([__m512; 2], [__m512; 2]) {
    // SAFETY: scales of the group, and of its unit.
    unsafe {
        let halves = |at: usize| [0, 1].map(|n| _mm512_cvtph_ps(_mm256_loadu_si256(group.add(at + n * 32).cast())));
        let times = |v: [__m512; 2], by: f32| v.map(|v| _mm512_mul_ps(v, _mm512_set1_ps(by)));
        match F {
            Q8_0 => (halves(1024), times(halves(1024), -128.0)),
            Q4_0 => (halves(NIBBLES), times(halves(NIBBLES), -8.0)),
            Q4_1 => (halves(NIBBLES), halves(NIBBLES + 64)),
            MXFP4 => {
                let scale = [0, 1].map(|n| mxfp4_scale(group.add(NIBBLES + n * 16)));
                (scale, times(scale, -12.0))
            }
            _ => {
                let mut scale = halves((8 - g % 8) * Q6K_GROUP);
                for (n, scale) in scale.iter_mut().enumerate() {
                    let own = _mm_loadu_si128(group.add(NIBBLES + 256 + h * 32 + n * 16).cast());
                    *scale = _mm512_mul_ps(*scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(own)));
                }
                (scale, times(scale, -32.0))
            }
        }
    }
}

/// Nibbles to their codes' doubled values + 12.
#[target_feature(enable = "avx512f,avx512bw")]
fn mxfp4_codes(nibbles: __m512i) -> __m512i {
    let codes = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
    _mm512_shuffle_epi8(_mm512_broadcast_i32x4(codes), nibbles)
}

/// Half of 16 E8M0 scales, as [`crate::format::mxfp4_scale`] has them.
///
/// # Safety
/// 16 bytes at `from`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn mxfp4_scale(from: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    let e = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(from.cast()) });
    let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, _mm512_set1_epi32(1)));
    let small = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
    _mm512_castsi512_ps(_mm512_mask_sllv_epi32(normal, small, _mm512_set1_epi32(0x0020_0000), e))
}
