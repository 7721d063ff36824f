//! Law 1 on every device that computes: what else is in a step, how a prompt is cut and how a batch is padded do not
//! change one bit of a sequence's logits. And law 2: a device is near the oracle.

use dualgauge_kernels::{Batch, BatchShape, Format};
use dualgauge_tests::{
    Pages, Random, Runner, TestDevice, TinyLlama, Tolerance, assert_bits, assert_close, each_device,
};

const BLOCKS: usize = 64;

/// Models that between them reach every format's product, grouped heads, windows.
fn models() -> Vec<TinyLlama> {
    let tiny = TinyLlama::default();
    let wide = TinyLlama { hidden: 256, inner: 256, heads: 4, kv_heads: 1, head_dim: 64, layers: 1, ..tiny };
    vec![
        tiny,
        TinyLlama { format: Format::Bf16, heads: 3, kv_heads: 3, head_dim: 32, seed: 2, ..tiny },
        TinyLlama { format: Format::F16, window: Some(21), seed: 3, ..tiny },
        TinyLlama { format: Format::Q8_0, seed: 4, ..tiny },
        TinyLlama { format: Format::Q4_0, window: Some(5), seed: 5, ..tiny },
        TinyLlama { format: Format::Q4_1, seed: 6, ..tiny },
        TinyLlama { format: Format::Q6K, seed: 7, ..wide },
    ]
}

/// Says so by name when the device lacks the model's format.
fn lacks(device: &TestDevice, model: &TinyLlama) -> bool {
    let lack = device.lacks_format(model.format);
    if let Some(lack) = &lack {
        eprintln!("skipped on {}: it lacks {lack}", device.name);
    }
    lack.is_some()
}

fn prompts(random: &mut Random, vocab: usize) -> Vec<Vec<u32>> {
    [1, 7, 33, 50].map(|n| (0..n).map(|_| random.below(vocab) as u32).collect()).to_vec()
}

/// Logits of every token of `prompt`, alone and in one step: what all else is compared with.
fn whole(runner: &mut Runner, pages: &mut Pages, prompt: &[u32]) -> Vec<f32> {
    let sequence = pages.add(prompt.to_vec());
    let batch = pages.step(&[(sequence, prompt.len())]);
    runner.run(&batch).logits.expect("asked for")
}

#[test]
fn batched_and_chunked_is_alone_and_whole() {
    for model in models() {
        each_device!(&format!("law 1, {model:?}"), |device| {
            if lacks(device, &model) {
                return;
            }
            let mut runner = Runner::new(device, model, BLOCKS);
            let mut random = Random::new(model.seed);
            let mut pages = Pages::new(runner.block_tokens, BLOCKS, &mut random);
            let prompts = prompts(&mut random, model.vocab);
            let wanted: Vec<_> = prompts.iter().map(|p| whole(&mut runner, &mut pages, p)).collect();
            for round in 0..2 {
                let sequences: Vec<usize> = prompts.iter().map(|p| pages.add(p.clone())).collect();
                let mut held = vec![vec![]; prompts.len()];
                while let Some(work) = cut(&sequences, &pages, &mut random) {
                    for part in Pages::parts(runner.backend.limits(), &work) {
                        let batch = pages.step(&part);
                        let logits = runner.run(&batch).logits.expect("asked for");
                        for (i, (sequence, _)) in part.iter().enumerate() {
                            let which = sequences.iter().position(|s| s == sequence).expect("from this list");
                            let rows = batch.query(i);
                            held[which].extend(&logits[rows.start * model.vocab..rows.end * model.vocab]);
                        }
                    }
                }
                for (i, (held, wanted)) in held.iter().zip(&wanted).enumerate() {
                    let name = format!("{}: {} weights, round {round}, prompt {i}", device.name, model.format);
                    assert_bits(&name, held, wanted);
                }
            }
        });
    }
}

/// Some sequences in random order, some tokens of each: decode steps and chunks of all sizes.
fn cut(sequences: &[usize], pages: &Pages, random: &mut Random) -> Option<Vec<(usize, usize)>> {
    let mut open: Vec<usize> = sequences.iter().copied().filter(|s| pages.pending(*s) > 0).collect();
    random.shuffle(&mut open);
    open.truncate(random.between(1, 4));
    let mut work = vec![];
    for sequence in open {
        let most = pages.pending(sequence).min(*random.pick(&[1, 3, 17, 50]));
        work.push((sequence, random.between(1, most)));
    }
    (!work.is_empty()).then_some(work)
}

#[test]
fn padded_is_unpadded() {
    for model in models() {
        each_device!(&format!("padding, {model:?}"), |device| {
            if lacks(device, &model) {
                return;
            }
            let mut random = Random::new(model.seed + 50);
            let prompts = prompts(&mut random, model.vocab);
            // Where prefill and decode do not mix, a chunk stays one sequence and a decode step one token a sequence.
            let grow = |mixed: bool, s: BatchShape, by: usize| {
                let (tokens, seqs, query) = match s.query {
                    _ if mixed => (s.tokens + 2 * by, s.seqs + by, s.query + by),
                    1 => (s.tokens + by, s.seqs + by, 1),
                    _ => (s.tokens + by, 1, s.query + by),
                };
                BatchShape { tokens, seqs, query, blocks: s.blocks + by, rows: s.rows + by }
            };
            let run = |by: usize| {
                let mut runner = Runner::new(device, model, BLOCKS);
                let mut random = Random::new(9);
                let mut pages = Pages::new(runner.block_tokens, BLOCKS, &mut random);
                let sequences: Vec<usize> = prompts.iter().map(|p| pages.add(p.clone())).collect();
                let mut held = vec![];
                while let Some(work) = cut(&sequences, &pages, &mut random) {
                    for part in Pages::parts(runner.backend.limits(), &work) {
                        let mut batch: Batch = pages.step(&part);
                        let rows = batch.shape.rows;
                        batch.pad_to(grow(runner.backend.limits().mixed, batch.shape, by), runner.block_tokens);
                        let logits = runner.run(&batch).logits.expect("asked for");
                        held.extend_from_slice(&logits[..rows * model.vocab]);
                    }
                }
                held
            };
            let wanted = run(0);
            for by in [1, 40] {
                assert_bits(&format!("{}: {} weights, padded by {by}", device.name, model.format), &run(by), &wanted);
            }
        });
    }
}

/// The result does not depend on how many threads share the work.
#[test]
fn threads_do_not_matter() {
    for model in models() {
        for device in TestDevice::cpus() {
            let run = |threads: usize| {
                let mut device = device.clone();
                device.spec.threads = Some(threads);
                let mut runner = Runner::new(&device, model, BLOCKS);
                let mut random = Random::new(3);
                let mut pages = Pages::new(runner.block_tokens, BLOCKS, &mut random);
                let prompts = prompts(&mut random, model.vocab);
                prompts.iter().flat_map(|p| whole(&mut runner, &mut pages, p)).collect::<Vec<f32>>()
            };
            let wanted = run(1);
            for threads in [2, 3] {
                assert_bits(
                    &format!("{}: {} weights, {threads} threads", device.name, model.format),
                    &run(threads),
                    &wanted,
                );
            }
        }
    }
}

/// Law 2. Exact: f32 in another order through two layers. Native: activations rounded to bf16 or int8 before each of
/// a dozen products in a row, relative to the largest logit.
#[test]
fn devices_are_near_the_oracle() {
    for model in models() {
        let run = |device: &TestDevice| {
            let mut runner = Runner::new(device, model, BLOCKS);
            let mut random = Random::new(21);
            let mut pages = Pages::new(runner.block_tokens, BLOCKS, &mut random);
            let prompts = prompts(&mut random, model.vocab);
            prompts.iter().flat_map(|p| whole(&mut runner, &mut pages, p)).collect::<Vec<f32>>()
        };
        let wanted = run(&TestDevice::reference());
        each_device!(&format!("near the oracle, {model:?}"), |device| {
            if lacks(device, &model) {
                return;
            }
            let relative = if device.is_exact() { 2e-5 } else { 5e-2 };
            let name = format!("{}: {} weights", device.name, model.format);
            assert_close(&name, &run(device), &wanted, Tolerance::of_largest(relative));
        });
    }
}
