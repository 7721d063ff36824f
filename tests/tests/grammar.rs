//! Grammars under the engine's laws: a constrained answer is the same whatever the engine did beside it.

use std::path::Path;

use dualgauge::{Engine, EngineConfig, Frontend, OutputFormat, Piece, Prompt, Sampling, Stop, TextRequest};
use dualgauge_kernels::{NullOptions, null_with};
use dualgauge_models::{Checkpoint, WeightDtype};

fn frontend(kv_blocks: usize, max_num_seqs: usize) -> Frontend {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/families/llama");
    let checkpoint = Checkpoint::open(&folder).expect("the fixture");
    let mut backend = null_with(NullOptions::default());
    let model = checkpoint.load(backend.as_mut(), WeightDtype::Auto, &mut |_, _| {}).expect("the fixture loads");
    let config = EngineConfig { kv_blocks: Some(kv_blocks), max_num_seqs, ..EngineConfig::default() };
    let engine = Engine::start(backend, model, config).expect("an engine");
    Frontend::new(engine, checkpoint.text().expect("the fixture's tokenizer").into())
}

/// Long enough that many of them do not fit the cache together.
fn request(seed: u64) -> TextRequest {
    let prompt = Prompt::Text { text: format!("number {}", seed % 3), add_special: true };
    let sampling = Sampling { temperature: 1.0, seed, max_tokens: Some(300), ..Sampling::default() };
    let format = Some(OutputFormat::Regex("([a-f]{3}-){40}end".into()));
    TextRequest { format, ..TextRequest::new(prompt, sampling) }
}

fn answer(mut generation: dualgauge::Generation) -> (String, Option<Stop>) {
    let (mut text, mut end) = (String::new(), None);
    while let Some(piece) = generation.next_blocking() {
        match piece {
            Piece::Text { text: more, .. } => text += &more,
            Piece::Finished { reason, .. } => end = Some(reason),
            other => panic!("{other:?}"),
        }
    }
    (text, end)
}

#[test]
fn a_preempted_answer_keeps_its_place_in_the_grammar() {
    let roomy = frontend(2048, 1);
    let alone: Vec<_> = (0..12).map(|seed| answer(roomy.generate(request(seed)).expect("accepted"))).collect();
    for (text, end) in &alone {
        assert_eq!(*end, Some(Stop::Eos), "{text}");
        assert!(text.len() == 163 && text.ends_with("-end"), "{text}");
    }
    let tight = frontend(40, 12);
    let running: Vec<_> = (0..12).map(|seed| tight.generate(request(seed)).expect("accepted")).collect();
    let together: Vec<_> = running.into_iter().map(answer).collect();
    assert!(tight.engine().stats().counters.preemptions > 0, "nothing was preempted: the test shows nothing");
    assert_eq!(together, alone);
}
