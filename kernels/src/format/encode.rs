//! Owns the making of blocks from values, for the formats that weights are rounded to here: each block alone, so blocks
//! may be made in any order and in parallel.

use half::{bf16, f16};

use super::{MXFP4_CODES, e4m3, mxfp4_scale};
use crate::Format;

/// Whether [`encode`] makes the format.
pub const fn encodes(format: Format) -> bool {
    use Format as F;
    matches!(format, F::F32 | F::F16 | F::Bf16 | F::Q8_0 | F::Q4_0 | F::Q4_1 | F::Mxfp4 | F::Fp8G32 | F::Fp8G128)
}

/// Encodes `values` as `format`. Plain types are rounded to nearest even; q8_0, q4_1 and fp8 blocks span their largest
/// values; q4_0 takes the scale of least squared error, mxfp4 the power of two that clips least. Values fill whole
/// blocks.
///
/// Panics for a format that [`encodes`] denies.
pub fn encode(format: Format, values: &[f32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(format.bytes(values.len()).expect("whole blocks: this is a bug"));
    let blocks = values.chunks_exact(format.block_len());
    match format {
        Format::F32 => values.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Format::F16 => values.iter().for_each(|v| out.extend(f16::from_f32(*v).to_le_bytes())),
        Format::Bf16 => values.iter().for_each(|v| out.extend(bf16::from_f32(*v).to_le_bytes())),
        Format::Q8_0 => blocks.for_each(|v| {
            let scale = largest(v).abs() / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            out.extend(f16::from_f32(scale).to_le_bytes());
            out.extend(v.iter().map(|v| (v * inverse).round() as i8 as u8));
        }),
        Format::Q4_0 => blocks.for_each(|v| {
            let (scale, codes) = q4_0(v);
            out.extend(scale.to_le_bytes());
            out.extend((0..16).map(|i| codes[i] | codes[i + 16] << 4));
        }),
        Format::Q4_1 => blocks.for_each(|v| {
            let (low, high) = v.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
            let scale = (high - low) / 15.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            out.extend(f16::from_f32(scale).to_le_bytes());
            out.extend(f16::from_f32(low).to_le_bytes());
            let q = |v: f32| ((v - low) * inverse + 0.5).clamp(0.0, 15.0) as u8;
            out.extend((0..16).map(|i| q(v[i]) | q(v[i + 16]) << 4));
        }),
        Format::Mxfp4 => blocks.for_each(|v| {
            let e = mxfp4_exponent(largest(v).abs());
            let inverse = 1.0 / mxfp4_scale(e);
            out.push(e);
            out.extend((0..16).map(|i| mxfp4_code(v[i] * inverse) | mxfp4_code(v[i + 16] * inverse) << 4));
        }),
        Format::Fp8G32 | Format::Fp8G128 => blocks.for_each(|v| {
            let scale = largest(v).abs() / E4M3_LARGEST;
            let inverse = if scale > 0.0 && (1.0 / scale).is_finite() { 1.0 / scale } else { 0.0 };
            out.extend(scale.to_le_bytes());
            out.extend(v.iter().map(|v| e4m3_code(v * inverse)));
        }),
        _ => panic!("nothing encodes {format}: this is a bug"),
    }
    out
}

const E4M3_LARGEST: f32 = 448.0;

/// The nearest 8-bit float, ties to even, at most 448 in magnitude.
pub fn e4m3_code(v: f32) -> u8 {
    let sign = u8::from(v.is_sign_negative()) << 7;
    let magnitude = v.abs().min(E4M3_LARGEST);
    // Steps are 2^-9 below 2^-6 and an eighth of the power of two above.
    let step = f32::from_bits((magnitude.to_bits() >> 23).max(121) << 23) / 8.0;
    let rounded = (magnitude / step).round_ties_even() * step;
    let code = if rounded < 0.015_625 { (rounded * 512.0) as u32 } else { (rounded.to_bits() >> 20) - (120 << 3) };
    debug_assert_eq!(e4m3(code as u8), rounded);
    sign | code as u8
}

/// Scale and codes of a q4_0 block. Grids around those that end at the largest value are tried, of both signs; the one
/// whose codes, at the scale that fits them best, leave the least squared error stays.
fn q4_0(v: &[f32]) -> (f16, [u8; 32]) {
    let extreme = largest(v);
    let mut best = (-1.0, 0.0, 0.0);
    for end in [-8.8, -8.4, -8.0, -7.6, -7.2, 6.6, 7.0, 7.4, 7.8] {
        let inverse = end / extreme;
        let (mut vq, mut qq) = (0.0, 0.0);
        for v in v {
            let q = q4_step(v * inverse);
            (vq, qq) = (vq + v * q, qq + q * q);
        }
        // The error is the sum of squares less this.
        let gain = if qq > 0.0 { vq * vq / qq } else { -1.0 };
        if gain > best.0 {
            best = (gain, inverse, vq / qq);
        }
    }
    let (_, inverse, scale) = best;
    let mut codes = [8; 32];
    codes.iter_mut().zip(v).for_each(|(code, v)| *code = (q4_step(v * inverse) + 8.0) as u8);
    (f16::from_f32(scale), codes)
}

/// The nearest whole number of -8 to 7. Adding a number whose steps are 1 rounds; the compiler makes vectors of it.
fn q4_step(v: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    (v.clamp(-8.0, 7.0) + ROUND) - ROUND
}

/// The E8M0 scale under which `largest` is at most 7 steps of one, of which the last is clipped to 6.
fn mxfp4_exponent(largest: f32) -> u8 {
    let exponent = (largest.to_bits() >> 23) as i32 - 2; // largest is in 4 to 8 scales
    let clipped = f64::from(largest) > 7.0 * 2f64.powi(exponent - 127);
    (exponent + i32::from(clipped)).clamp(2, 252) as u8
}

/// The nearest of [`MXFP4_CODES`], ties to the lower code.
fn mxfp4_code(v: f32) -> u8 {
    let off = |code: u8| (f32::from(MXFP4_CODES[usize::from(code)]) - v).abs();
    (1..16).fold(0, |best, code| if off(code) < off(best) { code } else { best })
}

/// The value of largest magnitude, with its sign.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m: f32, v| if v.abs() > m.abs() { *v } else { m })
}
