//! The cache of compiled programs: minutes on the first start, none on the second; damage is mended; a failure names its
//! files.

use std::fs;
use std::path::{Path, PathBuf};

use dualgauge_kernels::{Error, Precision, Recorder, Tail};
use dualgauge_tests::{TestDevice, TinyLlama};

use super::Simulated;
use super::model::greedy;

fn start(device: &TestDevice) -> Vec<Vec<u32>> {
    greedy(device, TinyLlama::default(), 4, 16, true)
}

fn find(folder: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(find(&path, name));
        } else if entry.file_name() == name {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn the_second_start_compiles_nothing() {
    let simulated = Simulated::new();
    let device = simulated.device(Precision::Exact);
    let first = start(&device);
    let compiled = simulated.stand.compilations();
    assert!(compiled >= 3, "two prefill buckets and a decode bucket at least, not {compiled}");
    assert_eq!(find(&simulated.cache(), "model.neff").len(), compiled, "each was compiled once");
    simulated.stand.restart().expect("a new process");
    assert_eq!(start(&device), first);
    assert_eq!(simulated.stand.compilations(), compiled, "nothing was compiled again");
    simulated.assert_clean();
}

#[test]
fn a_damaged_entry_is_compiled_again() {
    let simulated = Simulated::new();
    let device = simulated.device(Precision::Exact);
    let first = start(&device);
    let compiled = simulated.stand.compilations();
    let neffs = find(&simulated.cache(), "model.neff");
    let mut bytes = fs::read(&neffs[0]).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&neffs[0], &bytes).expect("writes");
    fs::remove_file(&neffs[1]).expect("removes");
    simulated.stand.restart().expect("a new process");
    assert_eq!(start(&device), first);
    assert_eq!(simulated.stand.compilations(), compiled + 2, "both damaged ones, and only they");
    assert_eq!(find(&simulated.cache(), "model.neff"), neffs);
}

/// A machine that serves needs no compiler when another one filled the cache, wherever the folder lies.
#[test]
fn a_full_cache_needs_no_compiler_and_can_move() {
    let simulated = Simulated::new();
    let mut device = simulated.device(Precision::Exact);
    let first = start(&device);
    simulated.stand.restart().expect("a new process");
    let moved = simulated.cache().with_file_name("moved");
    fs::rename(simulated.cache(), &moved).expect("moves");
    device.spec.neuron.cache_dir = Some(moved.clone());
    device.spec.neuron.compiler = Some("/nowhere/neuronx-cc".into());
    assert_eq!(start(&device), first);
    fs::remove_dir_all(&moved).expect("empties");
    simulated.stand.restart().expect("a new process");
    let error = compile_something(&device).expect_err("neither entry nor compiler");
    let message = error.to_string();
    assert!(message.contains("no compiler") && message.contains("/nowhere/neuronx-cc"), "{message}");
    assert!(!error.is_fatal());
}

#[test]
fn a_failed_compilation_names_the_graph_and_the_log() {
    let simulated = Simulated::new();
    let device = simulated.device(Precision::Exact);
    simulated.stand.fail_compiler("[NCC_EVRF007] too many instructions").expect("is told");
    let error = compile_something(&device).expect_err("told to fail");
    let message = error.to_string();
    assert!(matches!(error, Error::Compile { .. }) && message.contains("NCC_EVRF007"), "{message}");
    for name in ["graph.hlo.pb", "compile.log"] {
        let found = find(&simulated.cache(), name);
        assert_eq!(found.len(), 1, "{name} is kept");
        assert!(message.contains(&found[0].display().to_string()), "{message} names {}", found[0].display());
    }
    simulated.stand.mend_compiler().expect("is told");
    simulated.stand.restart().expect("a new process");
    compile_something(&device).expect("compiles now");
}

fn compile_something(device: &TestDevice) -> Result<(), Error> {
    let mut backend = device.open();
    let shape = dualgauge_kernels::BatchShape { tokens: 1, seqs: 1, query: 1, blocks: 1, rows: 1 };
    let table = dualgauge_tests::Random::new(1).tensor([3, 8], dualgauge_kernels::Format::F32, 1.0);
    let table = backend.upload(table, dualgauge_kernels::Format::F32).expect("uploads");
    let g = Recorder::new(shape, backend.limits().block_tokens);
    let logits = g.select_rows(g.embed(g.tokens(), table));
    let program = g.finish(logits, Tail::default()).expect("records");
    backend.compile(&program).map(drop)
}
