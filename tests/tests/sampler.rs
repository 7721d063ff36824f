//! The sampler against published vectors, a naive oracle, and itself from fewer data.

use std::collections::BTreeMap;

use dualgauge::Sampling;
use dualgauge::sampler::{Need, Place, Row, Seen, logprobs_of, need, philox4x32_10, sample};
use dualgauge_kernels::Candidate;
use dualgauge_tests::Random;

/// Known answers of the Random123 library (kat_vectors, philox4x32 with 10 rounds).
#[test]
fn philox_gives_the_published_numbers() {
    let vectors = [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    for (counter, key, expected) in vectors {
        assert_eq!(philox4x32_10(counter, key), expected);
    }
}

/// What a device makes of logits.
struct Device {
    logits: Vec<f32>,
    argmax: u32,
    top: Vec<Candidate>,
    log_sum_exp: f32,
}

impl Device {
    fn new(logits: Vec<f32>) -> Self {
        let mut top: Vec<Candidate> = (0..).zip(&logits).map(|(id, l)| Candidate { id, logit: *l }).collect();
        top.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id)));
        let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        Self { argmax: top[0].id, log_sum_exp: sum.ln() as f32, logits, top }
    }

    fn whole(&self) -> Row<'_> {
        Row { argmax: self.argmax, top: &[], log_sum_exp: self.log_sum_exp, logits: Some(&self.logits) }
    }

    fn candidates(&self, k: usize) -> Row<'_> {
        Row { argmax: self.argmax, top: &self.top[..k], log_sum_exp: self.log_sum_exp, logits: None }
    }
}

fn at(position: usize) -> Place<'static> {
    Place { position, generated: 0, stop_ids: &[], seen: None, mask: None }
}

fn random_logits(random: &mut Random, vocab: usize) -> Vec<f32> {
    // Few distinct values: ties are frequent.
    (0..vocab).map(|_| random.below(20) as f32 * 0.3 - 2.0).collect()
}

#[test]
fn candidates_and_all_logits_give_the_same_token() {
    let mut random = Random::new(1);
    for _ in 0..5000 {
        let device = Device::new(random_logits(&mut random, 40));
        let sampling = Sampling {
            temperature: *random.pick(&[0.0, 0.3, 1.0, 3.0]),
            top_k: random.below(9),
            top_p: *random.pick(&[1.0, 0.9, 0.3]),
            min_p: *random.pick(&[0.0, 0.1]),
            logprobs: *random.pick(&[None, Some(0), Some(3), Some(7)]),
            seed: random.bits(),
            ..Sampling::default()
        };
        let place = at(random.below(1000));
        let whole = sample(&device.whole(), &sampling, &place).unwrap();
        match need(&sampling, &place, 64) {
            Need::Logits => assert!(sampling.temperature > 0.0 && sampling.top_k == 0),
            Need::Candidates(k) => {
                for k in [k, 20, 40] {
                    assert_eq!(sample(&device.candidates(k), &sampling, &place).unwrap(), whole, "{sampling:?}");
                }
            }
        }
    }
}

/// Probabilities by the book: softmax of logits / temperature; drop what is less than min_p of the best; keep the top_k;
/// of what is left keep the least number of best tokens that reach top_p; scale to 1.
fn by_the_book(logits: &[f32], s: &Sampling) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|l| (f64::from(*l) / f64::from(s.temperature)).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut p: Vec<f64> = weights.iter().map(|w| w / total).collect();
    let best = p.iter().copied().fold(0.0, f64::max);
    p.iter_mut().filter(|p| **p < f64::from(s.min_p) * best * (1.0 - 1e-6)).for_each(|p| *p = 0.0);
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*b].total_cmp(&p[*a]).then(a.cmp(b)));
    if s.top_k > 0 {
        order.iter().skip(s.top_k).for_each(|i| p[*i] = 0.0);
    }
    let total: f64 = p.iter().sum();
    let mut before = 0.0;
    for i in order {
        let mine = p[i] / total;
        if before >= f64::from(s.top_p) && s.top_p < 1.0 {
            p[i] = 0.0;
        }
        before += mine;
    }
    let total: f64 = p.iter().sum();
    p.iter().map(|p| p / total).collect()
}

#[test]
fn frequencies_are_those_of_the_filtered_distribution() {
    let mut random = Random::new(2);
    for case in 0..40 {
        // No two alike, so that the book's rounding decides nothing.
        let logits: Vec<f32> = random.normals(12, 1.5);
        let sampling = Sampling {
            temperature: *random.pick(&[0.5, 1.0, 2.0]),
            top_k: *random.pick(&[0, 0, 4, 8]),
            top_p: *random.pick(&[1.0, 0.83, 0.41]),
            min_p: *random.pick(&[0.0, 0.07]),
            seed: random.bits(),
            ..Sampling::default()
        };
        let expected = by_the_book(&logits, &sampling);
        let device = Device::new(logits);
        let draws = 20_000;
        let mut counts = vec![0u32; expected.len()];
        for position in 0..draws {
            counts[sample(&device.whole(), &sampling, &at(position)).unwrap().id as usize] += 1;
        }
        for (id, (count, p)) in counts.iter().zip(&expected).enumerate() {
            let (n, mean) = (draws as f64, draws as f64 * p);
            // Five deviations: once in a million.
            let slack = 5.0 * (n * p * (1.0 - p)).sqrt();
            assert!((f64::from(*count) - mean).abs() <= slack, "case {case}, token {id}: {count}, expected {mean:.1}");
        }
    }
}

#[test]
fn the_choice_depends_on_seed_and_position_alone() {
    let device = Device::new(vec![0.0; 50]);
    let draw = |seed, position| {
        sample(&device.whole(), &Sampling { temperature: 1.0, seed, ..Sampling::default() }, &at(position)).unwrap().id
    };
    let first: Vec<u32> = (0..100).map(|p| draw(7, p)).collect();
    let again: Vec<u32> = (0..100).rev().map(|p| draw(7, p)).rev().collect();
    assert_eq!(first, again);
    assert_ne!(first, (0..100).map(|p| draw(8, p)).collect::<Vec<_>>());
}

#[test]
fn bias_penalties_and_forbidden_stops_change_the_logits_by_their_formulas() {
    let logits = vec![2.0, -1.0, 1.5, 0.5, 3.0];
    let mut seen = Seen::new(&[1, 2]);
    seen.generated(2);
    seen.generated(2);
    seen.generated(0);
    let sampling = Sampling {
        repetition_penalty: 2.0,
        presence_penalty: 0.25,
        frequency_penalty: 0.5,
        logit_bias: BTreeMap::from([(3, 1.0)]),
        min_tokens: 5,
        logprobs: Some(5),
        ..Sampling::default()
    };
    let place = Place { position: 5, generated: 3, stop_ids: &[4], seen: Some(&seen), mask: None };
    assert_eq!(need(&sampling, &place, 64), Need::Logits);
    let token = sample(&Device::new(logits.clone()).whole(), &sampling, &place).unwrap();
    // 0: 2/2 - 0.5 - 0.25; 1: -1*2, prompt only; 2: 1.5/2 - 2*0.5 - 0.25; 3: 0.5 + 1; 4: forbidden.
    let expected = [0.25f32, -2.0, -0.5, 1.5, f32::NEG_INFINITY];
    let sum: f32 = expected.iter().map(|l| l.exp()).sum::<f32>().ln();
    let logprobs = token.logprobs.unwrap();
    assert_eq!((token.id, logprobs.top[0].0), (3, 3));
    assert_eq!(logprobs.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3, 0, 2, 1, 4]);
    for (id, logprob) in &logprobs.top[..4] {
        assert!((logprob - (expected[*id as usize] - sum)).abs() < 1e-6, "{id}: {logprob}");
    }
    // With enough tokens generated the stop token may come.
    let later = Place { generated: 5, ..place };
    assert_eq!(sample(&Device::new(logits).whole(), &sampling, &later).unwrap().id, 4);
}

#[test]
fn ties_go_to_the_lowest_id() {
    let device = Device::new(vec![1.0, 3.0, 3.0, 3.0]);
    assert_eq!(sample(&device.whole(), &Sampling::default(), &at(0)).unwrap().id, 1);
    let one = Sampling { temperature: 1.0, top_k: 1, ..Sampling::default() };
    let two = Sampling { temperature: 1.0, top_k: 2, ..Sampling::default() };
    for position in 0..100 {
        assert_eq!(sample(&device.whole(), &one, &at(position)).unwrap().id, 1);
        assert!([1, 2].contains(&sample(&device.whole(), &two, &at(position)).unwrap().id));
    }
}

#[test]
fn a_nucleus_larger_than_the_first_look_is_whole() {
    // 3000 equal tokens: half the mass is the lowest 1500 ids.
    let device = Device::new(vec![0.0; 3000]);
    let sampling = Sampling { temperature: 1.0, top_p: 0.5, ..Sampling::default() };
    let drawn: Vec<u32> = (0..2000).map(|p| sample(&device.whole(), &sampling, &at(p)).unwrap().id).collect();
    assert!(drawn.iter().all(|id| *id < 1500), "{:?}", drawn.iter().max());
    assert!(drawn.iter().any(|id| *id > 1400) && drawn.iter().any(|id| *id < 100));
}

#[test]
fn logits_that_are_no_numbers_are_refused() {
    for temperature in [0.0, 1.0] {
        let sampling = Sampling { temperature, ..Sampling::default() };
        for broken in [f32::NAN, f32::INFINITY] {
            let device = Device { log_sum_exp: broken, ..Device::new(vec![0.0, 1.0]) };
            let refused = sample(&device.whole(), &sampling, &at(0)).unwrap_err();
            assert!(refused.contains("not finite"), "{refused}");
            let biased = Sampling { logit_bias: BTreeMap::from([(0, 1.0)]), ..sampling.clone() };
            let whole = Row { logits: Some(&[broken, 1.0]), ..device.whole() };
            assert!(sample(&whole, &biased, &at(0)).is_err());
        }
        let nothing = Sampling { min_tokens: 1, ..sampling };
        let place = Place { stop_ids: &[0, 1], ..at(0) };
        let refused = sample(&Device::new(vec![0.0, 1.0]).whole(), &nothing, &place).unwrap_err();
        assert!(refused.contains("no token is allowed"), "{refused}");
    }
}

#[test]
fn extreme_temperatures_are_harmless() {
    let device = Device::new(vec![1.0, 5.0, -80.0, 4.9]);
    for position in 0..50 {
        let cold = Sampling { temperature: 1e-30, ..Sampling::default() };
        assert_eq!(sample(&device.whole(), &cold, &at(position)).unwrap().id, 1);
        let hot = Sampling { temperature: 100.0, top_p: 1e-6, ..Sampling::default() };
        assert_eq!(sample(&device.whole(), &hot, &at(position)).unwrap().id, 1);
    }
}

#[test]
fn prompt_logprobs_are_logit_less_log_sum_exp() {
    let device = Device::new(vec![0.5, 2.0, 2.0, -1.0]);
    let logprobs = logprobs_of(&device.whole(), 3, 2).unwrap();
    let sum = [0.5f32, 2.0, 2.0, -1.0].iter().map(|l| l.exp()).sum::<f32>().ln();
    assert!((logprobs.logprob - (-1.0 - sum)).abs() < 1e-6);
    assert_eq!(logprobs.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2]);
}
