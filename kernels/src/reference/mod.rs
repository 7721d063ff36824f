//! Owns the oracle: every operation as plain f32 expressions of candle-core, slow and obvious. Fast devices are judged
//! against it. It knows no speed: a row of a batch is computed as if it were alone, so its result cannot depend on the
//! batch.

mod attention;
mod dense;
mod experts;
mod recurrent;
mod step;
mod tail;

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use self::attention::Cache;
use self::recurrent::States;
use self::step::{Held, Step};
use crate::backend::{Backend, DeviceInfo, DeviceSpec, Limits, Output, ProgramId, Ticket};
use crate::{
    Batch, BatchShape, DType, Error, Format, HostTensor, KvSpec, Probe, Program, Result, StateLayer, Value, Weight,
    WeightId, format,
};

pub(crate) fn open(_spec: &DeviceSpec) -> Result<Box<dyn Backend>> {
    let limits = Limits {
        mixed: true,
        prefill_seqs: usize::MAX,
        max_tokens: 8192,
        max_seqs: 1024,
        block_tokens: 16,
        max_top_k: 1024,
        activations: DType::F32,
        kv_dtype: DType::F32,
    };
    let info = DeviceInfo {
        name: DEVICE.into(),
        description: "plain f32 on the CPU, one row at a time: the oracle".into(),
        simulated: false,
        memory_bytes: KV_BYTES,
    };
    Ok(Box::new(Reference {
        info,
        limits,
        weights: vec![],
        cache: None,
        states: None,
        programs: HashMap::new(),
        next_program: 0,
        launches: 0,
        running: None,
    }))
}

pub(crate) const DEVICE: &str = "reference";

/// What the oracle gives to a K/V cache: enough for any comparison.
const KV_BYTES: u64 = 1 << 30;

struct Reference {
    info: DeviceInfo,
    limits: Limits,
    /// Decoded to f32; the index is the id.
    weights: Vec<Tensor>,
    cache: Option<Cache>,
    states: Option<States>,
    programs: HashMap<u32, Compiled>,
    next_program: u32,
    launches: u64,
    running: Option<(u64, Output)>,
}

struct Compiled {
    program: Program,
    /// The values of its last launch.
    values: Vec<Held>,
}

impl Backend for Reference {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn round_up(&self, want: BatchShape) -> Option<BatchShape> {
        (want.tokens <= self.limits.max_tokens && want.seqs <= self.limits.max_seqs).then_some(want)
    }

    fn accepts(&self, _: &HostTensor<'_>) -> bool {
        true
    }

    fn upload(&mut self, tensor: HostTensor<'_>, format: Format) -> Result<Weight> {
        let format = if tensor.shape.rank() <= 1 { Format::F32 } else { format };
        let mut values = tensor.to_f32();
        if format != tensor.format && format != Format::F32 {
            if !format::encodes(format) || format.bytes(tensor.shape.last()).is_none() {
                let what = format!("storing {} {} as {format}", tensor.name, tensor.shape);
                return Err(Error::Unsupported { device: DEVICE, what });
            }
            let stored = format::encode(format, &values);
            format::decode(format, &stored, &mut values);
        }
        let weight = Weight { id: WeightId(self.weights.len() as u32), shape: tensor.shape, format };
        self.weights.push(Tensor::from_vec(values, tensor.shape.dims(), &Device::Cpu).map_err(fault)?);
        Ok(weight)
    }

    fn kv_budget(&self, _largest: &Program) -> u64 {
        KV_BYTES
    }

    fn reserve_kv(&mut self, spec: &KvSpec, blocks: usize) -> Result<()> {
        if !spec.dtype.is_float() {
            let what = format!("a K/V cache of {}", spec.dtype);
            return Err(Error::Unsupported { device: DEVICE, what });
        }
        let needed = spec.block_bytes().saturating_mul(blocks as u64);
        if needed > KV_BYTES {
            return Err(Error::OutOfMemory { what: "the K/V cache".into(), needed, free: KV_BYTES });
        }
        self.cache = Some(Cache::new(spec.clone(), blocks));
        Ok(())
    }

    fn reserve_state(&mut self, layers: &[StateLayer], slots: usize) -> Result<()> {
        let needed = StateLayer::slot_bytes(layers).saturating_mul(slots as u64);
        if needed > KV_BYTES {
            return Err(Error::OutOfMemory { what: "the states".into(), needed, free: KV_BYTES });
        }
        self.states = Some(States::new(layers, slots));
        Ok(())
    }

    fn compile(&mut self, program: &Program) -> Result<ProgramId> {
        program.verify()?;
        program.verify_state(self.states.as_ref().map_or(&[], |s| &s.layers))?;
        if let Some(cache) = &self.cache {
            program.verify_kv(&cache.spec)?;
        } else if program.nodes.iter().any(|n| matches!(n.op, crate::Op::Attention { .. })) {
            return Err(failed("reserve_kv comes before compile"));
        }
        let id = self.next_program;
        self.next_program += 1;
        self.programs.insert(id, Compiled { program: program.clone(), values: vec![] });
        Ok(ProgramId(id))
    }

    fn release(&mut self, program: ProgramId) {
        self.programs.remove(&program.0);
    }

    fn launch(&mut self, program: ProgramId, batch: &Batch) -> Result<Ticket> {
        if self.running.is_some() {
            return Err(failed("a step is under way already"));
        }
        let compiled = self.programs.get_mut(&program.0).ok_or_else(|| failed("the program was released"))?;
        let blocks = self.cache.as_ref().map_or(usize::MAX, |c| c.blocks);
        compiled.program.accepts(batch, blocks).map_err(failed)?;
        if compiled.program.keeps_state() {
            batch.verify_states(self.states.as_ref().map_or(0, |s| s.slots)).map_err(failed)?;
        }
        let mut step = Step { program: &compiled.program, batch, weights: &self.weights, values: vec![] };
        step.run(self.cache.as_mut(), self.states.as_mut()).map_err(fault)?;
        let output = step.output().map_err(fault)?;
        compiled.values = step.values;
        self.launches += 1;
        self.running = Some((self.launches, output));
        Ok(Ticket(self.launches))
    }

    fn wait(&mut self, ticket: Ticket) -> Result<Output> {
        match self.running.take() {
            Some((running, output)) if running == ticket.0 => Ok(output),
            other => {
                self.running = other;
                Err(failed("this step is not under way"))
            }
        }
    }

    fn probe(&mut self, program: ProgramId, v: Value) -> Result<Probe> {
        let compiled = self.programs.get(&program.0).ok_or_else(|| failed("the program was released"))?;
        let held = compiled.values.get(v.index()).ok_or_else(|| failed("the program was not launched yet"))?;
        let node = compiled.program.node(v);
        Ok(Probe { shape: node.shape, dtype: node.dtype, values: held.to_f32().map_err(fault)? })
    }
}

fn failed(reason: impl Into<String>) -> Error {
    Error::Launch { device: DEVICE, reason: reason.into() }
}

fn fault(error: candle_core::Error) -> Error {
    failed(error.to_string())
}
