//! Matrix products of the CPU device, through the public door: all linear layers of SmolLM2-135M in one step, and each of
//! its shapes alone. Reports the share of what this machine can do, as [`roofline`] measures it.
//!
//! `cargo bench -p dualgauge-bench --bench gemm -- [filter]`; names are `step/FORMAT/THREADS/M`, `KxN/FORMAT/THREADS/M` and,
//! for the instruction-set paths of this machine, `path/FORMAT/PATH/M`.

use std::time::Duration;

use criterion::{Criterion, Throughput};
use dualgauge_bench::roofline::{Clock, Limits, Product};
use dualgauge_bench::timing;
use dualgauge_kernels::{
    Backend, Batch, BatchShape, DeviceKind, DeviceSpec, Format, HostTensor, Recorder, Tail, Value, Weight, format,
    isa_paths, open,
};

const FORMATS: [Format; 4] = [Format::Bf16, Format::Q8_0, Format::Q4_0, Format::Q4_1];
const ROWS: [usize; 7] = [1, 4, 8, 16, 32, 128, 512];
const LAYERS: usize = 30;
const HIDDEN: usize = 576;
const KV: usize = 192;
const INNER: usize = 1536;
const VOCAB: usize = 49152;
/// Shapes benched alone, with copies enough to come from memory.
const SHAPES: [(usize, usize); 4] = [(HIDDEN, HIDDEN), (HIDDEN, INNER), (INNER, HIDDEN), (HIDDEN, VOCAB)];
const COPIES_BYTES: usize = 64 << 20;

fn main() {
    let mut criterion = timing::criterion(Duration::from_secs(1));
    let limits = Limits::measure(1);
    for format in [Format::Q8_0, Format::Q4_0, Format::Q4_1] {
        isa_paths().into_iter().for_each(|isa| path(&mut criterion, &limits, format, isa));
    }
    for threads in [1, 2] {
        let limits = Limits::measure(threads);
        println!(
            "limits, {threads} threads: read {:.1} GB/s; f32 {:.0}, bf16 {:.0}, int8 {:.0} Gop/s",
            limits.read_gb_s, limits.f32_gop_s, limits.bf16_gop_s, limits.int8_gop_s
        );
        for format in FORMATS {
            step(&mut criterion, &limits, format);
            SHAPES.iter().for_each(|shape| alone(&mut criterion, &limits, format, *shape));
        }
    }
    criterion.final_summary();
}

/// All linear layers; the head for all rows up to 32, else for one, as in prefill.
fn step(criterion: &mut Criterion, limits: &Limits, format: Format) {
    let mut device = Device::new(limits.threads, HIDDEN, None);
    let mut w = |n, k| device.upload(n, k, format);
    let layers: Vec<[Weight; 7]> = (0..LAYERS)
        .map(|_| {
            [
                w(HIDDEN, HIDDEN),
                w(KV, HIDDEN),
                w(KV, HIDDEN),
                w(HIDDEN, HIDDEN),
                w(INNER, HIDDEN),
                w(INNER, HIDDEN),
                w(HIDDEN, INNER),
            ]
        })
        .collect();
    let head = w(VOCAB, HIDDEN);
    for m in ROWS {
        let rows = if m <= 32 { m } else { 1 };
        let program = device.record(m, rows, &|g, mut x| {
            for [q, k, v, o, gate, up, down] in &layers {
                let [q, ..] = [q, k, v].map(|w| g.linear(x, *w));
                let x2 = g.linear(q, *o);
                let [_, up] = [gate, up].map(|w| g.linear(x2, *w));
                x = g.linear(up, *down);
            }
            g.linear(g.select_rows(x), head)
        });
        let each: usize = layers[0].iter().map(|w| w.shape.elements()).sum();
        let operations = 2 * (m * each * LAYERS + rows * head.shape.elements());
        let bytes = layers.iter().flatten().chain([&head]).map(Weight::bytes).sum();
        let work = Work::new(bytes, operations, format);
        device.bench(criterion, limits, &name("step", format, limits, m), &[program], work);
    }
}

/// One matrix on one instruction-set path, out of the caches' reach for one row.
fn path(criterion: &mut Criterion, limits: &Limits, format: Format, isa: &str) {
    let (k, n) = (INNER, VOCAB / 2);
    let mut device = Device::new(limits.threads, k, Some(isa));
    let w = device.upload(n, k, format);
    for m in [1, 4, 16, 128] {
        let recorded = [device.record(m, 1, &|g, x| g.select_rows(g.linear(x, w)))];
        let work = Work::new(w.bytes(), 2 * m * n * k, format);
        device.bench(criterion, limits, &format!("path/{format}/{isa}/{m}"), &recorded, work);
    }
}

/// One shape, `[m, k]` by `[n, k]`, from memory.
fn alone(criterion: &mut Criterion, limits: &Limits, format: Format, (k, n): (usize, usize)) {
    let mut device = Device::new(limits.threads, k, None);
    let copies = COPIES_BYTES.div_ceil(format.bytes(n * k).expect("whole blocks"));
    let weights: Vec<Weight> = (0..copies).map(|_| device.upload(n, k, format)).collect();
    for m in ROWS {
        let rows = 1; // the tail reads one row only
        let record = |w: &Weight| device.record(m, rows, &|g, x| g.select_rows(g.linear(x, *w)));
        let programs: Vec<_> = weights.iter().map(record).collect();
        let work = Work::new(weights[0].bytes(), 2 * m * n * k, format);
        device.bench(criterion, limits, &name(&format!("{k}x{n}"), format, limits, m), &programs, work);
    }
}

fn name(what: &str, format: Format, limits: &Limits, m: usize) -> String {
    format!("{what}/{format}/{}t/{m}", limits.threads)
}

/// The CPU device with a small embedding that stands for the activations.
struct Device {
    backend: Box<dyn Backend>,
    table: Weight,
    seed: u64,
}

/// What a launch does at least.
struct Work {
    /// Read from memory.
    bytes: u64,
    operations: u64,
    product: Product,
}

impl Work {
    fn new(bytes: u64, operations: usize, format: Format) -> Self {
        let product = if format.is_quantised() { Product::Int8 } else { Product::Bf16 };
        Self { bytes, operations: operations as u64, product }
    }
}

/// Recorded for a batch.
type Recorded = (dualgauge_kernels::Program, Batch);

impl Device {
    fn new(threads: usize, width: usize, isa: Option<&str>) -> Self {
        let (kind, isa) = (DeviceKind::Cpu, isa.map(str::to_owned));
        let spec = DeviceSpec { kind, threads: Some(threads), isa, ..DeviceSpec::default() };
        let mut backend = open(&spec).expect("the CPU is there").backend;
        let values = noise(TABLE_ROWS * width, 1);
        let table = HostTensor::from_f32("table", [TABLE_ROWS, width], &values).expect("whole");
        let table = backend.upload(table, Format::F32).expect("uploads");
        Self { backend, table, seed: 2 }
    }

    fn upload(&mut self, n: usize, k: usize, format: Format) -> Weight {
        self.seed += 1;
        let scale = (k as f32).powf(-0.5) * 3.0;
        let values: Vec<f32> = noise(n * k, self.seed).iter().map(|v| v * scale).collect();
        let tensor = HostTensor::new("w", [n, k], format, format::encode(format, &values)).expect("whole");
        self.backend.upload(tensor, format).expect("uploads")
    }

    /// One sequence of `m` tokens whose embeddings are what `body` begins with.
    fn record(&self, m: usize, rows: usize, body: &dyn Fn(&Recorder, Value) -> Value) -> Recorded {
        let block_tokens = self.backend.limits().block_tokens;
        let blocks = m.div_ceil(block_tokens);
        let shape = BatchShape { tokens: m, seqs: 1, query: m, blocks, rows };
        let g = Recorder::new(shape, block_tokens);
        let x = g.embed(g.tokens(), self.table);
        let logits = body(&g, x);
        let program = g.finish(logits, Tail { top_k: 0, logits: false, masked: false }).expect("keeps the rules");
        let count = m as u32;
        let batch = Batch {
            shape,
            tokens: (0..count).map(|i| i % TABLE_ROWS as u32).collect(),
            positions: (0..count).collect(),
            slots: (0..count).map(|i| block_tokens as u32 + i).collect(),
            query_start: vec![0, count],
            context: vec![count],
            block_table: (1..=blocks as u32).collect(),
            rows: (count - rows as u32..count).collect(),
            ..Batch::default()
        };
        (program, batch)
    }

    /// Launches the programs in turn.
    fn bench(
        &mut self,
        criterion: &mut Criterion,
        limits: &Limits,
        name: &str,
        recorded: &[Recorded],
        Work { bytes, operations, product }: Work,
    ) {
        let backend = self.backend.as_mut();
        let ids: Vec<_> = recorded.iter().map(|(p, _)| backend.compile(p).expect("compiles")).collect();
        let mut turn = 0;
        let throughput = Throughput::ElementsAndBytes { elements: operations, bytes };
        let best = timing::best(criterion, "gemm", name, throughput, || {
            let at = turn % ids.len();
            turn += 1;
            let clock = Clock::start(limits.threads);
            let ticket = backend.launch(ids[at], &recorded[at].1).expect("launches");
            backend.wait(ticket).expect("runs");
            clock.taken()
        });
        ids.into_iter().for_each(|id| backend.release(id));
        if let Some(best) = best {
            println!(
                "  {name}: best {:.3} ms, {:.1} GB/s, {:.0} Gop/s, {:.0} % of the limit",
                best * 1e3,
                bytes as f64 / best * 1e-9,
                operations as f64 / best * 1e-9,
                limits.seconds(bytes, operations, product) / best * 100.0
            );
        }
    }
}

const TABLE_ROWS: usize = 64;

/// Evenly spread within half of one around zero.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(|_| next()).collect()
}
