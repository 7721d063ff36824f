//! A tiny model through the buckets: chunked prefill and batched decode give the oracle's greedy tokens, and law 1 holds
//! bit for bit.

use dualgauge_kernels::{Batch, BatchShape, Error, Format, Output, Precision, Value};
use dualgauge_tests::{Pages, Random, Runner, TestDevice, TinyLlama, Tolerance, assert_bits, assert_close};

use super::Simulated;

const BLOCKS: usize = 40;

fn prompts(random: &mut Random, vocab: usize) -> Vec<Vec<u32>> {
    [1, 7, 33, 50].map(|n| (0..n).map(|_| random.below(vocab) as u32).collect()).to_vec()
}

/// Runs a step in the smallest bucket that holds it.
fn padded(runner: &mut Runner, mut batch: Batch) -> Output {
    let shape = runner.backend.round_up(batch.shape).expect("a bucket holds it");
    batch.pad_to(shape, runner.block_tokens);
    runner.run(&batch)
}

/// Greedy tokens of each prompt: prefill in chunks of at most `chunk`, one sequence a step; then, when `together`, all
/// decode in one batch.
pub fn greedy(device: &TestDevice, model: TinyLlama, count: usize, chunk: usize, together: bool) -> Vec<Vec<u32>> {
    let mut runner = Runner::new(device, model, BLOCKS);
    let mut random = Random::new(model.seed);
    let mut pages = Pages::new(runner.block_tokens, BLOCKS, &mut random);
    let prompts = prompts(&mut random, model.vocab);
    let sequences: Vec<usize> = prompts.iter().map(|p| pages.add(p.clone())).collect();
    let mut generated = vec![vec![]; prompts.len()];
    let exact = device.spec.kind == dualgauge_kernels::DeviceKind::Reference;
    let run = |runner: &mut Runner, batch: Batch| if exact { runner.run(&batch) } else { padded(runner, batch) };
    for s in sequences.iter().copied() {
        while pages.pending(s) > 0 {
            let mut batch = pages.step(&[(s, pages.pending(s).min(chunk))]);
            batch.rows = vec![batch.shape.tokens as u32 - 1];
            batch.shape.rows = 1;
            let output = run(&mut runner, batch);
            if pages.pending(s) == 0 {
                generated[s].push(output.argmax[0]);
            }
        }
        pages.push(s, generated[s][0]);
    }
    for _ in 1..count {
        let groups: Vec<&[usize]> = if together { vec![&sequences] } else { sequences.chunks(1).collect() };
        for group in groups {
            let work: Vec<(usize, usize)> = group.iter().map(|s| (*s, 1)).collect();
            let output = run(&mut runner, pages.step(&work));
            for (row, s) in group.iter().enumerate() {
                generated[*s].push(output.argmax[row]);
                pages.push(*s, output.argmax[row]);
            }
        }
    }
    generated
}

#[test]
fn same_greedy_tokens_as_the_oracle() {
    let tiny = TinyLlama::default();
    let models = [
        tiny,
        TinyLlama { format: Format::Bf16, heads: 3, kv_heads: 3, head_dim: 32, seed: 2, ..tiny },
        TinyLlama { format: Format::F16, window: Some(21), seed: 3, ..tiny },
    ];
    for model in models {
        let wanted = greedy(&TestDevice::reference(), model, 12, 1000, false);
        for (chunk, together) in [(64, true), (16, true), (5, false)] {
            let simulated = Simulated::new();
            let held = greedy(&simulated.device(Precision::Exact), model, 12, chunk, together);
            assert_eq!(held, wanted, "{model:?}, chunks of {chunk}, together {together}");
            simulated.assert_clean();
        }
    }
}

/// Law 1 in both precisions: what else is in a step, how a prompt is cut and which bucket it runs in do not change one
/// bit. On the simulator sums run in one order; on hardware this is to be measured.
#[test]
fn buckets_do_not_change_a_bit() {
    let model = TinyLlama { format: Format::Bf16, ..TinyLlama::default() };
    for precision in [Precision::Exact, Precision::Native] {
        let simulated = Simulated::new();
        let mut runner = Runner::new(&simulated.device(precision), model, BLOCKS);
        let mut random = Random::new(5);
        let mut pages = Pages::new(runner.block_tokens, BLOCKS, &mut random);
        let prompts = prompts(&mut random, model.vocab);
        let vocab = model.vocab;
        for prompt in &prompts {
            let alone = pages.add(prompt.clone());
            let batch = pages.step(&[(alone, prompt.len())]);
            let wanted = padded(&mut runner, batch).logits.expect("asked for");
            let cut = pages.add(prompt.clone());
            let mut held = vec![];
            while pages.pending(cut) > 0 {
                let take = random.between(1, pages.pending(cut).min(15));
                let batch = pages.step(&[(cut, take)]);
                held.extend_from_slice(&padded(&mut runner, batch).logits.expect("asked for")[..take * vocab]);
            }
            assert_bits(&format!("{precision:?}, prompt of {}", prompt.len()), &held, &wanted[..prompt.len() * vocab]);
        }
    }
}

/// The microscope shows every value of a step as the oracle has it.
#[test]
fn probes_agree_with_the_oracle() {
    let model = TinyLlama { layers: 1, ..TinyLlama::default() };
    let simulated = Simulated::new();
    let [held, wanted] = [simulated.device(Precision::Exact), TestDevice::reference()].map(|device| {
        let mut runner = Runner::new(&device, model, BLOCKS);
        let mut random = Random::new(5);
        let mut pages = Pages::new(runner.block_tokens, BLOCKS, &mut random);
        let s = pages.add(vec![5, 6, 7]);
        let batch = pages.step(&[(s, 3)]);
        let tail = dualgauge_kernels::Tail { top_k: 3, logits: true, masked: false };
        let program = runner.record(&batch, tail);
        let id = runner.backend.compile(&program).expect("compiles");
        let ticket = runner.backend.launch(id, &batch).expect("launches");
        runner.backend.wait(ticket).expect("runs");
        let all = (0..program.nodes.len() as u32).map(|v| runner.backend.probe(id, Value(v)).expect("probes"));
        all.collect::<Vec<_>>()
    });
    assert!(held.len() > 15);
    for (i, (held, wanted)) in held.iter().zip(&wanted).enumerate() {
        assert_eq!((held.shape, held.dtype), (wanted.shape, wanted.dtype), "value {i}");
        assert_close(&format!("value {i}"), &held.values, &wanted.values, Tolerance::of_largest(1e-5));
    }
    simulated.assert_clean();
}

/// Quantised weights take on the device what they take in the file.
#[test]
fn quantised_weights_stay_small() {
    for format in [Format::Q8_0, Format::Q4_0, Format::Q4_1, Format::Q6K, Format::Mxfp4] {
        let simulated = Simulated::new();
        let tensor = Random::new(1).tensor([16, 512], format, 1.0);
        let bytes = tensor.bytes.len();
        simulated.stand.set(&format!("hbm_bytes {bytes}")).expect("is told");
        let mut backend = simulated.device(Precision::Native).open();
        let weight = backend.upload(tensor.clone(), format).expect("fits to the byte");
        assert_eq!((weight.format, weight.bytes()), (format, bytes as u64));
        let error = backend.upload(tensor, Format::Bf16).expect_err("decoded, it takes more than there is");
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    }
}

/// A batch that the device would fault on is refused before it gets there.
#[test]
fn steps_that_do_not_fit_are_refused() {
    let simulated = Simulated::new();
    let mut runner = Runner::new(&simulated.device(Precision::Exact), TinyLlama::default(), BLOCKS);
    let mut pages = Pages::new(runner.block_tokens, BLOCKS, &mut Random::new(1));
    let s = pages.add(vec![1, 2, 3]);
    let batch = pages.step(&[(s, 3)]);
    let program = runner.record(&batch, Default::default());
    let id = runner.backend.compile(&program).expect("compiles");
    let refused = |runner: &mut Runner, batch: &Batch, word: &str| {
        let error = runner.backend.launch(id, batch).expect_err("refused");
        assert!(!error.is_fatal() && error.to_string().contains(word), "{error}");
    };
    refused(&mut runner, &Batch { tokens: vec![1, 2, 101], ..batch.clone() }, "vocabulary");
    refused(&mut runner, &Batch { slots: vec![1, 2, 100_000], ..batch.clone() }, "slots");
    let shape = BatchShape { rows: 2, ..batch.shape };
    refused(&mut runner, &Batch { shape, rows: vec![0, 1], ..batch.clone() }, "batch");
    let ticket = runner.backend.launch(id, &batch).expect("the device still works");
    runner.backend.wait(ticket).expect("runs");
}
