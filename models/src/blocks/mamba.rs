//! Owns the Mamba 2 part of a layer: one projection, a short convolution, the scan, a gate with or without a norm. Knows no
//! family.

use dualgauge_kernels::{Act, ConvSpec, Recorder, ScanSpec, StateLayer, Value, Weight};

use super::short_conv::ConvOptions;
use super::{Linear, Part};
use crate::loader::Loader;
use crate::{Config, Result};

/// How a Mamba 2 part is stored and computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MambaOptions {
    pub hidden: usize,
    pub heads: usize,
    pub head_dim: usize,
    /// Heads of a group share `b` and `c`.
    pub groups: usize,
    /// Values of state each value of a head has.
    pub state: usize,
    pub taps: usize,
    pub conv_bias: bool,
    /// A bias on the projection in, and on the projection out.
    pub bias: (bool, bool),
    pub act: Act,
    pub norm: GatedNorm,
    pub norm_eps: f32,
    /// Smallest and largest step.
    pub dt_limit: (f32, f32),
    /// Multiplies what the projection makes: gate, x, b, c, dt.
    pub scales: [f32; 5],
}

/// What the gate does to what the scan makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatedNorm {
    /// Multiplies.
    None,
    /// Multiplies, then groups of this number are normalised.
    After(usize),
    /// The same groups are normalised, then it multiplies.
    Before(usize),
}

impl MambaOptions {
    /// Of most hybrid models, under the keys they have in common; `norm` over all values together.
    ///
    /// # Errors
    /// When a key is missing, or sizes do not fit each other.
    pub fn of(c: &Config) -> Result<Self> {
        let size = |key: &str| c.keys.size(key);
        let bias = c.keys.flag("mamba_proj_bias")?;
        let options = Self {
            hidden: c.hidden,
            heads: size("mamba_n_heads")?,
            head_dim: size("mamba_d_head")?,
            groups: size("mamba_n_groups")?,
            state: size("mamba_d_state")?,
            taps: size("mamba_d_conv")?,
            conv_bias: c.keys.flag("mamba_conv_bias")?,
            bias: (bias, bias),
            act: c.act,
            norm: GatedNorm::After(1),
            norm_eps: c.norm_eps,
            dt_limit: dt_limit(c)?,
            scales: [1.0; 5],
        };
        options.check(c, "mamba_n_heads")
    }

    /// Sizes that fit each other; `key` is that of the heads, for the error.
    ///
    /// # Errors
    /// When they do not.
    pub fn check(self, c: &Config, key: &str) -> Result<Self> {
        let fits = self.heads.is_multiple_of(self.groups)
            && self.taps >= 2
            && self.heads.saturating_mul(self.head_dim).saturating_mul(self.state) < 1 << 32
            && self.groups.saturating_mul(self.state) < 1 << 24;
        match fits {
            true => Ok(self),
            false => {
                let (heads, groups, n) = (self.heads, self.groups, self.state);
                let reason =
                    format!("{heads} heads of {} in {groups} groups of {n}, {} taps", self.head_dim, self.taps);
                Err(c.keys.fail(key, reason))
            }
        }
    }

    fn inner(&self) -> usize {
        self.heads * self.head_dim
    }

    fn conv(&self) -> ConvOptions {
        let channels = self.inner() + 2 * self.groups * self.state;
        ConvOptions { channels, taps: self.taps, bias: self.conv_bias, act: Some(self.act) }
    }
}

/// `time_step_limit`; its end may be infinite, which files write in several ways.
///
/// # Errors
/// When its beginning is no number.
pub fn dt_limit(c: &Config) -> Result<(f32, f32)> {
    let limit = c.keys.value("time_step_limit").and_then(|v| v.as_array()).map(Vec::as_slice);
    match limit {
        None => Ok((0.0, f32::INFINITY)),
        Some([least, most]) if least.as_f64().is_some_and(|v| v >= 0.0) => {
            let number = |v: &serde_json::Value| v.as_f64().map_or(f32::INFINITY, |v| v as f32);
            Ok((number(least), number(most)))
        }
        Some(_) => Err(c.keys.fail("time_step_limit", "is not the smallest and the largest step")),
    }
}

/// The Mamba 2 part of one layer.
pub struct Mamba {
    input: Linear,
    conv: ConvSpec,
    scan: ScanSpec,
    /// `[inner]`
    norm: Option<Weight>,
    out: Linear,
    options: MambaOptions,
}

impl Mamba {
    /// Loads `PREFIX.in_proj`, `PREFIX.conv1d`, `PREFIX.A_log` and so on; `state` is the index of its first state layer.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn load(loader: &mut Loader<'_>, prefix: &str, state: usize, o: &MambaOptions) -> Result<Self> {
        let part = |name: &str| format!("{prefix}.{name}");
        let (inner, conv, heads) = (o.inner(), o.conv(), o.heads);
        let rates: Vec<f32> = loader.values(&part("A_log"), heads)?.iter().map(|a| -a.exp()).collect();
        let [_, x, b, c, _] = o.scales;
        let in_group = |channel: usize| (channel - inner) / (o.groups * o.state);
        let scale = |channel: usize| if channel < inner { x } else { [b, c][in_group(channel)] };
        let scan = ScanSpec {
            state: state + 1,
            a: loader.constant(&part("A_log"), &rates)?,
            d: loader.vector(&part("D"), heads)?,
            dt_bias: loader.vector(&part("dt_bias"), heads)?,
            dt_limit: o.dt_limit,
        };
        let norm = match o.norm {
            GatedNorm::None => None,
            GatedNorm::After(_) | GatedNorm::Before(_) => Some(loader.vector(&part("norm.weight"), inner)?),
        };
        Ok(Self {
            input: Linear::load(loader, &part("in_proj"), inner + conv.channels + heads, o.hidden, o.bias.0)?,
            conv: conv.load(loader, &part("conv1d"), state, scale)?,
            scan,
            norm,
            out: Linear::load(loader, &part("out_proj"), o.hidden, inner, o.bias.1)?,
            options: *o,
        })
    }

    fn normed(&self, g: &Recorder, x: Value, groups: usize) -> Value {
        let (tokens, inner) = (g.shape().tokens, self.options.inner());
        let x = g.reshape(x, [tokens, groups, inner / groups]);
        g.reshape(g.rms_norm(x, self.norm, 0.0, self.options.norm_eps), [tokens, inner])
    }
}

impl Part for Mamba {
    fn forward(&self, g: &Recorder, x: Value) -> Value {
        let _scope = g.scope("mamba");
        let (o, tokens) = (&self.options, g.shape().tokens);
        let (inner, conv, group) = (o.inner(), o.conv().channels, o.groups * o.state);
        let all = self.input.forward(g, x); // [tokens, inner + conv + heads]
        let scaled = |x: Value, by: f32| if by == 1.0 { x } else { g.scale(x, by) };
        let gate = scaled(g.narrow(all, 0, inner), o.scales[0]);
        let dt = scaled(g.narrow(all, inner + conv, o.heads), o.scales[4]);
        let mixed = g.short_conv(g.narrow(all, inner, conv), self.conv); // [tokens, conv]
        let x = g.reshape(g.narrow(mixed, 0, inner), [tokens, o.heads, o.head_dim]);
        let bc = [inner, inner + group].map(|at| g.reshape(g.narrow(mixed, at, group), [tokens, o.groups, o.state]));
        let y = g.reshape(g.ssm_scan(x, dt, bc, self.scan), [tokens, inner]);
        let y = match o.norm {
            GatedNorm::None => g.gated_act(gate, y, Act::Silu),
            GatedNorm::After(groups) => self.normed(g, g.gated_act(gate, y, Act::Silu), groups),
            GatedNorm::Before(groups) => g.gated_act(gate, self.normed(g, y, groups), Act::Silu),
        };
        self.out.forward(g, y)
    }

    fn states(&self) -> Vec<StateLayer> {
        let o = &self.options;
        vec![o.conv().state(), StateLayer { shape: [o.heads, o.state, o.head_dim].into() }]
    }
}
