//! 8-bit floats E4M3: the matrix itself, and scales `NAME_scale_inv` or `NAME_scale` that it is multiplied by: one of the
//! whole, one a row, or one a tile of `weight_block_size` (tiles at the edges may be smaller).

use dualgauge_kernels::HostTensor;
use safetensors::Dtype;

use super::Parts;
use super::repack::{Codes, Kind, repack};
use crate::Result;
use crate::config::Keys;

pub(super) const PARTS: &[&str] = &["", "_scale_inv", "_scale"];

pub(super) struct Fp8 {
    /// Rows and columns of a tile.
    pub(super) tile: Option<[usize; 2]>,
}

impl Fp8 {
    pub(super) fn new(keys: &Keys) -> Result<Self> {
        match keys.text("fmt")? {
            None | Some("e4m3" | "float8_e4m3fn") => {}
            Some(other) => return Err(keys.fail("fmt", format!("{other:?} is not supported, only e4m3 is"))),
        }
        Ok(Self { tile: tile(keys, "weight_block_size")? })
    }

    /// `weight` is the index of the part that has the codes; the scales are in the two after it.
    pub(super) fn read(&self, parts: &Parts<'_>, weight: usize) -> Result<HostTensor<'static>> {
        let codes = parts.of(weight, &[Dtype::F8_E4M3])?;
        let [out, inner] = parts.matrix(weight, codes.shape)?;
        let at = if parts.maybe(weight + 1).is_some() { weight + 1 } else { weight + 2 };
        let (shape, scales) = parts.scales(at)?;
        let tile = tile_of(parts, at, shape, [out, inner], self.tile)?;
        let codes = Tiled { codes: codes.bytes, inner, scales: &scales, tile };
        repack(parts, Kind::Fp8, [out, inner], tile[1], &codes)
    }
}

/// Two numbers above zero.
pub(super) fn tile(keys: &Keys, key: &str) -> Result<Option<[usize; 2]>> {
    let Some(sizes) = keys.numbers(key)? else { return Ok(None) };
    match sizes[..] {
        [rows, columns] if [rows, columns].iter().all(|n| n.fract() == 0.0 && (1.0..65_536.0).contains(n)) => {
            Ok(Some([rows as usize, columns as usize]))
        }
        _ => Err(keys.fail(key, "is not the rows and columns of a tile")),
    }
}

/// Rows and columns of `[out, inner]` that share one of the scales in part `at`.
pub(super) fn tile_of(
    parts: &Parts<'_>,
    at: usize,
    shape: &[usize],
    [out, inner]: [usize; 2],
    tile: Option<[usize; 2]>,
) -> Result<[usize; 2]> {
    match (shape, tile) {
        ([] | [1] | [1, 1], None) => Ok([out, inner]),
        ([n] | [n, 1], None) if *n == out => Ok([1, inner]),
        (_, Some([rows, columns])) => {
            parts.shaped(at, shape, &[out.div_ceil(rows), inner.div_ceil(columns)])?;
            Ok([rows, columns])
        }
        _ => parts.shaped(at, shape, &[out, 1]).map(|()| [1, inner]),
    }
}

/// Codes of a byte, with scales of tiles.
pub(super) struct Tiled<'a> {
    pub(super) codes: &'a [u8],
    pub(super) inner: usize,
    pub(super) scales: &'a [f32],
    pub(super) tile: [usize; 2],
}

impl Codes for Tiled<'_> {
    fn codes(&self, row: usize, first: usize, out: &mut [u8]) {
        out.copy_from_slice(&self.codes[row * self.inner + first..][..out.len()]);
    }

    fn scale(&self, row: usize, column: usize) -> (f32, u8) {
        let [rows, columns] = self.tile;
        (self.scales[row / rows * self.inner.div_ceil(columns) + column / columns], 0)
    }
}
