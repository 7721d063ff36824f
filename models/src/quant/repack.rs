//! Owns the making of blocks from codes and scales that are stored apart: whatever the method, one row after another, all
//! cores at once.

use dualgauge_kernels::format::e4m3;
use dualgauge_kernels::{Format, HostTensor};
use rayon::prelude::*;

use super::Parts;
use crate::Result;

/// What codes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// 8-bit floats.
    Fp8,
    /// Two's complement.
    Int8,
    /// Unsigned, less a zero.
    Int4,
}

/// A matrix of codes and scales.
pub(super) trait Codes: Sync {
    /// The codes of `row` from column `first` on, one a byte.
    fn codes(&self, row: usize, first: usize, out: &mut [u8]);
    /// The scale at a row and column, and its zero.
    fn scale(&self, row: usize, column: usize) -> (f32, u8);
}

/// `[out, inner]`, `group` columns of which share a scale, as blocks: of 128 where all of a block share it, else of 32.
/// Rows that are no whole blocks become f32.
///
/// # Errors
/// A group that is no multiple of 32 within rows that are; an 8-bit float that is no number; a matrix too large.
pub(super) fn repack(
    parts: &Parts<'_>,
    kind: Kind,
    [out, inner]: [usize; 2],
    group: usize,
    from: &impl Codes,
) -> Result<HostTensor<'static>> {
    let wide = inner.is_multiple_of(128) && group.is_multiple_of(128);
    let format = match (kind, wide) {
        (Kind::Fp8, true) => Format::Fp8G128,
        (Kind::Fp8, false) => Format::Fp8G32,
        (Kind::Int8, true) => Format::Int8G128,
        (Kind::Int8, false) => Format::Int8G32,
        (Kind::Int4, true) => Format::Int4G128,
        (Kind::Int4, false) => Format::Int4G32,
    };
    let whole = inner.is_multiple_of(32) && (group.is_multiple_of(32) || group >= inner);
    let format = if whole { format } else { Format::F32 };
    let row_bytes = format.bytes(inner).expect("rows are whole blocks: this is a bug");
    let bytes = row_bytes.checked_mul(out).filter(|bytes| *bytes < 1 << 46);
    let mut bytes = vec![0; bytes.ok_or_else(|| parts.fail(format!("[{out}, {inner}] is too large")))?];
    let broken = bytes.par_chunks_exact_mut(row_bytes).enumerate().find_map_any(|(row, bytes)| {
        let mut codes = [0; 128];
        for (i, block) in bytes.chunks_exact_mut(format.block_bytes()).enumerate() {
            let first = i * format.block_len();
            let codes = &mut codes[..format.block_len()];
            from.codes(row, first, codes);
            if kind == Kind::Fp8 && codes.iter().any(|code| code & 0x7f == 0x7f) {
                return Some(row);
            }
            let (scale, zero) = from.scale(row, first);
            match (format, kind) {
                (Format::F32, Kind::Fp8) => block.copy_from_slice(&(e4m3(codes[0]) * scale).to_le_bytes()),
                (Format::F32, Kind::Int8) => block.copy_from_slice(&(f32::from(codes[0] as i8) * scale).to_le_bytes()),
                (Format::F32, Kind::Int4) => {
                    let value = (f32::from(codes[0]) - f32::from(zero)) * scale;
                    block.copy_from_slice(&value.to_le_bytes());
                }
                (_, Kind::Int4) => {
                    block[..4].copy_from_slice(&scale.to_le_bytes());
                    block[4] = zero;
                    for (nibbles, codes) in block[5..].chunks_exact_mut(16).zip(codes.chunks_exact(32)) {
                        nibbles.iter_mut().enumerate().for_each(|(i, b)| *b = codes[i] | codes[i + 16] << 4);
                    }
                }
                _ => {
                    block[..4].copy_from_slice(&scale.to_le_bytes());
                    block[4..].copy_from_slice(codes);
                }
            }
        }
        None
    });
    match broken {
        Some(row) => Err(parts.fail(format!("row {row} holds an 8-bit float that is not a number"))),
        None => Ok(HostTensor::new(parts.name.to_owned(), [out, inner], format, bytes)?),
    }
}

/// Codes of `bits`, as many as a word of 32 holds, lowest first: of columns `first..`, or of those that `order` puts there;
/// `word` finds the word at a place along the columns. 8 bits become two's complement.
pub(super) fn unpack(out: &mut [u8], first: usize, order: Option<&[u32]>, bits: usize, word: impl Fn(usize) -> u32) {
    let (each, mask) = (32 / bits, (1 << bits) - 1);
    let signed = if bits == 8 { 0x80 } else { 0 };
    for (i, code) in out.iter_mut().enumerate() {
        let k = order.map_or(first + i, |order| order[first + i] as usize);
        *code = (word(k / each) >> (k % each * bits) & mask) as u8 ^ signed;
    }
}
