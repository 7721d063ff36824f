//! f32 rows x decoded weights -> f32 in plain Rust, written so that the compiler vectorises it: right on any processor,
//! and the path of aarch64.
//!
//! 32 k of a panel are decoded once into the L1, `[32 k][32 columns]`, for all rows of the block. Sums run over k in
//! order; multiply and add round apart unless the target has fused multiply-add in its base.

use super::{Tile, panel};
use crate::Format;
use crate::format::{MXFP4_CODES, mxfp4_scale};

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
        Format::Q8_0 => {
            let scale = halves(&unit[1024..1088]);
            for (quad, line) in out.chunks_exact_mut(4).zip(unit.chunks_exact(128)) {
                spread(quad, line, |q| q, 128.0, &scale);
            }
        }
        Format::Q4_0 | Format::Q4_1 => {
            let scale = halves(&unit[panel::NIBBLES..][..64]);
            for (i, quad) in out.chunks_exact_mut(4).enumerate() {
                let (line, shift) = (&unit[i % 4 * 128..][..128], i / 4 * 4);
                let offset = if format == Format::Q4_0 { 8.0 } else { 0.0 };
                spread(quad, line, |q| q >> shift & 0x0f0f_0f0f, offset, &scale);
            }
            if format == Format::Q4_1 {
                let minimum = halves(&unit[panel::NIBBLES + 64..][..64]);
                for out in out.iter_mut() {
                    out.iter_mut().zip(&minimum).for_each(|(o, m)| *o += m);
                }
            }
        }
        Format::Mxfp4 => {
            let mut scale = [0f32; 32];
            scale.iter_mut().zip(&unit[panel::NIBBLES..]).for_each(|(s, e)| *s = mxfp4_scale(*e));
            for (i, quad) in out.chunks_exact_mut(4).enumerate() {
                let mut line = [0u8; 128];
                for (line, codes) in line.iter_mut().zip(&unit[i % 4 * 128..]) {
                    *line = (MXFP4_CODES[usize::from(codes >> (i / 4 * 4) & 15)] + 12) as u8;
                }
                spread(quad, &line, |q| q, 12.0, &scale);
            }
        }
        Format::Q6K => {
            let group = &unit[first % 256 / 32 * panel::Q6K_GROUP..][..panel::Q6K_GROUP];
            let whole = halves(&unit[8 * panel::Q6K_GROUP..][..64]);
            let mut scale = [0f32; 32];
            for (i, quad) in out.chunks_exact_mut(4).enumerate() {
                if i % 4 == 0 {
                    let scales = &group[panel::NIBBLES + 256 + i / 4 * 32..][..32];
                    for ((s, w), q) in scale.iter_mut().zip(&whole).zip(scales) {
                        *s = w * f32::from(*q as i8);
                    }
                }
                let (low, high) = (&group[i % 4 * 128..][..128], &group[panel::NIBBLES + i / 4 * 128..][..128]);
                let mut line = [0u8; 128];
                for ((line, low), high) in line.iter_mut().zip(low).zip(high) {
                    *line = low >> (i / 4 * 4) & 15 | (high >> (i % 4 * 2) & 3) << 4;
                }
                spread(quad, &line, |q| q, 32.0, &scale);
            }
        }
    }
}

/// A line of 32 columns x 4 k bytes to 4 k x 32 columns: `(byte - offset) * scale`.
#[inline(always)]
fn spread(out: &mut [[f32; 32]], line: &[u8], bits: impl Fn(u32) -> u32, offset: f32, scale: &[f32; 32]) {
    for (k, out) in out.iter_mut().enumerate() {
        for ((out, b), scale) in out.iter_mut().zip(line.chunks_exact(4)).zip(scale) {
            *out = ((bits(word(b)) >> (k * 8) & 255) as i32 as f32 - offset) * scale;
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
