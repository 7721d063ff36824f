//! AWQ int4 (its `gemm` layout): `qweight` i32 `[in, out / 8]`, `qzeros` i32 `[groups, out / 8]`, `scales` f16
//! `[groups, out]`. A word holds eight outputs, in the order of [`PLACES`]. Value `(q - zero) * scale`.

use dualgauge_kernels::HostTensor;

use super::Parts;
use super::repack::{Codes, Kind, repack};
use crate::Result;
use crate::config::Keys;

pub(super) const PARTS: &[&str] = &[".qweight", ".qzeros", ".scales"];

/// Where in a word each of its eight outputs is.
const PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

pub(super) fn check(keys: &Keys) -> Result<()> {
    if keys.maybe_size("bits")?.is_some_and(|bits| bits != 4) {
        return Err(keys.fail("bits", "only 4 is supported for awq"));
    }
    match keys.text("version")? {
        None | Some("gemm" | "GEMM") => Ok(()),
        Some(other) => Err(keys.fail("version", format!("{other:?} is not supported, only gemm is"))),
    }
}

pub(super) fn read(parts: &Parts<'_>) -> Result<HostTensor<'static>> {
    let ((codes_shape, codes), (zeros_shape, zeros)) = (parts.words(0)?, parts.words(1)?);
    let (scales_shape, scales) = parts.scales(2)?;
    let [inner, words] = parts.matrix(0, codes_shape)?;
    let out = words * 8;
    let [groups, _] = parts.matrix(2, scales_shape)?;
    parts.shaped(2, scales_shape, &[groups, out])?;
    parts.shaped(1, zeros_shape, &[groups, words])?;
    if !inner.is_multiple_of(groups) {
        return Err(parts.fail(format!("{groups} groups do not divide {inner} inputs")));
    }
    let group = inner / groups;
    repack(parts, Kind::Int4, [out, inner], group, &Awq { codes: &codes, zeros: &zeros, scales: &scales, out, group })
}

struct Awq<'a> {
    codes: &'a [u32],
    zeros: &'a [u32],
    scales: &'a [f32],
    out: usize,
    group: usize,
}

impl Awq<'_> {
    fn nibble(&self, words: &[u32], line: usize, row: usize) -> u8 {
        (words[line * (self.out / 8) + row / 8] >> (PLACES[row % 8] * 4) & 15) as u8
    }
}

impl Codes for Awq<'_> {
    fn codes(&self, row: usize, first: usize, out: &mut [u8]) {
        out.iter_mut().enumerate().for_each(|(i, code)| *code = self.nibble(self.codes, first + i, row));
    }

    fn scale(&self, row: usize, column: usize) -> (f32, u8) {
        let group = column / self.group;
        (self.scales[group * self.out + row], self.nibble(self.zeros, group, row))
    }
}
