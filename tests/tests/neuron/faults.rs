//! What the runtime reports becomes an error that says what happened and what to do, and whether the device still
//! works. Statuses are injected into the stand-in.

use dualgauge_kernels::{Error, Format, Precision, open};
use dualgauge_tests::{Pages, Random, Runner, TinyLlama};

use super::Simulated;

/// The errors of two steps, of which the first meets the fault.
fn step_with(fault: &str) -> (Error, Option<Error>) {
    let simulated = Simulated::new();
    simulated.stand.set(fault).expect("is told");
    let mut runner = Runner::new(&simulated.device(Precision::Exact), TinyLlama::default(), 8);
    let mut pages = Pages::new(runner.block_tokens, 8, &mut Random::new(1));
    let s = pages.add(vec![1, 2, 3]);
    let batch = pages.step(&[(s, 3)]);
    let program = runner.record(&batch, Default::default());
    let id = runner.backend.compile(&program).expect("compiles");
    let mut step = || {
        let ticket = runner.backend.launch(id, &batch)?;
        runner.backend.wait(ticket).map(drop)
    };
    let first = step().expect_err("the fault");
    (first, step().err())
}

#[test]
fn a_failed_step_says_so_and_the_device_goes_on() {
    for (status, word) in [(1, "log"), (7, "queue"), (1002, "cache"), (1003, "no numbers"), (1006, "out of bounds")] {
        let (error, after) = step_with(&format!("fault nrt_execute 1 {status}"));
        assert!(matches!(error, Error::Launch { .. }) && !error.is_fatal(), "{status}: {error:?}");
        let message = error.to_string();
        assert!(message.contains(word) && message.contains(&status.to_string()), "{message}");
        assert!(after.is_none(), "{status}: {after:?}");
    }
}

#[test]
fn a_lost_device_is_fatal() {
    for status in [5, 6, 101, 1200, 1201, 1202, 1203, 1204, 1205, 1206] {
        let (error, _) = step_with(&format!("fault nrt_execute 1 {status}"));
        assert!(matches!(error, Error::Lost { .. }) && error.is_fatal(), "{status}: {error:?}");
        assert!(error.to_string().contains("restart") || error.to_string().contains("replace"), "{error}");
    }
}

#[test]
fn copies_that_fail_fail_the_step() {
    let (error, after) = step_with("fault nrt_tensor_read 1 1");
    assert!(error.to_string().contains("from the device"), "{error}");
    assert!(after.is_none());
}

#[test]
fn a_device_that_does_not_start_says_why() {
    for (fault, words) in [
        ("fault nrt_init 1 9", "neuron-ls"),
        ("fault nrt_init 1 13", "driver"),
        ("family 99", "family 99"),
        ("fault nrt_get_vnc_memory_stats 1 1", "memory"),
    ] {
        let simulated = Simulated::new();
        simulated.stand.set(fault).expect("is told");
        let Err(error) = open(&simulated.device(Precision::Native).spec) else { panic!("{fault}: opened") };
        assert!(error.to_string().contains(words), "{fault}: {error}");
    }
}

#[test]
fn memory_that_runs_out_names_what_for() {
    let simulated = Simulated::new();
    simulated.stand.set("hbm_bytes 10000").expect("is told");
    let mut backend = open(&simulated.device(Precision::Native).spec).expect("opens").backend;
    assert_eq!(backend.info().memory_bytes, 10000);
    let tensor = |rows: usize| Random::new(1).tensor([rows, 10], Format::F32, 1.0);
    backend.upload(tensor(100), Format::F32).expect("4000 bytes fit");
    match backend.upload(tensor(200), Format::F32) {
        Err(Error::OutOfMemory { what, needed: 8000, free: 6000 }) => assert!(what.contains("weight"), "{what}"),
        other => panic!("{other:?}"),
    }
    backend.upload(tensor(100), Format::F32).expect("the device goes on");
}

#[test]
fn a_device_says_what_it_is() {
    let simulated = Simulated::new();
    let backend = open(&simulated.device(Precision::Native).spec).expect("opens").backend;
    let info = backend.info();
    assert!(info.simulated && info.name == "neuron", "{info:?}");
    for word in ["trn2", "1 of 4 cores", "2.35.30", "neuronx-cc 2.28"] {
        assert!(info.description.contains(word), "{}", info.description);
    }
    assert!(!backend.limits().mixed && backend.limits().prefill_seqs == 1);
}
