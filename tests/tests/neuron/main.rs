//! The Neuron back end on a simulated device: a stand-in `libnrt.so.1` and `neuronx-cc` that refuse what the real ones
//! refuse. Each test has a device of its own. Operations, families and laws run on it with all other devices.

mod cache;
mod commands;
mod faults;
mod model;
mod serving;

use dualgauge_kernels::{DeviceKind, DeviceSpec, Ladder, NeuronOptions, Precision};
use dualgauge_tests::TestDevice;
use nrt::Stand;
use tempfile::TempDir;

/// A simulated device in a folder that goes with it.
struct Simulated {
    stand: Stand,
    folder: TempDir,
}

impl Simulated {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let compiler = dualgauge_tests::neuron_sim::compiler().expect("the stand-in was built");
        let stand = Stand::new(folder.path(), &compiler).expect("the stand-in was built");
        Self { stand, folder }
    }

    /// How to open it: small buckets, so that tiny models meet all of them.
    fn device(&self, precision: Precision) -> TestDevice {
        let ladder =
            Ladder { prefill_tokens: vec![4, 16, 64], decode_seqs: vec![1, 2, 4], context_tokens: vec![32, 128] };
        let neuron = NeuronOptions {
            libnrt: Some(self.stand.library()),
            compiler: Some(self.stand.compiler()),
            cache_dir: Some(self.cache()),
            ladder,
            ..NeuronOptions::default()
        };
        let spec = DeviceSpec { kind: DeviceKind::Neuron, precision, neuron, ..DeviceSpec::default() };
        TestDevice { name: format!("neuron (simulated) {precision:?}").to_lowercase(), spec }
    }

    fn cache(&self) -> std::path::PathBuf {
        self.folder.path().join("cache")
    }

    /// That the runtime was closed with nothing left behind.
    fn assert_clean(&self) {
        let report = self.stand.report().expect("the runtime was closed");
        assert_eq!(report.leaked, 0, "handles leaked");
        assert!(report.executed > 0, "the device ran nothing");
    }
}
