//! Owns the list of devices a test runs on: all that this machine has, and by name those it lacks.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use dualgauge_kernels::{Backend, DeviceKind, DeviceSpec, Precision, isa_paths, open};

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

    /// Every device that computes and is present, the reference first.
    pub fn present() -> Vec<Self> {
        let accelerators = [("cuda:0", DeviceKind::Cuda(0)), ("neuron", DeviceKind::Neuron)];
        let mut all = vec![Self::reference()];
        all.extend(Self::cpus());
        for (name, kind) in accelerators {
            let device = Self { name: name.into(), spec: DeviceSpec { kind, ..DeviceSpec::default() } };
            match open(&device.spec) {
                Ok(_) => all.push(device),
                Err(error) => skipped(kind, name, &error.to_string()),
            }
        }
        all
    }

    /// Computes as exactly as f32 allows.
    pub fn is_exact(&self) -> bool {
        self.spec.precision == Precision::Exact || self.spec.kind == DeviceKind::Reference
    }

    pub fn open(&self) -> Box<dyn Backend> {
        open(&self.spec).unwrap_or_else(|e| panic!("{} does not open: {e}", self.name)).backend
    }
}

/// Runs `check` on every device. All are tried; then it panics with the names of those that failed.
pub fn for_each_device(subject: &str, check: impl Fn(&TestDevice)) {
    let mut failed = vec![];
    for device in TestDevice::present() {
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
