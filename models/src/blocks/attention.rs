//! Owns multi-head attention with its projections: grouped heads, biases, norms on queries and keys, rotation, window,
//! soft cap, sinks. Each is an explicit option; it knows no family.

use dualgauge_kernels::{Act, AttnSpec, KvLayer, Recorder, RopeSpec, Temperature, Value};

use super::{Linear, Norm, NormKind, Part};
use crate::loader::Loader;
use crate::{Config, Result};

/// How an attention part is stored and computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionOptions {
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub projections: Projections,
    /// The query's matrix has a gate beside each head, whose sigmoid multiplies what the head sees. Split projections.
    pub gated: bool,
    pub names: AttentionNames,
    /// Biases on query, key and value.
    pub bias: bool,
    /// A bias on the output projection.
    pub out_bias: bool,
    pub qk_norm: QkNorm,
    /// Queries and keys are normed after the rotation, not before it.
    pub norm_rotated: bool,
    /// Each head of values has a norm without a gain.
    pub v_norm: bool,
    pub norm_eps: f32,
    /// `None` for layers without positions.
    pub rope: Option<RopeSpec>,
    /// Multiplies `q . k`.
    pub scale: f32,
    /// Keys a query sees, itself included.
    pub window: Option<usize>,
    /// `cap * tanh(score / cap)`
    pub softcap: Option<f32>,
    /// One learned softmax column a head.
    pub sinks: bool,
    /// A query sees keys of its own piece of this many positions alone.
    pub chunk: Option<usize>,
    /// Scores grow with the position.
    pub temperature: Option<Temperature>,
    /// A query sees what comes after it, too.
    pub ahead: bool,
}

/// How query, key and value are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projections {
    /// A matrix each.
    Split,
    /// A matrix for queries, and one for keys, which are values, too, before they are normed and rotated.
    KeysAreValues,
    /// One matrix of this name: query rows, key rows, value rows.
    Fused(&'static str),
    /// The same, stored `[in, out]`.
    FusedColumns(&'static str),
    /// One matrix of this name: for each head its query, key and value rows. There are as many key heads as heads.
    ByHead(&'static str),
}

/// Names of what attention loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionNames {
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
    pub out: &'static str,
    pub q_norm: &'static str,
    pub k_norm: &'static str,
}

impl AttentionNames {
    /// Of most models.
    pub const USUAL: Self =
        Self { q: "q_proj", k: "k_proj", v: "v_proj", out: "o_proj", q_norm: "q_norm", k_norm: "k_norm" };
}

/// Norms on queries and keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QkNorm {
    None,
    /// Over each head; one gain of `[head_dim]` for all.
    Head(NormKind),
    /// Over all heads together; a gain of `[heads * head_dim]`.
    Whole(NormKind),
    /// Over each head, without a gain, and after the rotation.
    Last,
}

impl AttentionOptions {
    /// The attention of most models: split projections, scaled by `1 / sqrt(head_dim)`.
    pub fn of(config: &Config, rope: RopeSpec) -> Self {
        Self {
            hidden: config.hidden,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            projections: Projections::Split,
            gated: false,
            names: AttentionNames::USUAL,
            bias: config.attention_bias,
            out_bias: config.attention_bias,
            qk_norm: QkNorm::None,
            norm_rotated: false,
            v_norm: false,
            norm_eps: config.norm_eps,
            rope: Some(rope),
            scale: (config.head_dim as f32).sqrt().recip(),
            window: None,
            softcap: None,
            sinks: false,
            chunk: None,
            temperature: None,
            ahead: false,
        }
    }
}

/// The attention part of one layer.
#[derive(Clone, Debug)]
pub struct Attention {
    qkv: Qkv,
    out: Linear,
    /// Of queries, of keys.
    norms: Option<(Norm, Norm)>,
    spec: AttnSpec,
    options: AttentionOptions,
}

#[derive(Clone, Debug)]
enum Qkv {
    Split { q: Linear, k: Linear, v: Linear },
    Fused(Linear),
}

impl Attention {
    /// Loads `PREFIX.q_proj.weight` and so on; `layer` is the index of its K/V cache.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn load(loader: &mut Loader<'_>, prefix: &str, layer: usize, o: &AttentionOptions) -> Result<Self> {
        let (q_width, kv_width) = (o.heads * o.head_dim, o.kv_heads * o.head_dim);
        let part = |name: &str| format!("{prefix}.{name}");
        let names = o.names;
        let mut load = |name: &str, out| Linear::load(loader, &part(name), out, o.hidden, o.bias);
        let qkv = match o.projections {
            Projections::Split => Qkv::Split {
                q: load(names.q, q_width << u32::from(o.gated))?,
                k: load(names.k, kv_width)?,
                v: load(names.v, kv_width)?,
            },
            Projections::KeysAreValues => {
                let (q, k) = (load(names.q, q_width)?, load(names.k, kv_width)?);
                Qkv::Split { q, k, v: k }
            }
            Projections::Fused(name) | Projections::ByHead(name) => Qkv::Fused(load(name, q_width + 2 * kv_width)?),
            Projections::FusedColumns(name) => {
                Qkv::Fused(Linear::load_columns(loader, &part(name), q_width + 2 * kv_width, o.hidden, o.bias)?)
            }
        };
        let out = match o.projections {
            Projections::FusedColumns(_) => Linear::load_columns,
            _ => Linear::load,
        }(loader, &part(names.out), o.hidden, q_width, o.out_bias)?;
        let mut norm = |name: &str, len, kind| Norm::load(loader, &part(name), len, kind, o.norm_eps);
        let norms = match o.qk_norm {
            QkNorm::None | QkNorm::Last => None,
            QkNorm::Head(kind) => Some((norm(names.q_norm, o.head_dim, kind)?, norm(names.k_norm, o.head_dim, kind)?)),
            QkNorm::Whole(kind) => Some((norm(names.q_norm, q_width, kind)?, norm(names.k_norm, kv_width, kind)?)),
        };
        let sinks = o.sinks.then(|| loader.vector(&part("sinks"), o.heads)).transpose()?;
        let spec = AttnSpec {
            layer,
            scale: o.scale,
            window: o.window,
            softcap: o.softcap,
            sinks,
            chunk: o.chunk,
            temperature: o.temperature,
            ahead: o.ahead,
        };
        Ok(Self { qkv, out, norms, spec, options: *o })
    }
}

impl Part for Attention {
    fn forward(&self, g: &Recorder, x: Value) -> Value {
        let _scope = g.scope("attn");
        let o = &self.options;
        let (q_width, kv_width) = (o.heads * o.head_dim, o.kv_heads * o.head_dim);
        let tokens = g.shape().tokens;
        let heads = |x, heads| g.reshape(x, [tokens, heads, o.head_dim]);
        let mut gate = None;
        let (q, k, v) = match (&self.qkv, o.projections) {
            (Qkv::Split { q, k, .. }, Projections::KeysAreValues) => {
                let k = k.forward(g, x);
                (q.forward(g, x), k, k)
            }
            (Qkv::Split { q, k, v }, _) if o.gated => {
                let both = g.reshape(q.forward(g, x), [tokens, o.heads, 2 * o.head_dim]);
                let part = |at| g.reshape(g.narrow(both, at * o.head_dim, o.head_dim), [tokens, q_width]);
                gate = Some(part(1));
                (part(0), k.forward(g, x), v.forward(g, x))
            }
            (Qkv::Split { q, k, v }, _) => (q.forward(g, x), k.forward(g, x), v.forward(g, x)),
            (Qkv::Fused(all), Projections::ByHead(_)) => {
                let all = g.reshape(all.forward(g, x), [tokens, o.heads, 3 * o.head_dim]);
                let part = |at| g.reshape(g.narrow(all, at * o.head_dim, o.head_dim), [tokens, q_width]);
                (part(0), part(1), part(2))
            }
            (Qkv::Fused(all), _) => {
                let all = all.forward(g, x); // [tokens, q_width + 2 * kv_width]
                let part = |start, len| g.narrow(all, start, len);
                (part(0, q_width), part(q_width, kv_width), part(q_width + kv_width, kv_width))
            }
        };
        let (q, k) = match (o.qk_norm, &self.norms) {
            (QkNorm::Whole(_), Some((of_q, of_k))) => (of_q.forward(g, q), of_k.forward(g, k)),
            _ => (q, k),
        };
        let (q, k, v) = (heads(q, o.heads), heads(k, o.kv_heads), heads(v, o.kv_heads));
        let v = if o.v_norm { g.rms_norm(v, None, 0.0, o.norm_eps) } else { v };
        let rotated = |(q, k)| match o.rope {
            Some(rope) => (g.rope(q, rope), g.rope(k, rope)),
            None => (q, k),
        };
        let (q, k) = match (o.qk_norm, &self.norms) {
            (QkNorm::Head(_), Some((of_q, of_k))) if o.norm_rotated => {
                let (q, k) = rotated((q, k));
                (of_q.forward(g, q), of_k.forward(g, k))
            }
            (QkNorm::Head(_), Some((of_q, of_k))) => rotated((of_q.forward(g, q), of_k.forward(g, k))),
            (QkNorm::Last, _) => {
                let (q, k) = rotated((q, k));
                (g.rms_norm(q, None, 0.0, o.norm_eps), g.rms_norm(k, None, 0.0, o.norm_eps))
            }
            _ => rotated((q, k)),
        };
        let seen = g.attention(q, k, v, self.spec); // [tokens, heads, head_dim]
        let seen = g.reshape(seen, [tokens, q_width]);
        self.out.forward(g, gate.map_or(seen, |gate| g.gated_act(gate, seen, Act::Sigmoid)))
    }
    fn kv(&self) -> Option<KvLayer> {
        let o = &self.options;
        Some(KvLayer { kv_heads: o.kv_heads, k_dim: o.head_dim, v_dim: o.head_dim })
    }
}
