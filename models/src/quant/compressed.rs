//! compressed-tensors: `float-quantized` (8-bit floats), `int-quantized` (int8) and `pack-quantized` (int4 and int8 in
//! i32 words). Scales are `NAME_scale`: one of the whole, one a row, one a tile, or one a group of inputs.
//!
//! `NAME_packed` i32 `[out, in * bits / 32]` holds `q + 2^(bits - 1)`, neighbours from the lowest bits on; `NAME_scale`
//! `[out, groups]`; `NAME_zero_point` i32 `[out * bits / 32, groups]`, packed down the rows; `NAME_g_idx` as GPTQ's.

use dualgauge_kernels::HostTensor;
use safetensors::Dtype;

use super::Parts;
use super::fp8::{Fp8, Tiled, tile, tile_of};
use super::gptq::{in_order, order};
use super::repack::{Codes, Kind, repack, unpack};
use crate::Result;
use crate::config::Keys;

pub(super) const PARTS: &[&str] = &["_packed", "", "_scale_inv", "_scale", "_zero_point", "_g_idx", "_shape"];
const PACKED: usize = 0;
const PLAIN: usize = 1;
const SCALE: usize = 3;
const ZERO: usize = 4;
const GROUPS: usize = 5;

pub(super) fn new(keys: &Keys) -> Result<Fp8> {
    const FORMATS: [&str; 4] = ["float-quantized", "int-quantized", "pack-quantized", "naive-quantized"];
    match keys.text("format")? {
        Some(format) if FORMATS.contains(&format) => {}
        other => {
            let reason = format!("{:?} is not supported; these are: {}", other.unwrap_or_default(), FORMATS.join(", "));
            return Err(keys.fail("format", reason));
        }
    }
    let mut fp8 = Fp8 { tile: None };
    let groups = keys.object("config_groups")?.unwrap_or_default();
    for name in groups.names() {
        let weights = groups.object(name)?.unwrap_or_default().object("weights")?.unwrap_or_default();
        if weights.text("strategy")? == Some("block") {
            fp8.tile = tile(&weights, "block_structure")?;
        }
    }
    Ok(fp8)
}

pub(super) fn read(parts: &Parts<'_>, fp8: &Fp8) -> Result<HostTensor<'static>> {
    if parts.maybe(PACKED).is_some() {
        return packed(parts);
    }
    if parts.maybe(PLAIN).is_some_and(|part| part.dtype == Dtype::F8_E4M3) {
        return fp8.read(parts, PLAIN);
    }
    let codes = parts.of(PLAIN, &[Dtype::I8])?;
    let [out, inner] = parts.matrix(PLAIN, codes.shape)?;
    if parts.maybe(ZERO).is_some_and(|zeros| zeros.bytes.iter().any(|byte| *byte != 0)) {
        return Err(parts.fail("int8 with zero points is not supported"));
    }
    let (shape, scales) = parts.scales(SCALE)?;
    let grouped = match *shape {
        [rows, groups] if rows == out && groups > 1 && inner.is_multiple_of(groups) => Some([1, inner / groups]),
        _ => None,
    };
    let tile = tile_of(parts, SCALE, shape, [out, inner], grouped)?;
    repack(parts, Kind::Int8, [out, inner], tile[1], &Tiled { codes: codes.bytes, inner, scales: &scales, tile })
}

fn packed(parts: &Parts<'_>) -> Result<HostTensor<'static>> {
    let (codes_shape, codes) = parts.words(PACKED)?;
    let [out, words] = parts.matrix(PACKED, codes_shape)?;
    let (scales_shape, scales) = parts.scales(SCALE)?;
    let [_, groups] = parts.matrix(SCALE, scales_shape)?;
    parts.shaped(SCALE, scales_shape, &[out, groups])?;
    let inner = inner_of(parts, out)?;
    let bits = match (words * 8 == inner, words * 4 == inner) {
        (true, _) => 4,
        (_, true) => 8,
        _ => return Err(parts.fail(format!("{words} words a row do not hold {inner} values of 4 or 8 bits"))),
    };
    if !inner.is_multiple_of(groups) {
        return Err(parts.fail(format!("{groups} groups do not divide {inner} inputs")));
    }
    let group = inner / groups;
    let order = order(parts, GROUPS, inner, group)?;
    let each = 32 / bits;
    let zeros = match parts.maybe(ZERO) {
        None => None,
        Some(_) if bits == 8 => return Err(parts.fail("int8 with zero points is not supported")),
        Some(_) => {
            let (shape, zeros) = parts.words(ZERO)?;
            parts.shaped(ZERO, shape, &[out.div_ceil(each), groups])?;
            Some(zeros)
        }
    };
    let (scales, zeros, order_of) = (&scales[..], zeros.as_deref(), order.as_deref());
    let from = Packed { codes: &codes, zeros, scales, order: order_of, words, groups, group, bits };
    let kind = if bits == 4 { Kind::Int4 } else { Kind::Int8 };
    let tensor = repack(parts, kind, [out, inner], group, &from)?;
    in_order(parts, tensor, order)
}

/// The second number of `NAME_shape`.
fn inner_of(parts: &Parts<'_>, out: usize) -> Result<usize> {
    let part = parts.of(PARTS.len() - 1, &[Dtype::I64, Dtype::I32])?;
    let size = part.bytes.len() / 2;
    let number = |bytes: &[u8]| {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        i64::from_le_bytes(whole)
    };
    match part.shape {
        [2] if number(&part.bytes[..size]) == out as i64 => {
            let inner = number(&part.bytes[size..]);
            let inner = usize::try_from(inner).ok().filter(|inner| Keys::SIZE.contains(inner));
            inner.ok_or_else(|| parts.fail("_shape makes no sense"))
        }
        _ => Err(parts.fail(format!("_shape is not [{out}, inputs]"))),
    }
}

struct Packed<'a> {
    codes: &'a [u32],
    /// `[out / 8, groups]`
    zeros: Option<&'a [u32]>,
    /// `[out, groups]`
    scales: &'a [f32],
    order: Option<&'a [u32]>,
    /// Words of a row.
    words: usize,
    groups: usize,
    group: usize,
    bits: usize,
}

impl Codes for Packed<'_> {
    fn codes(&self, row: usize, first: usize, out: &mut [u8]) {
        unpack(out, first, self.order, self.bits, |at| self.codes[row * self.words + at]);
    }

    fn scale(&self, row: usize, column: usize) -> (f32, u8) {
        let group = column / self.group;
        let zero = self.zeros.map_or(8, |zeros| (zeros[row / 8 * self.groups + group] >> (row % 8 * 4) & 15) as u8);
        (self.scales[row * self.groups + group], zero)
    }
}
