//! The CUDA back end end to end: the unmodified host path over the emulated driver (or a GPU where there is one). Graphs
//! equal direct launches; the engine gives the CPU's tokens through batching and preemption; failures of the driver
//! become errors of requests.

use std::process::Command;

use dualgauge::{Engine, EngineConfig, Event, FinishReason, Health, Request, Sampling};
use dualgauge_kernels::{DeviceKind, DeviceSpec, Precision, kernel_architectures, kernel_pack};
use dualgauge_models::source::random::{LlamaShape, llama};
use dualgauge_tests::{Pages, Random, Runner, TestDevice, TinyLlama, assert_bits};

const SHAPE: LlamaShape = LlamaShape { vocab: 96, context: 256, layers: 2, ..LlamaShape::TINY };

/// The device in exact precision, or `None` with its reason said.
fn device() -> Option<TestDevice> {
    match TestDevice::cudas() {
        Ok(devices) => devices.into_iter().next(),
        Err(reason) => {
            eprintln!("skipped cuda: {reason}");
            None
        }
    }
}

fn engine(device: &TestDevice, kv_blocks: usize) -> Engine {
    let mut backend = device.open();
    let model = llama(backend.as_mut(), &SHAPE, 3).expect("a model of these sizes");
    let config = EngineConfig {
        kv_blocks: Some(kv_blocks),
        max_num_seqs: 8,
        max_num_batched_tokens: 48,
        ..EngineConfig::default()
    };
    Engine::start(backend, model, config).unwrap_or_else(|e| panic!("{e}"))
}

fn requests() -> Vec<Request> {
    let sampling = Sampling { max_tokens: Some(12), ignore_eos: true, ..Sampling::default() };
    let prompt = |i: u32| (0..5 + i * 13).map(|t| (i * 31 + t * t) % 96).collect();
    (0..5).map(|i| Request::new(prompt(i), sampling.clone())).collect()
}

/// All requests side by side: the tokens of each, or the failure that ended it.
fn answers(engine: &Engine) -> Vec<Result<Vec<u32>, String>> {
    let streams: Vec<_> = requests().into_iter().map(|r| engine.submit(r).expect("a valid request")).collect();
    let read = |mut events: dualgauge::Events| {
        let mut tokens = vec![];
        loop {
            match events.next_blocking().expect("every request ends") {
                Event::Token(token) => tokens.push(token.id),
                Event::Finished { reason, .. } => {
                    assert_eq!(reason, FinishReason::Length);
                    return Ok(tokens);
                }
                Event::Failed { message } => return Err(message),
                Event::Prompt(_) => {}
            }
        }
    };
    streams.into_iter().map(read).collect()
}

#[test]
fn captured_is_direct() {
    let Some(device) = device() else { return };
    for precision in [Precision::Exact, Precision::Native] {
        let format = dualgauge_kernels::Format::Bf16;
        let run = |direct: bool| {
            let mut device = device.clone();
            (device.spec.precision, device.spec.cuda.direct) = (precision, direct);
            let mut runner = Runner::new(&device, TinyLlama { format, ..TinyLlama::default() }, 16);
            let mut pages = Pages::new(runner.block_tokens, 16, &mut Random::new(4));
            let sequence = pages.add((0..40).collect());
            // The same shape several times: captured once, replayed on other data.
            let steps: Vec<_> = [16, 8, 8, 1, 1, 1].iter().map(|n| pages.step(&[(sequence, *n)])).collect();
            steps.iter().flat_map(|batch| runner.run(batch).logits.expect("asked for")).collect::<Vec<f32>>()
        };
        assert_bits(&format!("{} {precision:?}, replayed", device.name), &run(false), &run(true));
    }
}

#[test]
fn the_engine_gives_the_reference_tokens_through_preemption() {
    let Some(device) = device() else { return };
    let wanted = answers(&engine(&TestDevice::reference(), 64));
    assert!(wanted.iter().all(|w| w.as_ref().is_ok_and(|t| t.len() == 12)));
    assert_eq!(answers(&engine(&device, 64)), wanted, "with room for all");
    let tight = engine(&device, 9);
    assert_eq!(answers(&tight), wanted, "with room for one of the long ones at a time");
    assert!(tight.stats().counters.preemptions > 0, "blocks ran out");
}

#[test]
fn packs_hold_device_code() {
    for arch in kernel_architectures() {
        let image = kernel_pack(arch).expect("a pack");
        assert_eq!(&image[..4], b"\x7fELF", "{arch}");
        for kernel in ["linear_mma", "attend_bf16_2", "router", "log_sum_exp"] {
            assert!(image.windows(kernel.len()).any(|w| w == kernel.as_bytes()), "{arch} has {kernel}");
        }
    }
}

/// Runs the test `name` of this binary in a process whose emulated driver fails as `fault` says.
fn with_fault(name: &str, fault: &str) {
    let Some(device) = device() else { return };
    if device.spec.cuda.library.is_none() {
        eprintln!("skipped: a real GPU fails no call on request");
        return;
    }
    let me = std::env::current_exe().expect("this binary");
    let out =
        Command::new(me).args(["--exact", name, "--nocapture", "--include-ignored"]).env("EMU_FAIL", fault).output();
    let out = out.expect("the process starts");
    assert!(
        out.status.success(),
        "{fault}: {}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

/// The fault this process was started with, for the children of [`with_fault`].
fn fault() -> Option<String> {
    std::env::var("EMU_FAIL").ok()
}

#[test]
fn a_lost_device_ends_every_request_and_turns_health_red() {
    with_fault("child_sees_the_device_lost", "cuGraphLaunch:4:719");
}

#[test]
fn child_sees_the_device_lost() {
    if fault().is_none() {
        return; // runs in a child process only
    }
    let engine = engine(&device().expect("the parent had one"), 64);
    let answers = answers(&engine);
    assert!(answers.iter().all(|a| a.as_ref().is_err_and(|m| m.contains("cuda"))), "{answers:?}");
    assert!(matches!(engine.health(), Health::Lost(_)));
}

#[test]
fn memory_that_runs_out_is_an_error_that_names_what_needed_it() {
    with_fault("child_sees_memory_run_out", "cuMemAlloc_v2:2:2");
}

#[test]
fn child_sees_memory_run_out() {
    if fault().is_none() {
        return; // runs in a child process only
    }
    let mut backend = device().expect("the parent had one").open();
    let error = llama(backend.as_mut(), &SHAPE, 3).err().expect("no memory").to_string();
    assert!(error.contains("needs") && error.contains("bytes of memory"), "{error}");
}

#[test]
fn a_failed_step_is_retried_and_the_device_stays() {
    with_fault("child_sees_one_failed_launch", "cuGraphLaunch:3:1");
}

#[test]
fn child_sees_one_failed_launch() {
    if fault().is_none() {
        return; // runs in a child process only
    }
    let engine = engine(&device().expect("the parent had one"), 64);
    let answers = answers(&engine);
    assert!(answers.iter().all(Result::is_ok), "one failure is survived: {answers:?}");
    assert_eq!(engine.health(), Health::Ready);
}

#[test]
fn without_a_driver_the_reason_is_said() {
    let spec = DeviceSpec { kind: DeviceKind::Cuda(7), ..DeviceSpec::default() };
    let error = dualgauge_kernels::open(&spec).err().expect("no machine here has eight").to_string();
    assert!(error.contains("cuda:7") && error.contains("CUDA"), "{error}");
}
