//! What the engine adds to a step: plan, batch, sample, commit, events, for a batch of sequences that generate. The device
//! answers at once with token 1, so that nothing but the engine is measured.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dualgauge::{Core, EngineConfig, Request, Sampling};
use dualgauge_kernels::{
    Backend, Batch, BatchShape, DeviceInfo, Format, HostTensor, KvSpec, Limits, NullOptions, Output, Probe, Program,
    ProgramId, Result, Ticket, Value, Weight, null_with,
};
use dualgauge_models::source::random::{LlamaShape, llama};

const SHAPE: LlamaShape = LlamaShape { layers: 1, context: 1 << 20, ..LlamaShape::TINY };

/// Always token 1.
struct AtOnce {
    null: Box<dyn Backend>,
    rows: usize,
}

impl Backend for AtOnce {
    fn info(&self) -> &DeviceInfo {
        self.null.info()
    }
    fn limits(&self) -> &Limits {
        self.null.limits()
    }
    fn round_up(&self, want: BatchShape) -> Option<BatchShape> {
        self.null.round_up(want)
    }
    fn upload(&mut self, tensor: HostTensor<'_>, format: Format) -> Result<Weight> {
        self.null.upload(tensor, format)
    }
    fn kv_budget(&self, largest: &Program) -> u64 {
        self.null.kv_budget(largest)
    }
    fn reserve_kv(&mut self, spec: &KvSpec, blocks: usize) -> Result<()> {
        self.null.reserve_kv(spec, blocks)
    }
    fn compile(&mut self, program: &Program) -> Result<ProgramId> {
        self.null.compile(program)
    }
    fn release(&mut self, program: ProgramId) {
        self.null.release(program);
    }
    fn launch(&mut self, _program: ProgramId, batch: &Batch) -> Result<Ticket> {
        self.rows = batch.shape.rows;
        Ok(Ticket(0))
    }
    fn wait(&mut self, _ticket: Ticket) -> Result<Output> {
        let (argmax, log_sum_exp) = (vec![1; self.rows], vec![0.0; self.rows]);
        Ok(Output { argmax, log_sum_exp, ..Output::default() })
    }
    fn probe(&mut self, program: ProgramId, v: Value) -> Result<Probe> {
        self.null.probe(program, v)
    }
}

/// A core in which `sequences` of about `context` tokens generate.
fn generating(sequences: usize, context: usize) -> Core {
    let mut null = null_with(NullOptions { kv_bytes: 1 << 40, ..NullOptions::default() });
    let model = llama(null.as_mut(), &SHAPE, 1).expect("a model of these sizes");
    let config = EngineConfig {
        max_num_seqs: sequences,
        max_num_batched_tokens: 8192,
        kv_blocks: Some(1 << 17),
        ..EngineConfig::default()
    };
    let mut core = Core::new(Box::new(AtOnce { null, rows: 0 }), model, &config).expect("it fits");
    for i in 0..sequences {
        let sampling = Sampling { ignore_eos: true, ..Sampling::default() };
        // No two prompts share a block.
        let prompt = (0..context).map(|p| (p % 16 * 13 + i) as u32 % 256).collect();
        core.add(Request::new(prompt, sampling)).expect("a valid request");
    }
    while core.step().expect("there is work").events.len() < sequences {}
    core
}

fn steps(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine step, device excluded");
    for (sequences, context) in [(1, 1000), (32, 1000), (256, 1000), (256, 4000)] {
        let mut core = generating(sequences, context);
        group.throughput(Throughput::Elements(sequences as u64));
        group.bench_function(BenchmarkId::new(format!("{sequences} sequences"), context), |b| {
            b.iter(|| core.step().expect("there is work"));
        });
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
