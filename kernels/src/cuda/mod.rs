//! Owns the CUDA back end: programs become launch lists over fixed addresses, captured as graphs. Everything that
//! touches the driver is in `driver`; the door is [`probe`], which never panics and says why there is no device.
//!
//! Values are f32; bf16 weights multiply bf16-rounded activations on the tensor cores with f32 sums, or everything in
//! f32 under [`Precision::Exact`]. No float atomics, no split that depends on the batch: results of a row are the same
//! bits in any batch.

mod driver;
mod nvrtc;
mod pack;
mod plan;
mod staging;

use std::path::PathBuf;
use std::sync::Arc;

pub use nvrtc::{Cubin, compile_kernels, kernel_source_hash};
pub use pack::{kernel_architectures, kernel_pack};

use driver::{Device, Graph, Launch, Memory, Module};
use staging::Staging;

use crate::{
    Arena, Backend, Batch, BatchShape, Candidate, DType, DeviceInfo, DeviceKind, DeviceSpec, Error, Format, HostTensor,
    KvSpec, Limits, Output, Precision, Probe, Program, ProgramId, Result, Ticket, Value, Weight, WeightId,
};

/// How the CUDA back end runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CudaOptions {
    /// Launch kernels one by one instead of replaying captured graphs: the same bits, for debugging.
    pub direct: bool,
    /// A driver library to use in place of the system's `libcuda.so.1`: the emulator, in tests.
    pub library: Option<PathBuf>,
}

/// The number of CUDA devices, or the sentence that says why there is none.
pub(crate) fn probe() -> std::result::Result<usize, String> {
    driver::probe()
}

pub(crate) fn open(spec: &DeviceSpec) -> Result<Box<dyn Backend>> {
    if let Some(library) = &spec.cuda.library {
        driver::load(library)?;
    }
    let ordinal = if let DeviceKind::Cuda(n) = spec.kind { n } else { 0 };
    let device = Device::open(ordinal)?;
    let (major, minor) = device.compute_capability;
    let image = pack::image(device.compute_capability)?;
    let module = device.load(&image)?;
    let info = DeviceInfo {
        name: format!("cuda:{}", device.ordinal),
        description: format!(
            "{}, compute capability {major}.{minor}, {} multiprocessors, driver {}.{}",
            device.name,
            device.multiprocessors,
            device.driver_version / 1000,
            device.driver_version % 1000 / 10
        ),
        simulated: device.name == "CUDA emulator",
        memory_bytes: device.memory_bytes,
    };
    let limits = Limits {
        mixed: true,
        prefill_seqs: usize::MAX,
        max_tokens: MAX_TOKENS,
        max_seqs: MAX_TOKENS,
        block_tokens: 16,
        max_top_k: 64,
        activations: DType::F32,
        kv_dtype: if spec.precision == Precision::Exact { DType::F32 } else { DType::Bf16 },
    };
    Ok(Box::new(Cuda {
        device,
        module,
        info,
        limits,
        precision: spec.precision,
        direct: spec.cuda.direct,
        weights: vec![],
        cache: None,
        arena: None,
        arena_life: 0,
        programs: vec![],
        tickets: 0,
    }))
}

/// Tokens of a step: the grid's second dimension.
const MAX_TOKENS: usize = 65_535;
/// The part of free memory that is left to the driver and to growth of the arena.
const SPARE_BYTES: u64 = 512 << 20;

struct Cuda {
    device: Arc<Device>,
    module: Module,
    info: DeviceInfo,
    limits: Limits,
    precision: Precision,
    direct: bool,
    weights: Vec<Memory>,
    cache: Option<Cache>,
    /// One block for the values of whatever program runs; a larger one takes its place when a program needs it.
    arena: Option<Memory>,
    /// Counts the arenas there were: a program captured over an earlier one is planned again.
    arena_life: u64,
    programs: Vec<Option<Compiled>>,
    tickets: u64,
}

struct Cache {
    spec: KvSpec,
    blocks: usize,
    layers: Vec<(Memory, Memory)>,
}

struct Compiled {
    program: Program,
    arena: Arena,
    staging: Staging,
    words: Memory,
    planned: Option<Planned>,
    last: Option<Batch>,
}

struct Planned {
    arena_life: u64,
    launches: Vec<(usize, Launch)>,
    graph: Option<Graph>,
}

impl Backend for Cuda {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A ladder of powers of two, so that few programs are captured: decode steps differ in tokens and blocks alone.
    fn round_up(&self, want: BatchShape) -> Option<BatchShape> {
        if want.tokens > MAX_TOKENS || want.seqs > MAX_TOKENS {
            return None;
        }
        let up = |n: usize| n.max(1).next_power_of_two();
        let tokens = up(want.tokens).min(MAX_TOKENS);
        Some(BatchShape {
            tokens,
            seqs: up(want.seqs).min(MAX_TOKENS),
            query: if want.query <= 1 { 1 } else { tokens },
            blocks: up(want.blocks).max(16),
            rows: up(want.rows),
        })
    }

    fn upload(&mut self, tensor: HostTensor<'_>, format: Format) -> Result<Weight> {
        self.device.enter()?;
        let format = if tensor.shape.rank() == 1 { Format::F32 } else { format };
        if format.is_quantised() {
            let what = format!("{} as {format} yet; leave out --quantize, or use --device cpu", tensor.name);
            return Err(Error::Unsupported { device: "cuda", what });
        }
        let converted;
        let bytes: &[u8] = match tensor.format == format {
            true => &tensor.bytes,
            false => {
                converted = crate::format::encode(format, &tensor.to_f32());
                &converted
            }
        };
        let memory = self.device.allocate(bytes.len(), &tensor.name)?;
        memory.write(0, bytes)?;
        self.device.synchronize()?;
        self.weights.push(memory);
        Ok(Weight { id: WeightId(self.weights.len() as u32 - 1), shape: tensor.shape, format })
    }

    fn kv_budget(&self, largest: &Program) -> u64 {
        let arena = plan::arena_bytes(largest, &largest.arena()) as u64;
        let held = self.arena.as_ref().map_or(0, |a| a.bytes() as u64);
        let free = self.device.free_bytes().unwrap_or(0);
        (free + held).saturating_sub(arena + SPARE_BYTES)
    }

    fn reserve_kv(&mut self, spec: &KvSpec, blocks: usize) -> Result<()> {
        let slots = blocks * spec.block_tokens;
        let mut layers = vec![];
        for l in &spec.layers {
            let make = |dim: usize| {
                let memory = self.device.allocate(slots * l.kv_heads * dim * spec.dtype.bytes(), "the K/V cache")?;
                memory.zero()?;
                Ok::<_, Error>(memory)
            };
            layers.push((make(l.k_dim)?, make(l.v_dim)?));
        }
        self.cache = Some(Cache { spec: spec.clone(), blocks, layers });
        self.device.synchronize()
    }

    fn compile(&mut self, program: &Program) -> Result<ProgramId> {
        self.device.enter()?;
        let arena = program.arena();
        let staging = Staging::new(program.shape, program.vocab(), program.tail.masked);
        let words = self.device.allocate(staging.words * 4, "a program's batch")?;
        let needed = plan::arena_bytes(program, &arena);
        if self.arena.as_ref().is_none_or(|a| a.bytes() < needed) {
            self.arena = None; // freed before the larger one is taken
            self.arena_life += 1;
            self.arena = Some(self.device.allocate(needed, "a program's values")?);
        }
        let mut compiled = Compiled { program: program.clone(), arena, staging, words, planned: None, last: None };
        compiled.planned = Some(self.plan(&compiled)?);
        let free = self.programs.iter().position(Option::is_none).unwrap_or_else(|| {
            self.programs.push(None);
            self.programs.len() - 1
        });
        self.programs[free] = Some(compiled);
        Ok(ProgramId(free as u32))
    }

    fn release(&mut self, program: ProgramId) {
        if let Some(slot) = self.programs.get_mut(program.0 as usize) {
            *slot = None;
        }
    }

    fn launch(&mut self, program: ProgramId, batch: &Batch) -> Result<Ticket> {
        self.device.enter()?;
        let mut compiled = self.take(program)?;
        let started = self.start(&mut compiled, batch);
        self.programs[program.0 as usize] = Some(compiled);
        started?;
        self.tickets += 1;
        Ok(Ticket(u64::from(program.0) << 32 | self.tickets & 0xffff_ffff))
    }

    fn wait(&mut self, ticket: Ticket) -> Result<Output> {
        self.device.enter()?;
        let compiled = self.compiled(ProgramId((ticket.0 >> 32) as u32))?;
        let (program, outputs) = (&compiled.program, compiled.program.outputs);
        let argmax = self.read_u32(compiled, outputs.argmax)?;
        let log_sum_exp = floats(&self.read_u32(compiled, outputs.log_sum_exp)?);
        let top = match outputs.top {
            Some(v) => bytemuck::cast_slice::<u32, Candidate>(&self.read_u32(compiled, v)?).to_vec(),
            None => vec![],
        };
        let logits = match program.tail.logits {
            true => Some(floats(&self.read_u32(compiled, outputs.logits)?)),
            false => None,
        };
        Ok(Output { argmax, top, log_sum_exp, logits })
    }

    /// Launches the last batch again, up to `v`.
    fn probe(&mut self, program: ProgramId, v: Value) -> Result<Probe> {
        self.device.enter()?;
        let compiled = self.compiled(program)?;
        let batch = compiled.last.as_ref().ok_or_else(|| launch_error("nothing was launched yet".into()))?;
        let node = compiled.program.node(v);
        let (shape, dtype) = (node.shape, node.dtype);
        let staged = match node.op {
            crate::Op::Tokens => Some(&batch.tokens),
            crate::Op::Positions => Some(&batch.positions),
            _ => None,
        };
        if let Some(staged) = staged {
            return Ok(Probe { shape, dtype, values: staged.iter().map(|t| *t as f32).collect() });
        }
        let planned = compiled.planned.as_ref().expect("a launched program is planned: this is a bug");
        for (_, launch) in planned.launches.iter().take_while(|(node, _)| *node <= v.index()) {
            self.device.launch(launch)?;
        }
        let words = self.read_u32(compiled, v)?;
        let values = match dtype {
            DType::U32 => words.iter().map(|w| *w as f32).collect(),
            DType::Pair => {
                words.iter().enumerate().map(|(i, w)| if i % 2 == 0 { *w as f32 } else { f32::from_bits(*w) }).collect()
            }
            _ => floats(&words),
        };
        Ok(Probe { shape, dtype, values })
    }
}

impl Cuda {
    fn plan(&mut self, compiled: &Compiled) -> Result<Planned> {
        let cache: Vec<(u64, u64)> =
            self.cache.iter().flat_map(|c| &c.layers).map(|(k, v)| (k.address(), v.address())).collect();
        let (weights, module) = (&self.weights, &mut self.module);
        let planner = plan::Planner {
            program: &compiled.program,
            arena: &compiled.arena,
            staging: compiled.staging,
            kv: self.cache.as_ref().map(|c| &c.spec),
            precision: self.precision,
            arena_address: self.arena.as_ref().expect("compile has made an arena: this is a bug").address(),
            staging_address: compiled.words.address(),
            cache: &cache,
            weight: &|id| weights[id.0 as usize].address(),
            function: &mut |name| module.function(name),
        };
        Ok(Planned { arena_life: self.arena_life, launches: planner.launches()?, graph: None })
    }

    /// Copies the batch and starts its launches; the first time of a program also captures them.
    fn start(&mut self, compiled: &mut Compiled, batch: &Batch) -> Result<()> {
        let blocks = self.cache.as_ref().map_or(0, |c| c.blocks);
        batch.verify(self.limits.block_tokens, blocks).map_err(launch_error)?;
        if batch.shape != compiled.program.shape {
            return Err(launch_error("the batch has another shape than the program".into()));
        }
        if compiled.planned.as_ref().is_none_or(|p| p.arena_life != self.arena_life) {
            compiled.planned = Some(self.plan(compiled)?);
        }
        let words = compiled.staging.pack(batch);
        compiled.words.write(0, bytemuck::cast_slice(&words))?;
        compiled.last = Some(batch.clone());
        let planned = compiled.planned.as_mut().expect("planned above: this is a bug");
        let (device, launches) = (&self.device, &planned.launches);
        let all = || launches.iter().try_for_each(|(_, l)| device.launch(l));
        if self.direct {
            return all();
        }
        if planned.graph.is_none() {
            planned.graph = Some(device.capture(all)?);
        }
        planned.graph.as_ref().expect("captured above: this is a bug").launch()
    }

    fn compiled(&self, program: ProgramId) -> Result<&Compiled> {
        let slot = self.programs.get(program.0 as usize).and_then(Option::as_ref);
        slot.ok_or_else(|| launch_error("the program was released".into()))
    }

    fn take(&mut self, program: ProgramId) -> Result<Compiled> {
        let slot = self.programs.get_mut(program.0 as usize).and_then(Option::take);
        slot.ok_or_else(|| launch_error("the program was released".into()))
    }

    /// A value's 32-bit words, from the arena.
    fn read_u32(&self, compiled: &Compiled, v: Value) -> Result<Vec<u32>> {
        let node = compiled.program.node(v);
        let words = match node.dtype {
            DType::Pair => node.shape.elements() * 2,
            _ => node.shape.elements(),
        };
        let mut out = vec![0u32; words];
        let arena = self.arena.as_ref().expect("a launched program has an arena: this is a bug");
        arena.read(compiled.arena.offset(v), bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }
}

fn launch_error(reason: String) -> Error {
    Error::Launch { device: "cuda", reason }
}

fn floats(words: &[u32]) -> Vec<f32> {
    words.iter().map(|w| f32::from_bits(*w)).collect()
}
