//! The row kernels of the CPU device, through the public door: norms alone and with the residual sum before them, rotary
//! embedding, and the gated activation. Reports bytes a second: what is read and written of activations, against what this machine
//! reads from memory (short chains live in the caches and pass it).
//!
//! `cargo bench -p dualgauge-bench --bench norm -- [filter]`; names are `OP/WIDTH/THREADS/TOKENS`.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use dualgauge_bench::roofline::Limits;
use dualgauge_bench::timing;
use dualgauge_kernels::{
    Act, Backend, Batch, BatchShape, DeviceKind, DeviceSpec, Format, HostTensor, Recorder, RopeSpec, Tail, Value,
    Weight, open,
};

/// Operations of a step, so that what surrounds them does not count.
const CHAIN: usize = 60;
const TOKENS: [usize; 3] = [1, 32, 512];
const WIDTHS: [usize; 2] = [576, 2048];
const HEAD: usize = 64;

fn main() {
    let mut criterion = timing::criterion(Duration::from_millis(500));
    for threads in [1, 2] {
        let limits = Limits::measure(threads);
        println!("limits, {threads} threads: read {:.1} GB/s", limits.read_gb_s);
        for width in WIDTHS {
            let mut device = Device::new(threads, width);
            for tokens in TOKENS {
                for case in CASES {
                    device.bench(&mut criterion, &limits, case, tokens);
                }
            }
        }
    }
    criterion.final_summary();
}

/// A name, the values of a row's width that move, and the operation.
type Case = (&'static str, usize, fn(&Recorder, &Device, Value, Value) -> Value);

const CASES: [Case; 4] = [
    ("rms_norm", 2, |g, d, x, _| g.rms_norm(x, Some(d.gain), 0.0, 1e-5)),
    ("add_rms_norm", 4, |g, d, x, y| g.rms_norm(g.add(x, y), Some(d.gain), 0.0, 1e-5)),
    ("rope", 2, |g, d, x, _| {
        let shape = g.shape_of(x);
        let heads = g.reshape(x, [shape.first(), shape.last() / HEAD, HEAD]);
        g.reshape(g.rope(heads, RopeSpec { freqs: d.freqs, long: None, interleaved: false, magnitude: 1.0 }), shape)
    }),
    ("silu_mul", 3, |g, _, x, y| g.gated_act(x, y, Act::Silu)),
];

struct Device {
    backend: Box<dyn Backend>,
    table: Weight,
    gain: Weight,
    freqs: Weight,
    width: usize,
}

impl Device {
    fn new(threads: usize, width: usize) -> Self {
        let spec = DeviceSpec { kind: DeviceKind::Cpu, threads: Some(threads), ..DeviceSpec::default() };
        let mut backend = open(&spec).expect("the CPU is there").backend;
        let values: Vec<f32> = (0..TABLE_ROWS * width).map(|i| ((i * 7919 % 1999) as f32 - 999.0) / 1000.0).collect();
        let freqs: Vec<f32> = (0..HEAD / 2).map(|i| 1e-4f32.powf(i as f32 * 2.0 / HEAD as f32)).collect();
        let mut upload = |shape: &[usize], values: &[f32]| {
            let tensor = HostTensor::from_f32("weight", shape, values).expect("whole");
            backend.upload(tensor, Format::F32).expect("uploads")
        };
        let table = upload(&[TABLE_ROWS, width], &values);
        let (gain, freqs) = (upload(&[width], &vec![1.0; width]), upload(&[HEAD / 2], &freqs));
        Self { backend, table, gain, freqs, width }
    }

    fn bench(&mut self, criterion: &mut Criterion, limits: &Limits, (op, moved, f): Case, tokens: usize) {
        let shape = BatchShape { tokens, seqs: 1, query: tokens, blocks: tokens.div_ceil(16), rows: 1 };
        let block_tokens = self.backend.limits().block_tokens;
        let g = Recorder::new(shape, block_tokens);
        let y = g.embed(g.tokens(), self.table);
        let x = (0..CHAIN).fold(y, |x, _| f(&g, self, x, y));
        let logits = g.narrow(g.select_rows(x), 0, 1);
        let program = g.finish(logits, Tail { top_k: 0, logits: false, masked: false }).expect("keeps the rules");
        let count = tokens as u32;
        let batch = Batch {
            shape,
            tokens: (0..count).map(|i| i % TABLE_ROWS as u32).collect(),
            positions: (0..count).collect(),
            slots: (0..count).map(|i| block_tokens as u32 + i).collect(),
            query_start: vec![0, count],
            context: vec![count],
            block_table: (1..=shape.blocks as u32).collect(),
            rows: vec![count - 1],
            ..Batch::default()
        };
        let backend = self.backend.as_mut();
        let id = backend.compile(&program).expect("compiles");
        let bytes = (CHAIN * moved * tokens * self.width * 4) as u64;
        let name = format!("{op}/{}/{}t/{tokens}", self.width, limits.threads);
        let throughput = Throughput::Bytes(bytes);
        let best = timing::best(criterion, "norm", &name, throughput, || {
            let start = Instant::now();
            let ticket = backend.launch(id, &batch).expect("launches");
            backend.wait(ticket).expect("runs");
            start.elapsed()
        });
        backend.release(id);
        if let Some(best) = best {
            let rate = bytes as f64 / best * 1e-9;
            let share = rate / limits.read_gb_s * 100.0;
            println!(
                "  {name}: best {:.2} us an operation, {rate:.1} GB/s, {share:.0} % of the memory's rate",
                best * 1e6 / CHAIN as f64
            );
        }
    }
}

const TABLE_ROWS: usize = 64;
