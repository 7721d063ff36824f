//! MXFP4 as gpt-oss stores it: `NAME_blocks` u8 `[.., out, in / 32, 16]`, two E2M1 codes a byte, the even value in the low
//! nibble; `NAME_scales` u8 `[.., out, in / 32]`, E8M0. Repacked to ggml's blocks, whose nibbles are halves of 32.

use dualgauge_kernels::{Format, HostTensor};
use rayon::prelude::*;
use safetensors::Dtype;

use super::Parts;
use crate::Result;

pub(super) const PARTS: &[&str] = &["_blocks", "_scales"];

pub(super) fn read(parts: &Parts<'_>) -> Result<HostTensor<'static>> {
    let (blocks, scales) = (parts.of(0, &[Dtype::U8])?, parts.of(1, &[Dtype::U8])?);
    let [lead @ .., groups, 16] = blocks.shape else {
        return Err(parts.fail(format!("_blocks has shape {:?}, [.., out, in / 32, 16] is wanted", blocks.shape)));
    };
    parts.shaped(1, scales.shape, &blocks.shape[..blocks.shape.len() - 1])?;
    if lead.is_empty() || lead.len() > 2 {
        return Err(parts.fail(format!("_blocks has {} dimensions", blocks.shape.len())));
    }
    let shape = [lead, &[groups * 32]].concat();
    let mut out = vec![0; scales.bytes.len() * Format::Mxfp4.block_bytes()];
    let packed = out.par_chunks_exact_mut(Format::Mxfp4.block_bytes());
    packed.zip(blocks.bytes.par_chunks_exact(16)).zip(scales.bytes).for_each(|((out, codes), scale)| {
        let code = |i: usize| codes[i / 2] >> (i % 2 * 4) & 15;
        out[0] = *scale;
        (0..16).for_each(|i| out[1 + i] = code(i) | code(i + 16) << 4);
    });
    Ok(HostTensor::new(parts.name.to_owned(), &shape[..], Format::Mxfp4, out)?)
}
