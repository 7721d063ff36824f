//! Owns the Neuron back end: Trainium and Inferentia through ahead-of-time compiled programs. A program becomes an HLO
//! graph ([`lower`]), `neuronx-cc` compiles it into a cache that outlives the process ([`compiler`], [`cache`]), and the
//! runtime library runs it ([`nrt`]). Weights are inputs that all programs share; K/V is updated in place.

mod ahead;
mod cache;
mod compiler;
mod doctor;
mod hlo;
mod ladder;
mod lower;
mod nrt;
mod planes;
mod step;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use ahead::{Built, NeuronAhead};
pub use doctor::{Finding, neuron_doctor};
pub use ladder::Ladder;

use crate::{
    Backend, Batch, BatchShape, Candidate, DType, DeviceInfo, DeviceSpec, Error, Format, HostTensor, KvSpec, Limits,
    Precision, Probe, Program, ProgramId, Result, Shape, Ticket, Value, Weight, WeightId,
};
use cache::Cache;
use compiler::{Compiler, Hardware, Phase};
use hlo::Port;
use lower::{Graph, Input, Output, Target};
use nrt::{Model, Runtime, Tensor, TensorSet};

const DEVICE: &str = "neuron";
/// Where compiled programs are kept when the caller does not say.
const CACHE: &str = "/var/tmp/dualgauge/neuron";
/// The one core this back end uses.
const CORE: u32 = 0;

/// What the Neuron back end may be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NeuronOptions {
    /// The runtime library; `None`: `libnrt.so.1` where the Neuron packages put it.
    pub libnrt: Option<PathBuf>,
    /// The compiler; `None`: `neuronx-cc` from the search path.
    pub compiler: Option<PathBuf>,
    /// Folder of compiled programs; `None`: one below `/var/tmp`. May be read-only when it holds all that is needed.
    pub cache_dir: Option<PathBuf>,
    /// Which shapes are compiled.
    pub ladder: Ladder,
    /// Never compile: a program that the cache lacks is an error.
    pub no_compile: bool,
    /// Cores that share a model; `None`: 1. More can be planned for, but not compiled or opened yet.
    pub cores: Option<usize>,
}

impl NeuronOptions {
    pub(crate) fn cores(&self) -> usize {
        self.cores.unwrap_or(1).max(1)
    }
}

/// True when the driver shows a device.
pub(crate) fn present() -> bool {
    Path::new("/dev/neuron0").exists()
}

pub(crate) fn open(spec: &DeviceSpec) -> Result<Box<dyn Backend>> {
    Ok(Box::new(Neuron::open(spec)?))
}

struct Neuron {
    info: DeviceInfo,
    limits: Limits,
    ladder: Ladder,
    precision: Precision,
    hardware: Hardware,
    cache: Cache,
    /// What there is for weights, cache and values: the same on every machine of a kind, so that a cache filled
    /// elsewhere fits.
    memory_bytes: u64,
    weight_bytes: u64,
    programs: HashMap<ProgramId, Loaded>,
    /// The planes of each weight.
    weights: Vec<Vec<Arc<Tensor>>>,
    kv: Option<Kv>,
    /// The result of the step under way: the runtime's calls return when a step is done.
    pending: Option<(Ticket, crate::Output)>,
    last: Option<(ProgramId, Vec<i32>)>,
    next: u32,
    steps: u64,
    runtime: Runtime,
}

/// The cache: a tensor for the keys and one for the values of each layer.
struct Kv {
    spec: KvSpec,
    blocks: usize,
    layers: Vec<[Arc<Tensor>; 2]>,
}

/// A compiled program with all its tensors in place.
struct Loaded {
    program: Program,
    graph: Graph,
    step: Arc<Tensor>,
    results: Vec<(Output, Arc<Tensor>)>,
    inputs: TensorSet,
    outputs: TensorSet,
    model: Model,
}

impl Neuron {
    fn open(spec: &DeviceSpec) -> Result<Self> {
        let options = &spec.neuron;
        let unavailable = |reason: String| Error::Unavailable { device: DEVICE.into(), reason };
        options.ladder.verify().map_err(unavailable)?;
        one_core(options)?;
        let runtime = Runtime::open(options.libnrt.as_deref(), 1)?;
        let facts = runtime.facts.clone();
        let hardware = Hardware::of_family(facts.family)
            .ok_or_else(|| unavailable(format!("instance family {} is not known to this build", facts.family)))?;
        let compiler = Compiler::find(options.compiler.as_deref());
        let (_, memory_bytes) = runtime.memory(CORE)?;
        let words = compiler.as_ref().map_or("no compiler".into(), |c| format!("neuronx-cc {}", c.version));
        let description = format!(
            "{} ({}), 1 of {} cores, runtime {}, {words}",
            hardware.target, facts.detail, facts.cores, facts.version
        );
        let simulated = facts.detail.starts_with("simulated");
        let info = DeviceInfo { name: DEVICE.into(), description, simulated, memory_bytes };
        let root = options.cache_dir.clone().unwrap_or_else(|| CACHE.into());
        Ok(Self {
            info,
            limits: limits(&options.ladder, spec.precision),
            ladder: options.ladder.clone(),
            precision: spec.precision,
            cache: Cache::new(root, compiler, options.no_compile),
            memory_bytes: memory_bytes.min(hardware.core_bytes),
            hardware,
            weight_bytes: 0,
            programs: HashMap::new(),
            weights: vec![],
            kv: None,
            pending: None,
            last: None,
            next: 0,
            steps: 0,
            runtime,
        })
    }

    /// Lowers, compiles or finds, loads, and puts every tensor in its place.
    fn load(&self, program: &Program, probe: Option<Value>) -> Result<Loaded> {
        let kv_blocks = self.kv.as_ref().map_or(0, |kv| kv.blocks);
        let target = Target { kv: self.kv.as_ref().map(|kv| &kv.spec), kv_blocks, precision: self.precision };
        let graph = lower::lower(program, target, probe)?;
        let (phase, what) = purpose(program);
        let found = self.cache.get(&graph.module.bytes, &self.hardware.flags(phase, 1), &what)?;
        tracing::info!("{what}: {}", if found.compiled { "compiled" } else { "from the cache" });
        let model = self.runtime.load(&found.neff, CORE)?;
        let interface = model.interface()?;
        let step = self.runtime.tensor(CORE, graph.step.len() * 4, "a step's integers")?;
        let mut inputs = self.runtime.set()?;
        for (input, port) in graph.inputs.iter().zip(&graph.module.inputs) {
            let name = self.match_port(&interface, port, false)?;
            match *input {
                Input::Step => inputs.add(name, &step)?,
                Input::Weight { id, plane } => inputs.add(name, &self.weights[id.0 as usize][plane])?,
                Input::Cache { layer, value } => inputs.add(name, self.cached(layer, value))?,
            }
        }
        let mut outputs = self.runtime.set()?;
        let mut results = vec![];
        for (output, port) in graph.outputs.iter().zip(&graph.module.outputs) {
            let name = self.match_port(&interface, port, true)?;
            if let Output::Cache { layer, value } = *output {
                // The same tensor on both sides: this is what updates it in place.
                outputs.add(name, self.cached(layer, value))?;
                continue;
            }
            let tensor = self.runtime.tensor(CORE, port.shape.bytes(), "a step's result")?;
            outputs.add(name, &tensor)?;
            results.push((*output, tensor));
        }
        Ok(Loaded { program: program.clone(), graph, step, results, inputs, outputs, model })
    }

    /// The compiled program's own name for `port`, with or without the suffix that marks shared memory.
    fn match_port<'a>(&self, interface: &'a [nrt::Interface], port: &Port, output: bool) -> Result<&'a str> {
        let bare = |name: &'a str| name.strip_suffix(".must_alias_input").unwrap_or(name);
        let wanted = port.name.strip_suffix(".must_alias_input").unwrap_or(&port.name);
        let found = interface.iter().find(|t| t.output == output && bare(&t.name) == wanted);
        let (side, bytes) = (if output { "output" } else { "input" }, port.shape.bytes());
        match found {
            Some(t) if t.bytes == bytes => Ok(&t.name),
            Some(t) => Err(Error::Compile {
                device: DEVICE,
                reason: format!("the compiled program's {side} {} has {} bytes, not {bytes}", t.name, t.bytes),
            }),
            None => Err(Error::Compile {
                device: DEVICE,
                reason: format!("the compiled program has no {side} named {wanted}; clear the compile cache"),
            }),
        }
    }

    fn cached(&self, layer: usize, value: bool) -> &Arc<Tensor> {
        let kv = self.kv.as_ref().expect("lowering refuses attention without a cache: this is a bug");
        &kv.layers[layer][usize::from(value)]
    }
}

impl Backend for Neuron {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn round_up(&self, want: BatchShape) -> Option<BatchShape> {
        self.ladder.round_up(want, self.limits.block_tokens)
    }

    fn accepts(&self, tensor: &HostTensor<'_>) -> bool {
        planes::fields(tensor.format).is_some() && tensor.order().is_none()
    }

    /// Bytes go to the device as they lie in the file, those of a quantised weight as planes.
    fn upload(&mut self, tensor: HostTensor<'_>, format: Format) -> Result<Weight> {
        let format = if tensor.shape.rank() <= 1 { Format::F32 } else { format };
        let fields = planes::fields(format).ok_or_else(|| planes::refused(format, &tensor.name))?;
        let bytes: Cow<'_, [u8]> = if tensor.format == format {
            tensor.bytes
        } else {
            let mut values = vec![0.0; tensor.shape.elements()];
            crate::format::decode(tensor.format, &tensor.bytes, &mut values);
            crate::format::encode(format, &values).into()
        };
        let mut held = vec![];
        for field in fields {
            let plane: Cow<'_, [u8]> = match fields.len() {
                1 => Cow::Borrowed(&bytes[..]),
                _ => planes::plane(format, &bytes, *field).into(),
            };
            let on_device = self.runtime.tensor(CORE, plane.len(), &format!("the weight {}", tensor.name))?;
            on_device.write(&plane)?;
            held.push(on_device);
        }
        let weight = Weight { id: WeightId(self.weights.len() as u32), shape: tensor.shape, format };
        self.weights.push(held);
        self.weight_bytes += weight.bytes();
        Ok(weight)
    }

    /// By arithmetic, not by what is free this moment: the count of blocks is part of every program.
    fn kv_budget(&self, largest: &Program) -> u64 {
        budget(self.weight_bytes, self.memory_bytes, largest)
    }

    fn reserve_kv(&mut self, spec: &KvSpec, blocks: usize) -> Result<()> {
        if spec.dtype != self.limits.kv_dtype || spec.block_tokens != self.limits.block_tokens {
            let what = format!("a cache of {} in blocks of {} tokens", spec.dtype, spec.block_tokens);
            return Err(Error::Unsupported { device: DEVICE, what });
        }
        let slots = blocks * spec.block_tokens;
        let tensor = |values: usize| -> Result<Arc<Tensor>> {
            let tensor = self.runtime.tensor(CORE, slots * values * spec.dtype.bytes(), "the K/V cache")?;
            // Masked keys are multiplied by zero, so what was never written must be a number.
            tensor.clear()?;
            Ok(tensor)
        };
        let layers = spec.layers.iter().map(|l| Ok([tensor(l.kv_heads * l.k_dim)?, tensor(l.kv_heads * l.v_dim)?]));
        let layers = layers.collect::<Result<Vec<_>>>()?;
        self.kv = Some(Kv { spec: spec.clone(), blocks, layers });
        Ok(())
    }

    fn compile(&mut self, program: &Program) -> Result<ProgramId> {
        program.verify()?;
        let loaded = self.load(program, None)?;
        let id = ProgramId(self.next);
        self.next += 1;
        self.programs.insert(id, loaded);
        Ok(id)
    }

    fn release(&mut self, program: ProgramId) {
        self.programs.remove(&program);
        self.last.take_if(|(last, _)| *last == program);
    }

    fn launch(&mut self, program: ProgramId, batch: &Batch) -> Result<Ticket> {
        let loaded = self.programs.get_mut(&program).expect("launched programs were compiled: this is a bug");
        check(batch, &loaded.program, self.kv.as_ref()).map_err(|reason| Error::Launch { device: DEVICE, reason })?;
        let packed = loaded.graph.step.pack(batch);
        loaded.step.write(bytemuck::cast_slice(&packed))?;
        loaded.model.execute(&loaded.inputs, &mut loaded.outputs)?;
        let output = loaded.output()?;
        self.last = Some((program, packed));
        self.steps += 1;
        self.pending = Some((Ticket(self.steps), output));
        Ok(Ticket(self.steps))
    }

    fn wait(&mut self, ticket: Ticket) -> Result<crate::Output> {
        match self.pending.take_if(|(held, _)| *held == ticket) {
            Some((_, output)) => Ok(output),
            None => Err(Error::Launch { device: DEVICE, reason: format!("step {} is not under way", ticket.0) }),
        }
    }

    /// Compiles the program once more with the value as an output, and runs the last step again: K/V is written with
    /// what is there.
    fn probe(&mut self, program: ProgramId, v: Value) -> Result<Probe> {
        let none = || Error::Launch { device: DEVICE, reason: "nothing was launched that could be looked at".into() };
        let (last, packed) = self.last.as_ref().ok_or_else(none)?;
        let loaded = self.programs.get(&program).filter(|_| *last == program).ok_or_else(none)?;
        let node = loaded.program.node(v);
        let (shape, dtype): (Shape, DType) = (node.shape, node.dtype);
        let mut probing = self.load(&loaded.program, Some(v))?;
        probing.step.write(bytemuck::cast_slice(packed))?;
        probing.model.execute(&probing.inputs, &mut probing.outputs)?;
        let values = probing.read(Output::Probe)?.map_or(vec![], |bytes| floats(&bytes));
        Ok(Probe { shape, dtype, values })
    }
}

impl Loaded {
    fn output(&self) -> Result<crate::Output> {
        let ids = |bytes: Vec<u8>| -> Vec<u32> { bytes.chunks_exact(4).map(word).collect() };
        let argmax = self.read(Output::Argmax)?.map_or(vec![], ids);
        let top_ids = self.read(Output::TopIds)?.map_or(vec![], ids);
        let top_values = self.read(Output::TopValues)?.map_or(vec![], |b| floats(&b));
        let top = top_ids.into_iter().zip(top_values).map(|(id, logit)| Candidate { id, logit }).collect();
        let log_sum_exp = self.read(Output::LogSumExp)?.map_or(vec![], |b| floats(&b));
        let logits = self.read(Output::Logits)?.map(|b| floats(&b));
        Ok(crate::Output { argmax, top, log_sum_exp, logits })
    }

    fn read(&self, wanted: Output) -> Result<Option<Vec<u8>>> {
        self.results.iter().find(|(what, _)| *what == wanted).map(|(_, tensor)| tensor.read()).transpose()
    }
}

/// That every index of the batch names something: the device faults on one that does not.
fn check(batch: &Batch, program: &Program, kv: Option<&Kv>) -> Result<(), String> {
    if batch.shape != program.shape {
        return Err(format!("a batch of {:?} for a program of {:?}", batch.shape, program.shape));
    }
    if let Some(kv) = kv {
        batch.verify(kv.spec.block_tokens, kv.blocks)?;
    }
    program.finds_rows(batch)?;
    let shape = batch.shape;
    let apart = (0..shape.seqs).all(|seq| batch.query(seq).is_empty() || batch.query(seq).start == seq);
    if shape.seqs > 1 && !apart {
        return Err("a decode step has one token a sequence, in order".into());
    }
    Ok(())
}

/// # Errors
/// [`Error::Unsupported`] when more than one core is asked for.
fn one_core(options: &NeuronOptions) -> Result<()> {
    match options.cores() {
        1 => Ok(()),
        n => Err(Error::Unsupported { device: DEVICE, what: format!("one model on {n} cores yet: leave out --tp") }),
    }
}

/// What a device with these buckets can do.
fn limits(ladder: &Ladder, precision: Precision) -> Limits {
    Limits {
        mixed: false,
        prefill_seqs: 1,
        max_tokens: ladder.max_tokens(),
        max_seqs: ladder.max_seqs(),
        block_tokens: 16,
        max_top_k: 64,
        activations: DType::F32,
        kv_dtype: if precision == Precision::Exact { DType::F32 } else { DType::Bf16 },
    }
}

/// What is left for K/V beside weights, the largest program's own values, and one part in sixteen for compiled code.
fn budget(weight_bytes: u64, memory_bytes: u64, largest: &Program) -> u64 {
    let values = 2 * largest.arena().peak_bytes as u64;
    memory_bytes.saturating_sub(weight_bytes).saturating_sub(values).saturating_sub(memory_bytes / 16)
}

/// What a program is for, for the compiler and in words.
fn purpose(program: &Program) -> (Phase, String) {
    let shape = program.shape;
    let phase = if shape.query > 1 { Phase::Prefill } else { Phase::Decode };
    let context = shape.blocks * program.block_tokens;
    let tail = match program.tail {
        crate::Tail { logits: true, .. } => ", all logits",
        crate::Tail { top_k: 0, .. } => "",
        _ => ", candidates",
    };
    (phase, format!("program for {phase:?} of {} tokens, context {context}{tail}", shape.tokens).to_lowercase())
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_bits(word(b))).collect()
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("chunks of four: this is a bug"))
}
