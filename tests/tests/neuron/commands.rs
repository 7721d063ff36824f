//! `serve neuron`: a plan before anything is loaded, a cache that a server then needs no compiler for, a look at the
//! machine, the self-test. The command itself runs, on the simulated device.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dualgauge::EngineConfig;
use dualgauge_kernels::Precision;
use dualgauge_models::WeightDtype;

use super::Simulated;
use super::serving::{goldens, serve};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/families/llama");
const BUCKETS: [&str; 6] =
    ["--neuron-prefill-buckets", "4,16,64", "--neuron-decode-buckets", "1,2,4", "--neuron-context-buckets", "32,128"];

/// What `serve neuron` runs.
fn binary() -> PathBuf {
    env!("CARGO_BIN_EXE_serve-neuron").into()
}

impl Simulated {
    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.arg("neuron").args(words);
        if words[0] != "--help" {
            command.arg("--neuron-compiler").arg(self.stand.compiler());
            command.arg("--neuron-library").arg(self.stand.library()).arg("--neuron-cache-dir").arg(self.cache());
        }
        command.output().expect("the server's binary runs")
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn help_says_what_to_do_in_which_order() {
    let simulated = Simulated::new();
    let text = said(&simulated.run(&["--help"]));
    let places: Vec<usize> = ["neuron doctor", "neuron plan", "neuron compile", "neuron selftest", "--device neuron"]
        .map(|word| text.rfind(word).unwrap_or_else(|| panic!("{word} in {text}")))
        .into();
    assert!(places.is_sorted(), "{text}");
    let plan = said(&Command::new(binary()).args(["neuron", "plan", "--help"]).output().expect("runs"));
    assert!(plan.contains("--target") && plan.contains("--max-model-len") && !plan.contains("--port"), "{plan}");
}

#[test]
fn a_plan_says_what_a_model_takes() {
    let simulated = Simulated::new();
    let words = [&["plan", "--model", MODEL, "--max-num-seqs", "4", "--target", "trn1"], &BUCKETS[..]].concat();
    let output = simulated.run(&words);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for word in ["trn1: 1 core(s) of 16384.0 MiB", "weights", "K/V", "tokens fit", "fits"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let row = |name: &str| -> Vec<String> {
        let line = text.lines().find(|l| l.contains(name)).unwrap_or_else(|| panic!("{name} in {text}"));
        line.rsplit(name).next().expect("the rest").split_whitespace().map(String::from).collect()
    };
    assert_eq!(row("prefill tokens"), ["4", "16", "64"]);
    assert_eq!(row("decode sequences"), ["1", "2", "4"]);
    assert_eq!(simulated.stand.compilations(), 0, "a plan compiles nothing");
    let too_much = [&words[..], &["--kv-cache-memory-bytes", "100g"]].concat();
    let output = simulated.run(&too_much);
    let text = said(&output);
    assert!(output.status.code() == Some(2) && text.contains("does not fit") && text.contains("--tp"), "{text}");
    let shared = said(&simulated.run(&[&words[..], &["--tp", "4"]].concat()));
    assert!(shared.contains("4 core(s)") && shared.contains("--tp is not there yet"), "{shared}");
    let unknown = simulated.run(&["plan", "--model", MODEL, "--target", "trn9"]);
    assert!(said(&unknown).contains("trn9") && said(&unknown).contains("trn2"), "{}", said(&unknown));
}

/// What is compiled without a device is all that a server with the same flags runs: it needs no compiler.
#[test]
fn a_compiled_model_serves_without_a_compiler() {
    let simulated = Simulated::new();
    let sizes = ["--max-num-seqs", "4", "--max-num-batched-tokens", "64", "--dtype", "f32"];
    let words = [&["compile", "--model", MODEL, "--jobs", "3"], &BUCKETS[..], &sizes[..]].concat();
    let output = simulated.run(&words);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let compiled = simulated.stand.compilations();
    assert!(compiled >= 12 && text.contains(&format!("[{compiled}/{compiled}]")), "{compiled}: {text}");
    let bytes = text.split("--kv-cache-memory-bytes ").nth(1).and_then(|rest| rest.trim().parse().ok());
    let again = simulated.run(&words);
    assert!(said(&again).contains(&format!("0 compiled, {compiled} were there")), "{}", said(&again));
    assert_eq!(simulated.stand.compilations(), compiled, "nothing was compiled again");

    let mut device = simulated.device(Precision::Exact);
    device.spec.neuron.no_compile = true;
    device.spec.neuron.compiler = Some("/nowhere/neuronx-cc".into());
    let (prompts, wanted): (Vec<_>, Vec<_>) = goldens(Path::new(MODEL)).into_iter().unzip();
    let config =
        EngineConfig { max_num_seqs: 4, max_num_batched_tokens: 64, kv_bytes: bytes, ..EngineConfig::default() };
    assert!(bytes.is_some(), "the flag that makes the cache fit is said: {text}");
    assert_eq!(serve(&device, (Path::new(MODEL), WeightDtype::F32), config, &prompts).0, wanted);
    simulated.assert_clean();
}

/// Nothing that cannot be kept is promised.
#[test]
fn several_cores_are_refused_where_they_would_compute() {
    let simulated = Simulated::new();
    let output = simulated.run(&[&["compile", "--model", MODEL, "--tp", "2"], &BUCKETS[..]].concat());
    assert!(output.status.code() == Some(2) && said(&output).contains("--tp"), "{}", said(&output));
    let mut spec = simulated.device(Precision::Exact).spec;
    spec.neuron.cores = Some(2);
    let Err(error) = dualgauge_kernels::open(&spec) else { panic!("opened") };
    assert!(error.to_string().contains("--tp"), "{error}");
}

#[test]
fn a_failed_compilation_does_not_hide_the_others() {
    let simulated = Simulated::new();
    simulated.stand.fail_compiler("[NCC_EVRF007] too many instructions").expect("is told");
    let output = simulated.run(&[&["compile", "--model", MODEL, "--max-num-seqs", "1"], &BUCKETS[..]].concat());
    let text = said(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("NCC_EVRF007") && text.contains("graph.hlo.pb") && text.contains("FAILED"), "{text}");
}

#[test]
fn the_doctor_names_what_is_wrong_and_what_to_do() {
    let simulated = Simulated::new();
    let text = said(&simulated.run(&["doctor"]));
    for word in ["libnrt 2.35.30", "trn2, 4 cores", "neuronx-cc 2.28", "MiB a core", "writable"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let lacking = said(
        &Command::new(binary())
            .args(["neuron", "doctor", "--neuron-library", "/nowhere/libnrt.so", "--neuron-compiler", "/nowhere/cc"])
            .arg("--neuron-cache-dir")
            .arg(simulated.cache())
            .output()
            .expect("runs"),
    );
    for word in ["aws-neuronx-runtime-lib", "pip install neuronx-cc", "to do:"] {
        assert!(lacking.contains(word), "{word} in {lacking}");
    }
}

#[test]
fn the_selftest_passes_and_can_fail() {
    for precision in [&["selftest", "--exact"][..], &["selftest"]] {
        let simulated = Simulated::new();
        let output = simulated.run(precision);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(
            text.contains("all ") && text.contains("attention") && text.contains("12 tokens, 12 the same"),
            "{text}"
        );
    }
    let simulated = Simulated::new();
    simulated.stand.set("fault nrt_execute 3 1003").expect("is told");
    let output = simulated.run(&["selftest"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("1003") && text.contains("1 of "), "{text}");
}
