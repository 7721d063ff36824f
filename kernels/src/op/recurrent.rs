//! Owns what the recurrent operations look like: those that keep a state of each sequence, which every token changes in
//! turn. Knows no model.

use crate::{Act, Weight};

/// Causal depthwise convolution over a sequence's tokens:
/// `y[t] = act(bias + sum_j weight[j] * x[t - (taps - 1) + j])`, inputs before the first token being 0.
/// State `[taps - 1, channels]`: the last inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConvSpec {
    /// Index into the reserved [`crate::StateLayer`]s. Each is used exactly once in a program.
    pub state: usize,
    /// At least 2.
    pub taps: usize,
    /// `[taps * channels]` f32, tap after tap; the last one meets the token itself.
    pub weight: Weight,
    /// `[channels]` f32.
    pub bias: Option<Weight>,
    pub act: Option<Act>,
}

/// Mamba 2's scan, each head by itself:
/// `step = clamp(softplus(dt + dt_bias))`, `h = exp(step * a) * h + step * b (x) x`, `y = c . h + d * x`.
/// State `[heads, n, dim]`: h.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScanSpec {
    /// As [`ConvSpec::state`].
    pub state: usize,
    /// `[heads]` f32, below 0: how fast the state fades.
    pub a: Weight,
    /// `[heads]` f32.
    pub d: Weight,
    /// `[heads]` f32.
    pub dt_bias: Weight,
    /// Smallest and largest step.
    pub dt_limit: (f32, f32),
}

/// The gated delta rule, each head by itself:
/// `s = exp(a * softplus(dt + dt_bias)) * s`, `s = s + k (x) (sigmoid(beta) * (v - k . s))`, `y = q . s`.
/// State `[heads, k_dim, v_dim]`: s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeltaSpec {
    /// As [`ConvSpec::state`].
    pub state: usize,
    /// `[heads]` f32, below 0: how fast the state fades.
    pub a: Weight,
    /// `[heads]` f32.
    pub dt_bias: Weight,
}
