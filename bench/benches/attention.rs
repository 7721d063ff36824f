//! Attention of the CPU device, through the public door: thirty layers of SmolLM2-135M's attention in one step, and of a
//! shape with heads of 128. Decode reports the K/V bytes it reads, prefill its multiply-adds, each as a share of what this
//! machine can do.
//!
//! `cargo bench -p dualgauge-bench --bench attention -- [filter]`; names are
//! `HEADSxDIM/THREADS/decode/SEQUENCES@CONTEXT` and `.../prefill/TOKENS@CONTEXT`.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use dualgauge_bench::roofline::{Limits, Product};
use dualgauge_bench::timing;
use dualgauge_kernels::{
    AttnSpec, Backend, Batch, BatchShape, DeviceKind, DeviceSpec, Format, HostTensor, KvLayer, KvSpec, Recorder, Tail,
    Weight, open,
};

const LAYERS: usize = 30;
/// Heads, key heads, dimensions.
const SHAPES: [(usize, usize, usize); 2] = [(9, 3, 64), (8, 2, 128)];
const DECODE: [(usize, usize); 6] = [(1, 128), (1, 1024), (1, 8192), (4, 1024), (32, 256), (32, 1024)];
const PREFILL: [(usize, usize); 3] = [(128, 128), (512, 512), (512, 4096)];

fn main() {
    let mut criterion = timing::criterion(Duration::from_secs(1));
    for threads in [1, 2] {
        let limits = Limits::measure(threads);
        println!("limits, {threads} threads: read {:.1} GB/s; f32 {:.0} Gop/s", limits.read_gb_s, limits.f32_gop_s);
        for shape in SHAPES {
            let mut device = Device::new(threads, shape);
            for (seqs, context) in DECODE {
                device.bench(&mut criterion, &limits, "decode", seqs, 1, context);
            }
            for (tokens, context) in PREFILL {
                device.bench(&mut criterion, &limits, "prefill", 1, tokens, context);
            }
        }
    }
    criterion.final_summary();
}

struct Device {
    backend: Box<dyn Backend>,
    table: Weight,
    heads: usize,
    kv_heads: usize,
    dim: usize,
}

impl Device {
    fn new(threads: usize, (heads, kv_heads, dim): (usize, usize, usize)) -> Self {
        let spec = DeviceSpec { kind: DeviceKind::Cpu, threads: Some(threads), ..DeviceSpec::default() };
        let mut backend = open(&spec).expect("the CPU is there").backend;
        let width = (heads + 2 * kv_heads) * dim;
        let values: Vec<f32> = (0..TABLE_ROWS * width).map(|i| ((i * 7919 % 1999) as f32 - 999.0) / 1000.0).collect();
        let table = HostTensor::from_f32("table", [TABLE_ROWS, width], &values).expect("whole");
        let table = backend.upload(table, Format::F32).expect("uploads");
        let limits = backend.limits();
        let spec = KvSpec {
            layers: vec![KvLayer { kv_heads, k_dim: dim, v_dim: dim }; LAYERS],
            block_tokens: limits.block_tokens,
            dtype: limits.kv_dtype,
        };
        let blocks = 1 + 32 * 1024 / spec.block_tokens;
        backend.reserve_kv(&spec, blocks).expect("memory");
        Self { backend, table, heads, kv_heads, dim }
    }

    fn bench(
        &mut self,
        criterion: &mut Criterion,
        limits: &Limits,
        kind: &str,
        seqs: usize,
        query: usize,
        context: usize,
    ) {
        let Self { heads, kv_heads, dim, .. } = *self;
        let batch = self.batch(seqs, query, context);
        let program = self.program(batch.shape);
        let backend = self.backend.as_mut();
        let id = backend.compile(&program).expect("compiles");
        // Causal: the last query sees the whole context, the first all but the later queries.
        let pairs = LAYERS * seqs * (query * context - query * (query - 1) / 2);
        let operations = (pairs * heads * dim * 4) as u64;
        let cell = backend.limits().kv_dtype.bytes();
        let bytes = (LAYERS * seqs * context * kv_heads * dim * 2 * cell) as u64;
        let name = format!("{heads}x{dim}/{}t/{kind}/{}@{context}", limits.threads, seqs * query);
        let throughput = Throughput::ElementsAndBytes { elements: operations, bytes };
        let best = timing::best(criterion, "attention", &name, throughput, || {
            let start = Instant::now();
            let ticket = backend.launch(id, &batch).expect("launches");
            backend.wait(ticket).expect("runs");
            start.elapsed()
        });
        backend.release(id);
        if let Some(best) = best {
            println!(
                "  {name}: best {:.3} ms, {:.1} GB/s, {:.0} Gop/s, {:.0} % of the limit",
                best * 1e3,
                bytes as f64 / best * 1e-9,
                operations as f64 / best * 1e-9,
                limits.seconds(bytes, operations, Product::F32) / best * 100.0
            );
        }
    }

    /// One attention a layer, the result of each the queries of the next.
    fn program(&self, shape: BatchShape) -> dualgauge_kernels::Program {
        let Self { heads, kv_heads, dim, .. } = *self;
        let g = Recorder::new(shape, self.backend.limits().block_tokens);
        let x = g.embed(g.tokens(), self.table);
        let part = |start: usize, n: usize| g.reshape(g.narrow(x, start * dim, n * dim), [shape.tokens, n, dim]);
        let (mut q, k, v) = (part(0, heads), part(heads, kv_heads), part(heads + kv_heads, kv_heads));
        for layer in 0..LAYERS {
            let spec = AttnSpec::new(layer, (dim as f32).powf(-0.5));
            q = g.attention(q, k, v, spec);
        }
        let out = g.select_rows(g.reshape(q, [shape.tokens, heads * dim]));
        let logits = g.narrow(out, 0, 1);
        g.finish(logits, Tail { top_k: 0, logits: false, masked: false }).expect("keeps the rules")
    }

    /// Sequences that have `context` tokens after this step, of which it computes the last `query`.
    fn batch(&self, seqs: usize, query: usize, context: usize) -> Batch {
        let block_tokens = self.backend.limits().block_tokens;
        let blocks = context.div_ceil(block_tokens);
        let tokens = seqs * query;
        let shape = BatchShape { tokens, seqs, query, blocks, rows: 1 };
        let mut batch = Batch { shape, rows: vec![tokens as u32 - 1], ..Batch::default() };
        batch.query_start.push(0);
        for seq in 0..seqs {
            let first = 1 + seq * blocks;
            for position in context - query..context {
                batch.tokens.push((position % TABLE_ROWS) as u32);
                batch.positions.push(position as u32);
                batch.slots.push((first * block_tokens + position) as u32);
            }
            batch.query_start.push(batch.tokens.len() as u32);
            batch.context.push(context as u32);
            batch.block_table.extend((first..first + blocks).map(|b| b as u32));
        }
        batch
    }
}

const TABLE_ROWS: usize = 64;
