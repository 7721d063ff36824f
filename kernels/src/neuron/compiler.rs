//! Owns `neuronx-cc`: finds it, asks its version, runs it on a graph, and says what went wrong and which graph file shows
//! it. Where results are kept is [`super::cache`]'s.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Error, Result};

/// What a graph is for; the compiler schedules the two differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Prefill,
    Decode,
}

/// The hardware a graph is compiled for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hardware {
    /// `trn2`.
    pub target: &'static str,
    /// Physical cores a logical core has.
    pub logical_core: u32,
    /// Device memory of a logical core: the chip's, shared evenly.
    pub core_bytes: u64,
}

impl Hardware {
    pub const TARGETS: [&str; 5] = ["inf2", "trn1", "trn1n", "trn2", "trn3"];

    /// From `nrt_instance_info_t.family`; `None` for one we do not know.
    pub fn of_family(family: u32) -> Option<Self> {
        Self::of_target(match family {
            2 => "trn1",
            3 => "trn1n",
            4 | 7 => "inf2",
            5 | 6 | 8..=13 => "trn2",
            14 | 15 => "trn3",
            _ => return None,
        })
    }

    /// From the compiler's name for it; `None` for one we do not know.
    pub fn of_target(target: &str) -> Option<Self> {
        let target = Self::TARGETS.into_iter().find(|t| *t == target)?;
        // Chips: 2 cores share 32 GiB; 8 cores, taken in pairs, share 96 GiB, 144 GiB.
        let (logical_core, gibibytes) = match target {
            "trn2" => (2, 24),
            "trn3" => (2, 36),
            _ => (1, 16),
        };
        Some(Self { target, logical_core, core_bytes: gibibytes << 30 })
    }

    /// Everything on the command line that changes the result, for a program that `cores` run together.
    pub fn flags(&self, phase: Phase, cores: usize) -> Vec<String> {
        let mut flags = vec![
            "--framework=XLA".into(),
            format!("--target={}", self.target),
            "--model-type=transformer".into(),
            // The graph says where bf16 is meant; nothing else is to be rounded.
            "--auto-cast=none".into(),
        ];
        if self.logical_core > 1 {
            flags.push(format!("--lnc={}", self.logical_core));
        }
        match phase {
            Phase::Prefill => flags.push("-O1".into()),
            Phase::Decode => flags.push("-O2".into()),
        }
        if cores > 1 {
            // Sums over the cores run beside the products that do not wait for them.
            let tiles = if phase == Phase::Prefill { 2 } else { 1 };
            flags.push(format!(
                "--tensorizer-options=--enable-ccop-compute-overlap --cc-pipeline-tiling-factor={tiles}"
            ));
        }
        flags
    }
}

/// The compiler and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Compiler {
    program: PathBuf,
    pub version: String,
}

impl Compiler {
    /// `program`, or `neuronx-cc` from the search path.
    ///
    /// # Errors
    /// One line: what was run and what came of it.
    pub fn find(program: Option<&Path>) -> Result<Self, String> {
        let program = program.unwrap_or(Path::new("neuronx-cc")).to_path_buf();
        let name = program.display().to_string();
        let output = Command::new(&program)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(|e| format!("{name}: {e}; install neuronx-cc or activate its environment"))?;
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let version = said.lines().find(|l| l.contains("ersion")).and_then(|l| l.split_whitespace().last());
        match version {
            Some(version) if output.status.success() => Ok(Self { program, version: version.into() }),
            _ => Err(format!("{name} --version: {}, no version in its answer", output.status)),
        }
    }

    /// Compiles `graph.hlo.pb` in `folder` to `model.neff` beside it, with the compiler's words in `compile.log`.
    ///
    /// # Errors
    /// [`Error::Compile`] with the compiler's own error lines, the graph file and the log.
    pub fn compile(&self, folder: &Path, flags: &[String]) -> Result<()> {
        let failed = |reason: String| Error::Compile { device: "neuron", reason };
        let place = folder.display();
        // Relative names and a folder of its own: the compiler leaves files where it runs, and nothing in the result may
        // name this machine.
        let output = Command::new(&self.program)
            .arg("compile")
            .arg(GRAPH)
            .args(flags)
            .arg(format!("--output={NEFF}"))
            .current_dir(folder)
            .stdin(Stdio::null())
            .output()
            .map_err(|e| failed(format!("{} could not be run: {e}", self.program.display())))?;
        let log = [&output.stdout[..], &output.stderr[..]].concat();
        fs::write(folder.join(LOG), &log)
            .map_err(|e| failed(format!("the log in {place} could not be written: {e}")))?;
        if output.status.success() && folder.join(NEFF).is_file() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = said.lines().filter(|l| l.contains("ERROR") || l.contains("rror:")).take(4).collect();
        let said =
            if lines.is_empty() { said.lines().last().unwrap_or("it said nothing").into() } else { lines.join("; ") };
        Err(failed(format!(
            "neuronx-cc {} ended with {}: {said}; the graph is {place}/{GRAPH}, the whole log {place}/{LOG}",
            self.version, output.status
        )))
    }
}

/// Names of the files of a compilation, in its folder.
pub(super) const GRAPH: &str = "graph.hlo.pb";
pub(super) const NEFF: &str = "model.neff";
pub(super) const LOG: &str = "compile.log";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_compiler_is_named() {
        let error = Compiler::find(Some(Path::new("/nowhere/neuronx-cc"))).unwrap_err();
        assert!(error.contains("/nowhere/neuronx-cc") && error.contains("install"), "{error}");
    }

    #[test]
    fn flags_follow_the_hardware_and_the_phase() {
        let trn2 = Hardware::of_family(5).expect("trn2 is known");
        assert!(trn2.flags(Phase::Decode, 1).contains(&"--lnc=2".to_string()));
        assert_ne!(trn2.flags(Phase::Decode, 1), trn2.flags(Phase::Prefill, 1));
        assert_ne!(trn2.flags(Phase::Decode, 1), trn2.flags(Phase::Decode, 4));
        let trn1 = Hardware::of_family(2).expect("trn1 is known");
        assert!(!trn1.flags(Phase::Decode, 1).iter().any(|f| f.starts_with("--lnc")));
        assert_eq!(Hardware::of_family(99), None);
    }
}
