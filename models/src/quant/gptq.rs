//! GPTQ int4 and symmetric int8: `qweight` i32 `[in * bits / 32, out]`, `qzeros` i32 `[groups, out * bits / 32]` (one less
//! than the zero, but for `gptq_v2`), `scales` f16 `[groups, out]`, `g_idx` i32 `[in]`, the group of each input. A word
//! holds neighbours from its lowest bits on. Value `(q - zero) * scale`.
//!
//! Where inputs are in order of activation (`desc_act`), those of a group stand apart; they are brought together, and the
//! tensor says in which order its inputs then are.

use dualgauge_kernels::HostTensor;
use safetensors::Dtype;

use super::Parts;
use super::repack::{Codes, Kind, repack, unpack};
use crate::Result;
use crate::config::Keys;

pub(super) const PARTS: &[&str] = &[".qweight", ".qzeros", ".scales", ".g_idx"];

pub(super) struct Gptq {
    bits: usize,
    /// What is added to a stored zero.
    zero: u32,
}

impl Gptq {
    pub(super) fn new(keys: &Keys) -> Result<Self> {
        let bits = keys.size("bits")?;
        if bits != 4 && bits != 8 {
            return Err(keys.fail("bits", format!("{bits} is not supported; these are: 4, 8")));
        }
        match keys.text("checkpoint_format")? {
            None | Some("gptq") => Ok(Self { bits, zero: 1 }),
            Some("gptq_v2") => Ok(Self { bits, zero: 0 }),
            Some(other) => {
                let reason = format!("{other:?} is not supported; these are: gptq, gptq_v2");
                Err(keys.fail("checkpoint_format", reason))
            }
        }
    }

    pub(super) fn read(&self, parts: &Parts<'_>) -> Result<HostTensor<'static>> {
        let each = 32 / self.bits; // values of a word
        let ((codes_shape, codes), (zeros_shape, zeros)) = (parts.words(0)?, parts.words(1)?);
        let (scales_shape, scales) = parts.scales(2)?;
        let [words, out] = parts.matrix(0, codes_shape)?;
        let inner = words * each;
        let [groups, _] = parts.matrix(2, scales_shape)?;
        parts.shaped(2, scales_shape, &[groups, out])?;
        parts.shaped(1, zeros_shape, &[groups, out.div_ceil(each)])?;
        if !inner.is_multiple_of(groups) {
            return Err(parts.fail(format!("{groups} groups do not divide {inner} inputs")));
        }
        let group = inner / groups;
        let order = order(parts, 3, inner, group)?;
        let mask = (1 << self.bits) - 1;
        let packed = zeros.chunks_exact(out.div_ceil(each));
        let zeros: Vec<u32> = packed
            .flat_map(|line| (0..out).map(|row| (line[row / each] >> (row % each * self.bits) & mask) + self.zero))
            .collect();
        if self.bits == 8 && zeros.iter().any(|zero| *zero != 128) {
            return Err(parts.fail("int8 with zeros other than 128 is not supported"));
        }
        let from = Words {
            codes: &codes,
            zeros: &zeros,
            scales: &scales,
            order: order.as_deref(),
            out,
            group,
            bits: self.bits,
        };
        let kind = if self.bits == 4 { Kind::Int4 } else { Kind::Int8 };
        let tensor = repack(parts, kind, [out, inner], group, &from)?;
        in_order(parts, tensor, order)
    }
}

/// The inputs sorted by the group that part `at` gives them, or `None` when they are in order.
///
/// # Errors
/// When an input has no group, or a group more or fewer inputs than the others.
pub(super) fn order(parts: &Parts<'_>, at: usize, inner: usize, group: usize) -> Result<Option<Vec<u32>>> {
    if parts.maybe(at).is_none() {
        return Ok(None);
    }
    let part = parts.of(at, &[Dtype::I32])?;
    parts.shaped(at, part.shape, &[inner])?;
    let groups: Vec<i32> = part.bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let mut order: Vec<u32> = (0..inner as u32).collect();
    order.sort_by_key(|i| groups[*i as usize]);
    let wrong = order.iter().enumerate().find(|(place, i)| groups[**i as usize] != (place / group) as i32);
    match wrong {
        Some((_, i)) => {
            let reason = format!("{} gives input {i} to group {}", parts.names[at], groups[*i as usize]);
            Err(parts.fail(format!("{reason}; every group has {group} inputs")))
        }
        None => Ok(order.iter().enumerate().any(|(place, i)| place != *i as usize).then_some(order)),
    }
}

/// The tensor with its inputs in `order`.
pub(super) fn in_order(
    parts: &Parts<'_>,
    tensor: HostTensor<'static>,
    order: Option<Vec<u32>>,
) -> Result<HostTensor<'static>> {
    match order {
        None => Ok(tensor),
        Some(order) => tensor.with_order(order).map_err(|e| parts.fail(e)),
    }
}

struct Words<'a> {
    codes: &'a [u32],
    /// `[groups, out]`
    zeros: &'a [u32],
    /// `[groups, out]`
    scales: &'a [f32],
    order: Option<&'a [u32]>,
    out: usize,
    group: usize,
    bits: usize,
}

impl Codes for Words<'_> {
    fn codes(&self, row: usize, first: usize, out: &mut [u8]) {
        unpack(out, first, self.order, self.bits, |at| self.codes[at * self.out + row]);
    }

    fn scale(&self, row: usize, column: usize) -> (f32, u8) {
        let at = column / self.group * self.out + row;
        (self.scales[at], self.zeros[at] as u8)
    }
}
