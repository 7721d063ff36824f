//! What the runtime reports becomes an error that says what happened and what to do, and whether the device still
//! works. Statuses are injected into the stand-in.

use dualgauge_kernels::{AttnSpec, DType, Error, Format, KvLayer, KvSpec, Precision, Recorder, Tail, open};
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

/// A model's whole life on a device, which any call may end.
fn life(simulated: &Simulated) -> Result<(), Error> {
    let mut backend = open(&simulated.device(Precision::Exact).spec)?.backend;
    let block_tokens = backend.limits().block_tokens;
    let layer = KvLayer { kv_heads: 1, k_dim: 4, v_dim: 4 };
    backend.reserve_kv(&KvSpec { layers: vec![layer], block_tokens, dtype: DType::F32 }, 3)?;
    let tables = [0, 1, 2].map(|seed| Random::new(seed).tensor([5, 4], Format::F32, 1.0));
    let tables = tables.map(|tensor| backend.upload(tensor, Format::F32));
    let mut pages = Pages::new(block_tokens, 3, &mut Random::new(1));
    let s = pages.add(vec![1, 2, 3]);
    let batch = pages.step(&[(s, 3)]);
    let g = Recorder::new(batch.shape, block_tokens);
    let mut parts = vec![];
    for table in tables {
        parts.push(g.reshape(g.embed(g.tokens(), table?), [3, 1, 4]));
    }
    let out = g.attention(parts[0], parts[1], parts[2], AttnSpec::new(0, 0.5));
    let logits = g.reshape(out, [3, 4]);
    let program = g.finish(logits, Tail { logits: true, ..Tail::default() }).expect("records");
    let id = backend.compile(&program)?;
    let ticket = backend.launch(id, &batch)?;
    backend.wait(ticket)?;
    backend.release(id);
    Ok(())
}

/// Whichever call fails, and whenever: an error that names the status, and nothing is left behind.
#[test]
fn every_call_may_fail() {
    let calls = [
        ("nrt_init", 1),
        ("nrt_get_vnc_memory_stats", 1),
        ("nrt_tensor_allocate", 8),
        ("nrt_tensor_write", 4),
        ("nrt_tensor_memset", 2),
        ("nrt_load", 1),
        ("nrt_get_model_tensor_info", 1),
        ("nrt_free_model_tensor_info", 1),
        ("nrt_allocate_tensor_set", 2),
        ("nrt_add_tensor_to_tensor_set", 9),
        ("nrt_execute", 1),
        ("nrt_tensor_read", 3),
    ];
    for (call, most) in calls {
        for nth in 1..=most {
            let simulated = Simulated::new();
            simulated.stand.set(&format!("fault {call} {nth} 6")).expect("is told");
            let error = life(&simulated).expect_err(&format!("{call}, call {nth}"));
            assert!(error.is_fatal() && error.to_string().contains("status 6"), "{call}, call {nth}: {error}");
            if call != "nrt_init" {
                let report = simulated.stand.report().expect("the runtime was closed");
                assert_eq!(report.leaked, 0, "{call}, call {nth}: handles leaked");
            }
        }
    }
    let simulated = Simulated::new();
    life(&simulated).expect("without a fault it lives");
    simulated.assert_clean();
}
