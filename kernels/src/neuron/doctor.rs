//! Owns the look at a machine that is to run Neuron programs: driver, library, cores, compiler, cache; each with what to
//! do when it is not right. Opens the runtime, so no device may be open in the process.

use std::fs;
use std::path::Path;

use super::compiler::{Compiler, Hardware};
use super::nrt::Runtime;
use super::{CACHE, CORE, NeuronOptions};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// `driver`, `runtime`, `device`, `memory`, `compiler` or `cache`.
    pub what: &'static str,
    /// What is there, or what is wrong.
    pub found: Result<String, String>,
    /// What to do; empty when nothing is to be done.
    pub remedy: &'static str,
}

/// Looks at everything that serving needs, in the order in which it is needed.
pub fn neuron_doctor(options: &NeuronOptions) -> Vec<Finding> {
    let mut all = vec![driver()];
    match Runtime::open(options.libnrt.as_deref(), 1) {
        Err(e) => all.push(finding(
            "runtime",
            Err(e.to_string()),
            "install aws-neuronx-runtime-lib (and aws-neuronx-collectives for --tp), or name it with --neuron-library; \
             cores that another process holds are shown by neuron-ls",
        )),
        Ok(runtime) => {
            let facts = &runtime.facts;
            all.push(finding("runtime", Ok(format!("libnrt {} ({})", facts.version, facts.detail)), ""));
            let (cores, family) = (facts.cores, facts.family);
            let device = match Hardware::of_family(family) {
                Some(hardware) if options.cores() <= cores as usize => {
                    Ok(format!("{}, {cores} cores", hardware.target))
                }
                Some(hardware) => Err(format!("{}, {cores} cores; --tp asks for {}", hardware.target, options.cores())),
                None => Err(format!("instance family {family}, which this build does not know")),
            };
            let remedy = "ask for fewer cores with --tp, free some (neuron-ls), or update this program";
            all.push(finding("device", device, remedy));
            let memory = runtime.memory(CORE).map_err(|e| e.to_string());
            let words = |(used, limit): (u64, u64)| format!("{} MiB a core, {} in use", limit >> 20, used >> 20);
            all.push(finding("memory", memory.map(words), "restart the process that holds the core (neuron-ls)"));
        }
    }
    let compiler = Compiler::find(options.compiler.as_deref()).map(|c| format!("neuronx-cc {}", c.version));
    all.push(finding(
        "compiler",
        compiler,
        "python3 -m pip install neuronx-cc --index-url https://pip.repos.neuron.amazonaws.com, or name it with \
         --neuron-compiler; a cache that holds every program does without",
    ));
    all.push(cache(options.cache_dir.as_deref().unwrap_or(Path::new(CACHE))));
    all
}

fn finding(what: &'static str, found: Result<String, String>, remedy: &'static str) -> Finding {
    let remedy = if found.is_ok() { "" } else { remedy };
    Finding { what, found, remedy }
}

fn driver() -> Finding {
    let count = (0..64).take_while(|i| Path::new(&format!("/dev/neuron{i}")).exists()).count();
    let version = fs::read_to_string("/sys/module/neuron/version").map(|v| format!(", version {}", v.trim()));
    let found = match count {
        0 => Err("there is no /dev/neuron0".into()),
        n => Ok(format!("{n} device(s) from /dev/neuron0{}", version.unwrap_or_default())),
    };
    let remedy = "install aws-neuronx-dkms and load it (sudo modprobe neuron); other instance types have no device";
    finding("driver", found, remedy)
}

fn cache(root: &Path) -> Finding {
    let graphs = fs::read_dir(root).into_iter().flatten().flatten().filter(|e| e.path().is_dir()).count();
    let probe = root.join(".writable");
    let writable = fs::create_dir_all(root).and_then(|()| fs::write(&probe, b"")).is_ok();
    if writable {
        // Nothing depends on it being gone.
        let _ = fs::remove_file(&probe);
    }
    let found = match (writable, graphs) {
        (true, n) => Ok(format!("{}: {n} graph(s), writable", root.display())),
        (false, n) if n > 0 => Ok(format!("{}: {n} graph(s), read-only", root.display())),
        (false, _) => Err(format!("{} is empty and cannot be written", root.display())),
    };
    finding("cache", found, "name a folder you may write, or a filled one, with --neuron-cache-dir")
}
