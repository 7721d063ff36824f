//! Owns the CPU device: an interpreter of programs over threaded vector kernels. Weights are repacked once at upload; the
//! order of every sum is fixed by shapes and positions, never by the number of rows or threads. It knows no model.
//!
//! Reading order: this file (the device), `schedule` (compile), `run` (interpret), then the kernels.

mod attention;
mod buffer;
mod experts;
mod heads;
mod isa;
mod kv;
mod lanes;
#[cfg(test)]
mod laws;
mod machine;
mod math;
mod matrix;
mod pool;
mod product;
mod recurrent;
mod round;
mod router;
mod rows;
mod rowwise;
mod run;
mod schedule;
mod state;
mod tail;
mod tile;
mod topology;

use std::any::Any;
use std::borrow::Cow;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::ThreadId;

use self::buffer::{Buffer, Shelf};
use self::isa::Isa;
use self::kv::{BLOCK_TOKENS, KvCache};
use self::lanes::Vectors;
use self::matrix::Matrix;
use self::pool::Pool;
use self::run::{Runner, Scratch, Stored, Values, Weights};
use self::schedule::Schedule;
use self::state::States;
pub(crate) use self::topology::parse_list;
use crate::backend::{Backend, DeviceInfo, DeviceSpec, Limits, Output, Precision, ProgramId, Ticket};
use crate::{
    Batch, BatchShape, Candidate, DType, Error, Format, HostTensor, KvSpec, Op, Probe, Program, Result, StateLayer,
    Value, Weight, WeightId,
};

/// Looks (about 15 ns each) at an idle pool before a worker parks: longer than the host's work between two steps.
const SPINS: usize = 40_000;
/// Most candidates of a row; the tail keeps them in a sorted list.
const MAX_TOP_K: usize = 64;

/// Opens the CPU.
///
/// # Errors
/// An instruction-set path that does not exist or that this machine lacks; no threads; processors that they cannot have.
pub(crate) fn open(spec: &DeviceSpec) -> Result<Box<dyn Backend>> {
    let isa = spec.isa.as_deref().map_or_else(|| Ok(Isa::detect()), Isa::parse)?;
    let placement = machine::placement(spec.threads, &spec.affinity)?;
    // Before the threads start: they inherit it.
    let memory = machine::interleave(&placement.nodes).map_or(String::new(), |memory| format!(", {memory}"));
    let bound = placement.bound.clone();
    let spins = if placement.crowded { 0 } else { SPINS };
    let pool = Pool::placed(placement.threads, spins, move |thread| {
        if let Some(cpu) = bound.get(thread) {
            machine::bind(*cpu);
        }
    })?;
    let description = format!(
        "{}, {}{memory}, {} ({})",
        machine::processor(),
        placement.describe(),
        isa.name(),
        machine::features().join(" ")
    );
    let info = DeviceInfo { name: DEVICE.into(), description, simulated: false, memory_bytes: machine::total_bytes() };
    let limits = Limits {
        mixed: true,
        prefill_seqs: usize::MAX,
        max_tokens: 1 << 16,
        max_seqs: 1 << 16,
        block_tokens: BLOCK_TOKENS,
        max_top_k: MAX_TOP_K,
        activations: DType::F32,
        kv_dtype: if spec.precision == Precision::Exact { DType::F32 } else { DType::Bf16 },
    };
    Ok(Box::new(Cpu {
        info,
        limits,
        isa,
        vectors: vectors(isa),
        precision: spec.precision,
        scratch: Scratch::new(pool.threads()),
        pool,
        bound: placement.bound.first().copied(),
        owner: None,
        shelf: Shelf::default(),
        weights: Weights::default(),
        cache: None,
        states: None,
        programs: HashMap::new(),
        next_program: 0,
        arena: Buffer::zeroed(0),
        launches: 0,
        done: None,
        last: None,
    }))
}

/// Names of the instruction-set paths that this machine can run, best first.
pub(crate) fn isa_paths() -> Vec<&'static str> {
    Isa::paths().into_iter().map(Isa::name).collect()
}

const DEVICE: &str = "cpu";

struct Cpu {
    info: DeviceInfo,
    limits: Limits,
    isa: Isa,
    vectors: Vectors,
    precision: Precision,
    pool: Pool,
    /// Processor of the thread that launches, which is the pool's first.
    bound: Option<usize>,
    /// The thread that was bound to it.
    owner: Option<ThreadId>,
    /// Memory of the weights.
    shelf: Shelf,
    weights: Weights,
    cache: Option<KvCache>,
    states: Option<States>,
    programs: HashMap<ProgramId, Compiled>,
    next_program: u32,
    /// One for all programs, as large as the largest asks for.
    arena: Buffer,
    scratch: Scratch,
    launches: u64,
    done: Option<(u64, Output)>,
    /// What ran last, for the microscope.
    last: Option<(ProgramId, Batch)>,
}

struct Compiled {
    program: Program,
    schedule: Schedule,
}

impl Backend for Cpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Any shape runs. The width of the block table, on which nothing here depends, goes in powers of two, and the longest
    /// query is all tokens, so that a growing context does not ask for a new program every block.
    fn round_up(&self, want: BatchShape) -> Option<BatchShape> {
        let fits = want.tokens <= self.limits.max_tokens && want.seqs <= self.limits.max_seqs;
        fits.then(|| BatchShape {
            query: want.tokens.max(want.query),
            blocks: want.blocks.next_power_of_two().max(16),
            ..want
        })
    }

    /// Every format; inputs in another order in matrices, not in experts.
    fn accepts(&self, tensor: &HostTensor<'_>) -> bool {
        tensor.order().is_none() || tensor.shape.rank() == 2
    }

    fn upload(&mut self, tensor: HostTensor<'_>, format: Format) -> Result<Weight> {
        let (shape, isa, precision) = (tensor.shape, self.isa, self.precision);
        let (pool, shelf) = (&self.pool, &mut self.shelf);
        let (stored, format) = match *shape.dims() {
            [_] => (Stored::Vector(tensor.to_f32()), Format::F32),
            [_, _] => (Stored::Matrix(Matrix::pack(pool, shelf, &tensor, format, isa, precision)?), format),
            [experts, out, inner] => {
                let bytes = tensor.bytes.len() / experts.max(1);
                let one = |e: usize| {
                    let part = Cow::Borrowed(&tensor.bytes[e * bytes..(e + 1) * bytes]);
                    let part = HostTensor::new(format!("{}[{e}]", tensor.name), [out, inner], tensor.format, part)?;
                    Matrix::pack(pool, shelf, &part, format, isa, precision)
                };
                (Stored::Experts((0..experts).map(one).collect::<Result<_>>()?), format)
            }
            _ => {
                let what = format!("a weight of shape {shape} ({}); vectors, matrices and stacks of them", tensor.name);
                return Err(Error::Unsupported { device: DEVICE, what });
            }
        };
        self.weights.0.push(stored);
        Ok(Weight { id: WeightId(self.weights.0.len() as u32 - 1), shape, format })
    }

    /// Half of what is left: pages come when they are written, and other processes want memory too.
    fn kv_budget(&self, largest: &Program) -> u64 {
        // Beside the arena: packed rows and what attention keeps, never more than the arena once again.
        let arena = Schedule::make(largest, false).map_or(0, |s| s.arena_bytes) as u64 * 2;
        machine::available_bytes().saturating_sub(arena) / 2
    }

    fn reserve_kv(&mut self, spec: &KvSpec, blocks: usize) -> Result<()> {
        self.cache = Some(KvCache::reserve(spec, blocks)?);
        Ok(())
    }

    fn reserve_state(&mut self, layers: &[StateLayer], slots: usize) -> Result<()> {
        self.states = Some(States::reserve(layers, slots)?);
        Ok(())
    }

    fn compile(&mut self, program: &Program) -> Result<ProgramId> {
        self.check(program)?;
        let schedule = Schedule::make(program, false)?;
        self.grow(schedule.arena_bytes);
        let id = ProgramId(self.next_program);
        self.next_program += 1;
        self.programs.insert(id, Compiled { program: program.clone(), schedule });
        Ok(id)
    }

    fn release(&mut self, program: ProgramId) {
        self.programs.remove(&program);
    }

    fn launch(&mut self, program: ProgramId, batch: &Batch) -> Result<Ticket> {
        let compiled = self.programs.remove(&program).ok_or_else(|| failed("the program was released"))?;
        let done = self.step(&compiled.program, &compiled.schedule, batch);
        let output = done.map(|()| self.output(&compiled));
        self.programs.insert(program, compiled);
        let output = output?;
        match &mut self.last {
            Some((id, last)) => {
                *id = program;
                last.clone_from(batch);
            }
            none => *none = Some((program, batch.clone())),
        }
        self.launches += 1;
        self.done = Some((self.launches, output));
        Ok(Ticket(self.launches))
    }

    fn wait(&mut self, ticket: Ticket) -> Result<Output> {
        match self.done.take() {
            Some((launch, output)) if launch == ticket.0 => Ok(output),
            _ => Err(failed("the ticket is not that of the last launch")),
        }
    }

    /// Runs the last batch once more, with memory of its own for every value. What the step writes into the cache is what
    /// is there already; a state would be gone on from twice.
    fn probe(&mut self, program: ProgramId, v: Value) -> Result<Probe> {
        let batch = match self.last.take() {
            Some((id, batch)) if id == program => batch,
            last => {
                self.last = last;
                return Err(failed("the program to look into is not the one that ran last"));
            }
        };
        let goes_on = (0..batch.shape.seqs).any(|seq| !batch.query(seq).is_empty() && !batch.begins(seq));
        let compiled = self.programs.remove(&program).ok_or_else(|| failed("the program was released"))?;
        if goes_on && compiled.program.keeps_state() {
            self.programs.insert(program, compiled);
            let what = "looking into a step that went on from a state; look at one that begins its sequences".into();
            return Err(Error::Unsupported { device: DEVICE, what });
        }
        let done = Schedule::make(&compiled.program, true).and_then(|schedule| {
            self.grow(schedule.arena_bytes);
            self.step(&compiled.program, &schedule, &batch)?;
            Ok(schedule)
        });
        self.last = Some((program, batch));
        let node = compiled.program.nodes.get(v.index()).cloned();
        self.programs.insert(program, compiled);
        let (schedule, node) = (done?, node.ok_or_else(|| failed("the program has no such value"))?);
        let (values, span) = (Values::new(&mut self.arena), schedule.spans[v.index()]);
        // SAFETY: the step has ended; the span is of this type.
        let values = unsafe {
            match node.dtype {
                DType::U32 => values.read::<u32>(span).iter().map(|x| *x as f32).collect(),
                DType::Pair => values.read::<Candidate>(span).iter().flat_map(|c| [c.id as f32, c.logit]).collect(),
                _ => values.read::<f32>(span).to_vec(),
            }
        };
        Ok(Probe { shape: node.shape, dtype: node.dtype, values })
    }
}

impl Cpu {
    /// What the kernels rely on, beside what [`Program::verify`] checks.
    fn check(&self, program: &Program) -> Result<()> {
        program.verify()?;
        program.verify_state(self.states.as_ref().map_or(&[], |s| &s.layers))?;
        let unsupported = |what: String| Err(Error::Unsupported { device: DEVICE, what });
        for node in &program.nodes {
            if let Some(w) = node.op.weights().iter().find(|w| w.id.0 as usize >= self.weights.0.len()) {
                return unsupported(format!("weight {}, which was not uploaded", w.id.0));
            }
            match &node.op {
                Op::TopK { k, .. } if *k > MAX_TOP_K => return unsupported(format!("top_k {k}, at most {MAX_TOP_K}")),
                Op::Attention { k, spec, .. } => {
                    let keys = program.node(*k).shape;
                    let fits = match (&self.cache, keys.dims()) {
                        (Some(cache), [_, kv_heads, dim]) => cache.fits(spec.layer, *kv_heads, *dim, node.shape.last()),
                        _ => false,
                    };
                    if !fits {
                        let what =
                            format!("{}: cache layer {} was not reserved for keys {keys}", node.path, spec.layer);
                        return unsupported(what);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn grow(&mut self, bytes: usize) {
        if self.arena.len() < bytes {
            self.arena = Buffer::zeroed(bytes);
        }
    }

    /// Runs one step; a panic in it becomes an error.
    fn step(&mut self, program: &Program, schedule: &Schedule, batch: &Batch) -> Result<()> {
        let (shape, wanted) = (batch.shape, program.shape);
        if (shape.tokens, shape.seqs, shape.rows) != (wanted.tokens, wanted.seqs, wanted.rows) {
            return Err(failed(&format!("the batch has shape {shape:?}, the program {wanted:?}")));
        }
        // Without a cache no step can touch it, and any place is as good.
        let blocks = self.cache.as_ref().map_or(usize::MAX, |c| c.blocks);
        batch.verify(BLOCK_TOKENS, blocks).map_err(|e| failed(&e))?;
        if program.keeps_state() {
            batch.verify_states(self.states.as_ref().map_or(0, |s| s.slots)).map_err(|e| failed(&e))?;
        }
        let masks = if program.tail.masked { shape.rows * program.vocab().div_ceil(32) } else { 0 };
        if !batch.masks.is_empty() && batch.masks.len() != masks {
            return Err(failed(&format!("masks has {} words, the program takes {masks}", batch.masks.len())));
        }
        // The thread that loads may be another, whose children must not be bound; so only who launches is.
        let here = std::thread::current().id();
        if let Some(cpu) = self.bound.filter(|_| self.owner != Some(here)) {
            machine::bind(cpu);
            self.owner = Some(here);
        }
        let mut runner = Runner {
            vectors: self.vectors,
            pool: &self.pool,
            weights: &self.weights,
            cache: self.cache.as_mut(),
            states: self.states.as_mut(),
            scratch: &mut self.scratch,
            batch,
            values: Values::new(&mut self.arena),
        };
        catch_unwind(AssertUnwindSafe(|| runner.run(schedule))).unwrap_or_else(|panic| Err(failed(&message(&*panic))))
    }

    fn output(&mut self, compiled: &Compiled) -> Output {
        let outputs = compiled.program.outputs;
        let values = Values::new(&mut self.arena);
        let span = |v: Value| compiled.schedule.spans[v.index()];
        // SAFETY: the step has ended, outputs live to its end, and their types were verified.
        unsafe {
            Output {
                argmax: values.read(span(outputs.argmax)).to_vec(),
                top: outputs.top.map_or(vec![], |top| values.read(span(top)).to_vec()),
                log_sum_exp: values.read(span(outputs.log_sum_exp)).to_vec(),
                logits: compiled.program.tail.logits.then(|| values.read(span(outputs.logits)).to_vec()),
            }
        }
    }
}

/// The vector type that goes with a path of matrix kernels.
fn vectors(isa: Isa) -> Vectors {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16Vnni | Isa::Avx512Vnni | Isa::Avx512 => Vectors::Avx512,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2Vnni | Isa::Avx2 => Vectors::Avx2,
        _ => Vectors::Portable,
    }
}

/// The vector types that this machine can run.
#[cfg(test)]
fn vectors_of_this_machine() -> Vec<Vectors> {
    let mut all: Vec<Vectors> = Isa::paths().into_iter().map(vectors).collect();
    all.dedup();
    all
}

fn failed(reason: &str) -> Error {
    Error::Launch { device: DEVICE, reason: reason.into() }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a kernel panicked".into())
}
