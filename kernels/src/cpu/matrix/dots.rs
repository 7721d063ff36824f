//! Owns sums of products of unsigned bytes (weights) by signed bytes (activations, -127 to 127) in registers of one
//! instruction set. Knows no layout of panels or rows.
//!
//! | | register | instructions |
//! |---|---|---|
//! | [`Vnni512`], [`Vnni256`] | 16, 8 columns | `vpdpbusd`: four products into an i32 |
//! | [`Pairs512`], [`Pairs256`] | 16, 8 columns | `vpmaddubsw`: two products into an i16; `vpmaddwd` widens |
//!
//! All give the same exact i32. An i16 holds so many pairs of products that none saturates: 8 of weights up to 15, two of
//! weights up to 63. Weights of 8 bits are too large for even one, so their offset of 128 is taken off first: a magnitude
//! up to 128 times an activation that got the weight's sign, at most 2 * 128 * 127 = 32512.

use std::arch::x86_64::*;

/// One instruction set. Methods are `#[inline(always)]` into a function that has its features; no closure may hold a
/// register (see [`crate::cpu::lanes::Kernel`]).
///
/// `largest` is the largest weight, and known when compiled; 255 means that weights are offset by 128.
///
/// # Safety
/// Of every method: the machine has the instruction set; pointers are readable (writable) as far as they are used.
pub(super) trait Dots {
    /// Columns of a register.
    const COLUMNS: usize;
    /// 4 bytes a column, or one i32.
    type Ints: Copy;
    /// One f32 a column.
    type Floats: Copy;
    /// Weights of 4 k, ready to be multiplied.
    type Weights: Copy;

    /// Quads that a partial sum holds exactly.
    fn depth(largest: i32) -> usize;
    /// Where an i32 sum begins. It and [`Self::end`] together add `start`, which takes the weights' offset off.
    unsafe fn begin(start: i32) -> Self::Ints;
    unsafe fn end(sum: Self::Ints, start: i32, largest: i32) -> Self::Ints;
    /// Where a partial sum begins that [`Self::widen`] adds to `sum`.
    unsafe fn partial(sum: Self::Ints) -> Self::Ints;
    unsafe fn weights(w: Self::Ints, largest: i32) -> Self::Weights;
    unsafe fn multiply(partial: Self::Ints, w: Self::Weights, x: Self::Ints, largest: i32) -> Self::Ints;
    unsafe fn widen(sum: Self::Ints, partial: Self::Ints) -> Self::Ints;

    unsafe fn load(from: *const u8) -> Self::Ints;
    unsafe fn splat(x: i32) -> Self::Ints;
    unsafe fn and(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    unsafe fn or(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Of 16 bits at a time.
    unsafe fn left<const BY: u32>(a: Self::Ints) -> Self::Ints;
    unsafe fn right<const BY: u32>(a: Self::Ints) -> Self::Ints;

    /// The bytes of `table` at indices below 16.
    unsafe fn look_up(table: &[u8; 16], indices: Self::Ints) -> Self::Ints;

    unsafe fn float(x: Self::Ints) -> Self::Floats;
    unsafe fn of_halves(from: *const u8) -> Self::Floats;
    unsafe fn of_bytes(from: *const u8) -> Self::Floats;
    unsafe fn of_floats(from: *const u8) -> Self::Floats;
    /// Bytes as unsigned i32.
    unsafe fn words(from: *const u8) -> Self::Ints;
    /// Byte `k` of each i32, 0 to 3.
    unsafe fn byte(x: Self::Ints, k: usize) -> Self::Ints;
    /// Values of 8-bit floats below 256; what would be a NaN is 480.
    unsafe fn of_e4m3(x: Self::Ints) -> Self::Floats;
    /// Half of E8M0 scales, as [`crate::format::mxfp4_scale`] has them.
    unsafe fn of_exponents(from: *const u8) -> Self::Floats;
    unsafe fn all(x: f32) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + sum`, rounded once.
    unsafe fn fma(a: Self::Floats, b: Self::Floats, sum: Self::Floats) -> Self::Floats;
    /// Writes the first `count` columns.
    unsafe fn store(to: *mut f32, count: usize, x: Self::Floats);
}

/// What moves the exponent of a widened E4M3 to that of an f32, and makes its subnormals normal: 2^120.
const E4M3_BIAS: f32 = f32::from_bits((127 + 120) << 23);

/// AVX-512 F, BW, VL and VNNI.
pub(super) struct Vnni512;
/// AVX-512 F, BW and VL.
pub(super) struct Pairs512;
/// AVX2, FMA, F16C and AVX-VNNI.
pub(super) struct Vnni256;
/// AVX2, FMA and F16C.
pub(super) struct Pairs256;

/// What `vpdpbusd` does, whatever the weights.
macro_rules! vnni {
    ($dot:ident) => {
        type Weights = Self::Ints;

        #[inline(always)]
        fn depth(_: i32) -> usize {
            usize::MAX
        }
        #[inline(always)]
        unsafe fn begin(start: i32) -> Self::Ints {
            unsafe { Self::splat(start) }
        }
        #[inline(always)]
        unsafe fn end(sum: Self::Ints, _: i32, _: i32) -> Self::Ints {
            sum
        }
        #[inline(always)]
        unsafe fn partial(sum: Self::Ints) -> Self::Ints {
            sum
        }
        #[inline(always)]
        unsafe fn weights(w: Self::Ints, _: i32) -> Self::Ints {
            w
        }
        #[inline(always)]
        unsafe fn multiply(partial: Self::Ints, w: Self::Ints, x: Self::Ints, _: i32) -> Self::Ints {
            unsafe { $dot(partial, w, x) }
        }
        #[inline(always)]
        unsafe fn widen(_: Self::Ints, partial: Self::Ints) -> Self::Ints {
            partial
        }
    };
}

/// What `vpmaddubsw` needs beside it.
macro_rules! pairs {
    ($zero:ident, $add32:ident, $add16:ident, $madd:ident, $maddubs:ident) => {
        #[inline(always)]
        fn depth(largest: i32) -> usize {
            (i16::MAX as i32 / (2 * 127 * largest)).max(1) as usize
        }
        #[inline(always)]
        unsafe fn begin(_: i32) -> Self::Ints {
            unsafe { $zero() }
        }
        #[inline(always)]
        unsafe fn end(sum: Self::Ints, start: i32, largest: i32) -> Self::Ints {
            if largest == 255 { sum } else { unsafe { $add32(sum, Self::splat(start)) } }
        }
        #[inline(always)]
        unsafe fn partial(_: Self::Ints) -> Self::Ints {
            unsafe { $zero() }
        }
        #[inline(always)]
        unsafe fn multiply(partial: Self::Ints, w: Self::Weights, x: Self::Ints, largest: i32) -> Self::Ints {
            unsafe {
                let x = if largest == 255 { Self::signed(x, w) } else { x };
                $add16(partial, $maddubs(w.magnitude, x))
            }
        }
        #[inline(always)]
        unsafe fn widen(sum: Self::Ints, partial: Self::Ints) -> Self::Ints {
            unsafe { $add32(sum, $madd(partial, Self::splat(0x0001_0001))) }
        }
    };
}

macro_rules! registers512 {
    () => {
        const COLUMNS: usize = 16;
        type Ints = __m512i;
        type Floats = __m512;

        #[inline(always)]
        unsafe fn load(from: *const u8) -> __m512i {
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn splat(x: i32) -> __m512i {
            unsafe { _mm512_set1_epi32(x) }
        }
        #[inline(always)]
        unsafe fn and(a: __m512i, b: __m512i) -> __m512i {
            unsafe { _mm512_and_si512(a, b) }
        }
        #[inline(always)]
        unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
            unsafe { _mm512_or_si512(a, b) }
        }
        #[inline(always)]
        unsafe fn left<const BY: u32>(a: __m512i) -> __m512i {
            unsafe { _mm512_slli_epi16::<BY>(a) }
        }
        #[inline(always)]
        unsafe fn right<const BY: u32>(a: __m512i) -> __m512i {
            unsafe { _mm512_srli_epi16::<BY>(a) }
        }
        #[inline(always)]
        unsafe fn look_up(table: &[u8; 16], indices: __m512i) -> __m512i {
            unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), indices) }
        }
        #[inline(always)]
        unsafe fn of_floats(from: *const u8) -> __m512 {
            unsafe { _mm512_loadu_ps(from.cast()) }
        }
        #[inline(always)]
        unsafe fn words(from: *const u8) -> __m512i {
            unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
        }
        #[inline(always)]
        unsafe fn byte(x: __m512i, k: usize) -> __m512i {
            unsafe { _mm512_and_si512(_mm512_srl_epi32(x, _mm_cvtsi32_si128(k as i32 * 8)), _mm512_set1_epi32(255)) }
        }
        #[inline(always)]
        unsafe fn of_e4m3(x: __m512i) -> __m512 {
            unsafe {
                let magnitude = _mm512_slli_epi32::<20>(_mm512_and_si512(x, _mm512_set1_epi32(0x7f)));
                let sign = _mm512_slli_epi32::<24>(_mm512_and_si512(x, _mm512_set1_epi32(0x80)));
                let small = _mm512_castsi512_ps(_mm512_or_si512(magnitude, sign));
                _mm512_mul_ps(small, _mm512_set1_ps(E4M3_BIAS))
            }
        }
        #[inline(always)]
        unsafe fn of_exponents(from: *const u8) -> __m512 {
            unsafe {
                let e = Self::words(from);
                let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, _mm512_set1_epi32(1)));
                let is_small = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
                let small = _mm512_mask_sllv_epi32(normal, is_small, _mm512_set1_epi32(0x0020_0000), e);
                _mm512_castsi512_ps(small)
            }
        }
        #[inline(always)]
        unsafe fn float(x: __m512i) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(x) }
        }
        #[inline(always)]
        unsafe fn of_halves(from: *const u8) -> __m512 {
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }
        #[inline(always)]
        unsafe fn of_bytes(from: *const u8) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
        }
        #[inline(always)]
        unsafe fn all(x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, sum: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, sum) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, count: usize, x: __m512) {
            unsafe { _mm512_mask_storeu_ps(to, ((1u32 << count.min(16)) - 1) as __mmask16, x) }
        }
    };
}

macro_rules! registers256 {
    () => {
        const COLUMNS: usize = 8;
        type Ints = __m256i;
        type Floats = __m256;

        #[inline(always)]
        unsafe fn load(from: *const u8) -> __m256i {
            unsafe { _mm256_loadu_si256(from.cast()) }
        }
        #[inline(always)]
        unsafe fn splat(x: i32) -> __m256i {
            unsafe { _mm256_set1_epi32(x) }
        }
        #[inline(always)]
        unsafe fn and(a: __m256i, b: __m256i) -> __m256i {
            unsafe { _mm256_and_si256(a, b) }
        }
        #[inline(always)]
        unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
            unsafe { _mm256_or_si256(a, b) }
        }
        #[inline(always)]
        unsafe fn left<const BY: u32>(a: __m256i) -> __m256i {
            unsafe { _mm256_sll_epi16(a, _mm_cvtsi32_si128(BY as i32)) }
        }
        #[inline(always)]
        unsafe fn right<const BY: u32>(a: __m256i) -> __m256i {
            unsafe { _mm256_srl_epi16(a, _mm_cvtsi32_si128(BY as i32)) }
        }
        #[inline(always)]
        unsafe fn look_up(table: &[u8; 16], indices: __m256i) -> __m256i {
            unsafe { _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), indices) }
        }
        #[inline(always)]
        unsafe fn of_floats(from: *const u8) -> __m256 {
            unsafe { _mm256_loadu_ps(from.cast()) }
        }
        #[inline(always)]
        unsafe fn words(from: *const u8) -> __m256i {
            unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())) }
        }
        #[inline(always)]
        unsafe fn byte(x: __m256i, k: usize) -> __m256i {
            unsafe { _mm256_and_si256(_mm256_srl_epi32(x, _mm_cvtsi32_si128(k as i32 * 8)), _mm256_set1_epi32(255)) }
        }
        #[inline(always)]
        unsafe fn of_e4m3(x: __m256i) -> __m256 {
            unsafe {
                let magnitude = _mm256_slli_epi32::<20>(_mm256_and_si256(x, _mm256_set1_epi32(0x7f)));
                let sign = _mm256_slli_epi32::<24>(_mm256_and_si256(x, _mm256_set1_epi32(0x80)));
                let small = _mm256_castsi256_ps(_mm256_or_si256(magnitude, sign));
                _mm256_mul_ps(small, _mm256_set1_ps(E4M3_BIAS))
            }
        }
        #[inline(always)]
        unsafe fn of_exponents(from: *const u8) -> __m256 {
            unsafe {
                let e = Self::words(from);
                let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
                let small = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
                let is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
                _mm256_castsi256_ps(_mm256_blendv_epi8(normal, small, is_small))
            }
        }
        #[inline(always)]
        unsafe fn float(x: __m256i) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(x) }
        }
        #[inline(always)]
        unsafe fn of_halves(from: *const u8) -> __m256 {
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        }
        #[inline(always)]
        unsafe fn of_bytes(from: *const u8) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
        }
        #[inline(always)]
        unsafe fn all(x: f32) -> __m256 {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m256, b: __m256, sum: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, sum) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, count: usize, x: __m256) {
            unsafe {
                let places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
                let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(count.min(8) as i32), places);
                _mm256_maskstore_ps(to, mask, x);
            }
        }
    };
}

// SAFETY of every block: the trait's.
impl Dots for Vnni512 {
    registers512!();
    vnni!(_mm512_dpbusd_epi32);
}

impl Dots for Vnni256 {
    registers256!();
    vnni!(_mm256_dpbusd_avx_epi32);
}

/// Weights as [`Pairs512`] multiplies them.
#[derive(Clone, Copy)]
pub(super) struct Weights512 {
    magnitude: __m512i,
    /// Where a weight is below zero.
    negative: __mmask64,
}

impl Pairs512 {
    #[inline(always)]
    unsafe fn signed(x: __m512i, w: Weights512) -> __m512i {
        unsafe { _mm512_mask_sub_epi8(x, w.negative, _mm512_setzero_si512(), x) }
    }
}

impl Dots for Pairs512 {
    registers512!();
    pairs!(_mm512_setzero_si512, _mm512_add_epi32, _mm512_add_epi16, _mm512_madd_epi16, _mm512_maddubs_epi16);
    type Weights = Weights512;

    #[inline(always)]
    unsafe fn weights(w: __m512i, largest: i32) -> Weights512 {
        unsafe {
            if largest < 255 {
                return Weights512 { magnitude: w, negative: 0 };
            }
            let w = _mm512_xor_si512(w, _mm512_set1_epi8(-128));
            Weights512 { magnitude: _mm512_abs_epi8(w), negative: _mm512_movepi8_mask(w) }
        }
    }
}

/// Weights as [`Pairs256`] multiplies them.
#[derive(Clone, Copy)]
pub(super) struct Weights256 {
    magnitude: __m256i,
    /// The weight itself, for its sign.
    sign: __m256i,
}

impl Pairs256 {
    #[inline(always)]
    unsafe fn signed(x: __m256i, w: Weights256) -> __m256i {
        unsafe { _mm256_sign_epi8(x, w.sign) }
    }
}

impl Dots for Pairs256 {
    registers256!();
    pairs!(_mm256_setzero_si256, _mm256_add_epi32, _mm256_add_epi16, _mm256_madd_epi16, _mm256_maddubs_epi16);
    type Weights = Weights256;

    #[inline(always)]
    unsafe fn weights(w: __m256i, largest: i32) -> Weights256 {
        unsafe {
            if largest < 255 {
                return Weights256 { magnitude: w, sign: w };
            }
            let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
            Weights256 { magnitude: _mm256_abs_epi8(w), sign: w }
        }
    }
}
