//! Owns how a weight lies on the device: a plain one as it is; a quantised one as planes, one for each field of its
//! blocks, so that every plane has one element type and nothing grows. What the fields mean is [`super::lower`]'s.

use super::hlo::{Shape, Ty};
use crate::{Error, Format};

/// One field of a block: its element type and where its bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub ty: Ty,
    start: usize,
    bytes: usize,
}

const fn field(ty: Ty, start: usize, bytes: usize) -> Field {
    Field { ty, start, bytes }
}

/// The fields of a format's blocks, in the order of the planes; `None` for a format that is not there yet.
pub(super) fn fields(format: Format) -> Option<&'static [Field]> {
    const PLAIN_32: [Field; 1] = [field(Ty::F32, 0, 4)];
    const PLAIN_F16: [Field; 1] = [field(Ty::F16, 0, 2)];
    const PLAIN_BF16: [Field; 1] = [field(Ty::Bf16, 0, 2)];
    const Q8_0: [Field; 2] = [field(Ty::F16, 0, 2), field(Ty::S8, 2, 32)];
    const Q4_0: [Field; 2] = [field(Ty::F16, 0, 2), field(Ty::U8, 2, 16)];
    const Q4_1: [Field; 3] = [field(Ty::F16, 0, 2), field(Ty::F16, 2, 2), field(Ty::U8, 4, 16)];
    const Q6K: [Field; 4] =
        [field(Ty::U8, 0, 128), field(Ty::U8, 128, 64), field(Ty::S8, 192, 16), field(Ty::F16, 208, 2)];
    const Q5_0: [Field; 3] = [field(Ty::F16, 0, 2), field(Ty::U8, 2, 4), field(Ty::U8, 6, 16)];
    const Q5_1: [Field; 4] = [field(Ty::F16, 0, 2), field(Ty::F16, 2, 2), field(Ty::U8, 4, 4), field(Ty::U8, 8, 16)];
    const Q4K: [Field; 4] = [field(Ty::F16, 0, 2), field(Ty::F16, 2, 2), field(Ty::U8, 4, 12), field(Ty::U8, 16, 128)];
    const Q5K: [Field; 5] = [
        field(Ty::F16, 0, 2),
        field(Ty::F16, 2, 2),
        field(Ty::U8, 4, 12),
        field(Ty::U8, 16, 32),
        field(Ty::U8, 48, 128),
    ];
    const FP8_32: [Field; 2] = [field(Ty::F32, 0, 4), field(Ty::U8, 4, 32)];
    const FP8_128: [Field; 2] = [field(Ty::F32, 0, 4), field(Ty::U8, 4, 128)];
    const INT8_32: [Field; 2] = [field(Ty::F32, 0, 4), field(Ty::S8, 4, 32)];
    const INT8_128: [Field; 2] = [field(Ty::F32, 0, 4), field(Ty::S8, 4, 128)];
    const INT4_32: [Field; 3] = [field(Ty::F32, 0, 4), field(Ty::U8, 4, 1), field(Ty::U8, 5, 16)];
    const INT4_128: [Field; 3] = [field(Ty::F32, 0, 4), field(Ty::U8, 4, 1), field(Ty::U8, 5, 64)];
    const MXFP4: [Field; 2] = [field(Ty::U8, 0, 1), field(Ty::U8, 1, 16)];
    Some(match format {
        Format::F32 => &PLAIN_32,
        Format::F16 => &PLAIN_F16,
        Format::Bf16 => &PLAIN_BF16,
        Format::Q8_0 => &Q8_0,
        Format::Q4_0 => &Q4_0,
        Format::Q4_1 => &Q4_1,
        Format::Q6K => &Q6K,
        Format::Q5_0 => &Q5_0,
        Format::Q5_1 => &Q5_1,
        Format::Q4K => &Q4K,
        Format::Q5K => &Q5K,
        Format::Mxfp4 => &MXFP4,
        Format::Fp8G32 => &FP8_32,
        Format::Fp8G128 => &FP8_128,
        Format::Int8G32 => &INT8_32,
        Format::Int8G128 => &INT8_128,
        Format::Int4G32 => &INT4_32,
        Format::Int4G128 => &INT4_128,
        Format::Q2K | Format::Q3K | Format::Iq4Nl | Format::Iq4Xs => return None,
    })
}

/// The error for a weight in a format without planes.
pub(super) fn refused(format: Format, name: &str) -> Error {
    let what = format!("weights in {format} yet ({name})");
    Error::Unsupported { device: "neuron", what }
}

/// The shape of a plane of a weight `[.., in]`: `[.., in]` of a plain one, `[.., blocks a row, entries a block]` else.
pub(super) fn shape(format: Format, dims: &[usize], field: Field) -> Shape {
    if !format.is_quantised() {
        return Shape::new(field.ty, dims);
    }
    let (last, lead) = dims.split_last().expect("weights have dimensions: this is a bug");
    let blocks = [last / format.block_len(), field.bytes / field.ty.bytes()];
    Shape::new(field.ty, &[lead, &blocks].concat())
}

/// The bytes of one plane out of whole blocks.
pub(super) fn plane(format: Format, bytes: &[u8], field: Field) -> Vec<u8> {
    let blocks = bytes.chunks_exact(format.block_bytes());
    blocks.flat_map(|block| &block[field.start..][..field.bytes]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The planes of a block are the block, in another order: nothing is stored twice or left out.
    #[test]
    fn planes_hold_every_byte_once() {
        for format in Format::ALL {
            let Some(fields) = fields(format) else { continue };
            let block: Vec<u8> = (0..format.block_bytes()).map(|i| i as u8).collect();
            let mut all: Vec<u8> = fields.iter().flat_map(|f| plane(format, &block, *f)).collect();
            all.sort_unstable();
            assert_eq!(all, block, "{format}");
            let two = [block.clone(), block.clone()].concat();
            for f in fields {
                let dims = [2, format.block_len()];
                assert_eq!(shape(format, &dims, *f).bytes(), plane(format, &two, *f).len(), "{format}");
            }
        }
    }
}
