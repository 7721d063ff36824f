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
        if format == Format::Mxfp4 {
            bytes[0] = (127.0 + (deviation / 3.0).log2()).round() as u8 - (self.bits() & 1) as u8;
            return bytes;
        }
        // Where the scales lie, and how large codes are in the middle.
        let (scale_at, codes) = match format {
            Format::Q8_0 => (0, 74.0),
            Format::Q4_0 | Format::Q4_1 => (0, 4.6),
            Format::Q6K => (208, 18.5 * 74.0),
            _ => unreachable!("plain formats have no blocks"),
        };
        let sign = if self.flip() { 1.0 } else { -1.0 };
        let scale = sign * deviation * (0.5 + self.unit()) / codes;
        bytes[scale_at..scale_at + 2].copy_from_slice(&format::encode(Format::F16, &[scale]));
        if format == Format::Q4_1 {
            let minimum = -scale * 15.0 * self.unit();
            bytes[2..4].copy_from_slice(&format::encode(Format::F16, &[minimum]));
        }
        bytes
    }
}
