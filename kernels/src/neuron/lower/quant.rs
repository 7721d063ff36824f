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
            Format::Q8_0 | Format::Int8G32 | Format::Int8G128 => {
                let codes = self.b.convert(fields[1], Ty::F32);
                self.times_groups(codes, fields[0])
            }
            Format::Fp8G32 | Format::Fp8G128 => {
                let codes = self.e4m3(fields[1]);
                self.times_groups(codes, fields[0])
            }
            Format::Int4G32 | Format::Int4G128 => {
                let codes = self.nibbles(fields[2], blocks);
                let dims = self.b.dims(codes);
                let zero = self.per_block(fields[1], &dims);
                let codes = self.b.binary(Binary::Subtract, codes, zero);
                self.times_groups(codes, fields[0])
            }
            Format::Q5_0 => {
                let codes = self.with_fifth_bit(fields[2], fields[1], blocks);
                let codes = self.shifted(codes, -16.0);
                self.times_groups(codes, fields[0])
            }
            Format::Q5_1 => {
                let codes = self.with_fifth_bit(fields[3], fields[2], blocks);
                let scaled = self.times_groups(codes, fields[0]);
                let minimum = self.per_block(fields[1], &[blocks, 32]);
                self.b.binary(Binary::Add, scaled, minimum)
            }
            Format::Q4K | Format::Q5K => self.k_quant(&fields, blocks),
            Format::Q4_0 => {
                let codes = self.nibbles(fields[1], blocks);
                let codes = self.shifted(codes, -8.0);
                self.times_groups(codes, fields[0])
            }
            Format::Q4_1 => {
                let codes = self.nibbles(fields[2], blocks);
                let scaled = self.times_groups(codes, fields[0]);
                let minimum = self.per_block(fields[1], &[blocks, 32]);
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

    /// One number a block, `[blocks, 1]`, over all of `dims`, f32.
    fn per_block(&mut self, x: Node, dims: &[usize]) -> Node {
        let x = self.b.convert(x, Ty::F32);
        let x = self.b.reshape(x, &dims[..1]);
        self.b.broadcast(x, dims, &[0])
    }

    /// For each 16 bytes of `[blocks, n]`, their low nibbles, then the high ones: `[blocks, 2 n]` f32.
    fn nibbles(&mut self, packed: Node, blocks: usize) -> Node {
        let codes = self.nibble_codes(packed, blocks);
        self.b.convert(codes, Ty::F32)
    }

    /// As [`Self::nibbles`], s32.
    fn nibble_codes(&mut self, packed: Node, blocks: usize) -> Node {
        let bytes = self.b.dims(packed)[1];
        let packed = self.b.reshape(packed, &[blocks, bytes / 16, 1, 16]);
        let codes = self.bits(packed, 4);
        self.b.reshape(codes, &[blocks, 2 * bytes])
    }

    /// Nibbles `[blocks, 16]` and, value by value, a higher bit from `[blocks, 4]`: `[blocks, 32]` f32.
    fn with_fifth_bit(&mut self, packed: Node, high: Node, blocks: usize) -> Node {
        let low = self.nibble_codes(packed, blocks);
        let high = self.b.reshape(high, &[blocks, 4, 1, 1]);
        let high = self.bits(high, 1);
        let high = self.b.reshape(high, &[blocks, 32]);
        let codes = self.joined(low, high, 16);
        self.b.convert(codes, Ty::F32)
    }

    /// `low + high * by`, s32.
    fn joined(&mut self, low: Node, high: Node, by: i32) -> Node {
        let dims = self.b.dims(high);
        let by = self.b.full_s32(by, &dims);
        let high = self.b.binary(Binary::Multiply, high, by);
        self.b.binary(Binary::Add, low, high)
    }

    /// 256 values in groups of 32: nibbles of four rows of 32 bytes, low ones first, a fifth bit from one more row where
    /// the format has it; a 6-bit scale and minimum a group, which are multiplied by those of the block.
    fn k_quant(&mut self, fields: &[Node], blocks: usize) -> Node {
        let (packed, high) = match *fields {
            [_, _, _, packed] => (packed, None),
            [_, _, _, high, packed] => (packed, Some(high)),
            _ => unreachable!("formats of this kind have four fields or five: this is a bug"),
        };
        let packed = self.b.reshape(packed, &[blocks, 4, 1, 32]);
        let codes = self.bits(packed, 4);
        let mut codes = self.b.reshape(codes, &[blocks, 256]);
        if let Some(high) = high {
            let high = self.b.reshape(high, &[blocks, 1, 32]);
            let high = self.bits(high, 1);
            let high = self.b.reshape(high, &[blocks, 256]);
            codes = self.joined(codes, high, 16);
        }
        let codes = self.b.convert(codes, Ty::F32);
        let (scales, minima) = self.six_bits(fields[2], blocks);
        let scales = self.times_groups(scales, fields[0]);
        let scaled = self.times_groups(codes, scales);
        let minima = self.times_groups(minima, fields[1]);
        let minima = self.b.broadcast(minima, &[blocks, 8, 32], &[0, 1]);
        let minima = self.b.reshape(minima, &[blocks, 256]);
        self.b.binary(Binary::Subtract, scaled, minima)
    }

    /// Eight scales and eight minima of 6 bits out of 12 bytes, `[blocks, 8]` f32 each: the first four of each lie low in
    /// the first eight bytes, the low halves of the others in the last four, their high bits above the first ones.
    fn six_bits(&mut self, packed: Node, blocks: usize) -> (Node, Node) {
        let packed = self.b.convert(packed, Ty::S32);
        let four = [blocks, 4];
        let (mask, six) = (self.b.full_s32(63, &four), self.b.full_s32(6, &four));
        let (nibble, half) = (self.b.full_s32(15, &four), self.b.full_s32(4, &four));
        let last = self.b.slice(packed, 1, 8, 12);
        let mut all = vec![];
        for (i, start) in [0, 4].into_iter().enumerate() {
            let bytes = self.b.slice(packed, 1, start, start + 4);
            let first = self.b.binary(Binary::And, bytes, mask);
            let top = self.b.binary(Binary::ShiftRightLogical, bytes, six);
            let low = match i {
                0 => self.b.binary(Binary::And, last, nibble),
                _ => self.b.binary(Binary::ShiftRightLogical, last, half),
            };
            let second = self.joined(low, top, 16);
            let both = self.b.concatenate(&[first, second], 1);
            all.push(self.b.convert(both, Ty::F32));
        }
        (all[0], all[1])
    }

    /// Numbers of 8-bit floats: sign, four bits of exponent (bias 7), three of fraction. The one code that is no number
    /// does not occur in weights.
    fn e4m3(&mut self, codes: Node) -> Node {
        let dims = self.b.dims(codes);
        let codes = self.b.convert(codes, Ty::S32);
        let of = |l: &mut Self, v: i32| l.b.full_s32(v, &dims);
        let (seven, fifteen, three, zero) = (of(self, 7), of(self, 15), of(self, 3), of(self, 0));
        let fraction = self.b.binary(Binary::And, codes, seven);
        let exponent = self.b.binary(Binary::ShiftRightLogical, codes, three);
        let exponent = self.b.binary(Binary::And, exponent, fifteen);
        // Normal numbers have a leading one; the least exponent is that of numbers without.
        let normal = self.b.compare(Compare::Gt, exponent, zero);
        let eight = of(self, 8);
        let led = self.b.binary(Binary::Add, fraction, eight);
        let digits = self.b.select(normal, led, fraction);
        let digits = self.b.convert(digits, Ty::F32);
        let one = self.b.full_f32(1.0, &dims);
        let mut power = one;
        for bit in 0..4 {
            let mask = of(self, 1 << bit);
            let held = self.b.binary(Binary::And, exponent, mask);
            let set = self.b.compare(Compare::Ne, held, zero);
            let factor = self.b.full_f32((2f32).powi(1 << bit), &dims);
            let factor = self.b.select(set, factor, one);
            power = self.b.binary(Binary::Multiply, power, factor);
        }
        let least = self.b.full_f32(2.0, &dims);
        let power = self.b.select(normal, power, least);
        let size = self.b.binary(Binary::Multiply, digits, power);
        let (plus, minus) = (self.scaled(size, 2f32.powi(-10)), self.scaled(size, -(2f32.powi(-10))));
        let positive = of(self, 127);
        let negative = self.b.compare(Compare::Gt, codes, positive);
        self.b.select(negative, minus, plus)
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

    /// `2^(e - 127)` of bytes e, f32: a product of powers that are exact, one for each bit of `max(e, 1) - 1`. No factor and
    /// no product of factors that a compiler may fold is subnormal, for devices that take such numbers for zero; the result is
    /// for e = 0 alone.
    fn power_of_two(&mut self, exponents: Node) -> Node {
        let dims = self.b.dims(exponents);
        let exponents = self.b.convert(exponents, Ty::S32);
        let (zero, one) = (self.b.full_s32(0, &dims), self.b.full_s32(1, &dims));
        let some = self.b.compare(Compare::Gt, exponents, zero);
        let less = self.b.binary(Binary::Subtract, exponents, one);
        let above = self.b.select(some, less, zero);
        let mut product = self.b.full_f32(2f32.powi(-126), &dims);
        for (past, power) in [(63, -62), (127, 2), (191, 66)] {
            let past = self.b.full_s32(past, &dims);
            let higher = self.b.compare(Compare::Gt, above, past);
            let power = self.b.full_f32(2f32.powi(power), &dims);
            product = self.b.select(higher, power, product);
        }
        let unchanged = self.b.full_f32(1.0, &dims);
        for bit in 0..6 {
            let mask = self.b.full_s32(1 << bit, &dims);
            let held = self.b.binary(Binary::And, above, mask);
            let set = self.b.compare(Compare::Ne, held, zero);
            let power = self.b.full_f32(2f32.powi(1 << bit), &dims);
            let factor = self.b.select(set, power, unchanged);
            product = self.b.binary(Binary::Multiply, product, factor);
        }
        let halved = self.scaled(product, 0.5);
        self.b.select(some, product, halved)
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
