//! Owns the frame of decoder models: embedding, layers of two parts each with norms around them, last norm, head.
//! Where norms stand and what is scaled are explicit options; what the parts are, a family decides. Knows no family.

use dualgauge_kernels::{KvLayer, Recorder, StateLayer, Value, Weight};

use super::{Attention, AttentionOptions, FeedOptions, Linear, MlpOptions, Norm, NormKind, rope};
use crate::loader::Loader;
use crate::{Config, Model, ModelSpec, Result};

/// One part of a layer: attention, feed-forward, experts, or what a family has in their place.
pub trait Part: Send {
    /// `[tokens, hidden]` -> `[tokens, hidden]`
    fn forward(&self, g: &Recorder, x: Value) -> Value;

    /// What the part keeps of each token; in the order of layers these are the model's K/V cache layers.
    fn kv(&self) -> Option<KvLayer> {
        None
    }

    /// What the part keeps of each sequence; in the order of layers these are the model's state layers.
    fn states(&self) -> Vec<StateLayer> {
        vec![]
    }

    /// False for a part that is not there, which is passed over.
    fn is_there(&self) -> bool {
        true
    }
}

/// A part that is not there: the other is all of its layer.
impl Part for () {
    fn forward(&self, _g: &Recorder, x: Value) -> Value {
        x
    }

    fn is_there(&self) -> bool {
        false
    }
}

/// What a decoder does beside the parts of its layers.
pub trait Besides: Send {
    /// Once a step, of the embedded tokens `[tokens, hidden]`: what [`Self::after`] is given.
    fn begin(&self, g: &Recorder, embedded: Value) -> Value;

    /// What layer `layer` returns, `[tokens, hidden]`, made of what its parts returned.
    fn after(&self, g: &Recorder, layer: usize, x: Value, begun: Value) -> Value;
}

/// The two parts of a layer: the one that looks at other tokens, the one that thinks about each.
pub type Parts = (Box<dyn Part>, Box<dyn Part>);

/// How a decoder is stored and computed, beside its parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecoderOptions {
    pub names: DecoderNames,
    /// Of every norm on the residual stream.
    pub norm: NormKind,
    pub layer_norms: LayerNorms,
    /// Both parts see the layer's input, and are added to it together.
    pub parallel: bool,
    /// Multiplies embeddings; 1 for most, as the next.
    pub embed_scale: f32,
    /// Multiplies what each part adds.
    pub residual_scale: f32,
    /// Multiplies logits.
    pub logits_scale: f32,
    /// `cap * tanh(logit / cap)`, after the scale.
    pub logits_cap: Option<f32>,
    /// The head has a bias.
    pub head_bias: bool,
    /// There is no head: the model gives its normed rows, as embedding models do.
    pub headless: bool,
}

/// Names of what is not in a layer, and of the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderNames {
    pub embed: &'static str,
    /// The embeddings of positions, where they are learned.
    pub positions: Option<&'static str>,
    /// Before the index of a layer.
    pub layers: &'static str,
    /// The two parts of a layer.
    pub attention: &'static str,
    pub feed: &'static str,
    pub norm: &'static str,
    /// The head, where it is not the embedding.
    pub head: &'static str,
}

/// Which norms a layer has, by the names they are stored under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerNorms {
    pub before_attention: Option<&'static str>,
    /// Of what attention returns.
    pub after_attention: Option<&'static str>,
    /// Where parts are parallel and this is none, the second part sees what the first does.
    pub before_feed: Option<&'static str>,
    /// Of what the second part returns.
    pub after_feed: Option<&'static str>,
}

impl DecoderNames {
    /// Of most models.
    pub const USUAL: Self = Self {
        embed: "model.embed_tokens",
        positions: None,
        layers: "model.layers",
        attention: "self_attn",
        feed: "mlp",
        norm: "model.norm",
        head: "lm_head",
    };
}

impl LayerNorms {
    /// Before each part, as in Llama.
    pub const BEFORE: Self = Self {
        before_attention: Some("input_layernorm"),
        after_attention: None,
        before_feed: Some("post_attention_layernorm"),
        after_feed: None,
    };
    /// After each part, as in OLMo 2.
    pub const AFTER: Self = Self {
        before_attention: None,
        after_attention: Some("post_attention_layernorm"),
        before_feed: None,
        after_feed: Some("post_feedforward_layernorm"),
    };
    /// Before the layer, whose parts are parallel, as in Command R.
    pub const SHARED: Self =
        Self { before_attention: Some("input_layernorm"), after_attention: None, before_feed: None, after_feed: None };
    /// Before and after each part, as in Gemma 2.
    pub const AROUND: Self = Self {
        before_attention: Some("input_layernorm"),
        after_attention: Some("post_attention_layernorm"),
        before_feed: Some("pre_feedforward_layernorm"),
        after_feed: Some("post_feedforward_layernorm"),
    };
}

impl DecoderOptions {
    /// Llama's: root-mean-square norms before each part, no scales.
    pub const USUAL: Self = Self {
        names: DecoderNames::USUAL,
        norm: NormKind::RMS,
        layer_norms: LayerNorms::BEFORE,
        parallel: false,
        embed_scale: 1.0,
        residual_scale: 1.0,
        logits_scale: 1.0,
        logits_cap: None,
        head_bias: false,
        headless: false,
    };
}

/// A decoder model.
pub struct Decoder {
    spec: ModelSpec,
    embed: Weight,
    positions: Option<Weight>,
    layers: Vec<Layer>,
    norm: Norm,
    head: Option<Linear>,
    besides: Option<Box<dyn Besides>>,
    options: DecoderOptions,
}

struct Layer {
    before_attention: Option<Norm>,
    attention: Box<dyn Part>,
    after_attention: Option<Norm>,
    before_feed: Option<Norm>,
    feed: Box<dyn Part>,
    after_feed: Option<Norm>,
}

impl Decoder {
    /// Loads the frame by `o`, and each layer's parts through `parts`, which is given the index of the layer and the
    /// name its tensors begin with: `model.layers.3`.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn load<'a>(
        c: &Config,
        loader: &mut Loader<'a>,
        family: &'static str,
        o: &DecoderOptions,
        parts: impl FnMut(&mut Loader<'a>, usize, &str) -> Result<Parts>,
    ) -> Result<Box<dyn Model>> {
        Ok(Box::new(Self::build(c, loader, family, o, parts)?))
    }

    /// As [`Self::load`], to be given [`Self::besides`].
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn build<'a>(
        c: &Config,
        loader: &mut Loader<'a>,
        family: &'static str,
        o: &DecoderOptions,
        mut parts: impl FnMut(&mut Loader<'a>, usize, &str) -> Result<Parts>,
    ) -> Result<Self> {
        let embed = loader.matrix(&format!("{}.weight", o.names.embed), c.vocab, c.hidden)?;
        let positions = o.names.positions;
        let positions = positions.map(|name| loader.matrix(&format!("{name}.weight"), c.context, c.hidden));
        let positions = positions.transpose()?;
        let mut layers = vec![];
        for i in 0..c.layers {
            let at = format!("{}.{i}", o.names.layers);
            let mut norm = |name: Option<&str>| {
                name.map(|name| Norm::load(loader, &format!("{at}.{name}"), c.hidden, o.norm, c.norm_eps)).transpose()
            };
            let names = o.layer_norms;
            let (before_attention, after_attention) = (norm(names.before_attention)?, norm(names.after_attention)?);
            let (before_feed, after_feed) = (norm(names.before_feed)?, norm(names.after_feed)?);
            let (attention, feed) = parts(loader, i, &at)?;
            layers.push(Layer { before_attention, attention, after_attention, before_feed, feed, after_feed });
        }
        let norm = Norm::load(loader, o.names.norm, c.hidden, o.norm, c.norm_eps)?;
        let head = match c.tied {
            _ if o.headless => None,
            true => Some(Linear { weight: embed, bias: None }),
            false => Some(Linear::load(loader, o.names.head, c.vocab, c.hidden, o.head_bias)?),
        };
        let kv_layers = layers.iter().flat_map(|l| [l.attention.kv(), l.feed.kv()]).flatten().collect();
        let state_layers = layers.iter().flat_map(|l| [l.attention.states(), l.feed.states()]).flatten().collect();
        let spec = ModelSpec { kv_layers, state_layers, ..ModelSpec::of(c, family, loader) };
        Ok(Self { spec, embed, positions, layers, norm, head, besides: None, options: *o })
    }

    /// The same model, which also does this.
    pub fn besides(self, besides: Box<dyn Besides>) -> Self {
        Self { besides: Some(besides), ..self }
    }

    /// Layers of attention and feed-forward, whose options `options` makes of the layer's index and the usual attention.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn dense(
        c: &Config,
        loader: &mut Loader<'_>,
        family: &'static str,
        o: &DecoderOptions,
        options: impl Fn(usize, AttentionOptions) -> (AttentionOptions, MlpOptions),
    ) -> Result<Box<dyn Model>> {
        Self::sparse(c, loader, family, o, |layer, usual| {
            let (attention, mlp) = options(layer, usual);
            (attention, FeedOptions::Mlp(o.names.feed, mlp))
        })
    }

    /// Layers of `self_attn` and a feed-forward part, whose options `options` makes of the layer's index and the usual
    /// attention.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn sparse<'o>(
        c: &Config,
        loader: &mut Loader<'_>,
        family: &'static str,
        o: &DecoderOptions,
        options: impl Fn(usize, AttentionOptions) -> (AttentionOptions, FeedOptions<'o>),
    ) -> Result<Box<dyn Model>> {
        let usual = AttentionOptions::of(c, rope(loader, &c.rope)?);
        Self::load(c, loader, family, o, |loader, i, at| {
            let (attention, feed) = options(i, usual);
            let attention = Attention::load(loader, &format!("{at}.{}", o.names.attention), i, &attention)?;
            Ok((Box::new(attention), feed.load(loader, at)?))
        })
    }
}

impl Model for Decoder {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&self, g: &Recorder) -> Value {
        let o = &self.options;
        let mut x = scaled(g, g.embed(g.tokens(), self.embed), o.embed_scale); // [tokens, hidden]
        if let Some(table) = self.positions {
            x = g.add(x, g.embed(g.positions(), table));
        }
        let besides = self.besides.as_ref().map(|besides| (besides, besides.begin(g, x)));
        for (i, l) in self.layers.iter().enumerate() {
            let _scope = g.layer(i);
            let before = x;
            let seen = normed(g, &l.before_attention, before);
            let attended = normed(g, &l.after_attention, l.attention.forward(g, seen));
            let known = g.add(before, scaled(g, attended, o.residual_scale));
            x = known;
            if l.feed.is_there() {
                let input = match (o.parallel, &l.before_feed) {
                    (true, None) => seen,
                    (true, norm) => normed(g, norm, before),
                    (false, norm) => normed(g, norm, known),
                };
                let thought = normed(g, &l.after_feed, l.feed.forward(g, input));
                x = g.add(known, scaled(g, thought, o.residual_scale));
            }
            if let Some((besides, begun)) = besides {
                x = besides.after(g, i, x, begun);
            }
        }
        let rows = self.norm.forward(g, g.select_rows(x)); // [rows, hidden]
        let Some(head) = &self.head else { return rows };
        let logits = head.forward(g, rows); // [rows, vocab]
        let logits = scaled(g, logits, o.logits_scale);
        o.logits_cap.map_or(logits, |cap| g.softcap(logits, cap))
    }
}

fn normed(g: &Recorder, norm: &Option<Norm>, x: Value) -> Value {
    norm.as_ref().map_or(x, |norm| norm.forward(g, x))
}

fn scaled(g: &Recorder, x: Value, by: f32) -> Value {
    if by == 1.0 { x } else { g.scale(x, by) }
}
