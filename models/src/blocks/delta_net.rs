//! Owns the gated delta net: a short convolution over query, key and value, the delta rule, a norm of each head and a gate.
//! Knows no family.

use dualgauge_kernels::{Act, ConvSpec, DeltaSpec, Recorder, StateLayer, Value};

use super::short_conv::ConvOptions;
use super::{Linear, Norm, NormKind, Part};
use crate::loader::Loader;
use crate::{Config, Result};

/// How a gated delta net is stored and computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeltaNetOptions {
    pub hidden: usize,
    pub k_heads: usize,
    pub k_dim: usize,
    /// A multiple of `k_heads`.
    pub heads: usize,
    pub v_dim: usize,
    pub taps: usize,
    pub act: Act,
    pub norm_eps: f32,
    pub stored: DeltaStored,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeltaStored {
    /// `in_proj_qkvz` and `in_proj_ba`: for each key head its query, its key, then values and gates of its heads; and the
    /// strengths and decays of these.
    ByHead,
    /// `in_proj_qkv`, `in_proj_z`, `in_proj_b`, `in_proj_a`.
    Split,
}

impl DeltaNetOptions {
    /// Under the keys of Qwen.
    ///
    /// # Errors
    /// When a key is missing, or sizes do not fit each other.
    pub fn of(c: &Config, stored: DeltaStored) -> Result<Self> {
        let size = |key: &str| c.keys.size(key);
        let o = Self {
            hidden: c.hidden,
            k_heads: size("linear_num_key_heads")?,
            k_dim: size("linear_key_head_dim")?,
            heads: size("linear_num_value_heads")?,
            v_dim: size("linear_value_head_dim")?,
            taps: size("linear_conv_kernel_dim")?,
            act: c.act,
            norm_eps: c.norm_eps,
            stored,
        };
        let small = [o.heads * o.v_dim, o.k_heads * o.k_dim].iter().all(|n| *n <= 1 << 24) && o.k_dim <= 1 << 16;
        if !o.heads.is_multiple_of(o.k_heads) || o.taps < 2 || !small {
            let reason = format!("{} heads over {} key heads of {}, {} taps", o.heads, o.k_heads, o.k_dim, o.taps);
            return Err(c.keys.fail("linear_num_value_heads", reason));
        }
        Ok(o)
    }

    fn keys(&self) -> usize {
        self.k_heads * self.k_dim
    }

    fn values(&self) -> usize {
        self.heads * self.v_dim
    }

    fn conv(&self) -> ConvOptions {
        let channels = 2 * self.keys() + self.values();
        ConvOptions { channels, taps: self.taps, bias: false, act: Some(self.act) }
    }
}

/// The gated delta net of one layer.
pub struct DeltaNet {
    /// Queries, keys, values.
    qkv: Linear,
    gate: Linear,
    beta: Linear,
    decay: Linear,
    conv: ConvSpec,
    delta: DeltaSpec,
    norm: Norm,
    out: Linear,
    options: DeltaNetOptions,
}

impl DeltaNet {
    /// Loads `PREFIX.in_proj_qkv` and so on; `state` is the index of its first state layer.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn load(loader: &mut Loader<'_>, prefix: &str, state: usize, o: &DeltaNetOptions) -> Result<Self> {
        let part = |name: &str| format!("{prefix}.{name}");
        let (heads, hidden, conv) = (o.heads, o.hidden, o.conv());
        let [qkv, gate, beta, decay] = match o.stored {
            DeltaStored::Split => {
                let mut load = |name: &str, out| Linear::load(loader, &part(name), out, hidden, false);
                [
                    load("in_proj_qkv", conv.channels)?,
                    load("in_proj_z", o.values())?,
                    load("in_proj_b", heads)?,
                    load("in_proj_a", heads)?,
                ]
            }
            DeltaStored::ByHead => {
                let share = heads / o.k_heads;
                let mut load = |name: &str, each: usize, pieces: &[(usize, usize)]| {
                    let rows = pieces.iter().flat_map(|(start, len)| {
                        (0..o.k_heads).map(move |head| head * each + start..head * each + start + len)
                    });
                    let (name, rows) = (format!("{}.weight", part(name)), rows.collect::<Vec<_>>());
                    let weight = loader.matrix_of_rows(&name, o.k_heads * each, hidden, &rows)?;
                    Ok::<_, crate::Error>(Linear { weight, bias: None })
                };
                let (k, v) = (o.k_dim, share * o.v_dim);
                let each = 2 * (k + v);
                [
                    load("in_proj_qkvz", each, &[(0, k), (k, k), (2 * k, v)])?,
                    load("in_proj_qkvz", each, &[(2 * k + v, v)])?,
                    load("in_proj_ba", 2 * share, &[(0, share)])?,
                    load("in_proj_ba", 2 * share, &[(share, share)])?,
                ]
            }
        };
        let rates: Vec<f32> = loader.values(&part("A_log"), heads)?.iter().map(|a| -a.exp()).collect();
        let a = loader.constant(&part("A_log"), &rates)?;
        Ok(Self {
            qkv,
            gate,
            beta,
            decay,
            conv: conv.load(loader, &part("conv1d"), state, |_| 1.0)?,
            delta: DeltaSpec { state: state + 1, a, dt_bias: loader.vector(&part("dt_bias"), heads)? },
            norm: Norm::load(loader, &part("norm"), o.v_dim, NormKind::RMS, o.norm_eps)?,
            out: Linear::load(loader, &part("out_proj"), hidden, o.values(), false)?,
            options: *o,
        })
    }
}

impl Part for DeltaNet {
    fn forward(&self, g: &Recorder, x: Value) -> Value {
        let _scope = g.scope("delta");
        let (o, tokens) = (&self.options, g.shape().tokens);
        let (keys, values) = (o.keys(), o.values());
        let mixed = g.short_conv(self.qkv.forward(g, x), self.conv); // [tokens, 2 * keys + values]
        let of = |at, heads, dim| g.reshape(g.narrow(mixed, at, heads * dim), [tokens, heads, dim]);
        // x / sqrt(sum(x^2) + 1e-6), times `by`.
        let n = o.k_dim as f32;
        let unit = |x: Value, by: f32| g.scale(g.rms_norm(x, None, 0.0, 1e-6 / n), by / n.sqrt());
        let (q, k) = (of(0, o.k_heads, o.k_dim), of(keys, o.k_heads, o.k_dim));
        let qkv = [unit(q, n.sqrt().recip()), unit(k, 1.0), of(2 * keys, o.heads, o.v_dim)];
        let y = g.gated_delta(qkv, self.decay.forward(g, x), self.beta.forward(g, x), self.delta);
        let y = g.reshape(self.norm.forward(g, y), [tokens, values]);
        self.out.forward(g, g.gated_act(self.gate.forward(g, x), y, Act::Silu))
    }

    fn states(&self) -> Vec<StateLayer> {
        let o = &self.options;
        vec![o.conv().state(), StateLayer { shape: [o.heads, o.k_dim, o.v_dim].into() }]
    }
}
