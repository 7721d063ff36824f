//! What a new shape costs before its first launch: recording the model, planning the arena, compiling for the CPU. The
//! programs are those of a 30-layer Llama; widths do not matter here and are small.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use dualgauge_kernels::{BatchShape, DeviceKind, DeviceSpec, KvSpec, Program, Recorder, Tail, open};
use dualgauge_models::Model;
use dualgauge_models::source::random::{LlamaShape, llama};

const SHAPE: LlamaShape = LlamaShape { layers: 30, ..LlamaShape::TINY };

fn record(model: &dyn Model, shape: BatchShape, block_tokens: usize) -> Program {
    let recorder = Recorder::new(shape, block_tokens);
    let logits = model.forward(&recorder);
    recorder.finish(logits, Tail::default()).expect("the model keeps the rules")
}

fn shapes(c: &mut Criterion) {
    let spec = DeviceSpec { kind: DeviceKind::Cpu, threads: Some(1), ..DeviceSpec::default() };
    let mut cpu = open(&spec).expect("the CPU is there").backend;
    let model = llama(cpu.as_mut(), &SHAPE, 1).expect("a model of these sizes");
    let (block_tokens, dtype) = (cpu.limits().block_tokens, cpu.limits().kv_dtype);
    let kv = KvSpec { layers: model.spec().kv_layers.clone(), block_tokens, dtype };
    cpu.reserve_kv(&kv, 64).expect("it fits");
    let mut group = c.benchmark_group("new shape, 30 layers");
    let decode = BatchShape { tokens: 32, seqs: 32, query: 1, blocks: 32, rows: 32 };
    let prefill = BatchShape { tokens: 512, seqs: 1, query: 512, blocks: 32, rows: 1 };
    for (name, shape) in [("decode 32", decode), ("prefill 512", prefill)] {
        group.bench_function(BenchmarkId::new("record", name), |b| {
            b.iter(|| record(model.as_ref(), shape, block_tokens));
        });
        let program = record(model.as_ref(), shape, block_tokens);
        group.bench_function(BenchmarkId::new("arena", name), |b| b.iter(|| program.arena()));
        group.bench_function(BenchmarkId::new("compile for the CPU", name), |b| {
            b.iter(|| {
                let id = cpu.compile(&program).expect("it compiles");
                cpu.release(id);
            });
        });
    }
}

criterion_group!(benches, shapes);
criterion_main!(benches);
