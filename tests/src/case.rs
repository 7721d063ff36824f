//! Owns single operations under test: records a few nodes on seeded inputs, runs them on a device, compares with the
//! oracle.

use dualgauge_kernels::{
    Backend, Batch, BatchShape, Format, HostTensor, KvSpec, Output, Program, Recorder, Shape, Tail, Value, Weight,
};

use crate::{Random, TestDevice, Tolerance, assert_close, for_each_device};

/// Allowed parts of the largest result: on exact devices, and on native ones.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    pub exact: f32,
    pub native: f32,
}

impl Allowed {
    /// The same bits' worth: nothing is rounded.
    pub const SAME: Self = Self { exact: 0.0, native: 0.0 };
    /// f32 sums of up to 512 terms in another order; other polynomials for exp, tanh, erf.
    pub const F32: Self = Self { exact: 1e-5, native: 1e-5 };
    /// A matrix product: native ones round activations once, to bf16 (8 bits) or to int8 per 32 values (7 bits).
    pub const PRODUCTS: Self = Self { exact: 1e-5, native: 2e-2 };
}

/// Runs the case on every device and compares with the oracle. `what` says shapes and options.
pub fn check(op: &str, what: &str, seed: u64, tokens: usize, allowed: Allowed, build: &dyn Fn(&mut Case<'_>) -> Value) {
    let (wanted, program) = run_with(&TestDevice::reference(), seed, tokens, WHOLE, &[], build);
    let wanted = wanted.logits.expect("asked for");
    assert!(wanted.iter().all(|v| v.is_finite()), "{op} {what}, seed {seed}: the oracle's own result is not finite");
    for_each_device(&format!("{op} {what}, seed {seed}"), |device| {
        if let Some(lack) = device.lacks(&program) {
            eprintln!("skipped {op} on {}: it lacks {lack}", device.name);
            return;
        }
        let held = run(device, seed, tokens, build);
        let name = format!("{op} on {}: {tokens} tokens, {what}, seed {seed}", device.name);
        let relative = if device.is_exact() { allowed.exact } else { allowed.native };
        assert_close(&name, &held, &wanted, Tolerance::of_largest(relative));
    });
}

/// Runs one step of `tokens` tokens at random positions of one sequence, long for odd seeds, and returns the value that
/// `build` makes, flattened to a row a token.
pub fn run(device: &TestDevice, seed: u64, tokens: usize, build: &dyn Fn(&mut Case<'_>) -> Value) -> Vec<f32> {
    run_with(device, seed, tokens, WHOLE, &[], build).0.logits.expect("asked for")
}

const WHOLE: Tail = Tail { top_k: 0, logits: true, masked: false };

/// As [`run`], with another tail and masks.
pub fn run_with(
    device: &TestDevice,
    seed: u64,
    tokens: usize,
    tail: Tail,
    masks: &[u32],
    build: &dyn Fn(&mut Case<'_>) -> Value,
) -> (Output, Program) {
    let mut backend = device.open();
    let (block_tokens, dtype) = (backend.limits().block_tokens, backend.limits().kv_dtype);
    let mut random = Random::new(seed);
    let before = random.below(60);
    let blocks = (before + tokens).div_ceil(block_tokens);
    let shape = BatchShape { tokens, seqs: 1, query: tokens, blocks, rows: tokens };
    let table: Vec<u32> = (1..=blocks as u32).collect();
    let positions: Vec<u32> = (0..tokens).map(|t| (before + t) as u32).collect();
    let batch = Batch {
        shape,
        tokens: (0..tokens as u32).collect(),
        slots: positions.iter().map(|p| p + block_tokens as u32).collect(),
        positions,
        long: vec![(seed % 2) as u32; tokens],
        query_start: vec![0, tokens as u32],
        context: vec![(before + tokens) as u32],
        block_table: table,
        states: vec![1],
        rows: (0..tokens as u32).collect(),
        masks: masks.to_vec(),
    };
    backend.reserve_kv(&KvSpec { layers: vec![], block_tokens, dtype }, blocks + 1).expect("reserves");
    let mut case = Case { backend: backend.as_mut(), g: Recorder::new(shape, block_tokens), random, tokens };
    let value = build(&mut case);
    let Case { g, .. } = case;
    let width = g.shape_of(value).elements() / tokens;
    let logits = g.reshape(value, [tokens, width]);
    let program = g.finish(logits, tail).expect("records");
    let id = backend.compile(&program).expect("compiles");
    let ticket = backend.launch(id, &batch).expect("launches");
    (backend.wait(ticket).expect("runs"), program)
}

/// Records one case on one device: inputs and weights come from the seed, so that each device gets the same.
pub struct Case<'a> {
    pub backend: &'a mut dyn Backend,
    pub g: Recorder,
    pub random: Random,
    pub tokens: usize,
}

impl Case<'_> {
    /// `[tokens, width]` normal values: rows of an f32 table, which every device holds exactly.
    pub fn input(&mut self, width: usize, deviation: f32) -> Value {
        let values = self.random.normals(self.tokens * width, deviation);
        self.given(width, &values)
    }

    /// `[tokens, width]` of these values.
    pub fn given(&mut self, width: usize, values: &[f32]) -> Value {
        let table = HostTensor::from_f32("input", [self.tokens, width], values).expect("a table");
        let table = self.upload(table);
        self.g.embed(self.g.tokens(), table)
    }

    /// A random matrix that keeps the deviation of what it multiplies.
    pub fn matrix(&mut self, shape: impl Into<Shape>, format: Format) -> Weight {
        let shape = shape.into();
        let tensor = self.random.tensor(shape, format, (shape.last() as f32).powf(-0.5));
        self.upload(tensor)
    }

    /// `[len]` normal values.
    pub fn vector(&mut self, len: usize) -> Weight {
        let values = self.random.normals(len, 1.0);
        self.vector_of(&values)
    }

    /// `[len]` of these values.
    pub fn vector_of(&mut self, values: &[f32]) -> Weight {
        self.upload(HostTensor::from_f32("vector", [values.len()], values).expect("a vector"))
    }

    /// The tensor in its own format.
    pub fn upload(&mut self, tensor: HostTensor<'_>) -> Weight {
        let format = tensor.format;
        self.backend.upload(tensor, format).expect("uploads")
    }
}
