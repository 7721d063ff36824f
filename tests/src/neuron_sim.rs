//! Owns the simulated Neuron device of machines without one: each opening is a device of its own, in a folder that goes
//! with it, and a device that is closed must have nothing left behind.

use std::path::PathBuf;

use dualgauge_kernels::{
    Backend, Batch, BatchShape, DeviceInfo, DeviceSpec, Error, Format, HostTensor, KvSpec, Limits, Output, Probe,
    Program, ProgramId, Result, Ticket, Value, Weight, open,
};
use nrt::Stand;
use tempfile::TempDir;

/// The stand-in `neuronx-cc`, or why there is none.
///
/// # Errors
/// When it was not built: `cargo test` makes it for the tests of this package.
pub fn compiler() -> Result<PathBuf, String> {
    let running = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut places = running.ancestors().skip(1).take(2).map(|folder| folder.join("sim-neuronx-cc"));
    places.find(|p| p.is_file()).ok_or_else(|| "the simulator's compiler was not built beside this test".into())
}

/// A fresh device as `spec` says, its runtime library and cache in a temporary folder. With DUALGAUGE_TEST_RECORD=FOLDER,
/// each graph that runs is written there with its inputs and outputs, for `tests/xla/check.py`.
///
/// # Errors
/// What opening a device can fail with.
pub fn fresh(spec: &DeviceSpec) -> Result<Box<dyn Backend>> {
    let unavailable = |reason: String| Error::Unavailable { device: "neuron (simulated)".into(), reason };
    let folder = tempfile::tempdir().map_err(|e| unavailable(e.to_string()))?;
    let compiler = compiler().map_err(unavailable)?;
    let stand = Stand::new(folder.path(), &compiler).map_err(|e| unavailable(e.to_string()))?;
    if let Ok(record) = std::env::var("DUALGAUGE_TEST_RECORD") {
        stand.set(&format!("record {record}")).map_err(|e| unavailable(e.to_string()))?;
    }
    let mut spec = spec.clone();
    spec.neuron.libnrt = Some(stand.library());
    spec.neuron.compiler = Some(stand.compiler());
    spec.neuron.cache_dir = Some(folder.path().join("cache"));
    let backend = Some(open(&spec)?.backend);
    Ok(Box::new(Simulated { backend, stand, _folder: folder }))
}

/// A device and its folder. Closing it panics when handles leaked.
struct Simulated {
    backend: Option<Box<dyn Backend>>,
    stand: Stand,
    _folder: TempDir,
}

impl Simulated {
    fn held(&self) -> &dyn Backend {
        self.backend.as_deref().expect("held until dropped")
    }

    fn held_mut(&mut self) -> &mut dyn Backend {
        self.backend.as_deref_mut().expect("held until dropped")
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        self.backend = None;
        if !std::thread::panicking() {
            let leaked = self.stand.report().expect("the runtime was closed").leaked;
            assert_eq!(leaked, 0, "handles leaked");
        }
    }
}

impl Backend for Simulated {
    fn info(&self) -> &DeviceInfo {
        self.held().info()
    }
    fn limits(&self) -> &Limits {
        self.held().limits()
    }
    fn round_up(&self, want: BatchShape) -> Option<BatchShape> {
        self.held().round_up(want)
    }
    fn upload(&mut self, tensor: HostTensor<'_>, format: Format) -> Result<Weight> {
        self.held_mut().upload(tensor, format)
    }
    fn kv_budget(&self, largest: &Program) -> u64 {
        self.held().kv_budget(largest)
    }
    fn reserve_kv(&mut self, spec: &KvSpec, blocks: usize) -> Result<()> {
        self.held_mut().reserve_kv(spec, blocks)
    }
    fn compile(&mut self, program: &Program) -> Result<ProgramId> {
        self.held_mut().compile(program)
    }
    fn release(&mut self, program: ProgramId) {
        self.held_mut().release(program);
    }
    fn launch(&mut self, program: ProgramId, batch: &Batch) -> Result<Ticket> {
        self.held_mut().launch(program, batch)
    }
    fn wait(&mut self, ticket: Ticket) -> Result<Output> {
        self.held_mut().wait(ticket)
    }
    fn probe(&mut self, program: ProgramId, v: Value) -> Result<Probe> {
        self.held_mut().probe(program, v)
    }
}
