//! Owns the rules that turn the planes of a quantised weight into numbers, in the arithmetic of [`crate::format`]:
//! codes and scales are exact in f32, so exact precision multiplies by the very values that a host would decode.

use super::{Binary, Lowering, Node, Ty};
use crate::Format;
use crate::neuron::hlo::Compare;

impl Lowering<'_> {
    /// The values of `format`'s planes, `[lead.., in]` f32.
    pub(super) fn dequantised(&mut self, format: Format, planes: &[Node], lead: &[usize]) -> Node {
        let dims = self.b.dims(planes[0]);
        let row = dims[lead.len()] * format.block_len();
        let blocks = dims[..=lead.len()].iter().product();
        // [blocks, entries of the field]
        let fields: Vec<Node> = planes
            .iter()
            .map(|plane| {
                let entries = *self.b.dims(*plane).last().expect("planes have dimensions: this is a bug");
                self.b.reshape(*plane, &[blocks, entries])
            })
            .collect();
        let values = match format {
            Format::Q8_0 => {
                let codes = self.b.convert(fields[1], Ty::F32);
                self.times_groups(codes, fields[0])
            }
            Format::Q4_0 => {
                let codes = self.nibbles(fields[1], blocks);
                let codes = self.shifted(codes, -8.0);
                self.times_groups(codes, fields[0])
            }
            Format::Q4_1 => {
                let codes = self.nibbles(fields[2], blocks);
                let scaled = self.times_groups(codes, fields[0]);
                let minimum = self.b.convert(fields[1], Ty::F32);
                let minimum = self.b.reshape(minimum, &[blocks]);
                let minimum = self.b.broadcast(minimum, &[blocks, 32], &[0]);
                self.b.binary(Binary::Add, scaled, minimum)
            }
            Format::Q6K => self.q6k(&fields, blocks),
            Format::Mxfp4 => {
                let codes = self.nibble_codes(fields[1], blocks);
                let codes = self.e2m1(codes);
                let scales = self.power_of_two(fields[0]);
                self.times_groups(codes, scales)
            }
            other => unreachable!("{other} has no blocks: this is a bug"),
        };
        self.b.reshape(values, &[lead, &[row]].concat())
    }

    /// `codes [blocks, n]` times the scale of each of the groups `[blocks, groups]` that a block has.
    fn times_groups(&mut self, codes: Node, scales: Node) -> Node {
        let (dims, groups) = (self.b.dims(codes), self.b.dims(scales)[1]);
        let wide = [dims[0], groups, dims[1] / groups];
        let scales = self.b.convert(scales, Ty::F32);
        let scales = self.b.broadcast(scales, &wide, &[0, 1]);
        let codes = self.b.reshape(codes, &wide);
        let values = self.b.binary(Binary::Multiply, scales, codes);
        self.b.reshape(values, &dims)
    }

    /// Low nibbles of `[blocks, 16]`, then high ones: `[blocks, 32]` f32.
    fn nibbles(&mut self, packed: Node, blocks: usize) -> Node {
        let codes = self.nibble_codes(packed, blocks);
        self.b.convert(codes, Ty::F32)
    }

    /// As [`Self::nibbles`], s32.
    fn nibble_codes(&mut self, packed: Node, blocks: usize) -> Node {
        let packed = self.b.reshape(packed, &[blocks, 1, 16]);
        let codes = self.bits(packed, 4);
        self.b.reshape(codes, &[blocks, 32])
    }

    /// The numbers 0, 0.5, 1, 1.5, 2, 3, 4, 6 of the codes 0 to 7, and their negatives of 8 to 15.
    fn e2m1(&mut self, codes: Node) -> Node {
        let dims = self.b.dims(codes);
        let full = |l: &mut Self, v: i32| l.b.full_s32(v, &dims);
        let above = |l: &mut Self, x: Node, v: i32| {
            let v = l.b.full_s32(v, &dims);
            l.b.compare(Compare::Gt, x, v)
        };
        let seven = full(self, 7);
        let size = self.b.binary(Binary::And, codes, seven);
        // Twice the number: the code itself, then in steps of 2, then of 4.
        let line = |l: &mut Self, slope: i32, below: i32| {
            let (slope, below) = (full(l, slope), full(l, below));
            let product = l.b.binary(Binary::Multiply, size, slope);
            l.b.binary(Binary::Subtract, product, below)
        };
        let (by_two, by_four) = (line(self, 2, 4), line(self, 4, 16));
        let past_three = above(self, size, 3);
        let twice = self.b.select(past_three, by_two, size);
        let past_five = above(self, size, 5);
        let twice = self.b.select(past_five, by_four, twice);
        let twice = self.b.convert(twice, Ty::F32);
        let (plus, minus) = (self.scaled(twice, 0.5), self.scaled(twice, -0.5));
        let negative = above(self, codes, 7);
        self.b.select(negative, minus, plus)
    }

    /// `2^(e - 127)` of bytes e, f32: a product of powers that are exact, one for each bit.
    fn power_of_two(&mut self, exponents: Node) -> Node {
        let dims = self.b.dims(exponents);
        let exponents = self.b.convert(exponents, Ty::S32);
        let zero = self.b.full_s32(0, &dims);
        let one = self.b.full_f32(1.0, &dims);
        let mut product = one;
        for bit in 0..7 {
            let mask = self.b.full_s32(1 << bit, &dims);
            let held = self.b.binary(Binary::And, exponents, mask);
            let set = self.b.compare(Compare::Ne, held, zero);
            let power = self.b.full_f32((2f32).powi(1 << bit), &dims);
            let factor = self.b.select(set, power, one);
            product = self.b.binary(Binary::Multiply, product, factor);
        }
        // The last bit decides between 2^1 and 2^-127, which takes two steps so that no factor is subnormal.
        let half = self.b.full_s32(127, &dims);
        let high = self.b.compare(Compare::Gt, exponents, half);
        let doubled = self.scaled(product, 2.0);
        let lowered = self.scaled(product, 2f32.powi(-64));
        let lowered = self.scaled(lowered, 2f32.powi(-63));
        self.b.select(high, doubled, lowered)
    }

    /// Bytes `[.., 1, n]` cut into fields of `bits`, lowest first, one below the other: `[.., 8 / bits, n]` s32.
    fn bits(&mut self, packed: Node, bits: usize) -> Node {
        let dims = self.b.dims(packed);
        let packed = self.b.convert(packed, Ty::S32);
        let mask = self.b.full_s32((1 << bits) - 1, &dims);
        let parts: Vec<Node> = (0..8 / bits)
            .map(|i| {
                let by = self.b.full_s32((i * bits) as i32, &dims);
                let part = if i == 0 { packed } else { self.b.binary(Binary::ShiftRightLogical, packed, by) };
                self.b.binary(Binary::And, part, mask)
            })
            .collect();
        self.b.concatenate(&parts, dims.len() - 2)
    }

    /// Two halves of 128 values; in each, four rows of 32: low nibbles of two rows of bytes, then their high nibbles;
    /// two more bits of all four in one row of bytes.
    fn q6k(&mut self, fields: &[Node], blocks: usize) -> Node {
        let low = self.b.reshape(fields[0], &[blocks, 2, 1, 64]);
        let low = self.bits(low, 4);
        let low = self.b.reshape(low, &[blocks, 256]);
        let high = self.b.reshape(fields[1], &[blocks, 2, 1, 32]);
        let high = self.bits(high, 2);
        let high = self.b.reshape(high, &[blocks, 256]);
        let sixteen = self.b.full_s32(16, &[blocks, 256]);
        let high = self.b.binary(Binary::Multiply, high, sixteen);
        let codes = self.b.binary(Binary::Add, low, high);
        let codes = self.b.convert(codes, Ty::F32);
        let codes = self.shifted(codes, -32.0);
        let scales = self.b.convert(fields[2], Ty::F32);
        let scales = self.times_groups(scales, fields[3]);
        self.times_groups(codes, scales)
    }
}
