//! Owns attention over a latent cache: keys and values of all heads are made of one small vector a token, and that vector
//! is what is cached. Knows no family.
//!
//! The matrices that would make a head's keys and values are applied to its queries and results instead, so the cache
//! holds one key head of `latent + rotated` numbers, and as values the latent part once more, in the layout that values
//! are read in.

use dualgauge_kernels::{AttnSpec, KvLayer, Recorder, RopeSpec, Value, Weight};

use super::{Linear, Norm, NormKind, Part};
use crate::Result;
use crate::loader::Loader;

/// How a latent attention part is stored and computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentOptions {
    pub hidden: usize,
    pub heads: usize,
    /// Width of what queries are made of; `None` where they are made in one step.
    pub query_rank: Option<usize>,
    /// Width of the cached vector.
    pub rank: usize,
    /// Dimensions of a head without positions, with positions, and of its values.
    pub plain: usize,
    pub rotated: usize,
    pub value: usize,
    /// Biases on the first projections and the last.
    pub bias: bool,
    pub norm_eps: f32,
    pub rope: RopeSpec,
    pub scale: f32,
}

/// The attention part of one layer.
#[derive(Clone, Debug)]
pub struct LatentAttention {
    /// To the queries' own latent vector, and its norm.
    query_down: Option<(Linear, Norm)>,
    query: Linear,
    down: Linear,
    norm: Norm,
    /// `[heads, rank, plain]`: a query to where the cached vector is.
    query_up: Weight,
    /// `[heads, value, rank]`
    value_up: Weight,
    out: Linear,
    layer: usize,
    options: LatentOptions,
}

impl LatentAttention {
    /// Loads `PREFIX.kv_a_proj_with_mqa.weight` and so on; `layer` is the index of its K/V cache.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn load(loader: &mut Loader<'_>, prefix: &str, layer: usize, o: &LatentOptions) -> Result<Self> {
        let part = |name: &str| format!("{prefix}.{name}");
        let mut norm = |name: &str, len| Norm::load(loader, &part(name), len, NormKind::RMS, o.norm_eps);
        let norms =
            (norm("kv_a_layernorm", o.rank)?, o.query_rank.map(|rank| norm("q_a_layernorm", rank)).transpose()?);
        let mut linear = |name: &str, out, inner, bias| Linear::load(loader, &part(name), out, inner, bias);
        let width = o.heads * (o.plain + o.rotated);
        let (query_down, query) = match (o.query_rank, norms.1) {
            (Some(rank), Some(norm)) => {
                let down = linear("q_a_proj", rank, o.hidden, o.bias)?;
                (Some((down, norm)), linear("q_b_proj", width, rank, false)?)
            }
            _ => (None, linear("q_proj", width, o.hidden, false)?),
        };
        let down = linear("kv_a_proj_with_mqa", o.rank + o.rotated, o.hidden, o.bias)?;
        let out = linear("o_proj", o.hidden, o.heads * o.value, o.bias)?;
        let (name, each) = (part("kv_b_proj.weight"), o.plain + o.value);
        // GGUF files have the two apart, and turned as they are multiplied.
        let (k, v) = (part("k_b_proj.weight"), part("v_b_proj.weight"));
        let (query_up, value_up) = match loader.has(&k) {
            true => (loader.tensor(&k, &[o.heads, o.rank, o.plain])?, loader.tensor(&v, &[o.heads, o.value, o.rank])?),
            false => (
                loader.heads(&name, [o.heads, each, o.rank], 0..o.plain, true)?,
                loader.heads(&name, [o.heads, each, o.rank], o.plain..each, false)?,
            ),
        };
        Ok(Self { query_down, query, down, norm: norms.0, query_up, value_up, out, layer, options: *o })
    }
}

impl Part for LatentAttention {
    fn forward(&self, g: &Recorder, x: Value) -> Value {
        let _scope = g.scope("attn");
        let (o, tokens) = (&self.options, g.shape().tokens);
        let q = match &self.query_down {
            Some((down, norm)) => self.query.forward(g, norm.forward(g, down.forward(g, x))),
            None => self.query.forward(g, x),
        };
        let q = g.reshape(q, [tokens, o.heads, o.plain + o.rotated]);
        let met = g.head_linear(g.narrow(q, 0, o.plain), self.query_up); // [tokens, heads, rank]
        let q = g.concat(met, g.rope(g.narrow(q, o.plain, o.rotated), o.rope));
        let down = self.down.forward(g, x); // [tokens, rank + rotated]
        let latent = g.reshape(self.norm.forward(g, g.narrow(down, 0, o.rank)), [tokens, 1, o.rank]);
        let place = g.rope(g.reshape(g.narrow(down, o.rank, o.rotated), [tokens, 1, o.rotated]), o.rope);
        let k = g.concat(latent, place);
        let seen = g.attention(q, k, latent, AttnSpec::new(self.layer, o.scale)); // [tokens, heads, rank]
        let values = g.head_linear(seen, self.value_up); // [tokens, heads, value]
        self.out.forward(g, g.reshape(values, [tokens, o.heads * o.value]))
    }

    fn kv(&self) -> Option<KvLayer> {
        let o = &self.options;
        Some(KvLayer { kv_heads: 1, k_dim: o.rank + o.rotated, v_dim: o.rank })
    }
}
