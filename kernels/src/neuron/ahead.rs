//! Owns the back end without a device: it keeps the shapes of weights and none of their bytes, so that a model's memory
//! can be planned and its programs compiled into the cache on any machine. It runs nothing.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::cache::Cache;
use super::compiler::{Compiler, Hardware};
use super::lower::{self, Target};
use super::{CACHE, DEVICE, NeuronOptions, budget, limits, one_core, planes, purpose};
use crate::{
    Backend, Batch, BatchShape, DeviceInfo, Error, Format, HostTensor, KvSpec, Limits, Output, Precision, Probe,
    Program, ProgramId, Result, Ticket, Value, Weight, WeightId,
};

/// A Neuron device that is not there. Everything before the first launch works as on the device itself.
pub struct NeuronAhead {
    info: DeviceInfo,
    limits: Limits,
    options: NeuronOptions,
    precision: Precision,
    hardware: Hardware,
    cache: Cache,
    kv: Option<(KvSpec, usize)>,
    weights: u32,
    used_bytes: u64,
    programs: u32,
}

/// One program of [`NeuronAhead::build`].
pub struct Built {
    /// `program for decode of 4 tokens, context 512`.
    pub what: String,
    /// False when it was in the cache.
    pub compiled: Result<bool>,
}

impl NeuronAhead {
    /// For `target`: `inf2`, `trn1`, `trn1n`, `trn2` or `trn3`. A compiler is looked for, but needed only by
    /// [`Self::build`] and `compile`.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: a target that is not known, a broken ladder.
    pub fn open(target: &str, precision: Precision, options: &NeuronOptions) -> Result<Self> {
        let unavailable = |reason: String| Error::Unavailable { device: DEVICE.into(), reason };
        options.ladder.verify().map_err(unavailable)?;
        let hardware = Hardware::of_target(target)
            .ok_or_else(|| unavailable(format!("target {target} is not one of {}", Hardware::TARGETS.join(", "))))?;
        let compiler = Compiler::find(options.compiler.as_deref());
        let cores = options.cores() as u64;
        let info = DeviceInfo {
            name: DEVICE.into(),
            description: format!("{target}, {cores} core(s), no device: planned only"),
            simulated: false,
            memory_bytes: hardware.core_bytes * cores,
        };
        Ok(Self {
            info,
            limits: limits(&options.ladder, precision),
            precision,
            cache: Cache::new(options.cache_dir.clone().unwrap_or_else(|| CACHE.into()), compiler, options.no_compile),
            hardware,
            options: options.clone(),
            kv: None,
            weights: 0,
            used_bytes: 0,
            programs: 0,
        })
    }

    /// Memory of one core, in bytes.
    pub fn core_bytes(&self) -> u64 {
        self.hardware.core_bytes
    }

    /// Bytes of the weights seen so far, over all cores.
    pub fn weight_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Compiles `programs` into the cache, at most `jobs` at a time. `done` hears of each as it ends.
    ///
    /// # Errors
    /// More than one core; else the first program that could not be lowered or compiled, after all were tried.
    pub fn build(&self, programs: &[Program], jobs: usize, done: &mut dyn FnMut(Built)) -> Result<()> {
        one_core(&self.options)?;
        let next = AtomicUsize::new(0);
        let (sender, results) = mpsc::channel();
        let sender = Mutex::new(sender);
        let mut failed = None;
        std::thread::scope(|scope| {
            for _ in 0..jobs.clamp(1, programs.len().max(1)) {
                let sender = sender.lock().expect("nothing panics while it is held: this is a bug").clone();
                let next = &next;
                scope.spawn(move || {
                    while let Some(program) = programs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let (phase, what) = purpose(program);
                        let compiled = self.lower(program).and_then(|graph| {
                            let flags = self.hardware.flags(phase, self.options.cores());
                            Ok(self.cache.get(&graph.module.bytes, &flags, &what)?.compiled)
                        });
                        // A listener that is gone has panicked; the scope passes that on.
                        let _ = sender.send(Built { what, compiled });
                    }
                });
            }
            drop(sender);
            for built in results {
                let error = built.compiled.as_ref().err().map(|e| format!("{}: {e}", built.what));
                failed = failed.take().or(error);
                done(built);
            }
        });
        failed.map_or(Ok(()), |reason| Err(Error::Compile { device: DEVICE, reason }))
    }

    fn lower(&self, program: &Program) -> Result<lower::Graph> {
        program.verify()?;
        let kv_blocks = self.kv.as_ref().map_or(0, |(_, blocks)| *blocks);
        let target = Target { kv: self.kv.as_ref().map(|(spec, _)| spec), kv_blocks, precision: self.precision };
        lower::lower(program, target, None)
    }

    fn no_device(&self) -> Error {
        Error::Unavailable { device: DEVICE.into(), reason: "programs are only planned here; no device is open".into() }
    }
}

impl Backend for NeuronAhead {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn round_up(&self, want: BatchShape) -> Option<BatchShape> {
        self.options.ladder.round_up(want, self.limits.block_tokens)
    }

    /// Looks at shape and format only.
    fn upload(&mut self, tensor: HostTensor<'_>, format: Format) -> Result<Weight> {
        let format = if tensor.shape.rank() <= 1 { Format::F32 } else { format };
        planes::fields(format).ok_or_else(|| planes::refused(format, &tensor.name))?;
        let weight = Weight { id: WeightId(self.weights), shape: tensor.shape, format };
        self.weights += 1;
        self.used_bytes += weight.bytes();
        Ok(weight)
    }

    fn kv_budget(&self, largest: &Program) -> u64 {
        budget(self.used_bytes, self.info.memory_bytes, largest)
    }

    fn reserve_kv(&mut self, spec: &KvSpec, blocks: usize) -> Result<()> {
        self.kv = Some((spec.clone(), blocks));
        Ok(())
    }

    fn compile(&mut self, program: &Program) -> Result<ProgramId> {
        self.build(std::slice::from_ref(program), 1, &mut |_| {})?;
        self.programs += 1;
        Ok(ProgramId(self.programs))
    }

    fn release(&mut self, _: ProgramId) {}

    fn launch(&mut self, _: ProgramId, _: &Batch) -> Result<Ticket> {
        Err(self.no_device())
    }

    fn wait(&mut self, _: Ticket) -> Result<Output> {
        Err(self.no_device())
    }

    fn probe(&mut self, _: ProgramId, _: Value) -> Result<Probe> {
        Err(self.no_device())
    }
}
