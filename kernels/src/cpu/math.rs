//! Owns the transcendental functions of the CPU kernels, sixteen lanes at a time: `exp`, `tanh`, `erf` as a normal
//! distribution, and the activations made of them. Every kernel takes them from here, so that a value is the same
//! wherever it is computed.
//!
//! Relative error (checked below over the whole range): `exp` 2^-22, about 2 units in the last place, results under
//! 2^-126 excepted; `tanh` 2^-21; `normal` 1e-5 relative from -8 on, 1e-7 absolute. NaN stays NaN, infinities go to the limits.

use super::lanes::Lanes;
use crate::Act;
use crate::op::XIELU_EDGE;

/// `e^x`
#[inline(always)]
pub(crate) fn exp<L: Lanes>(x: L) -> L {
    let s = L::splat;
    // At the bounds the result is already 0 and infinity. The order of operands lets NaN through.
    let x = s(89.0).min(s(-104.0).max(x));
    let n = x.mul(s(std::f32::consts::LOG2_E)).round();
    // ln 2 in two parts, the first with few bits, so that n times it is exact.
    let r = n.fma(s(2.121_944_4e-4), n.fma(s(-0.693_359_4), x));
    let mut p = s(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p.fma(r, s(c));
    }
    let p = p.mul(r).fma(r, r).add(s(1.0));
    p.scale_by_power(n)
}

#[inline(always)]
pub(crate) fn tanh<L: Lanes>(x: L) -> L {
    let s = L::splat;
    let negative = s(0.0).above(x);
    let a = s(0.0).sub(x).keep(negative, x);
    // Near 0 an odd polynomial; beyond, 1 - 2 / (e^2a + 1).
    let z = x.mul(x);
    let mut p = s(-5.704_988_7e-3);
    for c in [2.063_909e-2, -5.373_971_6e-2, 0.133_314_42, -0.333_332_8] {
        p = p.fma(z, s(c));
    }
    let near = p.mul(z).fma(x, x);
    let far = s(1.0).sub(s(2.0).div(exp(a.add(a)).add(s(1.0))));
    let far = s(0.0).sub(far).keep(negative, far);
    far.keep(a.above(s(0.625)), near)
}

/// The normal distribution function `(1 + erf(x / sqrt 2)) / 2`.
#[inline(always)]
pub(crate) fn normal<L: Lanes>(x: L) -> L {
    let s = L::splat;
    let negative = s(0.0).above(x);
    let u = x.mul(s(std::f32::consts::FRAC_1_SQRT_2));
    let a = s(0.0).sub(u).keep(negative, u);
    let z = u.mul(u);
    let mut near = s(7.853_861_4e-5);
    for c in [
        -8.010_193_6e-4,
        5.188_327_7e-3,
        -2.685_381_2e-2,
        0.112_835_85,
        -0.376_126_26,
        std::f32::consts::FRAC_2_SQRT_PI,
    ] {
        near = near.fma(z, s(c));
    }
    let near = near.mul(u).fma(s(0.5), s(0.5));
    // erfc(a) = e^(-a^2) / a * p(1 / a^2), with one polynomial below 2 and one above.
    let q = s(1.0).div(s(1.0).max(a));
    let y = q.mul(q);
    let mut middle = s(2.326_82e-2);
    for c in
        [-0.138_703_94, 0.368_742_47, -0.582_473_3, 0.621_000_5, -0.494_451_53, 0.340_488, -0.274_112_7, 0.563_825_94]
    {
        middle = middle.fma(y, s(c));
    }
    let mut far = s(-10.477_664);
    for c in [12.977_2, -7.495_518_7, 2.921_019, -1.015_265_3, 0.421_846_34, -0.282_076_74, 0.564_189_5] {
        far = far.fma(y, s(c));
    }
    let p = far.keep(a.above(s(2.0)), middle);
    let tail = exp(s(0.0).sub(z)).mul(q).mul(p).mul(s(0.5));
    let beyond = tail.keep(negative, s(1.0).sub(tail));
    beyond.keep(a.above(s(1.0)), near)
}

#[inline(always)]
pub(crate) fn sigmoid<L: Lanes>(x: L) -> L {
    let s = L::splat;
    s(1.0).div(s(1.0).add(exp(s(0.0).sub(x))))
}

/// `act(gate) * up`, or `act(gate)`.
#[inline(always)]
pub(crate) fn act<L: Lanes>(act: Act, gate: L, up: Option<L>) -> L {
    let s = L::splat;
    let zero = s(0.0);
    let value = match act {
        Act::Silu => gate.div(s(1.0).add(exp(zero.sub(gate)))),
        Act::Gelu => gate.mul(normal(gate)),
        Act::GeluTanh => {
            let cube = gate.mul(gate).mul(gate);
            let inner = cube.fma(s(0.044_715), gate).mul(s(0.797_884_6));
            gate.mul(s(0.5)).mul(s(1.0).add(tanh(inner)))
        }
        Act::Relu => zero.max(gate),
        Act::Relu2 => {
            let x = zero.max(gate);
            x.mul(x)
        }
        Act::Xielu { positive, negative, beta } => {
            let above = gate.mul(gate).mul(s(positive));
            let below = exp(s(XIELU_EDGE).min(gate)).sub(s(1.0)).sub(gate).mul(s(negative));
            above.keep(gate.above(zero), below).add(gate.mul(s(beta)))
        }
        Act::Sigmoid => sigmoid(gate),
        Act::ClampedSwiglu { alpha, limit } => {
            let gate = s(limit).min(gate);
            gate.mul(sigmoid(gate.mul(s(alpha))))
        }
    };
    match (up, act) {
        (None, _) => value,
        (Some(up), Act::ClampedSwiglu { limit, .. }) => value.mul(s(limit).min(s(-limit).max(up)).add(s(1.0))),
        (Some(up), _) => value.mul(up),
    }
}

#[cfg(test)]
mod tests {
    use super::super::lanes::{self, Kernel, LANES};
    use super::*;

    struct Map<'a, F>(&'a [f32], F);

    trait Function: Copy {
        fn apply<L: Lanes>(self, x: L) -> L;
    }

    impl<F: Function> Kernel for Map<'_, F> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<L: Lanes>(self) -> Vec<f32> {
            self.0.chunks(LANES).flat_map(|x| self.1.apply(L::load_part(x)).to_array()[..x.len()].to_vec()).collect()
        }
    }

    macro_rules! function {
        ($name:ident, $f:ident) => {
            #[derive(Clone, Copy)]
            struct $name;
            impl Function for $name {
                #[inline(always)]
                fn apply<L: Lanes>(self, x: L) -> L {
                    $f(x)
                }
            }
        };
    }
    function!(Exp, exp);
    function!(Tanh, tanh);
    function!(Normal, normal);

    /// Largest error of `f` against `wanted` over `n` even steps of a range, on every path of this machine.
    fn worst<F: Function>(f: F, from: f64, to: f64, error: impl Fn(f64, f64) -> f64) -> f64 {
        let n = 200_000;
        let x: Vec<f32> = (0..=n).map(|i| (from + (to - from) * f64::from(i) / f64::from(n)) as f32).collect();
        let paths = super::super::vectors_of_this_machine();
        let all = paths.iter().flat_map(|v| lanes::run(*v, Map(&x, f)).into_iter().zip(x.clone()).collect::<Vec<_>>());
        all.map(|(y, x)| error(f64::from(x), f64::from(y))).fold(0.0, f64::max)
    }

    /// erfc by its series near 0 and its continued fraction beyond, in f64.
    fn erfc(x: f64) -> f64 {
        if x < 0.0 {
            return 2.0 - erfc(-x);
        }
        if x < 2.5 {
            let (mut term, mut sum) = (x, x);
            for n in 1..200 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            return 1.0 - 2.0 / std::f64::consts::PI.sqrt() * sum;
        }
        let fraction = (1..200).rev().fold(x, |f, n| x + f64::from(n) / 2.0 / f);
        (-x * x).exp() / std::f64::consts::PI.sqrt() / fraction
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let relative = |x: f64, y: f64| (y / x.exp() - 1.0).abs();
        assert!(worst(Exp, -87.3, 88.7, relative) < 2.0f64.powi(-22));
        assert!(worst(Exp, -1.0, 1.0, relative) < 2.0f64.powi(-22));
        let subnormal = |x: f64, y: f64| (y - x.exp()).abs();
        assert!(worst(Exp, -110.0, -87.3, subnormal) < 2.0f64.powi(-148));
    }

    #[test]
    fn exp_keeps_its_limits() {
        let x = [f32::NEG_INFINITY, f32::INFINITY, f32::NAN, 0.0, -0.0, -1000.0, 1000.0];
        for path in super::super::vectors_of_this_machine() {
            let y = lanes::run(path, Map(&x, Exp));
            assert_eq!(y[..2], [0.0, f32::INFINITY]);
            assert!(y[2].is_nan());
            assert_eq!(y[3..], [1.0, 1.0, 0.0, f32::INFINITY]);
        }
    }

    #[test]
    fn tanh_is_close_everywhere() {
        let relative = |x: f64, y: f64| if x == 0.0 { y.abs() } else { (y / x.tanh() - 1.0).abs() };
        assert!(worst(Tanh, -20.0, 20.0, relative) < 2.0f64.powi(-21));
        assert!(worst(Tanh, -1e-3, 1e-3, relative) < 2.0f64.powi(-21));
    }

    #[test]
    fn normal_is_close_everywhere() {
        let wanted = |x: f64| erfc(-x / std::f64::consts::SQRT_2) / 2.0;
        assert!(worst(Normal, -12.0, 12.0, |x, y| (y - wanted(x)).abs()) < 1e-7);
        assert!(worst(Normal, -8.0, 8.0, |x, y| (y / wanted(x) - 1.0).abs()) < 1e-5);
    }
}
