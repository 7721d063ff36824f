//! Owns where the numbers lie that a block's codes are multiplied by. Whoever reads files checks them: no code can be
//! wrong, but a scale can.

use half::f16;

use crate::Format;

/// A scale or minimum in a block: its kind, and its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    Half(usize),
    Float(usize),
    /// E8M0, a power of two.
    Exponent(usize),
}

impl Scale {
    /// Its value.
    pub fn read(self, block: &[u8]) -> f32 {
        match self {
            Self::Half(at) => f16::from_le_bytes([block[at], block[at + 1]]).to_f32(),
            Self::Float(at) => f32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]),
            Self::Exponent(at) if block[at] == u8::MAX => f32::NAN,
            Self::Exponent(at) => 2.0 * super::mxfp4_scale(block[at]),
        }
    }

    /// Puts `value` in its place, rounded to what the place holds.
    pub fn write(self, block: &mut [u8], value: f32) {
        match self {
            Self::Half(at) => block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            Self::Float(at) => block[at..at + 4].copy_from_slice(&value.to_le_bytes()),
            Self::Exponent(at) => block[at] = (value.abs().log2().round() + 127.0) as u8,
        }
    }
}

/// The scale of a block of `format`, and its minimum where it has one; none for plain types.
pub const fn scales(format: Format) -> &'static [Scale] {
    match format {
        Format::F32 | Format::F16 | Format::Bf16 => &[],
        Format::Q8_0 | Format::Q4_0 | Format::Q5_0 | Format::Iq4Nl | Format::Iq4Xs => &[Scale::Half(0)],
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[Scale::Half(0), Scale::Half(2)],
        Format::Q2K => &[Scale::Half(80), Scale::Half(82)],
        Format::Q3K => &[Scale::Half(108)],
        Format::Q6K => &[Scale::Half(208)],
        Format::Mxfp4 => &[Scale::Exponent(0)],
        Format::Fp8G32 | Format::Fp8G128 | Format::Int8G32 | Format::Int8G128 | Format::Int4G32 | Format::Int4G128 => {
            &[Scale::Float(0)]
        }
    }
}
