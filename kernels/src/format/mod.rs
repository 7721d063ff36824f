//! Owns the meaning of every storage format: blocks to f32, one obvious loop each. Kernels are checked against this
//! file; nothing on a hot path calls it.
//!
//! Source: the GGUF specification and ggml's block layouts; the OCP's microscaling and 8-bit float specifications. Exact
//! for formats of one product; those of a product and a sum round as written here, in f32.

mod encode;
mod scales;

use half::{bf16, f16};

pub use encode::{encode, encodes};
pub use scales::{Scale, scales};

use crate::Format;

/// Decodes `bytes` (whole blocks of `format`) into `out`.
///
/// Panics when the lengths do not match: [`crate::HostTensor`] has checked them.
pub fn decode(format: Format, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(format.bytes(out.len()), Some(bytes.len()), "blocks fill the output: this is a bug");
    let blocks = bytes.chunks_exact(format.block_bytes()).zip(out.chunks_exact_mut(format.block_len()));
    let one: fn(&[u8], &mut [f32]) = match format {
        Format::F32 => |b, o| o[0] = f32_at(b, 0),
        Format::F16 => |b, o| o[0] = half_at(b, 0),
        Format::Bf16 => |b, o| o[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        Format::Q8_0 => |b, o| {
            let scale = half_at(b, 0);
            o.iter_mut().zip(&b[2..]).for_each(|(o, q)| *o = f32::from(*q as i8) * scale);
        },
        Format::Q4_0 => |b, o| {
            let scale = half_at(b, 0);
            nibbles(&b[2..], o, |q, _| (f32::from(q) - 8.0) * scale);
        },
        Format::Q4_1 => |b, o| {
            let (scale, minimum) = (half_at(b, 0), half_at(b, 2));
            nibbles(&b[4..], o, |q, _| f32::from(q) * scale + minimum);
        },
        Format::Q5_0 => |b, o| {
            let (scale, high) = (half_at(b, 0), word_at(b, 2));
            nibbles(&b[6..], o, |q, i| (f32::from(q | fifth(high, i)) - 16.0) * scale);
        },
        Format::Q5_1 => |b, o| {
            let (scale, minimum, high) = (half_at(b, 0), half_at(b, 2), word_at(b, 4));
            nibbles(&b[8..], o, |q, i| f32::from(q | fifth(high, i)) * scale + minimum);
        },
        Format::Iq4Nl => |b, o| {
            let scale = half_at(b, 0);
            nibbles(&b[2..], o, |q, _| f32::from(IQ4_CODES[usize::from(q)]) * scale);
        },
        Format::Mxfp4 => |b, o| {
            let scale = mxfp4_scale(b[0]);
            nibbles(&b[1..], o, |q, _| f32::from(MXFP4_CODES[usize::from(q)]) * scale);
        },
        Format::Q2K => q2k,
        Format::Q3K => q3k,
        Format::Q4K => q4k,
        Format::Q5K => q5k,
        Format::Q6K => q6k,
        Format::Iq4Xs => iq4xs,
        Format::Fp8G32 | Format::Fp8G128 => |b, o| {
            let scale = f32_at(b, 0);
            o.iter_mut().zip(&b[4..]).for_each(|(o, q)| *o = e4m3(*q) * scale);
        },
        Format::Int8G32 | Format::Int8G128 => |b, o| {
            let scale = f32_at(b, 0);
            o.iter_mut().zip(&b[4..]).for_each(|(o, q)| *o = f32::from(*q as i8) * scale);
        },
        Format::Int4G32 | Format::Int4G128 => |b, o| {
            let (scale, zero) = (f32_at(b, 0), f32::from(b[4]));
            for (codes, o) in b[5..].chunks_exact(16).zip(o.chunks_exact_mut(32)) {
                nibbles(codes, o, |q, _| (f32::from(q) - zero) * scale);
            }
        },
    };
    blocks.for_each(|(b, o)| one(b, o));
}

/// Twice the values of the E2M1 codes, so that they are integers.
pub const MXFP4_CODES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The values of iq4_nl's and iq4_xs's codes, as ggml has them.
pub const IQ4_CODES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// What [`MXFP4_CODES`] are multiplied by: half of the E8M0 scale, `2^(e - 128)`, exact down to its subnormal end.
pub fn mxfp4_scale(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// The value of an 8-bit float of 4 exponent and 3 mantissa bits: no infinities, NaN where all seven are set.
pub fn e4m3(code: u8) -> f32 {
    let magnitude = u32::from(code & 0x7f);
    let value = match magnitude {
        0x7f => f32::NAN,
        0..8 => magnitude as f32 / 512.0,
        _ => f32::from_bits((magnitude << 20) + (120 << 23)),
    };
    if code & 0x80 == 0 { value } else { -value }
}

/// The 6-bit scale and minimum of each group of 32 of q4_k and q5_k, from their 12 bytes.
pub(crate) fn k_scales(packed: &[u8], group: usize) -> (u8, u8) {
    match group {
        0..4 => (packed[group] & 63, packed[group + 4] & 63),
        _ => {
            let (low, high) = (packed[group + 4], group - 4);
            ((low & 15) | packed[high] >> 6 << 4, (low >> 4) | packed[group] >> 6 << 4)
        }
    }
}

/// The 6-bit scale, less 32, of each 16 values of q3_k, from its 12 bytes.
pub(crate) fn q3k_scale(packed: &[u8], sixteen: usize) -> i8 {
    let low = packed[sixteen % 8] >> (sixteen / 8 * 4) & 15;
    let high = packed[8 + sixteen % 4] >> (sixteen / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}

/// The 6-bit scale, less 32, of each group of 32 of iq4_xs, from its block.
pub(crate) fn iq4xs_scale(block: &[u8], group: usize) -> i8 {
    let low = block[4 + group / 2] >> (group % 2 * 4) & 15;
    let high = u16::from_le_bytes([block[2], block[3]]) >> (group * 2) & 3;
    (low | (high as u8) << 4) as i8 - 32
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn f32_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_bits(word_at(bytes, at))
}

fn word_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Low nibbles are the first half of the 32, high nibbles the second; `value` is given the nibble and its place.
fn nibbles(packed: &[u8], out: &mut [f32], value: impl Fn(u8, usize) -> f32) {
    for (i, byte) in packed.iter().enumerate() {
        out[i] = value(byte & 15, i);
        out[i + 16] = value(byte >> 4, i + 16);
    }
}

/// Bit `i` of `high`, as the fifth bit of a code.
fn fifth(high: u32, i: usize) -> u8 {
    ((high >> i & 1) as u8) << 4
}

/// 256 values; two bits from one of four places of 64 bytes; a 4-bit scale and minimum each 16 values.
fn q2k(block: &[u8], out: &mut [f32]) {
    let (scales, codes, whole, least) = (&block[..16], &block[16..80], half_at(block, 80), half_at(block, 82));
    for (i, out) in out.iter_mut().enumerate() {
        let (half, quarter, lane) = (i / 128, i % 128 / 32, i % 32);
        let q = f32::from(codes[half * 32 + lane] >> (quarter * 2) & 3);
        let packed = scales[i / 16];
        *out = whole * f32::from(packed & 15) * q - least * f32::from(packed >> 4);
    }
}

/// 256 values; the third bit is 32 bytes of masks, and where it is not set 4 is taken away.
fn q3k(block: &[u8], out: &mut [f32]) {
    let (high, codes, scales, whole) = (&block[..32], &block[32..96], &block[96..108], half_at(block, 108));
    for (i, out) in out.iter_mut().enumerate() {
        let (half, quarter, lane) = (i / 128, i % 128 / 32, i % 32);
        let low = codes[half * 32 + lane] >> (quarter * 2) & 3;
        let q = (low | (high[lane] >> (i / 32) & 1) << 2) as i8 - 4;
        *out = whole * f32::from(q3k_scale(scales, i / 16)) * f32::from(q);
    }
}

/// 256 values; each 64 share 32 bytes of nibbles, low ones first.
fn q4k(block: &[u8], out: &mut [f32]) {
    let (whole, least) = (half_at(block, 0), half_at(block, 2));
    for (i, out) in out.iter_mut().enumerate() {
        let q = block[16 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
        let (scale, minimum) = k_scales(&block[4..16], i / 32);
        *out = whole * f32::from(scale) * f32::from(q) - least * f32::from(minimum);
    }
}

/// As q4_k, with a fifth bit: bit `i / 32` of 32 bytes.
fn q5k(block: &[u8], out: &mut [f32]) {
    let (whole, least) = (half_at(block, 0), half_at(block, 2));
    for (i, out) in out.iter_mut().enumerate() {
        let low = block[48 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
        let q = low | (block[16 + i % 32] >> (i / 32) & 1) << 4;
        let (scale, minimum) = k_scales(&block[4..16], i / 32);
        *out = whole * f32::from(scale) * f32::from(q) - least * f32::from(minimum);
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

/// 8 groups of 32, each with a 6-bit scale.
fn iq4xs(block: &[u8], out: &mut [f32]) {
    let whole = half_at(block, 0);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let scale = whole * f32::from(iq4xs_scale(block, group));
        nibbles(&block[8 + group * 16..][..16], out, |q, _| f32::from(IQ4_CODES[usize::from(q)]) * scale);
    }
}
