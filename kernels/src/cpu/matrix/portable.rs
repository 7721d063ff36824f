//! f32 rows x decoded weights -> f32 in plain Rust, written so that the compiler vectorises it: right on any processor,
//! and the path of aarch64.
//!
//! 32 k of a panel are decoded once into the L1, `[32 k][32 columns]`, for all rows of the block. Sums run over k in
//! order; multiply and add round apart unless the target has fused multiply-add in its base.

use super::blocks::{Blocks, Planes, Scales, Values};
use super::{Tile, panel};
use crate::Format;
use crate::format::mxfp4_scale;

/// Most rows of a block: what one decoding is shared by.
pub(super) const BLOCK_ROWS: usize = 16;

/// Rows of a tile of 16 columns: as many as the registers hold.
const ROWS: usize = if cfg!(target_arch = "aarch64") { 4 } else { 2 };

type Decoded = [[f32; panel::COLUMNS]; 32];

/// # Safety
/// The pointers of `t` are as [`Tile`] says, for `count` rows.
pub(super) unsafe fn run(format: Format, t: &Tile, count: usize) {
    // SAFETY: a panel of `units`, and `count` padded rows.
    let (panel, rows) = unsafe {
        let padded = t.inner.next_multiple_of(2);
        let panel = std::slice::from_raw_parts(t.weights, t.units * panel::unit_bytes(format));
        (panel, std::slice::from_raw_parts(t.rows.cast::<f32>(), padded * count))
    };
    let mut sum = [[0f32; panel::COLUMNS]; BLOCK_ROWS];
    let mut w: Decoded = [[0.0; panel::COLUMNS]; 32];
    for first in (0..t.inner).step_by(32) {
        let len = 32.min(t.inner - first);
        decode(format, panel, first, len, &mut w);
        let x = &rows[first * count..];
        let tiled = count - count % ROWS;
        (0..tiled).step_by(ROWS).for_each(|r| multiply::<ROWS>(&w[..len], x, count, r, &mut sum));
        (tiled..count).for_each(|r| multiply::<1>(&w[..len], x, count, r, &mut sum));
    }
    for (r, sum) in sum[..count].iter().enumerate() {
        // SAFETY: `columns` values of row `r` are ours to write.
        unsafe { t.out.add(r * t.stride).copy_from_nonoverlapping(sum.as_ptr(), t.columns) };
    }
}

/// `sum[r..r + R] += x * w`, 16 columns at a time.
fn multiply<const R: usize>(w: &[[f32; 32]], x: &[f32], count: usize, r: usize, sum: &mut [[f32; 32]; BLOCK_ROWS]) {
    for half in 0..2 {
        let mut own = [[0f32; 16]; R];
        for (own, sum) in own.iter_mut().zip(&sum[r..]) {
            own.copy_from_slice(&sum[half * 16..][..16]);
        }
        for (w, x) in w.iter().zip(x.chunks_exact(count)) {
            for (own, x) in own.iter_mut().zip(&x[r..r + R]) {
                for (own, w) in own.iter_mut().zip(&w[half * 16..]) {
                    *own = multiply_add(*x, *w, *own);
                }
            }
        }
        for (own, sum) in own.iter().zip(&mut sum[r..]) {
            sum[half * 16..][..16].copy_from_slice(own);
        }
    }
}

#[inline(always)]
fn multiply_add(x: f32, w: f32, sum: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { x.mul_add(w, sum) } else { x * w + sum }
}

/// Weights `first..first + len` of all columns. `first` is a multiple of 32.
fn decode(format: Format, panel: &[u8], first: usize, len: usize, out: &mut Decoded) {
    let at = first / panel::unit_len(format) * panel::unit_bytes(format);
    let unit = &panel[at..];
    match format {
        Format::F32 => out[..len].iter_mut().zip(unit.chunks_exact(128)).for_each(|(out, line)| {
            out.iter_mut().zip(line.chunks_exact(4)).for_each(|(o, b)| *o = f32::from_bits(word(b)));
        }),
        Format::F16 => {
            out[..len].iter_mut().zip(unit.chunks_exact(64)).for_each(|(out, line)| *out = halves(line));
        }
        Format::Bf16 => {
            out[..len.next_multiple_of(2)].chunks_exact_mut(2).zip(unit.chunks_exact(128)).for_each(|(out, line)| {
                let [even, odd] = out else { unreachable!("pairs: this is a bug") };
                for ((even, odd), b) in even.iter_mut().zip(odd).zip(line.chunks_exact(4)) {
                    *even = f32::from_bits(word(b) << 16);
                    *odd = f32::from_bits(word(b) & 0xffff_0000);
                }
            })
        }
        _ => {
            let b = Blocks::of(format);
            let group = &unit[first % panel::unit_len(format) / 32 * b.group_bytes()..][..b.group_bytes()];
            let shared = &unit[b.groups * b.group_bytes()..b.unit_bytes()];
            let table = b.table();
            let halves = [0, 1].map(|half| scales(b, group, shared, half));
            for (i, quad) in out.chunks_exact_mut(4).enumerate() {
                let mut line = codes(b, group, i);
                if let Some(table) = table {
                    line.iter_mut().for_each(|code| *code = table[usize::from(*code)]);
                }
                let (scale, minimum) = halves[i / 4];
                match b.values {
                    Values::E4m3 => spread(quad, &line, e4m3, &scale),
                    Values::Plain => {
                        spread(quad, &line, |q| q as i32 as f32, &scale);
                        for out in quad {
                            out.iter_mut().zip(&minimum).for_each(|(o, m)| *o += m);
                        }
                    }
                    _ => {
                        let offset = f32::from(b.offset());
                        spread(quad, &line, |q| q as i32 as f32 - offset, &scale);
                    }
                }
            }
        }
    }
}

/// The codes of quad `i`, `[32 columns][4 k]`.
fn codes(b: Blocks, group: &[u8], i: usize) -> [u8; 128] {
    let line = |at: usize| <[u8; 128]>::try_from(&group[at..at + 128]).expect("a line: this is a bug");
    let nibbles = || line(i % 4 * 128).map(|codes| codes >> (i / 4 * 4) & 15);
    let pairs = |at: usize| line(at + i / 4 * 128).map(|codes| codes >> (i % 4 * 2) & 3);
    let bits = |at: usize| line(at).map(|codes| codes >> i & 1);
    let join = |mut low: [u8; 128], high: [u8; 128], by: usize| {
        low.iter_mut().zip(high).for_each(|(low, high)| *low |= high << by);
        low
    };
    match b.planes {
        Planes::Bytes => line(i * 128),
        Planes::Nibbles => nibbles(),
        Planes::NibblesBits => join(nibbles(), bits(512), 4),
        Planes::NibblesPairs => join(nibbles(), pairs(512), 4),
        Planes::Pairs => pairs(0),
        Planes::PairsBits => join(pairs(0), bits(256), 2),
    }
}

/// Scales and minima of all columns, for half `half` of a group.
fn scales(b: Blocks, group: &[u8], shared: &[u8], half: usize) -> ([f32; 32], [f32; 32]) {
    let own = &group[b.code_bytes()..];
    let none = [0.0; 32];
    let map = |from: &[u8], value: fn(u8) -> f32| -> [f32; 32] { std::array::from_fn(|i| value(from[i])) };
    let times = |a: [f32; 32], b: [f32; 32]| -> [f32; 32] { std::array::from_fn(|i| a[i] * b[i]) };
    let floats = || -> [f32; 32] { std::array::from_fn(|i| f32::from_bits(word(&shared[i * 4..]))) };
    match b.scales {
        Scales::Half => (halves(own), none),
        Scales::HalfMinimum => (halves(own), halves(&own[64..])),
        Scales::E8m0 => (map(own, mxfp4_scale), none),
        Scales::Halves => (times(halves(shared), map(&own[half * 32..], |q| f32::from(q as i8))), none),
        Scales::Byte => (times(halves(shared), map(own, |q| f32::from(q as i8))), none),
        Scales::ByteMinimum => {
            let minimum = times(halves(&shared[64..]), map(&own[32..], |q| -f32::from(q)));
            (times(halves(shared), map(own, f32::from)), minimum)
        }
        Scales::NibblesMinimum => {
            let own = &own[half * 32..];
            let minimum = times(halves(&shared[64..]), map(own, |q| -f32::from(q >> 4)));
            (times(halves(shared), map(own, |q| f32::from(q & 15))), minimum)
        }
        Scales::Float => (floats(), none),
        Scales::FloatZero => (floats(), times(floats(), map(&shared[128..], |q| -f32::from(q)))),
    }
}

/// As [`crate::format::e4m3`] but for NaN, which is 480: no weight has it.
#[inline(always)]
fn e4m3(code: u32) -> f32 {
    // Moving the exponent's bias is one multiplication, which normalises subnormals too.
    f32::from_bits((code & 0x7f) << 20 | (code & 0x80) << 24) * f32::from_bits((127 + 120) << 23)
}

/// A line of 32 columns x 4 k bytes to 4 k x 32 columns: `value(byte) * scale`.
#[inline(always)]
fn spread(out: &mut [[f32; 32]], line: &[u8; 128], value: impl Fn(u32) -> f32, scale: &[f32; 32]) {
    for (k, out) in out.iter_mut().enumerate() {
        for ((out, b), scale) in out.iter_mut().zip(line.chunks_exact(4)).zip(scale) {
            *out = value(word(b) >> (k * 8) & 255) * scale;
        }
    }
}

#[inline(always)]
fn word(b: &[u8]) -> u32 {
    u32::from_le_bytes([b[0], b[1], b[2], b[3]])
}

/// 32 halves as f32, without branches.
#[inline(always)]
fn halves(bytes: &[u8]) -> [f32; 32] {
    let mut half = [0u16; 32];
    for (half, b) in half.iter_mut().zip(bytes.chunks_exact(2)) {
        *half = u16::from_le_bytes([b[0], b[1]]);
    }
    half.map(|half| {
        let magnitude = (u32::from(half) & 0x7fff) << 13;
        // Moving the exponent's bias is one multiplication, which normalises subnormals too; the top exponent stays top.
        let finite = (f32::from_bits(magnitude) * f32::from_bits((254 - 15) << 23)).to_bits();
        let special = if magnitude >= 0x0f80_0000 { 0x7f80_0000 } else { 0 };
        f32::from_bits(finite | special | (u32::from(half) & 0x8000) << 16)
    })
}
