//! Owns the device that the stand-in runtime shows: memory, loaded programs, sets, and every rule about them. Handles
//! are numbers, so a wrong one is found, not followed.

use std::collections::HashMap;

use crate::compiler::unwrap;
use crate::config::Config;
use crate::evaluate::evaluate;
use crate::graph::{Graph, Port, parse};
use crate::record;
use crate::value::{Data, Value};
use crate::verify::verify;

pub type Status = u32;
pub const OK: Status = 0;
pub const FAILURE: Status = 1;
pub const INVALID: Status = 2;
pub const INVALID_HANDLE: Status = 3;
pub const RESOURCE: Status = 4;
pub const UNSUPPORTED_NEFF: Status = 10;
pub const UNINITIALIZED: Status = 13;
pub const CLOSED: Status = 14;
pub const BAD_INPUT: Status = 1002;
pub const NOT_A_NUMBER: Status = 1003;
pub const OUT_OF_BOUNDS: Status = 1006;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Fresh,
    Running,
    Closed,
}

pub struct Device {
    phase: Phase,
    pub config: Config,
    tensors: HashMap<usize, Tensor>,
    models: HashMap<usize, Graph>,
    /// The bytes of the graphs, while they are recorded.
    sources: HashMap<usize, Vec<u8>>,
    sets: HashMap<usize, HashMap<String, usize>>,
    next: usize,
    used: usize,
    calls: HashMap<&'static str, usize>,
    executed: usize,
}

struct Tensor {
    bytes: Vec<u8>,
    /// What was never written cannot be read.
    written: Vec<bool>,
    core: i32,
}

impl Device {
    pub fn new(config: Config) -> Self {
        Self {
            phase: Phase::Fresh,
            config,
            tensors: HashMap::new(),
            models: HashMap::new(),
            sources: HashMap::new(),
            sets: HashMap::new(),
            next: 0x1000,
            used: 0,
            calls: HashMap::new(),
            executed: 0,
        }
    }

    /// Counts a call and gives its injected fault, if it is time for one.
    pub fn count(&mut self, call: &'static str) -> Option<Status> {
        let count = self.calls.entry(call).or_default();
        *count += 1;
        self.config.faults.iter().find(|f| f.call == call && f.nth == *count).map(|f| f.status)
    }

    /// Whether the runtime runs.
    pub fn live(&self) -> Result<(), Status> {
        match self.phase {
            Phase::Fresh => Err(UNINITIALIZED),
            Phase::Running => Ok(()),
            Phase::Closed => Err(CLOSED),
        }
    }

    pub fn init(&mut self, framework: u32) -> Status {
        match (self.phase, framework) {
            (Phase::Closed, _) => CLOSED,
            (_, 1..=5) => {
                self.phase = Phase::Running;
                OK
            }
            _ => INVALID,
        }
    }

    /// Closes and says what was left behind.
    pub fn close(&mut self) -> String {
        self.phase = Phase::Closed;
        let leaked = self.tensors.len() + self.models.len() + self.sets.len();
        if leaked > 0 {
            eprintln!("sim-nrt: {leaked} handles leaked at nrt_close");
        }
        format!("leaked {leaked}\nexecuted {}\n", self.executed)
    }

    pub fn used(&self) -> usize {
        self.used
    }

    pub fn allocate(&mut self, core: i32, bytes: usize) -> Result<usize, Status> {
        if bytes == 0 || core < 0 || core as u32 >= self.config.cores {
            return Err(INVALID);
        }
        if self.used + bytes > self.config.hbm_bytes {
            return Err(RESOURCE);
        }
        self.used += bytes;
        // Poison: all ones is no number in any float type.
        let tensor = Tensor { bytes: vec![0xff; bytes], written: vec![false; bytes], core };
        let handle = self.handle();
        self.tensors.insert(handle, tensor);
        Ok(handle)
    }

    pub fn free(&mut self, tensor: usize) {
        match self.tensors.remove(&tensor) {
            Some(t) => self.used -= t.bytes.len(),
            None => eprintln!("sim-nrt: nrt_tensor_free of what is not a tensor"),
        }
    }

    /// The bytes at `offset .. offset + len`, to be written in full.
    pub fn writable(&mut self, tensor: usize, offset: usize, len: usize) -> Result<&mut [u8], Status> {
        let t = self.tensors.get_mut(&tensor).ok_or(INVALID_HANDLE)?;
        let end = offset.checked_add(len).filter(|end| *end <= t.bytes.len()).ok_or(INVALID)?;
        t.written[offset..end].fill(true);
        Ok(&mut t.bytes[offset..end])
    }

    pub fn readable(&self, tensor: usize, offset: usize, len: usize) -> Result<&[u8], Status> {
        let t = self.tensors.get(&tensor).ok_or(INVALID_HANDLE)?;
        let end = offset.checked_add(len).filter(|end| *end <= t.bytes.len()).ok_or(INVALID)?;
        if !t.written[offset..end].iter().all(|w| *w) {
            eprintln!("sim-nrt: a read of memory that was never written");
            return Err(FAILURE);
        }
        Ok(&t.bytes[offset..end])
    }

    pub fn load(&mut self, neff: &[u8]) -> Result<usize, Status> {
        let (target, graph) = unwrap(neff).ok_or(UNSUPPORTED_NEFF)?;
        let fits = match self.config.family {
            2 => target == "trn1",
            3 => target == "trn1n",
            4 | 7 => target == "inf2",
            14 | 15 => target == "trn3",
            _ => target == "trn2",
        };
        let source = self.config.record.is_some().then(|| graph.to_vec());
        let graph = parse(graph).ok().filter(|g| fits && verify(g).is_ok()).ok_or(UNSUPPORTED_NEFF)?;
        let handle = self.handle();
        source.and_then(|source| self.sources.insert(handle, source));
        self.models.insert(handle, graph);
        Ok(handle)
    }

    pub fn unload(&mut self, model: usize) -> Status {
        self.sources.remove(&model);
        if self.models.remove(&model).is_some() { OK } else { INVALID_HANDLE }
    }

    /// Inputs, then outputs: whether it is an output, and what.
    pub fn interface(&self, model: usize) -> Result<Vec<(bool, Port)>, Status> {
        let graph = self.models.get(&model).ok_or(INVALID_HANDLE)?;
        let inputs = graph.inputs.iter().map(|p| (false, p.clone()));
        Ok(inputs.chain(graph.outputs.iter().map(|p| (true, p.clone()))).collect())
    }

    pub fn allocate_set(&mut self) -> usize {
        let handle = self.handle();
        self.sets.insert(handle, HashMap::new());
        handle
    }

    pub fn destroy_set(&mut self, set: usize) {
        if self.sets.remove(&set).is_none() {
            eprintln!("sim-nrt: nrt_destroy_tensor_set of what is not a set");
        }
    }

    pub fn add(&mut self, set: usize, name: String, tensor: usize) -> Status {
        let (true, Some(set)) = (self.tensors.contains_key(&tensor), self.sets.get_mut(&set)) else {
            return INVALID_HANDLE;
        };
        set.insert(name, tensor);
        OK
    }

    pub fn execute(&mut self, model: usize, inputs: usize, outputs: usize) -> Status {
        self.run(model, inputs, outputs).map_or_else(|status| status, |()| OK)
    }

    fn run(&mut self, model: usize, inputs: usize, outputs: usize) -> Result<(), Status> {
        let graph = self.models.get(&model).ok_or(INVALID_HANDLE)?;
        let sets = (self.sets.get(&inputs), self.sets.get(&outputs));
        let (Some(inputs), Some(outputs)) = sets else { return Err(INVALID_HANDLE) };
        let ins = self.bind(&graph.inputs, inputs)?;
        let outs = self.bind(&graph.outputs, outputs)?;
        for (o, output) in outs.iter().enumerate() {
            for (p, input) in ins.iter().enumerate() {
                let declared = graph.aliases.contains(&(o, p));
                if declared != (output == input) {
                    let (o, p) = (&graph.outputs[o].name, &graph.inputs[p].name);
                    let what = if declared { "must share its memory with" } else { "may not share its memory with" };
                    eprintln!("sim-nrt: output {o} {what} input {p}");
                    return Err(INVALID);
                }
            }
            if outs[..o].contains(output) {
                eprintln!("sim-nrt: two outputs in one tensor");
                return Err(INVALID);
            }
        }
        let (mut values, mut before) = (vec![], vec![]);
        for (port, tensor) in graph.inputs.iter().zip(&ins) {
            let bytes = self.readable(*tensor, 0, port.shape.bytes()).inspect_err(|_| {
                eprintln!("sim-nrt: input {} was not wholly written", port.name);
            })?;
            values.push(Value::decode(&port.shape, bytes));
            if self.config.record.is_some() {
                before.push(bytes.to_vec());
            }
        }
        let results = evaluate(graph, values).map_err(|fault| {
            eprintln!("sim-nrt: out of bounds: {}", fault.0);
            OUT_OF_BOUNDS
        })?;
        if let (Some(folder), Some(source)) = (&self.config.record, self.sources.get(&model)) {
            let after: Vec<Vec<u8>> = results.iter().map(Value::encode).collect();
            if let Err(e) = record::write(folder, source, &before, &after) {
                eprintln!("sim-nrt: nothing is recorded in {}: {e}", folder.display());
            }
        }
        let nan = |v: &Value| matches!(&v.data, Data::Float(v) if v.iter().any(|v| v.is_nan()));
        let nan = results.iter().any(nan);
        for (result, tensor) in results.iter().zip(&outs) {
            let bytes = result.encode();
            self.writable(*tensor, 0, bytes.len())?.copy_from_slice(&bytes);
        }
        self.executed += 1;
        if nan { Err(NOT_A_NUMBER) } else { Ok(()) }
    }

    /// The tensor of each port: there, of the right size, on the program's core.
    fn bind(&self, ports: &[Port], set: &HashMap<String, usize>) -> Result<Vec<usize>, Status> {
        let found = ports.iter().map(|port| {
            let handle = set.get(&port.name).copied();
            let fits =
                |h: &usize| self.tensors.get(h).is_some_and(|t| t.bytes.len() == port.shape.bytes() && t.core == 0);
            handle.filter(fits).ok_or_else(|| {
                eprintln!("sim-nrt: no tensor of {} bytes for {}", port.shape.bytes(), port.name);
                BAD_INPUT
            })
        });
        found.collect()
    }

    fn handle(&mut self) -> usize {
        self.next += 0x10;
        self.next
    }
}
