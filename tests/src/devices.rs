//! Owns the list of devices a test runs on: all that this machine has, and by name those it lacks.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Once, OnceLock};

use dualgauge_kernels::{
    Backend, CudaOptions, DType, DeviceKind, DeviceSpec, Format, NeuronOptions, Op, Precision, Program, isa_paths, open,
};

use crate::{cuda_sim, neuron_sim};

/// A device and the way it is opened.
#[derive(Clone, Debug)]
pub struct TestDevice {
    /// `reference`, `cpu avx2 exact`, `cuda:0` ...
    pub name: String,
    pub spec: DeviceSpec,
}

impl TestDevice {
    pub fn reference() -> Self {
        Self { name: "reference".into(), spec: DeviceSpec { kind: DeviceKind::Reference, ..DeviceSpec::default() } }
    }

    /// The CPU back end on each instruction-set path of this machine, in both precisions.
    pub fn cpus() -> Vec<Self> {
        let mut all = vec![];
        for isa in isa_paths() {
            for (precision, name) in [(Precision::Exact, "exact"), (Precision::Native, "native")] {
                let isa_name = Some(isa.to_owned());
                let (kind, threads) = (DeviceKind::Cpu, Some(2));
                let spec = DeviceSpec { kind, threads, isa: isa_name, precision, ..DeviceSpec::default() };
                all.push(Self { name: format!("cpu {isa} {name}"), spec });
            }
        }
        all
    }

    /// The CUDA back end, in both precisions: on the machine's GPU where it has one, else on the emulator.
    ///
    /// # Errors
    /// Why there is neither.
    pub fn cudas() -> Result<Vec<Self>, String> {
        static REAL: OnceLock<bool> = OnceLock::new();
        let kind = DeviceKind::Cuda(0);
        // Asked once, before the emulator is loaded under the driver's name.
        let real = *REAL.get_or_init(|| open(&DeviceSpec { kind, ..DeviceSpec::default() }).is_ok());
        let library = if real { None } else { Some(cuda_sim::library()?) };
        let label = if real { "cuda:0" } else { "cuda (emulated)" };
        let cuda = CudaOptions { library, ..CudaOptions::default() };
        let spec = |precision| DeviceSpec { kind, precision, cuda: cuda.clone(), ..DeviceSpec::default() };
        Ok([(Precision::Exact, "exact"), (Precision::Native, "native")]
            .map(|(precision, name)| Self { name: format!("{label} {name}"), spec: spec(precision) })
            .into())
    }

    /// The Neuron back end, in both precisions: on the machine's own device where it has one, else on the simulator.
    ///
    /// # Errors
    /// Why there is neither.
    pub fn neurons() -> Result<Vec<Self>, String> {
        static REAL: OnceLock<bool> = OnceLock::new();
        let kind = DeviceKind::Neuron;
        let real = *REAL.get_or_init(|| open(&DeviceSpec { kind, ..DeviceSpec::default() }).is_ok());
        let compiler = if real { None } else { Some(neuron_sim::compiler()?) };
        let label = if real { "neuron" } else { "neuron (simulated)" };
        let neuron = NeuronOptions { compiler, ..NeuronOptions::default() };
        let spec = |precision| DeviceSpec { kind, precision, neuron: neuron.clone(), ..DeviceSpec::default() };
        Ok([(Precision::Exact, "exact"), (Precision::Native, "native")]
            .map(|(precision, name)| Self { name: format!("{label} {name}"), spec: spec(precision) })
            .into())
    }

    /// What the device lacks of a program: a weight format, say. Such a check is skipped, by name.
    pub fn lacks(&self, program: &Program) -> Option<String> {
        let cuda = matches!(self.spec.kind, DeviceKind::Cuda(_));
        let cast = program.nodes.iter().any(|n| matches!(n.op, Op::Cast { .. }) && n.dtype != DType::F32);
        if cuda && cast {
            return Some("values of 16 bits".into());
        }
        program.nodes.iter().flat_map(|n| n.op.weights()).find_map(|w| self.lacks_format(w.format))
    }

    /// As [`Self::lacks`], of a weight format.
    pub fn lacks_format(&self, format: Format) -> Option<String> {
        let lacks = match self.spec.kind {
            DeviceKind::Cuda(_) => format.is_quantised(),
            DeviceKind::Neuron => matches!(format, Format::Q2K | Format::Q3K | Format::Iq4Nl | Format::Iq4Xs),
            _ => false,
        };
        lacks.then(|| format!("weights in {format}"))
    }

    /// Every device that computes and is present, the reference first.
    pub fn present() -> Vec<Self> {
        let mut all = vec![Self::reference()];
        all.extend(Self::cpus());
        match Self::cudas() {
            Ok(devices) => all.extend(devices),
            Err(reason) => skipped(DeviceKind::Cuda(0), "cuda", &reason),
        }
        match Self::neurons() {
            Ok(devices) => all.extend(devices),
            Err(reason) => skipped(DeviceKind::Neuron, "neuron", &reason),
        }
        all
    }

    /// Runs on the emulator of GPU kernels, thousands of times slower than a GPU.
    pub fn is_emulated(&self) -> bool {
        self.spec.cuda.library.is_some()
    }

    /// Runs the operations that keep a state of each sequence.
    pub fn keeps_state(&self) -> bool {
        matches!(self.spec.kind, DeviceKind::Cpu | DeviceKind::Reference)
    }

    /// Computes as exactly as f32 allows.
    pub fn is_exact(&self) -> bool {
        self.spec.precision == Precision::Exact || self.spec.kind == DeviceKind::Reference
    }

    pub fn open(&self) -> Box<dyn Backend> {
        // A compiler without a runtime library: the simulator, of which each opening gets its own.
        let simulated = self.spec.neuron.compiler.is_some() && self.spec.neuron.libnrt.is_none();
        let opened = if simulated { neuron_sim::fresh(&self.spec) } else { open(&self.spec).map(|o| o.backend) };
        opened.unwrap_or_else(|e| panic!("{} does not open: {e}", self.name))
    }
}

/// Runs `check` on every device. All are tried; then it panics with the names of those that failed.
/// `DUALGAUGE_TEST_DEVICES=avx2,cuda` leaves those whose names hold one of these words.
pub fn for_each_device(subject: &str, check: impl Fn(&TestDevice)) {
    let mut failed = vec![];
    let chosen = std::env::var("DUALGAUGE_TEST_DEVICES").ok();
    let chosen = |name: &str| chosen.as_ref().is_none_or(|words| words.split(',').any(|word| name.contains(word)));
    for device in TestDevice::present().into_iter().filter(|d| chosen(&d.name)) {
        if catch_unwind(AssertUnwindSafe(|| check(&device))).is_err() {
            failed.push(device.name);
        }
    }
    assert!(failed.is_empty(), "{subject} failed on: {}", failed.join(", "));
}

/// Says so once a process and device, past the test harness's capture: an absent device is never passed over in silence.
fn skipped(kind: DeviceKind, name: &str, reason: &str) {
    static CUDA: Once = Once::new();
    static NEURON: Once = Once::new();
    let once = if kind == DeviceKind::Neuron { &NEURON } else { &CUDA };
    once.call_once(|| {
        let _ = writeln!(std::io::stderr(), "skipped {name}: {reason}");
    });
}
