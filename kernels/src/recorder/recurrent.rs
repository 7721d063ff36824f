//! Owns the recording of recurrent operations and their shape rules.

use super::Recorder;
use crate::op::{ConvSpec, DeltaSpec, ScanSpec};
use crate::{Act, DType, Op, Value};

impl Recorder {
    /// `x [tokens, channels]` -> the same, each channel convolved along its sequence.
    pub fn short_conv(&self, x: Value, spec: ConvSpec) -> Value {
        let shape = self.floats("short_conv", x);
        let fits = shape.rank() == 2 && shape.first() == self.shape.tokens;
        self.rule(fits, "short_conv", || format!("x {shape} is not [tokens, channels]"));
        self.rule(spec.taps >= 2, "short_conv", || format!("{} taps keep no state", spec.taps));
        let gated = matches!(spec.act, Some(Act::ClampedSwiglu { .. }));
        self.rule(!gated, "short_conv", || "the clamped SwiGLU needs an up value".into());
        self.vector("short_conv", spec.weight, spec.taps * shape.last());
        if let Some(bias) = spec.bias {
            self.vector("short_conv", bias, shape.last());
        }
        self.push(Op::ShortConv { x, spec }, shape, DType::F32)
    }

    /// `x [tokens, heads, dim]`, `dt [tokens, heads]`, `b` and `c [tokens, groups, n]` -> `[tokens, heads, dim]`
    pub fn ssm_scan(&self, x: Value, dt: Value, [b, c]: [Value; 2], spec: ScanSpec) -> Value {
        const OP: &str = "ssm_scan";
        let [xs, dts, bs, cs] = [x, dt, b, c].map(|v| self.floats(OP, v));
        let tokens = self.shape.tokens;
        let ranks = xs.rank() == 3 && bs.rank() == 3 && [xs, dts, bs].iter().all(|s| s.first() == tokens);
        self.rule(ranks, OP, || format!("x {xs}, b {bs} are not [tokens, heads, dim]"));
        if ranks {
            let (heads, groups) = (xs.dims()[1], bs.dims()[1]);
            self.rule(dts.dims() == [tokens, heads] && bs == cs, OP, || {
                format!("dt {dts}, b {bs}, c {cs} do not fit x {xs}")
            });
            self.rule(groups > 0 && heads.is_multiple_of(groups), OP, || {
                format!("{heads} heads are not a multiple of {groups} groups")
            });
            [spec.a, spec.d, spec.dt_bias].into_iter().for_each(|w| self.vector(OP, w, heads));
        }
        self.push(Op::SsmScan { x, dt, b, c, spec }, xs, DType::F32)
    }

    /// `q` and `k [tokens, k_heads, k_dim]`, `v [tokens, heads, v_dim]`, `dt` and `beta [tokens, heads]` ->
    /// `[tokens, heads, v_dim]`
    pub fn gated_delta(&self, [q, k, v]: [Value; 3], dt: Value, beta: Value, spec: DeltaSpec) -> Value {
        const OP: &str = "gated_delta";
        let [qs, ks, vs, dts, betas] = [q, k, v, dt, beta].map(|v| self.floats(OP, v));
        let tokens = self.shape.tokens;
        let ranks = [ks, vs].iter().all(|s| s.rank() == 3 && s.first() == tokens);
        self.rule(ranks, OP, || format!("k {ks}, v {vs} are not [tokens, heads, dim]"));
        if ranks {
            let (heads, k_heads) = (vs.dims()[1], ks.dims()[1]);
            self.rule(qs == ks && [dts, betas].iter().all(|s| s.dims() == [tokens, heads]), OP, || {
                format!("q {qs}, k {ks}, dt {dts}, beta {betas} do not fit v {vs}")
            });
            self.rule(k_heads > 0 && heads.is_multiple_of(k_heads), OP, || {
                format!("{heads} heads are not a multiple of {k_heads} key heads")
            });
            [spec.a, spec.dt_bias].into_iter().for_each(|w| self.vector(OP, w, heads));
        }
        self.push(Op::GatedDelta { q, k, v, dt, beta, spec }, vs, DType::F32)
    }
}
