//! Owns the meaning of every storage format: blocks to f32 and back, one obvious loop each. Kernels are checked
//! against this file; nothing on a hot path calls it.
//!
//! Source: the GGUF specification and ggml's block layouts. Exact for plain types, q8_0, q4_0 and mxfp4 (one product);
//! q4_1 and q6_k round as written here: `q * scale + minimum` and `scale * block_scale * q` in f32.

use half::{bf16, f16};

use crate::Format;

/// Decodes `bytes` (whole blocks of `format`) into `out`.
///
/// Panics when the lengths do not match: [`crate::HostTensor`] has checked them.
pub fn decode(format: Format, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(format.bytes(out.len()), Some(bytes.len()), "blocks fill the output: this is a bug");
    let blocks = bytes.chunks_exact(format.block_bytes()).zip(out.chunks_exact_mut(format.block_len()));
    match format {
        Format::F32 => blocks.for_each(|(b, o)| o[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        Format::F16 => blocks.for_each(|(b, o)| o[0] = half_at(b, 0)),
        Format::Bf16 => blocks.for_each(|(b, o)| o[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        Format::Q8_0 => blocks.for_each(|(b, o)| {
            let scale = half_at(b, 0);
            o.iter_mut().zip(&b[2..]).for_each(|(o, q)| *o = f32::from(*q as i8) * scale);
        }),
        Format::Q4_0 => blocks.for_each(|(b, o)| {
            let scale = half_at(b, 0);
            nibbles(&b[2..], o, |q| (f32::from(q) - 8.0) * scale);
        }),
        Format::Q4_1 => blocks.for_each(|(b, o)| {
            let (scale, minimum) = (half_at(b, 0), half_at(b, 2));
            nibbles(&b[4..], o, |q| f32::from(q) * scale + minimum);
        }),
        Format::Q6K => blocks.for_each(|(b, o)| q6k(b, o)),
        Format::Mxfp4 => blocks.for_each(|(b, o)| {
            let scale = mxfp4_scale(b[0]);
            nibbles(&b[1..], o, |q| f32::from(MXFP4_CODES[usize::from(q)]) * scale);
        }),
    }
}

/// Twice the values of the E2M1 codes, so that they are integers.
pub const MXFP4_CODES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// What [`MXFP4_CODES`] are multiplied by: half of the E8M0 scale, `2^(e - 128)`, exact down to its subnormal end.
pub fn mxfp4_scale(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// Encodes `values` as `format`: plain types rounded to nearest even, block formats as ggml's reference quantiser does
/// (largest magnitude sets the scale). Values fill whole blocks.
///
/// Panics for `Q6K`, which nothing here writes.
pub fn encode(format: Format, values: &[f32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(format.bytes(values.len()).expect("whole blocks: this is a bug"));
    match format {
        Format::F32 => values.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Format::F16 => values.iter().for_each(|v| out.extend(f16::from_f32(*v).to_le_bytes())),
        Format::Bf16 => values.iter().for_each(|v| out.extend(bf16::from_f32(*v).to_le_bytes())),
        Format::Q8_0 => values.chunks_exact(32).for_each(|v| {
            let scale = largest(v).abs() / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            out.extend(f16::from_f32(scale).to_le_bytes());
            out.extend(v.iter().map(|v| (v * inverse).round() as i8 as u8));
        }),
        Format::Q4_0 => values.chunks_exact(32).for_each(|v| {
            let scale = largest(v) / -8.0;
            let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
            out.extend(f16::from_f32(scale).to_le_bytes());
            let q = |v: f32| (v * inverse + 8.5).clamp(0.0, 15.0) as u8;
            out.extend((0..16).map(|i| q(v[i]) | q(v[i + 16]) << 4));
        }),
        Format::Q4_1 => values.chunks_exact(32).for_each(|v| {
            let (low, high) = v.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
            let scale = (high - low) / 15.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            out.extend(f16::from_f32(scale).to_le_bytes());
            out.extend(f16::from_f32(low).to_le_bytes());
            let q = |v: f32| ((v - low) * inverse + 0.5).clamp(0.0, 15.0) as u8;
            out.extend((0..16).map(|i| q(v[i]) | q(v[i + 16]) << 4));
        }),
        Format::Mxfp4 => values.chunks_exact(32).for_each(|v| {
            let e = mxfp4_exponent(largest(v).abs());
            let inverse = 1.0 / mxfp4_scale(e);
            out.push(e);
            out.extend((0..16).map(|i| mxfp4_code(v[i] * inverse) | mxfp4_code(v[i + 16] * inverse) << 4));
        }),
        Format::Q6K => panic!("nothing encodes q6_k: this is a bug"),
    }
    out
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
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

/// Low nibbles are the first half of the block, high nibbles the second.
fn nibbles(packed: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    for (i, byte) in packed.iter().enumerate() {
        out[i] = value(byte & 15);
        out[i + 16] = value(byte >> 4);
    }
}

/// 256 values in two halves of 128; six bits are four from `low` and two from `high`; a scale each 16 values.
fn q6k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let whole = half_at(block, 208);
    for (i, out) in out.iter_mut().enumerate() {
        let (half, quarter, lane) = (i / 128, i % 128 / 32, i % 32);
        let nibble = low[half * 64 + quarter % 2 * 32 + lane] >> (quarter / 2 * 4) & 15;
        let pair = high[half * 32 + lane] >> (quarter * 2) & 3;
        let q = f32::from((nibble | pair << 4) as i8 - 32);
        *out = whole * f32::from(scales[i / 16] as i8) * q;
    }
}

/// The value of largest magnitude, with its sign.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m: f32, v| if v.abs() > m.abs() { *v } else { m })
}
