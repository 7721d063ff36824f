//! Owns the closed vocabulary: inference words, not arithmetic. Each is one kernel on CPU and CUDA and one lowering
//! rule on Neuron; a new variant makes the compiler list every place that must answer. Shape rules are in
//! [`crate::Recorder`], costs here.

mod recurrent;

pub use recurrent::{ConvSpec, DeltaSpec, ScanSpec};

use crate::{BatchShape, DType, Format, Shape};

/// A value of a program: the index of the node that makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub u32);

impl Value {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A weight that lives on a device. Vectors (`[n]`) are always kept as f32; matrices in their format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Weight {
    pub id: WeightId,
    /// `[n]`, `[out, in]`, or `[experts, out, in]`.
    pub shape: Shape,
    pub format: Format,
}

impl Weight {
    /// Bytes the weight takes in its format.
    pub fn bytes(&self) -> u64 {
        self.format.bytes(self.shape.elements()).expect("uploaded weights are whole: this is a bug") as u64
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub u32);

/// Activation functions, elementwise on f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    Silu,
    /// `x/2 * (1 + erf(x / sqrt 2))`
    Gelu,
    /// `x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`
    GeluTanh,
    Relu,
    /// `max(x, 0)^2`
    Relu2,
    /// Apertus: `positive * x^2 + beta * x` above zero, `negative * (e^min(x, -1e-6) - 1 - x) + beta * x` below.
    Xielu {
        positive: f32,
        negative: f32,
        beta: f32,
    },
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// gpt-oss: gate clamped above at `limit`, up clamped to `±limit`, `gate * sigmoid(alpha * gate) * (up + 1)`.
    ClampedSwiglu {
        alpha: f32,
        limit: f32,
    },
}

/// Where [`Act::Xielu`] stops following `x` to zero.
pub(crate) const XIELU_EDGE: f32 = -1e-6;

/// Rotary position embedding of the first `2 * freqs.len()` dimensions of each head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeSpec {
    /// `[dim / 2]` f32: angle per position of each pair, radians. All scaling (llama3, YaRN, linear) is in here.
    pub freqs: Weight,
    /// The same for sequences beyond the context a model was first trained for (LongRoPE): see [`crate::Batch::long`].
    pub long: Option<Weight>,
    /// Pairs are (2i, 2i + 1) instead of (i, i + dim/2). GGUF llama files are stored for this.
    pub interleaved: bool,
    /// Multiplies cosine and sine (YaRN's attention factor); 1 for most.
    pub magnitude: f32,
}

/// Attention over the paged cache, causal but for encoders.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttnSpec {
    /// Which K/V cache layer this is: index into [`crate::KvSpec::layers`]. Each is used exactly once in a program.
    pub layer: usize,
    /// Multiplies `q . k`.
    pub scale: f32,
    /// A query at position p sees keys at positions greater than p - window.
    pub window: Option<usize>,
    /// `cap * tanh(score / cap)` before the softmax.
    pub softcap: Option<f32>,
    /// `[heads]` f32: one more softmax column a head, dropped after.
    pub sinks: Option<Weight>,
    /// Positions are cut into pieces of this many: a query sees keys of its own piece alone. Not beside a window.
    pub chunk: Option<usize>,
    /// Scores grow with the query's position.
    pub temperature: Option<Temperature>,
    /// A query sees keys after its own, too, to the end of what its sequence has after the step; a window reaches both
    /// ways. For encoders, which compute a text in one step.
    pub ahead: bool,
}

impl AttnSpec {
    /// Attention to all that went before.
    pub fn new(layer: usize, scale: f32) -> Self {
        Self { layer, scale, window: None, softcap: None, sinks: None, chunk: None, temperature: None, ahead: false }
    }
}

/// At position p the scale is multiplied by `1 + scale * ln(1 + floor((p + 1) / every))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    pub every: usize,
    pub scale: f32,
}

impl Temperature {
    /// What the scale is multiplied by for a query at `position`.
    pub fn at(&self, position: usize) -> f32 {
        1.0 + self.scale * (((position + 1) / self.every) as f32).ln_1p()
    }
}

/// How router logits become experts and their weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterSpec {
    pub top_k: usize,
    pub score: RouterScore,
    /// Divide the chosen weights by their sum.
    pub normalise: bool,
    /// Multiplies the chosen weights.
    pub scale: f32,
    /// `[experts]` f32, added to the scores for choosing only (DeepSeek V3's correction bias).
    pub bias: Option<Weight>,
    /// `[experts]` f32, multiplies the weight of each expert that was chosen.
    pub gains: Option<Weight>,
    /// Choose the best `kept` of `groups` equal groups first.
    pub groups: Option<RouterGroups>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterScore {
    /// Softmax over all experts, then choose.
    Softmax,
    /// Choose by logit, then softmax over the chosen.
    SoftmaxChosen,
    Sigmoid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterGroups {
    pub groups: usize,
    pub kept: usize,
    /// A group is as good as the sum of its best `summed` (biased) scores: 1 or 2.
    pub summed: usize,
}

/// The experts' MLPs: `down(act(gate) * up)`, weighted by the route and summed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertsSpec {
    /// `[experts, 2 * inner, hidden]`: gate rows first, then up rows.
    pub gate_up: Weight,
    /// `[experts * 2 * inner]` f32.
    pub gate_up_bias: Option<Weight>,
    /// `[experts, hidden, inner]`.
    pub down: Weight,
    /// `[experts * hidden]` f32.
    pub down_bias: Option<Weight>,
    pub act: Act,
    /// Gate and up rows alternate (gpt-oss) instead of standing in halves.
    pub interleaved: bool,
    /// The route's weight multiplies what goes into an expert, not what comes out.
    pub weigh_input: bool,
}

/// One operation. Shapes in the comments are results; `tokens` is [`BatchShape::tokens`], `rows` [`BatchShape::rows`].
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The step's token ids. `[tokens]` u32
    Tokens,
    /// The step's positions. `[tokens]` u32
    Positions,
    /// Rows of `table` `[vocab, hidden]`. `[tokens, hidden]` f32
    Embed {
        ids: Value,
        table: Weight,
    },
    /// `x . w^T + bias`, `w` `[out, in]`, `bias` `[out]`. `[.., out]`
    Linear {
        x: Value,
        w: Weight,
        bias: Option<Weight>,
    },
    /// `x / sqrt(mean(x^2) + eps) * (offset + gain)` over the last dimension; no gain: 1. The gain is as long as that
    /// dimension, or as the last two together (groups that are normalised apart).
    RmsNorm {
        x: Value,
        gain: Option<Weight>,
        offset: f32,
        eps: f32,
    },
    /// `(x - mean) / sqrt(var + eps) * gain + bias` over the last dimension.
    LayerNorm {
        x: Value,
        gain: Option<Weight>,
        bias: Option<Weight>,
        eps: f32,
    },
    /// `[tokens, heads, dim]`, rotated by the step's positions.
    Rope {
        x: Value,
        spec: RopeSpec,
    },
    /// Stores `k` `[tokens, kv_heads, dim]` and `v` `[tokens, kv_heads, v_dim]` at the step's slots, then attends with
    /// `q` `[tokens, heads, dim]` through the block table. An effect. `[tokens, heads, v_dim]`
    Attention {
        q: Value,
        k: Value,
        v: Value,
        spec: AttnSpec,
    },
    /// Along each sequence, from the state in its slot, which it replaces: an effect, as are the two below. Tokens of no
    /// sequence give zeros. `x` `[tokens, channels]`. `[tokens, channels]`
    ShortConv {
        x: Value,
        spec: ConvSpec,
    },
    /// `x` `[tokens, heads, dim]`, `dt` `[tokens, heads]`, `b` and `c` `[tokens, groups, n]`: heads in order share the
    /// groups. `[tokens, heads, dim]`
    SsmScan {
        x: Value,
        dt: Value,
        b: Value,
        c: Value,
        spec: ScanSpec,
    },
    /// `q` and `k` `[tokens, k_heads, k_dim]`, `v` `[tokens, heads, v_dim]`, `dt` and `beta` `[tokens, heads]`: heads in
    /// order share the key heads. `[tokens, heads, v_dim]`
    GatedDelta {
        q: Value,
        k: Value,
        v: Value,
        dt: Value,
        beta: Value,
        spec: DeltaSpec,
    },
    /// `act(gate) * up`, or `act(gate)` without up.
    GatedAct {
        gate: Value,
        up: Option<Value>,
        act: Act,
    },
    /// Same shapes, or `b` of the last dimension only.
    Add {
        a: Value,
        b: Value,
    },
    /// Same shapes, or `b` of the last dimension only.
    Mul {
        a: Value,
        b: Value,
    },
    Scale {
        x: Value,
        by: f32,
    },
    /// `cap * tanh(x / cap)`
    Softcap {
        x: Value,
        cap: f32,
    },
    /// `logits` `[tokens, experts]` to `[tokens, top_k]` pairs (expert, weight), best first, ties to the lowest id.
    Router {
        logits: Value,
        spec: RouterSpec,
    },
    /// `x` `[tokens, hidden]`, `route` `[tokens, top_k]` pairs. `[tokens, hidden]`
    Experts {
        x: Value,
        route: Value,
        spec: ExpertsSpec,
    },
    /// The rows of `x` `[tokens, n]` whose logits are wanted. `[rows, n]`
    SelectRows {
        x: Value,
    },
    Cast {
        x: Value,
        to: DType,
    },
    /// `x` `[tokens, heads, in]`, each head by its own matrix of `w` `[heads, out, in]`. `[tokens, heads, out]`
    HeadLinear {
        x: Value,
        w: Weight,
    },
    /// `a`, then `b`, along the last dimension.
    Concat {
        a: Value,
        b: Value,
    },
    /// `len` entries of the last dimension from `start`.
    Narrow {
        x: Value,
        start: usize,
        len: usize,
    },
    /// Another view of the same elements.
    Reshape {
        x: Value,
        shape: Shape,
    },
    /// Sum over the ranks of a tensor-parallel group; itself on one rank.
    AllReduce {
        x: Value,
    },
    /// Logits with -inf where the step's masks forbid the token; untouched for rows without a mask.
    MaskLogits {
        x: Value,
    },
    /// Index of the largest logit, ties to the lowest. `[rows]` u32
    Argmax {
        x: Value,
    },
    /// The k largest (id, logit), largest first, ties to the lowest id. `[rows, k]` pairs
    TopK {
        x: Value,
        k: usize,
    },
    /// `ln(sum(exp(x)))` over the vocabulary. `[rows]` f32
    LogSumExp {
        x: Value,
    },
}

impl Op {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Positions => "positions",
            Self::Embed { .. } => "embed",
            Self::Linear { .. } => "linear",
            Self::RmsNorm { .. } => "rms_norm",
            Self::LayerNorm { .. } => "layer_norm",
            Self::Rope { .. } => "rope",
            Self::Attention { .. } => "attention",
            Self::ShortConv { .. } => "short_conv",
            Self::SsmScan { .. } => "ssm_scan",
            Self::GatedDelta { .. } => "gated_delta",
            Self::GatedAct { .. } => "gated_act",
            Self::Add { .. } => "add",
            Self::Mul { .. } => "mul",
            Self::Scale { .. } => "scale",
            Self::Softcap { .. } => "softcap",
            Self::Router { .. } => "router",
            Self::Experts { .. } => "experts",
            Self::SelectRows { .. } => "select_rows",
            Self::Cast { .. } => "cast",
            Self::HeadLinear { .. } => "head_linear",
            Self::Concat { .. } => "concat",
            Self::Narrow { .. } => "narrow",
            Self::Reshape { .. } => "reshape",
            Self::AllReduce { .. } => "all_reduce",
            Self::MaskLogits { .. } => "mask_logits",
            Self::Argmax { .. } => "argmax",
            Self::TopK { .. } => "top_k",
            Self::LogSumExp { .. } => "log_sum_exp",
        }
    }

    /// The values this operation reads, in order.
    pub fn inputs(&self) -> Vec<Value> {
        match *self {
            Self::Tokens | Self::Positions => vec![],
            Self::Embed { ids, .. } => vec![ids],
            Self::Linear { x, .. }
            | Self::RmsNorm { x, .. }
            | Self::LayerNorm { x, .. }
            | Self::Rope { x, .. }
            | Self::ShortConv { x, .. }
            | Self::Scale { x, .. }
            | Self::Softcap { x, .. }
            | Self::SelectRows { x }
            | Self::Cast { x, .. }
            | Self::HeadLinear { x, .. }
            | Self::Narrow { x, .. }
            | Self::Reshape { x, .. }
            | Self::AllReduce { x }
            | Self::MaskLogits { x }
            | Self::Argmax { x }
            | Self::TopK { x, .. }
            | Self::LogSumExp { x } => vec![x],
            Self::Attention { q, k, v, .. } => vec![q, k, v],
            Self::SsmScan { x, dt, b, c, .. } => vec![x, dt, b, c],
            Self::GatedDelta { q, k, v, dt, beta, .. } => vec![q, k, v, dt, beta],
            Self::GatedAct { gate, up, .. } => std::iter::once(gate).chain(up).collect(),
            Self::Add { a, b } | Self::Mul { a, b } | Self::Concat { a, b } => vec![a, b],
            Self::Router { logits, .. } => vec![logits],
            Self::Experts { x, route, .. } => vec![x, route],
        }
    }

    /// The weights this operation reads.
    pub fn weights(&self) -> Vec<Weight> {
        match *self {
            Self::Embed { table, .. } => vec![table],
            Self::Linear { w, bias, .. } => std::iter::once(w).chain(bias).collect(),
            Self::RmsNorm { gain, .. } => gain.into_iter().collect(),
            Self::LayerNorm { gain, bias, .. } => gain.into_iter().chain(bias).collect(),
            Self::Rope { spec, .. } => std::iter::once(spec.freqs).chain(spec.long).collect(),
            Self::Attention { spec, .. } => spec.sinks.into_iter().collect(),
            Self::ShortConv { spec, .. } => std::iter::once(spec.weight).chain(spec.bias).collect(),
            Self::SsmScan { spec, .. } => vec![spec.a, spec.d, spec.dt_bias],
            Self::GatedDelta { spec, .. } => vec![spec.a, spec.dt_bias],
            Self::HeadLinear { w, .. } => vec![w],
            Self::Router { spec, .. } => spec.bias.into_iter().chain(spec.gains).collect(),
            Self::Experts { spec, .. } => {
                [Some(spec.gate_up), spec.gate_up_bias, Some(spec.down), spec.down_bias].into_iter().flatten().collect()
            }
            _ => vec![],
        }
    }

    /// The state layer this operation keeps, if it does.
    pub const fn state(&self) -> Option<usize> {
        match self {
            Self::ShortConv { spec, .. } => Some(spec.state),
            Self::SsmScan { spec, .. } => Some(spec.state),
            Self::GatedDelta { spec, .. } => Some(spec.state),
            _ => None,
        }
    }

    /// The shape of that state, from the shapes of the operation's inputs.
    pub fn state_shape(&self, inputs: &[Shape]) -> Option<Shape> {
        match self {
            Self::ShortConv { spec, .. } => Some([spec.taps - 1, inputs[0].last()].into()),
            Self::SsmScan { .. } => Some([inputs[0].dims()[1], inputs[2].last(), inputs[0].last()].into()),
            Self::GatedDelta { .. } => Some([inputs[2].dims()[1], inputs[1].last(), inputs[2].last()].into()),
            _ => None,
        }
    }

    /// Floating-point operations and bytes moved (weights and activations read once, results written once), for a
    /// result of `shape` from inputs of `inputs` shapes, within a step of `batch`. Attention counts its largest case:
    /// every query sees every block of the table.
    pub fn cost(&self, shape: Shape, inputs: &[Shape], batch: &BatchShape, block_tokens: usize) -> Cost {
        let out = shape.elements() as u64;
        let read: u64 = inputs.iter().map(|s| s.elements() as u64 * 4).sum();
        let weights: u64 = self.weights().iter().map(Weight::bytes).sum();
        let plain = |flops: u64| Cost { flops, bytes: read + weights + out * 4 };
        match *self {
            Self::Tokens | Self::Positions | Self::Reshape { .. } => Cost { flops: 0, bytes: 0 },
            Self::Embed { table, .. } => {
                let row = table.bytes() / table.shape.first().max(1) as u64;
                Cost { flops: 0, bytes: shape.first() as u64 * row + out * 4 }
            }
            Self::Linear { w, .. } | Self::HeadLinear { w, .. } => plain(2 * out * w.shape.last() as u64),
            Self::Attention { spec, .. } => {
                let (keys, dim) = (batch.blocks * block_tokens, inputs[0].last() + shape.last());
                let seen = spec.window.or(spec.chunk).map_or(keys, |w| w.min(keys)) as u64;
                let (heads, kv_heads) = (shape.dims()[1] as u64, inputs[1].dims()[1] as u64);
                let cache = batch.seqs as u64 * seen * kv_heads * dim as u64 * 2;
                Cost { flops: 2 * batch.tokens as u64 * heads * seen * dim as u64, bytes: read + cache + out * 4 }
            }
            Self::Experts { spec, .. } => {
                let (chosen, experts) = (inputs[1].elements() as u64, spec.down.shape.first() as u64);
                let each = (spec.gate_up.bytes() + spec.down.bytes()) / experts.max(1);
                let values = (spec.gate_up.shape.elements() + spec.down.shape.elements()) as u64 / experts.max(1);
                Cost { flops: 2 * chosen * values, bytes: each * chosen.min(experts) + read + out * 4 }
            }
            Self::ShortConv { .. } | Self::SsmScan { .. } | Self::GatedDelta { .. } => {
                let state = self.state_shape(inputs).map_or(0, |s| s.elements()) as u64;
                let moved = 2 * 4 * batch.seqs as u64 * state;
                Cost { flops: 8 * batch.tokens as u64 * state, bytes: read + weights + moved + out * 4 }
            }
            Self::RmsNorm { .. } | Self::LayerNorm { .. } | Self::Rope { .. } | Self::GatedAct { .. } => plain(6 * out),
            _ => plain(out.max(read / 4)),
        }
    }
}

/// What an operation costs in the limit: arithmetic and memory traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub flops: u64,
    pub bytes: u64,
}

impl std::ops::Add for Cost {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { flops: self.flops + other.flops, bytes: self.bytes + other.bytes }
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), |a, b| a + b)
    }
}
