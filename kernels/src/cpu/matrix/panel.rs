//! Owns the layout of panels: 32 output columns side by side, k downwards, in units that every kernel walks in order.
//! Panels are the same bytes for every path and precision. Knows no arithmetic but that of one value.
//!
//! ```text
//! f32    unit of 1 k:   [32 columns] f32
//! f16    unit of 1 k:   [32 columns] f16
//! bf16   unit of 2 k:   [32 columns][2 k] bf16; a last odd k is padded with zero
//! blocks unit of one block of each column: `blocks.rs`
//! ```
//! A line of 16 columns is one cache line for all but f16.

use half::f16;

use super::blocks::{self, Blocks};
use crate::Format;

/// Columns of a panel.
pub(crate) const COLUMNS: usize = 32;

/// Values of k in a unit.
pub(super) const fn unit_len(format: Format) -> usize {
    match format {
        Format::Bf16 => 2,
        _ => format.block_len(),
    }
}

pub(super) const fn unit_bytes(format: Format) -> usize {
    match format {
        Format::F32 | Format::Bf16 => 128,
        Format::F16 => 64,
        _ => Blocks::of(format).unit_bytes(),
    }
}

/// Writes part of one output row's weights, `src` in `format`, into column `column` of a panel. `units` starts at the
/// unit that holds the first value of `src`, which is the first of its unit. Destination bytes are zero before.
pub(super) fn put(format: Format, units: &mut [u8], column: usize, src: &[u8]) {
    let lane = column * 4; // of a line of 4-byte entries, two lines a row of 32 columns
    let values = src.chunks_exact(format.block_bytes());
    match format {
        Format::F32 => units.chunks_exact_mut(128).zip(values).for_each(|(u, b)| u[lane..lane + 4].copy_from_slice(b)),
        Format::F16 => {
            units.chunks_exact_mut(64).zip(values).for_each(|(u, b)| u[column * 2..][..2].copy_from_slice(b));
        }
        Format::Bf16 => {
            let pairs = src.chunks_exact(4);
            if let [a, b] = *pairs.remainder() {
                units[src.len() / 4 * 128 + lane..][..2].copy_from_slice(&[a, b]);
            }
            units.chunks_exact_mut(128).zip(pairs).for_each(|(u, b)| u[lane..lane + 4].copy_from_slice(b));
        }
        _ => {
            let units = units.chunks_exact_mut(unit_bytes(format));
            units.zip(values).for_each(|(unit, block)| blocks::put(format, unit, column, block));
        }
    }
}

/// Value `i` of the unit in column `column`, exactly as [`crate::format::decode`] has it.
pub(super) fn get(format: Format, unit: &[u8], column: usize, i: usize) -> f32 {
    match format {
        Format::F32 => f32::from_le_bytes([0, 1, 2, 3].map(|b| unit[column * 4 + b])),
        Format::F16 => f16::from_le_bytes([unit[column * 2], unit[column * 2 + 1]]).to_f32(),
        Format::Bf16 => f32::from_le_bytes([0, 0, unit[column * 4 + i * 2], unit[column * 4 + i * 2 + 1]]),
        _ => blocks::get(format, unit, column, i),
    }
}
