//! Owns a tiny llama-like model of random weights and the shortest way to run it on a device. It stands for any model:
//! embedding, norms, linear layers, rotary embedding, paged attention, gated activation, rows, tail.

use dualgauge_kernels::{
    Act, AttnSpec, Backend, Batch, Format, HostTensor, KvLayer, KvSpec, Output, Program, Recorder, RopeSpec, Tail,
    Value, Weight,
};

use crate::{Random, TestDevice};

/// Sizes of the model. Widths are multiples of 32, so that block formats fit.
#[derive(Clone, Copy, Debug)]
pub struct TinyLlama {
    pub vocab: usize,
    pub hidden: usize,
    pub inner: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub window: Option<usize>,
    /// Format of the matrices.
    pub format: Format,
    pub seed: u64,
}

impl Default for TinyLlama {
    fn default() -> Self {
        Self {
            vocab: 101,
            hidden: 64,
            inner: 96,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            window: None,
            format: Format::F32,
            seed: 1,
        }
    }
}

/// A tiny model on a device, with a cache.
pub struct Runner {
    pub backend: Box<dyn Backend>,
    pub block_tokens: usize,
    pub model: TinyLlama,
    weights: Weights,
}

struct Weights {
    embed: Weight,
    freqs: Weight,
    layers: Vec<Layer>,
    norm: Weight,
    head: Weight,
}

struct Layer {
    attention_norm: Weight,
    qkv: [Weight; 3],
    o: Weight,
    mlp_norm: Weight,
    gate: Weight,
    up: Weight,
    down: Weight,
}

impl Runner {
    /// Uploads the model's weights and reserves `blocks` cache blocks.
    pub fn new(device: &TestDevice, model: TinyLlama, blocks: usize) -> Self {
        Self::on(device.open(), model, blocks)
    }

    pub fn on(mut backend: Box<dyn Backend>, model: TinyLlama, blocks: usize) -> Self {
        let weights = upload(backend.as_mut(), &model);
        let limits = backend.limits();
        let (block_tokens, dtype) = (limits.block_tokens, limits.kv_dtype);
        let layer = KvLayer { kv_heads: model.kv_heads, k_dim: model.head_dim, v_dim: model.head_dim };
        let spec = KvSpec { layers: vec![layer; model.layers], block_tokens, dtype };
        backend.reserve_kv(&spec, blocks).expect("the cache fits");
        Self { backend, block_tokens, model, weights }
    }

    /// Records the step, runs it, frees it. All logits come back.
    pub fn run(&mut self, batch: &Batch) -> Output {
        let program = self.record(batch, Tail { top_k: 4, logits: true, masked: false });
        let id = self.backend.compile(&program).expect("compiles");
        let ticket = self.backend.launch(id, batch).unwrap_or_else(|e| panic!("{e}\n{batch:?}"));
        let output = self.backend.wait(ticket).expect("runs");
        self.backend.release(id);
        output
    }

    pub fn record(&self, batch: &Batch, tail: Tail) -> Program {
        let g = Recorder::new(batch.shape, self.block_tokens);
        let logits = self.forward(&g);
        g.finish(logits, tail).expect("the tiny model keeps the rules")
    }

    fn forward(&self, g: &Recorder) -> Value {
        let (m, w) = (self.model, &self.weights);
        let tokens = g.shape().tokens;
        let rope = RopeSpec { freqs: w.freqs, long: None, interleaved: false, magnitude: 1.0 };
        let mut x = g.embed(g.tokens(), w.embed);
        for (i, layer) in w.layers.iter().enumerate() {
            let _scope = g.layer(i);
            let h = g.rms_norm(x, Some(layer.attention_norm), 0.0, 1e-5);
            let [q, k, v] = layer.qkv.map(|w| g.linear(h, w));
            let q = g.rope(g.reshape(q, [tokens, m.heads, m.head_dim]), rope);
            let k = g.rope(g.reshape(k, [tokens, m.kv_heads, m.head_dim]), rope);
            let v = g.reshape(v, [tokens, m.kv_heads, m.head_dim]);
            let scale = (m.head_dim as f32).powf(-0.5);
            let spec = AttnSpec { window: m.window, ..AttnSpec::new(i, scale) };
            let attended = g.attention(q, k, v, spec);
            x = g.add(x, g.linear(g.reshape(attended, [tokens, m.heads * m.head_dim]), layer.o));
            let h = g.rms_norm(x, Some(layer.mlp_norm), 0.0, 1e-5);
            let h = g.gated_act(g.linear(h, layer.gate), g.linear(h, layer.up), Act::Silu);
            x = g.add(x, g.linear(h, layer.down));
        }
        g.linear(g.rms_norm(g.select_rows(x), Some(w.norm), 0.0, 1e-5), w.head)
    }
}

fn upload(backend: &mut dyn Backend, m: &TinyLlama) -> Weights {
    let mut up = Upload { backend, random: Random::new(m.seed), format: m.format };
    let (wide, narrow) = (m.heads * m.head_dim, m.kv_heads * m.head_dim);
    let layers = (0..m.layers).map(|_| Layer {
        attention_norm: up.gain(m.hidden),
        qkv: [up.matrix(wide, m.hidden), up.matrix(narrow, m.hidden), up.matrix(narrow, m.hidden)],
        o: up.matrix(m.hidden, wide),
        mlp_norm: up.gain(m.hidden),
        gate: up.matrix(m.inner, m.hidden),
        up: up.matrix(m.inner, m.hidden),
        down: up.matrix(m.hidden, m.inner),
    });
    let layers = layers.collect();
    let half = m.head_dim / 2;
    let freqs: Vec<f32> = (0..half).map(|i| 10000f32.powf(-(i as f32) / half as f32)).collect();
    Weights {
        layers,
        embed: up.matrix(m.vocab, m.hidden),
        head: up.matrix(m.vocab, m.hidden),
        norm: up.gain(m.hidden),
        freqs: up.vector(&freqs),
    }
}

struct Upload<'a> {
    backend: &'a mut dyn Backend,
    random: Random,
    format: Format,
}

impl Upload<'_> {
    fn matrix(&mut self, out: usize, inner: usize) -> Weight {
        let tensor = self.random.tensor([out, inner], self.format, (inner as f32).powf(-0.5));
        self.backend.upload(tensor, self.format).expect("uploads")
    }

    fn gain(&mut self, len: usize) -> Weight {
        let values: Vec<f32> = (0..len).map(|_| 0.5 + self.random.unit()).collect();
        self.vector(&values)
    }

    fn vector(&mut self, values: &[f32]) -> Weight {
        let tensor = HostTensor::from_f32("vector", [values.len()], values).expect("a vector");
        self.backend.upload(tensor, Format::F32).expect("uploads")
    }
}
