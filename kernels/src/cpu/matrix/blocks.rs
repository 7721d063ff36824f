//! Owns how block formats lie in a panel: one family of layouts for all of them, so that kernels differ by constants.
//! Repacking loses nothing. Knows no registers.
//!
//! ```text
//! unit    groups of 32 k, then what the groups of the unit share: [32 columns] entries
//! group   planes of codes, then the group's scales: [halves][32 columns] entries
//! planes  bytes    [8 quads][32 columns][4 k]      a code a byte; q8_0 and int8 as value + 128
//!         nibbles  [4][32 columns][4 k]            line `s` holds quad `s` low and quad `s + 4` high
//!         pairs    [2][32 columns][4 k]            line `t` holds quads `4 t + j` at bits `2 j`
//!         bits     [1][32 columns][4 k]            holds quad `j` at bit `j`
//! ```
//! A quad is 4 consecutive k. A code is its nibble, then its pair, then its bit, from the lowest; it is unsigned, and what
//! it means is in [`Values`].
//!
//! | format | planes | a group's scales | shared by a unit |
//! |---|---|---|---|
//! | q8_0, q4_0, iq4_nl | bytes; nibbles | f16 | |
//! | q4_1; q5_0, q5_1 | nibbles; nibbles, bits | f16 (and f16 minimum) | |
//! | mxfp4 | nibbles | E8M0 | |
//! | q6_k; q3_k; iq4_xs | nibbles, pairs; pairs, bits; nibbles | i8 of each half; of each half; one | f16 |
//! | q4_k, q5_k | nibbles (, bits) | u8, u8 minimum | f16, f16 minimum |
//! | q2_k | pairs | u8 of each half, scale low, minimum high | f16, f16 minimum |
//! | int4; int8, fp8 | nibbles; bytes | | f32 (int4: and a u8 zero) |
//!
//! Sub-scales of 6 bits take a byte: the k formats are up to 4 % larger than in their files, no other is larger at all.

use half::f16;

use super::panel::COLUMNS;
use crate::Format;
use crate::format::{IQ4_CODES, MXFP4_CODES, e4m3, iq4xs_scale, k_scales, mxfp4_scale, q3k_scale};

/// The layout of one block format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) planes: Planes,
    pub(super) values: Values,
    pub(super) scales: Scales,
    /// Groups of 32 k in a unit.
    pub(super) groups: usize,
}

/// Which planes a group's codes lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Planes {
    Bytes,
    Nibbles,
    NibblesBits,
    NibblesPairs,
    Pairs,
    PairsBits,
}

/// What a code `q` stands for, before its scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Values {
    /// `q - offset`
    Offset(u8),
    /// `q`; a minimum is added after the scale.
    Plain,
    /// [`MXFP4_CODES`]
    Mxfp4,
    /// [`IQ4_CODES`]
    Iq4,
    /// An 8-bit float.
    E4m3,
}

/// How scales (and minima) are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scales {
    Half,
    HalfMinimum,
    E8m0,
    /// i8 of each half of a group times the unit's f16.
    Halves,
    /// i8 of a group times the unit's f16.
    Byte,
    /// u8 and u8 minimum of a group, times the unit's two f16.
    ByteMinimum,
    /// Nibbles: scale and minimum of each half of a group, times the unit's two f16.
    NibblesMinimum,
    /// f32 of the unit.
    Float,
    /// f32 and u8 zero of the unit; the minimum is `-zero * scale`.
    FloatZero,
}

impl Blocks {
    /// Panics for plain element types.
    pub(super) const fn of(format: Format) -> Self {
        use {Planes as P, Scales as S, Values as V};
        let (planes, values, scales) = match format {
            Format::Q8_0 => (P::Bytes, V::Offset(128), S::Half),
            Format::Q4_0 => (P::Nibbles, V::Offset(8), S::Half),
            Format::Q4_1 => (P::Nibbles, V::Plain, S::HalfMinimum),
            Format::Q5_0 => (P::NibblesBits, V::Offset(16), S::Half),
            Format::Q5_1 => (P::NibblesBits, V::Plain, S::HalfMinimum),
            Format::Q2K => (P::Pairs, V::Plain, S::NibblesMinimum),
            Format::Q3K => (P::PairsBits, V::Offset(4), S::Halves),
            Format::Q4K => (P::Nibbles, V::Plain, S::ByteMinimum),
            Format::Q5K => (P::NibblesBits, V::Plain, S::ByteMinimum),
            Format::Q6K => (P::NibblesPairs, V::Offset(32), S::Halves),
            Format::Iq4Nl => (P::Nibbles, V::Iq4, S::Half),
            Format::Iq4Xs => (P::Nibbles, V::Iq4, S::Byte),
            Format::Mxfp4 => (P::Nibbles, V::Mxfp4, S::E8m0),
            Format::Fp8G32 | Format::Fp8G128 => (P::Bytes, V::E4m3, S::Float),
            Format::Int8G32 | Format::Int8G128 => (P::Bytes, V::Offset(128), S::Float),
            Format::Int4G32 | Format::Int4G128 => (P::Nibbles, V::Plain, S::FloatZero),
            Format::F32 | Format::F16 | Format::Bf16 => panic!("plain formats have no blocks: this is a bug"),
        };
        Self { planes, values, scales, groups: format.block_len() / 32 }
    }

    /// Bytes of a group's planes; its scales follow.
    pub(super) const fn code_bytes(self) -> usize {
        match self.planes {
            Planes::Bytes => 1024,
            Planes::Nibbles => 512,
            Planes::NibblesBits => 512 + 128,
            Planes::NibblesPairs => 512 + 256,
            Planes::Pairs => 256,
            Planes::PairsBits => 256 + 128,
        }
    }

    pub(super) const fn group_bytes(self) -> usize {
        let scales = match self.scales {
            Scales::Half | Scales::Halves | Scales::ByteMinimum | Scales::NibblesMinimum => 2,
            Scales::HalfMinimum => 4,
            Scales::E8m0 | Scales::Byte => 1,
            Scales::Float | Scales::FloatZero => 0,
        };
        self.code_bytes() + scales * COLUMNS
    }

    pub(super) const fn unit_bytes(self) -> usize {
        let shared = match self.scales {
            Scales::Half | Scales::HalfMinimum | Scales::E8m0 => 0,
            Scales::Halves | Scales::Byte => 2,
            Scales::ByteMinimum | Scales::NibblesMinimum | Scales::Float => 4,
            Scales::FloatZero => 5,
        };
        self.groups * self.group_bytes() + shared * COLUMNS
    }

    /// Parts of a group that have a scale of their own: 1 or 2.
    pub(super) const fn halves(self) -> usize {
        if matches!(self.scales, Scales::Halves | Scales::NibblesMinimum) { 2 } else { 1 }
    }

    /// What is taken from [`Self::unsigned`] codes to have their values; 0 where there is a minimum.
    pub(super) const fn offset(self) -> u8 {
        match self.values {
            Values::Offset(offset) => offset,
            Values::Mxfp4 => 12,
            Values::Iq4 => 128,
            Values::Plain | Values::E4m3 => 0,
        }
    }

    /// The largest code, or value of a table with its offset added.
    pub(super) const fn largest(self) -> u8 {
        match (self.values, self.planes) {
            (Values::Mxfp4, _) => 24,
            (Values::Iq4, _) | (_, Planes::Bytes) => 255,
            (_, Planes::Nibbles) => 15,
            (_, Planes::NibblesBits) => 31,
            (_, Planes::NibblesPairs) => 63,
            (_, Planes::Pairs) => 3,
            (_, Planes::PairsBits) => 7,
        }
    }

    /// A table of 16 unsigned values by which nibbles are replaced.
    pub(super) const fn table(self) -> Option<[u8; 16]> {
        let values = match self.values {
            Values::Mxfp4 => MXFP4_CODES,
            Values::Iq4 => IQ4_CODES,
            _ => return None,
        };
        let (mut table, mut i) = ([0; 16], 0);
        while i < 16 {
            table[i] = (values[i] as i16 + self.offset() as i16) as u8;
            i += 1;
        }
        Some(table)
    }
}

/// Writes one block of `format` into column `column` of a unit whose bytes are zero there.
pub(super) fn put(format: Format, unit: &mut [u8], column: usize, block: &[u8]) {
    let b = Blocks::of(format);
    let (groups, shared) = unit.split_at_mut(b.groups * b.group_bytes());
    let lane = column * 4;
    for (g, group) in groups.chunks_exact_mut(b.group_bytes()).enumerate() {
        let (planes, scales) = group.split_at_mut(b.code_bytes());
        let quads: [u32; 8] = std::array::from_fn(|quad| quad_of(format, block, g, quad));
        let mut lines = planes.chunks_exact_mut(128);
        let mut line = |word: u32| {
            let line = lines.next().expect("planes have all lines: this is a bug");
            line[lane..lane + 4].copy_from_slice(&word.to_le_bytes());
        };
        let (nibbles, pairs, bits) = match b.planes {
            Planes::Bytes => {
                quads.iter().for_each(|quad| line(*quad));
                (None, None, None)
            }
            Planes::Nibbles => (Some(0), None, None),
            Planes::NibblesBits => (Some(0), None, Some(4)),
            Planes::NibblesPairs => (Some(0), Some(4), None),
            Planes::Pairs => (None, Some(0), None),
            Planes::PairsBits => (None, Some(0), Some(2)),
        };
        if let Some(from) = nibbles {
            let nibble = |quad: usize| quads[quad] >> from & 0x0f0f_0f0f;
            (0..4).for_each(|s| line(nibble(s) | nibble(s + 4) << 4));
        }
        if let Some(from) = pairs {
            let pair = |quad: usize| quads[quad] >> from & 0x0303_0303;
            (0..2).for_each(|t| line((0..4).fold(0, |line, j| line | pair(t * 4 + j) << (j * 2))));
        }
        if let Some(from) = bits {
            line((0..8).fold(0, |line, j| line | (quads[j] >> from & 0x0101_0101) << j));
        }
        let mut byte = |part: usize, value: u8| scales[part * COLUMNS + column] = value;
        match b.scales {
            Scales::Half => scales[column * 2..][..2].copy_from_slice(&block[..2]),
            Scales::HalfMinimum => {
                scales[column * 2..][..2].copy_from_slice(&block[..2]);
                scales[(COLUMNS + column) * 2..][..2].copy_from_slice(&block[2..4]);
            }
            Scales::E8m0 => byte(0, block[0]),
            Scales::Halves => (0..2).for_each(|h| byte(h, sixteenth(format, block, g * 2 + h) as u8)),
            Scales::Byte => byte(0, iq4xs_scale(block, g) as u8),
            Scales::ByteMinimum => {
                let (scale, minimum) = k_scales(&block[4..16], g);
                byte(0, scale);
                byte(1, minimum);
            }
            Scales::NibblesMinimum => (0..2).for_each(|h| byte(h, block[g * 2 + h])),
            Scales::Float | Scales::FloatZero => {}
        }
    }
    let mut half = |part: usize, at: usize| {
        shared[(part * COLUMNS + column) * 2..][..2].copy_from_slice(&block[at..at + 2]);
    };
    match b.scales {
        Scales::Half | Scales::HalfMinimum | Scales::E8m0 => {}
        Scales::Halves | Scales::Byte => half(0, if format == Format::Iq4Xs { 0 } else { block.len() - 2 }),
        Scales::ByteMinimum => (0..2).for_each(|part| half(part, part * 2)),
        Scales::NibblesMinimum => (0..2).for_each(|part| half(part, 80 + part * 2)),
        Scales::Float => shared[column * 4..][..4].copy_from_slice(&block[..4]),
        Scales::FloatZero => {
            shared[column * 4..][..4].copy_from_slice(&block[..4]);
            shared[COLUMNS * 4 + column] = block[4];
        }
    }
}

/// Value `i` of the unit in column `column`, exactly as [`crate::format::decode`] has it.
pub(super) fn get(format: Format, unit: &[u8], column: usize, i: usize) -> f32 {
    let b = Blocks::of(format);
    let (groups, shared) = unit.split_at(b.groups * b.group_bytes());
    let group = &groups[i / 32 * b.group_bytes()..][..b.group_bytes()];
    let (scale, minimum) = scales_of(b, group, shared, column, i % 32 / 16);
    let code = code_of(b, group, column, i % 32);
    match (b.values, b.scales) {
        (Values::Plain, Scales::FloatZero) => (f32::from(code) - f32::from(shared[COLUMNS * 4 + column])) * scale,
        (Values::Plain, _) => f32::from(code) * scale + minimum,
        (Values::E4m3, _) => e4m3(code) * scale,
        (Values::Mxfp4, _) => f32::from(MXFP4_CODES[usize::from(code)]) * scale,
        (Values::Iq4, _) => f32::from(IQ4_CODES[usize::from(code)]) * scale,
        (Values::Offset(offset), _) => scale * (f32::from(code) - f32::from(offset)),
    }
}

/// Scale and minimum of column `column` for half `half` of a group. The minimum is 0 where the format has none.
pub(super) fn scales_of(b: Blocks, group: &[u8], shared: &[u8], column: usize, half: usize) -> (f32, f32) {
    let scales = &group[b.code_bytes()..];
    let f16_at = |from: &[u8], part: usize| {
        let at = (part * COLUMNS + column) * 2;
        f16::from_le_bytes([from[at], from[at + 1]]).to_f32()
    };
    let byte = |part: usize| f32::from(scales[part * COLUMNS + column]);
    let signed = |part: usize| f32::from(scales[part * COLUMNS + column] as i8);
    let float = || f32::from_le_bytes([0, 1, 2, 3].map(|i| shared[column * 4 + i]));
    match b.scales {
        Scales::Half => (f16_at(scales, 0), 0.0),
        Scales::HalfMinimum => (f16_at(scales, 0), f16_at(scales, 1)),
        Scales::E8m0 => (mxfp4_scale(scales[column]), 0.0),
        Scales::Halves => (f16_at(shared, 0) * signed(half), 0.0),
        Scales::Byte => (f16_at(shared, 0) * signed(0), 0.0),
        Scales::ByteMinimum => (f16_at(shared, 0) * byte(0), -(f16_at(shared, 1) * byte(1))),
        Scales::NibblesMinimum => {
            let packed = scales[half * COLUMNS + column];
            (f16_at(shared, 0) * f32::from(packed & 15), -(f16_at(shared, 1) * f32::from(packed >> 4)))
        }
        Scales::Float => (float(), 0.0),
        Scales::FloatZero => (float(), -(f32::from(shared[COLUMNS * 4 + column]) * float())),
    }
}

/// Code `i` of a group in column `column`.
fn code_of(b: Blocks, group: &[u8], column: usize, i: usize) -> u8 {
    let (quad, lane) = (i / 4, column * 4 + i % 4);
    let nibble = || group[quad % 4 * 128 + lane] >> (quad / 4 * 4) & 15;
    let pair = |at: usize| group[at + quad / 4 * 128 + lane] >> (quad % 4 * 2) & 3;
    let bit = |at: usize| group[at + lane] >> quad & 1;
    match b.planes {
        Planes::Bytes => group[quad * 128 + lane],
        Planes::Nibbles => nibble(),
        Planes::NibblesBits => nibble() | bit(512) << 4,
        Planes::NibblesPairs => nibble() | pair(512) << 4,
        Planes::Pairs => pair(0),
        Planes::PairsBits => pair(0) | bit(256) << 2,
    }
}

/// Four consecutive codes of a block, a byte each: quad `quad` of its group `g`.
fn quad_of(format: Format, block: &[u8], g: usize, quad: usize) -> u32 {
    let word = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().expect("four bytes: this is a bug"));
    // Halves of 32: low nibbles, then high ones.
    let nibbles = |at: usize| word(at + quad % 4 * 4) >> (quad / 4 * 4) & 0x0f0f_0f0f;
    // Each 64 share 32 bytes.
    let shared = |at: usize| word(at + g / 2 * 32 + quad * 4) >> (g % 2 * 4) & 0x0f0f_0f0f;
    // Each 128 share 32 bytes.
    let pairs = |at: usize| word(at + g / 4 * 32 + quad * 4) >> (g % 4 * 2) & 0x0303_0303;
    let mask = |at: usize| word(at + quad * 4) >> g & 0x0101_0101;
    match format {
        Format::Q8_0 => word(2 + quad * 4) ^ 0x8080_8080,
        Format::Q4_0 | Format::Iq4Nl => nibbles(2),
        Format::Q4_1 => nibbles(4),
        Format::Q5_0 => nibbles(6) | spread(word(2) >> (quad * 4)) << 4,
        Format::Q5_1 => nibbles(8) | spread(word(4) >> (quad * 4)) << 4,
        Format::Mxfp4 => nibbles(1),
        Format::Iq4Xs => nibbles(8 + g * 16),
        Format::Q2K => pairs(16),
        Format::Q3K => pairs(32) | mask(0) << 2,
        Format::Q4K => shared(16),
        Format::Q5K => shared(48) | mask(16) << 4,
        Format::Q6K => {
            let low = word(g / 4 * 64 + g % 2 * 32 + quad * 4) >> (g % 4 / 2 * 4) & 0x0f0f_0f0f;
            low | pairs(128) << 4
        }
        Format::Fp8G32 | Format::Fp8G128 => word(4 + g * 32 + quad * 4),
        Format::Int8G32 | Format::Int8G128 => word(4 + g * 32 + quad * 4) ^ 0x8080_8080,
        Format::Int4G32 | Format::Int4G128 => nibbles(5 + g * 16),
        Format::F32 | Format::F16 | Format::Bf16 => unreachable!("plain formats have no codes: this is a bug"),
    }
}

/// The scale of 16 values of the formats of [`Scales::Halves`].
fn sixteenth(format: Format, block: &[u8], i: usize) -> i8 {
    match format {
        Format::Q3K => q3k_scale(&block[96..108], i),
        _ => block[192 + i] as i8,
    }
}

/// The lowest four bits, a byte each.
fn spread(bits: u32) -> u32 {
    (bits & 1) | (bits & 2) << 7 | (bits & 4) << 14 | (bits & 8) << 21
}
