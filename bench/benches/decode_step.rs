//! A whole decode step of SmolLM2-135M's shapes (random weights) on the CPU: 1, 8 and 32 sequences at 256 tokens of context
//! each. Prints tokens a second, GB/s and GFLOP/s, and the share of the time that this machine's limits allow.
//!
//! `cargo bench -p dualgauge-bench --bench decode_step -- [filter]`; names are `decode step/FORMAT/SEQUENCES`.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use dualgauge_bench::roofline::{Limits, Product};
use dualgauge_kernels::{Batch, BatchShape, DeviceKind, DeviceSpec, Format, KvSpec, Recorder, Tail, open};
use dualgauge_models::source::random::{LlamaShape, llama};

const CONTEXT: usize = 256;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .without_plots()
        .configure_from_args();
    let limits = Limits::measure(2);
    println!(
        "limits, {} threads: read {:.1} GB/s; bf16 {:.0}, int8 {:.0} Gop/s",
        limits.threads, limits.read_gb_s, limits.bf16_gop_s, limits.int8_gop_s
    );
    for (format, product) in
        [(Format::Bf16, Product::Bf16), (Format::Q8_0, Product::Int8), (Format::Q4_0, Product::Int8)]
    {
        for seqs in [1, 8, 32] {
            step(&mut criterion, &limits, format, product, seqs);
        }
    }
    criterion.final_summary();
}

fn step(criterion: &mut Criterion, limits: &Limits, format: Format, product: Product, seqs: usize) {
    let spec = DeviceSpec { kind: DeviceKind::Cpu, threads: Some(limits.threads), ..DeviceSpec::default() };
    let mut cpu = open(&spec).expect("the CPU is there").backend;
    let model = llama(cpu.as_mut(), &LlamaShape { format, ..LlamaShape::SMOLLM2_135M }, 1).expect("a model");
    let (block_tokens, dtype) = (cpu.limits().block_tokens, cpu.limits().kv_dtype);
    let blocks = CONTEXT.div_ceil(block_tokens);
    let kv = KvSpec { layers: model.spec().kv_layers.clone(), block_tokens, dtype };
    cpu.reserve_kv(&kv, seqs * blocks + 1).expect("the cache fits");
    let shape = BatchShape { tokens: seqs, seqs, query: 1, blocks, rows: seqs };
    let recorder = Recorder::new(shape, block_tokens);
    let logits = model.forward(&recorder);
    let program = recorder.finish(logits, Tail::default()).expect("the model keeps the rules");
    let id = cpu.compile(&program).expect("it compiles");
    let batch = batch(shape, block_tokens);
    let mut run = || {
        let ticket = cpu.launch(id, &batch).expect("launches");
        cpu.wait(ticket).expect("runs")
    };
    let mut seconds = vec![];
    criterion.bench_with_input(BenchmarkId::new(format!("decode step/{format}"), seqs), &(), |b, ()| {
        b.iter_custom(|rounds| {
            let start = std::time::Instant::now();
            (0..rounds).for_each(|_| drop(std::hint::black_box(run())));
            let taken = start.elapsed();
            seconds.push(taken.as_secs_f64() / rounds as f64);
            taken
        });
    });
    if seconds.is_empty() {
        return; // filtered out
    }
    seconds.sort_by(f64::total_cmp);
    let (taken, cost) = (seconds[seconds.len() / 2], program.cost());
    let limit = limits.seconds(cost.bytes, cost.flops, product);
    println!(
        "  {:.0} tok/s, {:.1} GB/s, {:.0} GFLOP/s: {:.0} % of this machine's limit",
        seqs as f64 / taken,
        cost.bytes as f64 / taken / 1e9,
        cost.flops as f64 / taken / 1e9,
        100.0 * limit / taken
    );
}

/// Every sequence has its own blocks and feeds its last token.
fn batch(shape: BatchShape, block_tokens: usize) -> Batch {
    let last = CONTEXT - 1;
    let block_table: Vec<u32> = (1..=(shape.seqs * shape.blocks) as u32).collect();
    let slot = |seq: usize| {
        block_table[seq * shape.blocks + last / block_tokens] as usize * block_tokens + last % block_tokens
    };
    Batch {
        shape,
        tokens: (0..shape.seqs as u32).collect(),
        positions: vec![last as u32; shape.seqs],
        slots: (0..shape.seqs).map(|s| slot(s) as u32).collect(),
        query_start: (0..=shape.seqs as u32).collect(),
        context: vec![CONTEXT as u32; shape.seqs],
        block_table: block_table.clone(),
        rows: (0..shape.seqs as u32).collect(),
        ..Batch::default()
    }
}
