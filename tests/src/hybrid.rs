//! Owns a tiny model of random weights that keeps every kind of state, with attention or without. It stands for any
//! recurrent or hybrid model.

use dualgauge_kernels::{
    Act, AttnSpec, Backend, ConvSpec, DeltaSpec, Format, HostTensor, KvLayer, Recorder, ScanSpec, StateLayer, Value,
    Weight,
};
use dualgauge_models::{Model, ModelSpec};

use crate::Random;

const HIDDEN: usize = 32;
const HEADS: usize = 2;
const DIM: usize = HIDDEN / HEADS;
const TAPS: usize = 4;

/// Convolution, scan, delta rule, then attention if there is any.
pub struct TinyHybrid {
    spec: ModelSpec,
    embed: Weight,
    conv: Weight,
    /// `[6 * HIDDEN + 2 * HEADS, HIDDEN]`: all that the recurrent operations and attention read.
    projection: Weight,
    /// `[HEADS]`
    a: Weight,
    one: Weight,
    attends: bool,
}

impl TinyHybrid {
    /// Uploads the model's weights to `backend`.
    pub fn on(backend: &mut dyn Backend, vocab: usize, context: usize, attends: bool) -> Box<dyn Model> {
        let mut random = Random::new(8);
        let mut up = |tensor: HostTensor<'_>| backend.upload(tensor, Format::F32).expect("uploads");
        let vector = |values: &[f32]| HostTensor::from_f32("vector", [values.len()], values).expect("a vector");
        let mut matrix = |out: usize| random.tensor([out, HIDDEN], Format::F32, (HIDDEN as f32).powf(-0.5));
        let (embed, projection) = (up(matrix(vocab)), up(matrix(6 * HIDDEN + 2 * HEADS)));
        let taps: Vec<f32> = (0..TAPS * HIDDEN).map(|i| 0.2 + 0.01 * (i % 37) as f32).collect();
        let state = |shape: &[usize]| StateLayer { shape: shape.into() };
        let (kv, scan) = (KvLayer { kv_heads: HEADS, k_dim: DIM, v_dim: DIM }, state(&[HEADS, DIM, DIM]));
        let spec = ModelSpec {
            family: "tiny hybrid",
            vocab,
            context,
            kv_layers: vec![kv; usize::from(attends)],
            long_after: None,
            state_layers: vec![state(&[TAPS - 1, HIDDEN]), scan, scan],
            eos: vec![2],
            parameters: 0,
            weight_bytes: 0,
            notes: vec![],
        };
        let (conv, a, one) = (up(vector(&taps)), up(vector(&[-0.1, -0.4])), up(vector(&[1.0; HEADS])));
        Box::new(Self { spec, embed, conv, projection, a, one, attends })
    }
}

impl Model for TinyHybrid {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&self, g: &Recorder) -> Value {
        let tokens = g.shape().tokens;
        let conv = ConvSpec { state: 0, taps: TAPS, weight: self.conv, bias: None, act: Some(Act::Silu) };
        let x = g.embed(g.tokens(), self.embed); // [tokens, HIDDEN]
        let x = g.add(x, g.short_conv(x, conv));
        let all = g.linear(g.rms_norm(x, None, 0.0, 1e-5), self.projection);
        let part = |i: usize| g.reshape(g.narrow(all, i * HIDDEN, HIDDEN), [tokens, HEADS, DIM]);
        let gate = |i: usize| g.narrow(all, 6 * HIDDEN + i * HEADS, HEADS);
        let flat = |x: Value| g.reshape(x, [tokens, HIDDEN]);
        let one = |x: Value| g.scale(g.rms_norm(x, None, 0.0, 1e-6), (DIM as f32).powf(-0.5));
        let scan = ScanSpec { state: 1, a: self.a, d: self.one, dt_bias: self.one, dt_limit: (0.0, 10.0) };
        let x = g.add(x, flat(g.ssm_scan(part(0), gate(0), [part(1), part(2)], scan)));
        let delta = DeltaSpec { state: 2, a: self.a, dt_bias: self.one };
        let mut x = g.add(x, flat(g.gated_delta([one(part(1)), one(part(2)), part(3)], gate(0), gate(1), delta)));
        if self.attends {
            let spec = AttnSpec::new(0, 0.25);
            x = g.add(x, flat(g.attention(part(3), part(4), part(5), spec)));
        }
        g.linear(g.rms_norm(g.select_rows(x), None, 0.0, 1e-5), self.embed)
    }
}
