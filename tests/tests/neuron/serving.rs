//! Through the engine: a checkpoint's greedy tokens with requests that come and go, and with a cache too small for all
//! of them. The goldens are those of the transformers library.

use std::fs;
use std::path::Path;

use dualgauge::{Engine, EngineConfig, Event, FinishReason, Health, Request, Sampling};
use dualgauge_kernels::Precision;
use dualgauge_models::{Checkpoint, WeightDtype};
use dualgauge_tests::TestDevice;
use serde_json::Value;

use super::Simulated;

/// Prompts and their 24 greedy tokens.
pub fn goldens(folder: &Path) -> Vec<(Vec<u32>, Vec<u32>)> {
    let text = fs::read_to_string(folder.join("expected.json")).expect("the fixture");
    let expected: Value = serde_json::from_str(&text).expect("JSON");
    let ids = |v: &Value| v.as_array().expect("a list").iter().map(|v| v.as_u64().expect("an id") as u32).collect();
    let prompts = expected["prompts"].as_array().expect("a list");
    prompts.iter().map(|p| (ids(&p["ids"]), ids(&p["greedy_ids"]))).collect()
}

/// Serves all requests at once on `device` with weights as `dtype` says; each answer, and how often a sequence was preempted.
pub fn serve(
    device: &TestDevice,
    (folder, dtype): (&Path, WeightDtype),
    config: EngineConfig,
    prompts: &[Vec<u32>],
) -> (Vec<Vec<u32>>, u64) {
    let mut backend = device.open();
    let checkpoint = Checkpoint::open(folder).expect("the fixture opens");
    let model = checkpoint.load(backend.as_mut(), dtype, &mut |_, _| {}).expect("loads");
    let engine = Engine::start(backend, model, config).expect("starts");
    let sampling = Sampling { max_tokens: Some(24), ignore_eos: true, ..Sampling::default() };
    let streams: Vec<_> =
        prompts.iter().map(|p| engine.submit(Request::new(p.clone(), sampling.clone())).expect("is taken")).collect();
    let mut answers = vec![];
    for mut events in streams {
        let mut answer = vec![];
        loop {
            match events.next_blocking().expect("ends with an end") {
                Event::Token(token) => answer.push(token.id),
                Event::Finished { reason, .. } => break assert_eq!(reason, FinishReason::Length),
                other => panic!("{other:?}"),
            }
        }
        answers.push(answer);
    }
    let preempted = engine.stats().counters.preemptions;
    assert!(engine.shutdown(std::time::Duration::from_secs(10)), "the engine ends");
    (answers, preempted)
}

#[test]
fn the_engine_gives_the_goldens_on_a_simulated_device() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/families/llama"));
    let goldens = goldens(folder);
    let prompts: Vec<Vec<u32>> = goldens.iter().map(|(p, _)| p.clone()).collect();
    let wanted: Vec<Vec<u32>> = goldens.into_iter().map(|(_, g)| g).collect();
    let roomy = EngineConfig { max_num_seqs: 4, max_num_batched_tokens: 64, ..EngineConfig::default() };
    // The prompts take 15 blocks, their answers 19 in the end: 17 hold the prompts and not the answers.
    let tight = EngineConfig { kv_blocks: Some(18), prefix_caching: false, ..roomy.clone() };
    for (config, scarce) in [(roomy, false), (tight, true)] {
        let simulated = Simulated::new();
        let device = simulated.device(Precision::Exact);
        let (answers, preempted) = serve(&device, (folder, WeightDtype::Auto), config.clone(), &prompts);
        assert_eq!(answers, wanted, "scarce {scarce}");
        assert_eq!(preempted > 0, scarce, "preempted {preempted} times");
        simulated.assert_clean();
        // A second start finds everything compiled.
        let compiled = simulated.stand.compilations();
        simulated.stand.restart().expect("a new process");
        assert_eq!(serve(&device, (folder, WeightDtype::Auto), config, &prompts).0, wanted);
        assert!(simulated.stand.compilations() <= compiled + 1, "the second start compiled again");
    }
}

/// A lost device ends the requests with an error and turns the engine's health red; it stays so.
#[test]
fn a_lost_device_ends_the_requests() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/families/llama"));
    let simulated = Simulated::new();
    simulated.stand.set("fault nrt_execute 5 1200").expect("is told");
    let mut backend = simulated.device(Precision::Exact).open();
    let checkpoint = Checkpoint::open(folder).expect("the fixture opens");
    let model = checkpoint.load(backend.as_mut(), WeightDtype::Auto, &mut |_, _| {}).expect("loads");
    let config = EngineConfig { max_num_seqs: 2, max_num_batched_tokens: 64, ..EngineConfig::default() };
    let engine = Engine::start(backend, model, config).expect("starts");
    let sampling = Sampling { max_tokens: Some(24), ignore_eos: true, ..Sampling::default() };
    let mut events = engine.submit(Request::new(vec![5, 6, 7], sampling.clone())).expect("is taken");
    let mut tokens = 0;
    let message = loop {
        match events.next_blocking().expect("ends with an end") {
            Event::Token(_) => tokens += 1,
            Event::Failed { message } => break message,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(tokens, 4, "what was computed before was delivered");
    assert!(message.contains("collective") && message.contains("restart"), "{message}");
    assert!(matches!(engine.health(), Health::Lost(_)));
    assert!(engine.submit(Request::new(vec![5], sampling)).is_err(), "nothing more is taken");
}
