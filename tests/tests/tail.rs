//! The end of a step on every device against the oracle: candidates, ties, masks, sums.

use dualgauge_kernels::{Output, Tail};
use dualgauge_tests::case::run_with;
use dualgauge_tests::{Case, Random, TestDevice, Tolerance, assert_close, each_device};

/// Candidates, ties, masks and sums; inputs are exact everywhere, so that ids must be equal.
#[test]
fn tail() {
    for (seed, vocab) in (1000..).zip([1, 2, 31, 32, 33, 100, 1000, 5003]) {
        for (masked, ties) in [(false, false), (true, false), (false, true), (true, true)] {
            let tokens = 6;
            let build = move |c: &mut Case<'_>| {
                let mut values = c.random.normals(tokens * vocab, 4.0);
                if ties {
                    values.iter_mut().for_each(|v| *v = v.round());
                }
                c.given(vocab, &values)
            };
            let mut random = Random::new(seed);
            let words = vocab.div_ceil(32);
            // Rows in which most, some, few tokens are allowed, and all.
            let masks: Vec<u32> = (0..tokens * words)
                .map(|i| {
                    let (a, b) = (random.bits() as u32, random.bits() as u32);
                    [a | b, a, a & b & random.bits() as u32, u32::MAX][i / words % 4]
                })
                .collect();
            let masks = if masked { masks } else { vec![] };
            let tail = Tail { top_k: 8.min(vocab), logits: true, masked };
            let what = format!("vocabulary {vocab}, masked {masked}, ties {ties}, seed {seed}");
            let (wanted, _) = run_with(&TestDevice::reference(), seed, tokens, tail, &masks, &build);
            each_device!("tail", |device| {
                let (held, _) = run_with(device, seed, tokens, tail, &masks, &build);
                let name = format!("tail on {}: {what}", device.name);
                let logits = |o: &Output| o.logits.clone().expect("asked for");
                assert_close(&format!("{name}: logits"), &logits(&held), &logits(&wanted), Tolerance::EXACT);
                assert_eq!(held.argmax, wanted.argmax, "{name}: argmax");
                assert_eq!(held.top, wanted.top, "{name}: top_k");
                let tolerance = Tolerance { absolute: 1e-5, relative: 1e-6 };
                assert_close(&format!("{name}: log_sum_exp"), &held.log_sum_exp, &wanted.log_sum_exp, tolerance);
            });
        }
    }
}
