//! Owns element types of values and storage formats of weights: sizes and names. Knows no values; decoding a block
//! lives in [`crate::format`].

use std::fmt;

/// Element type of a program value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    F16,
    Bf16,
    /// Token ids and indices.
    U32,
    /// A candidate: `u32` id, then its `f32` value. What `router` and `top_k` return.
    Pair,
}

impl DType {
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::U32 => 4,
            Self::Pair => 8,
        }
    }

    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::U32 => "u32",
            Self::Pair => "pair",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a weight is stored: a plain element type, or blocks along the input dimension that share scales.
///
/// Block formats are those of the GGUF specification; a row of a matrix is `in / block_len()` blocks, one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    F32,
    F16,
    Bf16,
    /// 32 values: f16 scale, 32 x i8.
    Q8_0,
    /// 32 values: f16 scale, 16 bytes of nibbles (low nibbles first half), value `(q - 8) * scale`.
    Q4_0,
    /// 32 values: f16 scale, f16 minimum, 16 bytes of nibbles, value `q * scale + minimum`.
    Q4_1,
    /// 256 values: 128 bytes low nibbles, 64 bytes high pairs, 16 x i8 scales, f16 super-scale.
    Q6K,
    /// 32 values: E8M0 scale (`2^(e - 127)`), 16 bytes of E2M1 codes (low nibbles first half).
    Mxfp4,
}

impl Format {
    pub const ALL: [Self; 8] =
        [Self::F32, Self::F16, Self::Bf16, Self::Q8_0, Self::Q4_0, Self::Q4_1, Self::Q6K, Self::Mxfp4];

    /// Values a block holds; 1 for plain element types.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Mxfp4 => 32,
            Self::Q6K => 256,
        }
    }

    /// Bytes a block takes.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q6K => 210,
            Self::Mxfp4 => 17,
        }
    }

    /// Bytes that `elements` values take, or `None` when they do not fill whole blocks (or the size overflows).
    pub const fn bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_len()) {
            return None;
        }
        (elements / self.block_len()).checked_mul(self.block_bytes())
    }

    pub const fn is_quantised(self) -> bool {
        self.block_len() > 1
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q6K => "q6_k",
            Self::Mxfp4 => "mxfp4",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
