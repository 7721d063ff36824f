//! Owns the layout of panels: 32 output columns side by side, k downwards, in units that every kernel walks in order.
//! Panels are the same bytes for every path and precision. Knows no arithmetic but that of one value.
//!
//! ```text
//! f32   unit of 1 k:    [32 columns] f32
//! f16   unit of 1 k:    [32 columns] f16
//! bf16  unit of 2 k:    [32 columns][2 k] bf16; a last odd k is padded with zero
//! q8_0  unit of 32 k:   [8 quads][32 columns][4 k] value + 128, [32] f16 scale
//! q4_0  unit of 32 k:   [4][32 columns][4 k] nibbles, [32] f16 scale
//! q4_1  unit of 32 k:   [4][32 columns][4 k] nibbles, [32] f16 scale, [32] f16 minimum
//! q6_k  unit of 256 k:  8 groups of ([4][32 columns][4 k] low nibbles, [2][32 columns][4 k] high pairs,
//!                       [2 halves][32] i8 scale), then [32] f16 scale of the unit
//! mxfp4 unit of 32 k:   [4][32 columns][4 k] nibbles, [32] E8M0 scale
//! ```
//! A quad is 4 consecutive k. Nibble line `s` holds quad `s` low and quad `s + 4` high, as ggml's blocks do, so their
//! bytes are copied as they are. Pair line `t` holds quads `4 t + j` at bits `2 j`. A line of 16 columns is one cache
//! line for all but f16. No format takes more memory here than in its file.

use half::f16;

use crate::Format;
use crate::format::{MXFP4_CODES, mxfp4_scale};

/// Columns of a panel.
pub(crate) const COLUMNS: usize = 32;

/// Bytes of the nibble lines of 32 k; the pairs of q6_k follow them.
pub(super) const NIBBLES: usize = 512;
/// Bytes of a q6_k group: nibbles, pairs, scales.
pub(super) const Q6K_GROUP: usize = NIBBLES + 256 + 64;

/// Values of k in a unit.
pub(super) const fn unit_len(format: Format) -> usize {
    match format {
        Format::F32 | Format::F16 => 1,
        Format::Bf16 => 2,
        _ => format.block_len(),
    }
}

pub(super) const fn unit_bytes(format: Format) -> usize {
    match format {
        Format::F32 | Format::Bf16 => 128,
        Format::F16 => 64,
        Format::Q8_0 => 1024 + 64,
        Format::Q4_0 => NIBBLES + 64,
        Format::Q4_1 => NIBBLES + 128,
        Format::Q6K => 8 * Q6K_GROUP + 64,
        Format::Mxfp4 => NIBBLES + 32,
    }
}

/// Writes part of one output row's weights, `src` in `format`, into column `column` of a panel. `units` starts at the
/// unit that holds the first value of `src`, which is the first of its unit. Destination bytes are zero before.
pub(super) fn put(format: Format, units: &mut [u8], column: usize, src: &[u8]) {
    let lane = column * 4; // of a line of 4-byte entries, two lines a row of 32 columns
    let blocks = src.chunks_exact(format.block_bytes());
    match format {
        Format::F32 => units.chunks_exact_mut(128).zip(blocks).for_each(|(u, b)| u[lane..lane + 4].copy_from_slice(b)),
        Format::F16 => {
            units.chunks_exact_mut(64).zip(blocks).for_each(|(u, b)| u[column * 2..][..2].copy_from_slice(b));
        }
        Format::Bf16 => {
            let pairs = src.chunks_exact(4);
            if let [a, b] = *pairs.remainder() {
                units[src.len() / 4 * 128 + lane..][..2].copy_from_slice(&[a, b]);
            }
            units.chunks_exact_mut(128).zip(pairs).for_each(|(u, b)| u[lane..lane + 4].copy_from_slice(b));
        }
        Format::Q8_0 => units.chunks_exact_mut(unit_bytes(format)).zip(blocks).for_each(|(u, b)| {
            let (quads, scales) = u.split_at_mut(1024);
            for (line, quad) in quads.chunks_exact_mut(128).zip(b[2..].chunks_exact(4)) {
                line[lane..lane + 4].copy_from_slice(&[0, 1, 2, 3].map(|i| quad[i] ^ 0x80));
            }
            scales[column * 2..][..2].copy_from_slice(&b[..2]);
        }),
        Format::Q4_0 | Format::Q4_1 | Format::Mxfp4 => {
            units.chunks_exact_mut(unit_bytes(format)).zip(blocks).for_each(|(u, b)| {
                let (lines, scales) = u.split_at_mut(NIBBLES);
                let (head, nibbles) = b.split_at(b.len() - 16);
                for (line, quad) in lines.chunks_exact_mut(128).zip(nibbles.chunks_exact(4)) {
                    line[lane..][..4].copy_from_slice(quad);
                }
                let wide = head.len().min(2); // mxfp4's scale is one byte
                for (scales, scale) in scales.chunks_exact_mut(32 * wide).zip(head.chunks_exact(wide)) {
                    scales[column * wide..][..wide].copy_from_slice(scale);
                }
            })
        }
        Format::Q6K => {
            units.chunks_exact_mut(unit_bytes(format)).zip(blocks).for_each(|(u, b)| put_q6k(u, column, b));
        }
    }
}

fn put_q6k(unit: &mut [u8], column: usize, block: &[u8]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let word =
        |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes: this is a bug"));
    for (g, group) in unit.chunks_exact_mut(Q6K_GROUP).take(8).enumerate() {
        let (half, quarter) = (g / 4, g % 4);
        let nibbles =
            |quad: usize| word(low, half * 64 + quarter % 2 * 32 + quad * 4) >> (quarter / 2 * 4) & 0x0f0f_0f0f;
        let pairs = |quad: usize| word(high, half * 32 + quad * 4) >> (quarter * 2) & 0x0303_0303;
        for s in 0..4 {
            let line = nibbles(s) | nibbles(s + 4) << 4;
            group[s * 128 + column * 4..][..4].copy_from_slice(&line.to_le_bytes());
        }
        for t in 0..2 {
            let line = (0..4).fold(0, |line, j| line | pairs(t * 4 + j) << (j * 2));
            group[NIBBLES + t * 128 + column * 4..][..4].copy_from_slice(&line.to_le_bytes());
        }
        for h in 0..2 {
            group[NIBBLES + 256 + h * 32 + column] = scales[g * 2 + h];
        }
    }
    unit[8 * Q6K_GROUP + column * 2..][..2].copy_from_slice(&block[208..]);
}

/// Value `i` of the unit in column `column`, exactly as [`crate::format::decode`] has it.
pub(super) fn get(format: Format, unit: &[u8], column: usize, i: usize) -> f32 {
    let (quad, lane) = (i % 32 / 4, column * 4 + i % 4);
    let nibble = |unit: &[u8]| unit[quad % 4 * 128 + lane] >> (quad / 4 * 4) & 15;
    let half = |at: usize| f16::from_le_bytes([unit[at + column * 2], unit[at + column * 2 + 1]]).to_f32();
    match format {
        Format::F32 => f32::from_le_bytes([0, 1, 2, 3].map(|b| unit[column * 4 + b])),
        Format::F16 => half(0),
        Format::Bf16 => f32::from_le_bytes([0, 0, unit[column * 4 + i * 2], unit[column * 4 + i * 2 + 1]]),
        Format::Q8_0 => (f32::from(unit[quad * 128 + lane]) - 128.0) * half(1024),
        Format::Q4_0 => (f32::from(nibble(unit)) - 8.0) * half(NIBBLES),
        Format::Q4_1 => f32::from(nibble(unit)) * half(NIBBLES) + half(NIBBLES + 64),
        Format::Q6K => {
            let group = &unit[i / 32 * Q6K_GROUP..][..Q6K_GROUP];
            let pair = group[NIBBLES + quad / 4 * 128 + lane] >> (quad % 4 * 2) & 3;
            let scale = group[NIBBLES + 256 + i % 32 / 16 * 32 + column] as i8;
            half(8 * Q6K_GROUP) * f32::from(scale) * (f32::from(nibble(group) | pair << 4) - 32.0)
        }
        Format::Mxfp4 => f32::from(MXFP4_CODES[usize::from(nibble(unit))]) * mxfp4_scale(unit[NIBBLES + column]),
    }
}
