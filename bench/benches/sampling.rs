//! Choosing one token of a vocabulary of 128 Ki on the host, by what the request asks for.

use std::collections::BTreeMap;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dualgauge::Sampling;
use dualgauge::sampler::{Need, Place, Row, Seen, need, sample};
use dualgauge_kernels::Candidate;

const VOCAB: usize = 128 << 10;
const CANDIDATES: usize = 64;

/// Bell-shaped, as logits are: sums of four hashes.
fn logits() -> Vec<f32> {
    let hash = |i: usize| ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 24) as f32;
    (0..VOCAB).map(|i| ((0..4).map(|k| hash(4 * i + k + 1)).sum::<f32>() - 2.0) * 6.0).collect()
}

fn choices(c: &mut Criterion) {
    let logits = logits();
    let mut top: Vec<Candidate> = (0..).zip(&logits).map(|(id, l)| Candidate { id, logit: *l }).collect();
    top.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id)));
    let log_sum_exp = logits.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln() as f32;
    let seen = Seen::new(&(0..4000).collect::<Vec<_>>());

    let warm = Sampling { temperature: 0.8, ..Sampling::default() };
    let cases = [
        ("greedy", Sampling::default()),
        ("greedy, 20 logprobs", Sampling { logprobs: Some(20), ..Sampling::default() }),
        ("top_k 40, top_p 0.95", Sampling { top_k: 40, top_p: 0.95, ..warm.clone() }),
        ("temperature alone", warm.clone()),
        ("top_p 0.95", Sampling { top_p: 0.95, ..warm.clone() }),
        ("repetition penalty, 4000 tokens", Sampling { repetition_penalty: 1.1, ..Sampling::default() }),
        ("bias", Sampling { logit_bias: BTreeMap::from([(7, 1.0)]), ..Sampling::default() }),
    ];
    let mut group = c.benchmark_group("sampling, vocabulary 128 Ki");
    for (name, sampling) in cases {
        let mut place = Place { position: 0, generated: 0, stop_ids: &[], seen: Some(&seen), mask: None };
        let all = need(&sampling, &place, CANDIDATES) == Need::Logits;
        let row = Row {
            argmax: top[0].id,
            top: if all { &[] } else { &top[..CANDIDATES] },
            log_sum_exp,
            logits: all.then_some(&logits[..]),
        };
        if all {
            group.throughput(Throughput::Bytes(4 * VOCAB as u64));
        } else {
            group.throughput(Throughput::Elements(1));
        }
        group.bench_function(name, |b| {
            b.iter(|| {
                place.position += 1;
                sample(&row, &sampling, &place).expect("a token")
            });
        });
    }
}

criterion_group!(benches, choices);
criterion_main!(benches);
