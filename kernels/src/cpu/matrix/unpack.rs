//! Owns the reading of a panel's blocks into registers: codes as unsigned bytes, scales and minima as f32. Written once
//! for all formats and instruction sets; [`Blocks`] has where things lie.

use super::blocks::{Blocks, Planes, Scales};
use super::dots::Dots;
use super::panel::COLUMNS;
use crate::Format;

/// The layout of format number `F`.
pub(super) const fn blocks<const F: u8>() -> Blocks {
    const { Blocks::of(Format::ALL[F as usize]) }
}

/// [`Dots::COLUMNS`] columns x 4 k of line `n`: codes, or the entries of the format's table.
///
/// # Safety
/// `group` starts a group of 32 k; the caller has the features of `D`.
#[inline(always)]
pub(super) unsafe fn quad_of<D: Dots, const F: u8>(group: *const u8, quad: usize, n: usize) -> D::Ints {
    let b = blocks::<F>();
    // SAFETY: lines of the group.
    unsafe {
        let group = group.add(n * D::COLUMNS * 4);
        let codes = match b.planes {
            Planes::Bytes => D::load(group.add(quad * 128)),
            Planes::Nibbles => nibbles::<D>(group, quad),
            Planes::NibblesBits => D::or(nibbles::<D>(group, quad), bits::<D, 4>(group.add(512), quad)),
            Planes::NibblesPairs => D::or(nibbles::<D>(group, quad), pairs::<D, 4>(group.add(512), quad)),
            Planes::Pairs => pairs::<D, 0>(group, quad),
            Planes::PairsBits => D::or(pairs::<D, 0>(group, quad), bits::<D, 2>(group.add(256), quad)),
        };
        match const { blocks::<F>().table() } {
            Some(table) => D::look_up(&table, codes),
            None => codes,
        }
    }
}

/// The scales of line `n`, for half `half` of a group.
///
/// # Safety
/// `group` starts the group, `shared` what its unit shares; the caller has the features of `D`.
#[inline(always)]
pub(super) unsafe fn scale_of<D: Dots, const F: u8>(
    group: *const u8,
    shared: *const u8,
    half: usize,
    n: usize,
) -> D::Floats {
    let (b, at) = (blocks::<F>(), n * D::COLUMNS);
    // SAFETY: scales of the group, and of its unit.
    unsafe {
        let own = group.add(b.code_bytes());
        let half = own.add(half * COLUMNS + at);
        match b.scales {
            Scales::Half | Scales::HalfMinimum => D::of_halves(own.add(at * 2)),
            Scales::E8m0 => D::of_exponents(own.add(at)),
            Scales::Halves => D::mul(D::of_halves(shared.add(at * 2)), D::of_bytes(half)),
            Scales::Byte | Scales::ByteMinimum => D::mul(D::of_halves(shared.add(at * 2)), D::of_bytes(own.add(at))),
            Scales::NibblesMinimum => {
                let nibble = D::and(D::words(half), D::splat(15));
                D::mul(D::of_halves(shared.add(at * 2)), D::float(nibble))
            }
            Scales::Float | Scales::FloatZero => D::of_floats(shared.add(at * 4)),
        }
    }
}

/// The minima of line `n`, for half `half` of a group.
///
/// # Safety
/// As [`scale_of`]; the format has minima.
#[inline(always)]
pub(super) unsafe fn minimum_of<D: Dots, const F: u8>(
    group: *const u8,
    shared: *const u8,
    half: usize,
    n: usize,
) -> D::Floats {
    let (b, at) = (blocks::<F>(), n * D::COLUMNS);
    // SAFETY: minima of the group, and of its unit.
    unsafe {
        let own = group.add(b.code_bytes());
        let least = || D::mul(D::of_halves(shared.add((COLUMNS + at) * 2)), D::all(-1.0));
        match b.scales {
            Scales::HalfMinimum => D::of_halves(own.add((COLUMNS + at) * 2)),
            Scales::ByteMinimum => D::mul(least(), D::of_bytes(own.add(COLUMNS + at))),
            Scales::NibblesMinimum => D::mul(least(), D::float(D::right::<4>(D::words(own.add(half * COLUMNS + at))))),
            Scales::FloatZero => {
                let zero = D::float(D::words(shared.add(COLUMNS * 4 + at)));
                D::mul(D::mul(zero, D::all(-1.0)), D::of_floats(shared.add(at * 4)))
            }
            _ => unreachable!("the format has no minima: this is a bug"),
        }
    }
}

/// # Safety
/// `from` starts the nibble lines.
#[inline(always)]
unsafe fn nibbles<D: Dots>(from: *const u8, quad: usize) -> D::Ints {
    // SAFETY: the caller's.
    unsafe {
        let both = D::load(from.add(quad % 4 * 128));
        D::and(if quad < 4 { both } else { D::right::<4>(both) }, D::splat(0x0f0f_0f0f))
    }
}

/// Pairs of bits, moved up by `UP`: 0 or 4.
///
/// # Safety
/// `from` starts the pair lines.
#[inline(always)]
unsafe fn pairs<D: Dots, const UP: u32>(from: *const u8, quad: usize) -> D::Ints {
    // SAFETY: the caller's.
    unsafe {
        let four = D::load(from.add(quad / 4 * 128));
        let moved = match (UP, quad % 4) {
            (0, 0) | (4, 2) => four,
            (0, 1) | (4, 3) => D::right::<2>(four),
            (0, 2) => D::right::<4>(four),
            (0, _) => D::right::<6>(four),
            (_, 0) => D::left::<4>(four),
            _ => D::left::<2>(four),
        };
        D::and(moved, D::splat(0x0303_0303 << UP))
    }
}

/// Single bits, moved up by `UP`: 2 or 4.
///
/// # Safety
/// `from` starts the line of bits.
#[inline(always)]
unsafe fn bits<D: Dots, const UP: usize>(from: *const u8, quad: usize) -> D::Ints {
    // SAFETY: the caller's.
    unsafe {
        let eight = D::load(from);
        let moved = match UP as isize - quad as isize {
            4 => D::left::<4>(eight),
            3 => D::left::<3>(eight),
            2 => D::left::<2>(eight),
            1 => D::left::<1>(eight),
            0 => eight,
            -1 => D::right::<1>(eight),
            -2 => D::right::<2>(eight),
            -3 => D::right::<3>(eight),
            -4 => D::right::<4>(eight),
            _ => D::right::<5>(eight),
        };
        D::and(moved, D::splat(0x0101_0101 << UP))
    }
}
