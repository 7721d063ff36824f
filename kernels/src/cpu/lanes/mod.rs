//! Owns one vector type: sixteen f32 lanes, as one AVX-512 register, two AVX2 registers, or a plain array that the
//! compiler vectorises for whatever it builds for. Kernels other than matrix products are written once over [`Lanes`] and entered
//! through [`run`], which picks the path. Knows no operation.
//!
//! The paths agree to rounding, not to the bit (the plain array may lack fused multiply-add); one machine uses one path.

#[cfg(target_arch = "x86_64")]
mod x86;

use std::fmt::Debug;

#[cfg(target_arch = "x86_64")]
use self::x86::{Avx2, Avx512};

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Which vector type kernels run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vectors {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

/// A kernel with its arguments. `run` must be `#[inline(always)]`, so that it is compiled for the chosen path; so must
/// everything it calls with vectors, and no closure may touch one (nor `map`, nor `from_fn`): a closure is compiled without the
/// path's features, and each instruction in it becomes a call.
pub(crate) trait Kernel {
    type Output;
    fn run<L: Lanes>(self) -> Self::Output;
}

/// Runs `kernel` on `vectors`.
pub(crate) fn run<K: Kernel>(vectors: Vectors, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
    fn avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Avx512>()
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Avx2>()
    }
    match vectors {
        // SAFETY: `Vectors` of this machine come from `Isa`, which has checked the features.
        #[cfg(target_arch = "x86_64")]
        Vectors::Avx512 => unsafe { avx512(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Vectors::Avx2 => unsafe { avx2(kernel) },
        Vectors::Portable => kernel.run::<Portable>(),
    }
}

/// Sixteen f32 lanes. Used only inside [`Kernel::run`], which is what makes its methods safe to call.
pub(crate) trait Lanes: Copy + Debug {
    /// Rows of a tile of accumulators four vectors wide that leaves registers for its operands.
    const TILE_ROWS: usize;

    fn splat(x: f32) -> Self;
    /// # Safety
    /// Sixteen readable values at `p`.
    unsafe fn load(p: *const f32) -> Self;
    /// # Safety
    /// Sixteen writable values at `p`.
    unsafe fn store(self, p: *mut f32);
    /// Thirty-two bf16 values: the sixteen of even place and the sixteen of odd place.
    ///
    /// # Safety
    /// Sixteen readable words at `p`.
    unsafe fn load_bf16_pairs(p: *const u32) -> (Self, Self);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// `self * by + plus`
    fn fma(self, by: Self, plus: Self) -> Self;
    /// The larger; `other` where either is NaN.
    fn max(self, other: Self) -> Self;
    /// The smaller; `other` where either is NaN.
    fn min(self, other: Self) -> Self;
    /// To the nearest integer, ties to even. Of use below 2^22 only.
    fn round(self) -> Self;
    /// `self * 2^n` for whole `n` between -160 and 160.
    fn scale_by_power(self, n: Self) -> Self;
    /// Bit set where `self > other`.
    fn above(self, other: Self) -> u16;
    /// `self` where the bit is set, `other` elsewhere.
    fn keep(self, bits: u16, other: Self) -> Self;
    /// Lane 0 and lane 1 exchanged, 2 and 3, and so on.
    fn swap_pairs(self) -> Self;
    fn to_array(self) -> [f32; LANES];

    /// Up to sixteen values; the lanes beyond are 0.
    #[inline(always)]
    fn load_part(x: &[f32]) -> Self {
        if x.len() >= LANES {
            // SAFETY: long enough.
            return unsafe { Self::load(x.as_ptr()) };
        }
        let mut whole = [0.0; LANES];
        whole[..x.len()].copy_from_slice(x);
        // SAFETY: an array of sixteen.
        unsafe { Self::load(whole.as_ptr()) }
    }

    /// As many lanes as `out` holds, at most sixteen.
    #[inline(always)]
    fn store_part(self, out: &mut [f32]) {
        if out.len() >= LANES {
            // SAFETY: long enough.
            return unsafe { self.store(out.as_mut_ptr()) };
        }
        let len = out.len();
        out.copy_from_slice(&self.to_array()[..len]);
    }

    /// Sum of all lanes, halves onto halves: one fixed order on every path.
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut a = self.to_array();
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                a[i] += a[i + width];
            }
        }
        a[0]
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        let mut a = self.to_array();
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                a[i] = if a[i] > a[i + width] { a[i] } else { a[i + width] };
            }
        }
        a[0]
    }
}

/// Plain Rust; the compiler vectorises the loops with what the build's target has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Lanes for Portable {
    const TILE_ROWS: usize = 1;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { p.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller's.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u32) -> (Self, Self) {
        // SAFETY: the caller's.
        let both = unsafe { p.cast::<[u32; LANES]>().read_unaligned() };
        (Self(both.map(|x| f32::from_bits(x << 16))), Self(both.map(|x| f32::from_bits(x & 0xffff_0000))))
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, by: Self, plus: Self) -> Self {
        // Without the instruction, `mul_add` is a call into the C library.
        const FUSED: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));
        Self(std::array::from_fn(|i| match FUSED {
            true => self.0[i].mul_add(by.0[i], plus.0[i]),
            false => self.0[i] * by.0[i] + plus.0[i],
        }))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // Adding 1.5 * 2^23 leaves no bits below the point.
        const SHIFT: f32 = 12_582_912.0;
        Self(self.0.map(|x| (x + SHIFT) - SHIFT))
    }
    #[inline(always)]
    fn scale_by_power(self, n: Self) -> Self {
        self.zip(n, |x, n| {
            let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
            let n = n as i32;
            let half = n >> 1;
            x * power(half) * power(n - half)
        })
    }
    #[inline(always)]
    fn above(self, other: Self) -> u16 {
        (0..LANES).fold(0, |bits, i| bits | u16::from(self.0[i] > other.0[i]) << i)
    }
    #[inline(always)]
    fn swap_pairs(self) -> Self {
        Self(std::array::from_fn(|i| self.0[i ^ 1]))
    }
    #[inline(always)]
    fn keep(self, bits: u16, other: Self) -> Self {
        Self(std::array::from_fn(|i| if bits >> i & 1 == 1 { self.0[i] } else { other.0[i] }))
    }
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        self.0
    }
}
