//! Owns the choice of a device: the only door. Says what was chosen and why.

use crate::backend::{Backend, DeviceKind, DeviceSpec};
use crate::{Result, cpu, cuda, neuron, null, reference};

/// A device, and the sentence that says why this one.
pub struct Opened {
    pub backend: Box<dyn Backend>,
    pub reason: String,
}

/// Opens the device that `spec` names.
///
/// # Errors
/// [`crate::Error::Unavailable`] when it is not there. Nothing falls back silently: only `Auto` moves on to another device, and
/// says so in [`Opened::reason`].
pub fn open(spec: &DeviceSpec) -> Result<Opened> {
    let opened = |backend: Box<dyn Backend>, reason: &str| Ok(Opened { backend, reason: reason.into() });
    match spec.kind {
        DeviceKind::Auto => auto(spec),
        DeviceKind::Cpu => opened(cpu::open(spec)?, "asked for"),
        DeviceKind::Reference => opened(reference::open(spec)?, "asked for"),
        DeviceKind::Null => opened(null::open(spec)?, "asked for"),
        DeviceKind::Neuron => opened(neuron::open(spec)?, "asked for"),
        DeviceKind::Cuda(_) => opened(cuda::open(spec)?, "asked for"),
    }
}

/// The CPU, until the accelerators' back ends have run on real hardware; the reason names what was found and passed
/// over.
fn auto(spec: &DeviceSpec) -> Result<Opened> {
    let cuda = match cuda::probe() {
        Ok(count) => format!("{count} CUDA device(s) found but not yet chosen by auto, ask with --device cuda"),
        Err(reason) => reason,
    };
    let neuron = match neuron::present() {
        true => "a Neuron device found but not yet chosen by auto, ask with --device neuron",
        false => "the machine has no Neuron device",
    };
    Ok(Opened { backend: cpu::open(spec)?, reason: format!("chosen by auto: {cuda}; {neuron}") })
}

/// Names of the instruction-set paths of the CPU back end that this machine can run, best first. Any of them can be
/// forced with [`DeviceSpec::isa`].
pub fn isa_paths() -> Vec<&'static str> {
    cpu::isa_paths()
}
