//! Owns seeded random numbers: SplitMix64. The same seed gives the same case on every machine.

use dualgauge_kernels::{Format, HostTensor, Shape, format};

#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// `0 .. n`
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n.max(1) as u64) as usize
    }

    /// `low ..= high`
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    pub fn flip(&mut self) -> bool {
        self.bits() >> 63 == 1
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Uniform in `0 .. 1`.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Of mean 0 and deviation 1, never beyond 6.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }

    pub fn normals(&mut self, n: usize, deviation: f32) -> Vec<f32> {
        (0..n).map(|_| self.normal() * deviation).collect()
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// A weight in `format`. Block formats are random codes with small scales of both signs, so that every code occurs,
    /// also those that no quantiser writes.
    pub fn tensor(&mut self, shape: impl Into<Shape>, format: Format, deviation: f32) -> HostTensor<'static> {
        let shape = shape.into();
        let count = shape.elements();
        let bytes = match format {
            Format::F32 | Format::F16 | Format::Bf16 => format::encode(format, &self.normals(count, deviation)),
            _ => (0..count / format.block_len()).flat_map(|_| self.block(format, deviation)).collect(),
        };
        HostTensor::new("random", shape, format, bytes).expect("whole blocks")
    }

    fn block(&mut self, format: Format, deviation: f32) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..format.block_bytes()).map(|_| self.bits() as u8).collect();
        // How large codes, times the scales of their groups, are in the middle; and the scale they begin with.
        let (codes, signs) = match format {
            Format::Q8_0 | Format::Int8G32 | Format::Int8G128 => (74.0, true),
            Format::Q4_0 | Format::Q4_1 | Format::Int4G32 | Format::Int4G128 => (4.6, true),
            Format::Q5_0 | Format::Q5_1 => (9.2, true),
            Format::Q2K => (1.1 * 8.7, true),
            Format::Q3K => (2.3 * 18.5, true),
            Format::Q4K => (4.6 * 36.0, true),
            Format::Q5K => (9.2 * 36.0, true),
            Format::Q6K => (18.5 * 74.0, true),
            Format::Iq4Nl => (69.0, true),
            Format::Iq4Xs => (69.0 * 18.5, true),
            Format::Mxfp4 => (3.0, false),
            Format::Fp8G32 | Format::Fp8G128 => (120.0, true),
            Format::F32 | Format::F16 | Format::Bf16 => unreachable!("plain formats have no blocks"),
        };
        if matches!(format, Format::Fp8G32 | Format::Fp8G128) {
            bytes.iter_mut().filter(|b| **b & 0x7f == 0x7f).for_each(|b| *b ^= 1);
        }
        if matches!(format, Format::Int4G32 | Format::Int4G128) {
            bytes[4] %= 17;
        }
        let sign = if signs && self.flip() { 1.0 } else { -1.0 };
        let scale = sign * deviation * (0.5 + self.unit()) / codes;
        let minimum = match format {
            Format::Q4_1 => -scale * 15.0,
            Format::Q5_1 => -scale * 31.0,
            Format::Q2K => scale * 3.0,
            Format::Q4K => scale * 15.0,
            _ => scale * 31.0,
        };
        let values = [scale, minimum * self.unit()];
        format::scales(format).iter().zip(values).for_each(|(place, value)| place.write(&mut bytes, value));
        bytes
    }
}
