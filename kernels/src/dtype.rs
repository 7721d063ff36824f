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
/// Most block formats are those of the GGUF specification; the last six hold what other checkpoints have. A row of a
/// matrix is `in / block_len()` blocks, one after another.
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
    /// As q4_0 with a fifth bit: f16 scale, 32 bits, 16 bytes of nibbles, value `(q - 16) * scale`.
    Q5_0,
    /// As q4_1 with a fifth bit: f16 scale, f16 minimum, 32 bits, 16 bytes of nibbles.
    Q5_1,
    /// 256 values: 16 x (4-bit scale, 4-bit minimum), 64 bytes of pairs, f16 super-scale, f16 super-minimum.
    Q2K,
    /// 256 values: 32 bytes of high bits, 64 bytes of pairs, 16 x 6-bit scale, f16 super-scale.
    Q3K,
    /// 256 values: f16 super-scale, f16 super-minimum, 8 x (6-bit scale, 6-bit minimum), 128 bytes of nibbles.
    Q4K,
    /// As q4_k with 32 bytes of high bits before the nibbles.
    Q5K,
    /// 256 values: 128 bytes low nibbles, 64 bytes high pairs, 16 x i8 scales, f16 super-scale.
    Q6K,
    /// 32 values: f16 scale, 16 bytes of nibbles, each an index into a table.
    Iq4Nl,
    /// 256 values: f16 super-scale, 8 x 6-bit scale, 128 bytes of nibbles, each an index into a table.
    Iq4Xs,
    /// 32 values: E8M0 scale (`2^(e - 127)`), 16 bytes of E2M1 codes (low nibbles first half).
    Mxfp4,
    /// 32 values: f32 scale, 32 x 8-bit float E4M3 (no infinities).
    Fp8G32,
    /// 128 values: f32 scale, 128 x 8-bit float E4M3.
    Fp8G128,
    /// 32 values: f32 scale, 32 x i8.
    Int8G32,
    /// 128 values: f32 scale, 128 x i8.
    Int8G128,
    /// 32 values: f32 scale, u8 zero, 16 bytes of nibbles (low nibbles first half), value `(q - zero) * scale`.
    Int4G32,
    /// 128 values: f32 scale, u8 zero, 4 x 16 bytes of nibbles, each 32 values as in [`Self::Int4G32`].
    Int4G128,
}

impl Format {
    /// All formats, in the order in which they are declared.
    pub const ALL: [Self; 22] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Mxfp4,
        Self::Fp8G32,
        Self::Fp8G128,
        Self::Int8G32,
        Self::Int8G128,
        Self::Int4G32,
        Self::Int4G128,
    ];

    /// Values a block holds; 1 for plain element types.
    pub const fn block_len(self) -> usize {
        self.block().0
    }

    /// Bytes a block takes.
    pub const fn block_bytes(self) -> usize {
        self.block().1
    }

    /// Values and bytes of a block.
    const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 | Self::Iq4Nl => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::Iq4Xs => (256, 136),
            Self::Mxfp4 => (32, 17),
            Self::Fp8G32 | Self::Int8G32 => (32, 36),
            Self::Fp8G128 | Self::Int8G128 => (128, 132),
            Self::Int4G32 => (32, 21),
            Self::Int4G128 => (128, 69),
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
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q2K => "q2_k",
            Self::Q3K => "q3_k",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
            Self::Iq4Nl => "iq4_nl",
            Self::Iq4Xs => "iq4_xs",
            Self::Mxfp4 => "mxfp4",
            Self::Fp8G32 => "fp8_g32",
            Self::Fp8G128 => "fp8_g128",
            Self::Int8G32 => "int8_g32",
            Self::Int8G128 => "int8_g128",
            Self::Int4G32 => "int4_g32",
            Self::Int4G128 => "int4_g128",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
