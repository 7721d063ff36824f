//! The laws of the engine over random schedules: what a request answers does not depend on what else runs, how its
//! prompt is cut, what is cached or how often it is preempted; blocks add up after every step; every request ends
//! exactly once. On the null device by the thousand, on the CPU bit for bit.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use dualgauge::{
    Core, Counters, EngineConfig, Event, FinishReason, Request, RequestId, Sampling, Stats, Token, TokenLogprobs, Usage,
};
use dualgauge_kernels::{Backend, DType, DeviceKind, DeviceSpec, Limits, NullOptions, isa_paths, null_with, open};
use dualgauge_models::source::random::{LlamaShape, llama};
use dualgauge_tests::{Random, TinyHybrid};

const CONTEXT: usize = 160;
const SHAPE: LlamaShape = LlamaShape { vocab: 96, context: CONTEXT, layers: 1, ..LlamaShape::TINY };

/// What one request came to.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    prompt: Option<Vec<TokenLogprobs>>,
    tokens: Vec<Token>,
    /// `None` for one that was aborted or failed.
    end: Option<(FinishReason, Usage)>,
    ends: usize,
    failed: bool,
}

impl Answer {
    fn take(&mut self, event: Event) {
        assert_eq!(self.ends, 0, "{event:?} comes after the end");
        match event {
            Event::Prompt(prompt) => {
                assert!(self.tokens.is_empty() && self.prompt.is_none(), "the prompt's come once, before any token");
                self.prompt = Some(prompt);
            }
            Event::Token(token) => self.tokens.push(token),
            Event::Finished { reason, mut usage } => {
                // How much was cached is the schedule's affair.
                usage.cached_tokens = 0;
                self.end = Some((reason, usage));
                self.ends = 1;
            }
            Event::Failed { .. } => (self.failed, self.ends) = (true, 1),
        }
    }
}

/// What kind of model a schedule is for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Attends,
    /// Keeps a state of each sequence beside the K/V.
    Hybrid,
    /// Keeps nothing but a state.
    Recurrent,
}

fn core(kind: Kind, mut backend: Box<dyn Backend>, config: &EngineConfig) -> Core {
    let model = match kind {
        Kind::Attends => llama(backend.as_mut(), &SHAPE, 3).expect("a model of these sizes"),
        _ => TinyHybrid::on(backend.as_mut(), SHAPE.vocab, CONTEXT, kind == Kind::Hybrid),
    };
    Core::new(backend, model, config).unwrap_or_else(|e| panic!("{config:?}: {e}"))
}

/// The oracle: one request at a time, its whole prompt in one step, nothing cached, room for all.
struct Alone(Core);

impl Alone {
    fn new(kind: Kind, backend: Box<dyn Backend>) -> Self {
        let config = EngineConfig { prefix_caching: false, ..EngineConfig::default() };
        Self(core(kind, backend, &config))
    }

    fn answer(&mut self, request: &Request) -> Answer {
        let id = self.0.add(request.clone()).expect("a valid request");
        let mut answer = Answer::default();
        while let Some(step) = self.0.step() {
            for (of, event) in step.events {
                assert_eq!(of, id);
                answer.take(event);
            }
        }
        assert_eq!(answer.ends, 1);
        answer
    }
}

/// A schedule to be survived.
#[derive(Clone, Debug)]
struct Case {
    config: EngineConfig,
    limits: Limits,
    round_to: usize,
    fail_launch_every: Option<u64>,
    fail_wait_every: Option<u64>,
    /// Steps are said to take times that make no sense.
    paced: bool,
    /// Step of arrival, request, step of abortion.
    requests: Vec<(usize, Request, Option<usize>)>,
}

impl Case {
    fn random(random: &mut Random, failures: bool) -> Self {
        let block_tokens = *random.pick(&[2, 4, 16]);
        let mixed = random.below(3) > 0;
        let limits = Limits {
            mixed,
            prefill_seqs: if mixed { *random.pick(&[2, 100]) } else { *random.pick(&[1, 1, 3]) },
            max_tokens: 4096,
            max_seqs: 64,
            block_tokens,
            max_top_k: *random.pick(&[4, 256]),
            activations: DType::F32,
            kv_dtype: DType::F32,
        };
        let max_num_seqs = random.between(1, 8);
        // From one full sequence and hardly more, so that preemption happens, to plenty.
        let full = CONTEXT.div_ceil(block_tokens);
        let (spare_tokens, spare_sequences) = (*random.pick(&[6, 40, 200]), *random.pick(&[1, 1, 4]));
        let config = EngineConfig {
            max_num_seqs,
            max_num_batched_tokens: max_num_seqs + random.below(spare_tokens),
            kv_blocks: Some(1 + full + random.below(full * spare_sequences)),
            prefix_caching: random.flip(),
            max_programs: *random.pick(&[1, 4, 100]),
            ..EngineConfig::default()
        };
        let every = |random: &mut Random| (failures && random.flip()).then(|| random.between(3, 30) as u64);
        let shared: Vec<u32> = (0..60).map(|_| random.below(SHAPE.vocab) as u32).collect();
        let requests = (0..random.between(1, 10)).map(|_| {
            let arrival = if random.flip() { 0 } else { random.below(60) };
            let aborted = (random.below(6) == 0).then(|| arrival + random.below(40));
            (arrival, request(random, &shared), aborted)
        });
        let requests = requests.collect();
        let round_to = *random.pick(&[1, 1, 8]);
        let (fail_launch_every, fail_wait_every) = (every(random), every(random));
        Self { config, limits, round_to, fail_launch_every, fail_wait_every, paced: random.flip(), requests }
    }

    fn null(&self) -> Box<dyn Backend> {
        null_with(NullOptions {
            limits: Some(self.limits.clone()),
            round_to: self.round_to,
            fail_launch_every: self.fail_launch_every,
            fail_wait_every: self.fail_wait_every,
            ..NullOptions::default()
        })
    }

    /// Plays the schedule; checks blocks and ends on the way.
    fn play(&self, kind: Kind, backend: Box<dyn Backend>) -> (BTreeMap<RequestId, (usize, Answer)>, Stats) {
        let mut core = core(kind, backend, &self.config);
        let mut answers: BTreeMap<RequestId, (usize, Answer)> = BTreeMap::new();
        let mut aborted = BTreeSet::new();
        for now in 0.. {
            assert!(now < 20_000, "the schedule does not come to its end");
            for (i, (arrival, request, abort)) in self.requests.iter().enumerate() {
                if *arrival == now {
                    answers.insert(core.add(request.clone()).expect("a valid request"), (i, Answer::default()));
                }
                if *abort == Some(now) {
                    let id = *answers.iter().find(|(_, (of, _))| *of == i).expect("arrived before").0;
                    if core.abort(id).is_some() {
                        aborted.insert(id);
                        answers.get_mut(&id).expect("known").1.ends += 1;
                    }
                }
            }
            core.verify().unwrap();
            let step = core.step();
            core.verify().unwrap();
            let idle = step.is_none();
            if let Some(step) = step.as_ref().filter(|_| self.paced) {
                core.took(step, Duration::from_micros(now as u64 * 7919 % 5003));
            }
            for (id, event) in step.into_iter().flat_map(|s| s.events) {
                assert!(!aborted.contains(&id), "an event of an aborted request");
                answers.get_mut(&id).expect("known").1.take(event);
            }
            if idle {
                assert!(core.is_idle(), "requests wait and no step is made for them: {self:?}");
            }
            if idle && self.requests.iter().all(|(arrival, ..)| *arrival <= now) {
                let stats = core.stats();
                assert_eq!(stats.blocks.held, 0, "blocks are held and nobody is there");
                assert_eq!(stats.blocks.free + stats.blocks.cached, stats.blocks.total);
                assert!(answers.values().all(|(_, a)| a.ends == 1), "every request ends exactly once");
                return (answers, stats);
            }
        }
        unreachable!()
    }
}

fn request(random: &mut Random, shared: &[u32]) -> Request {
    let mut prompt = shared[..random.below(shared.len() + 1)].to_vec();
    prompt.extend((0..random.below(50)).map(|_| random.below(SHAPE.vocab) as u32));
    if prompt.is_empty() {
        prompt.push(random.below(SHAPE.vocab) as u32);
    }
    if random.below(12) == 0 {
        prompt.resize_with(CONTEXT - 1 - random.below(3), || random.below(SHAPE.vocab) as u32);
    }
    let warm = random.flip();
    let max_tokens = random.below(40);
    let unlikely = |random: &mut Random| random.below(4) == 0;
    let sampling = Sampling {
        temperature: if warm { 0.1 + random.unit() * 2.0 } else { 0.0 },
        top_k: *random.pick(&[0, 1, 3, 50]),
        top_p: *random.pick(&[1.0, 1.0, 0.7]),
        min_p: *random.pick(&[0.0, 0.0, 0.05]),
        repetition_penalty: if unlikely(random) { 1.3 } else { 1.0 },
        presence_penalty: if unlikely(random) { 0.5 } else { 0.0 },
        frequency_penalty: if unlikely(random) { -0.3 } else { 0.0 },
        logit_bias: if unlikely(random) { [(random.below(SHAPE.vocab) as u32, 3.0)].into() } else { BTreeMap::new() },
        seed: random.bits(),
        logprobs: *random.pick(&[None, None, Some(0), Some(5)]),
        max_tokens: (random.below(10) > 0).then_some(max_tokens),
        min_tokens: if unlikely(random) { max_tokens.min(5) } else { 0 },
        stop_ids: if unlikely(random) { vec![random.below(SHAPE.vocab) as u32] } else { vec![] },
        ignore_eos: random.flip(),
    };
    let mut request = Request::new(prompt, sampling);
    request.cache_salt = unlikely(random).then(|| random.pick(&["a", "b"]).to_string());
    request.prompt_logprobs = (random.below(8) == 0).then(|| random.below(4));
    request
}

/// Runs `check` for each seed and names the seed that failed.
fn for_seeds(seeds: std::ops::Range<u64>, mut check: impl FnMut(&mut Random)) {
    for seed in seeds {
        let run = catch_unwind(AssertUnwindSafe(|| check(&mut Random::new(seed))));
        assert!(run.is_ok(), "failed with seed {seed}");
    }
}

fn agree(case: &Case, answers: &BTreeMap<RequestId, (usize, Answer)>, alone: &mut Alone) {
    for (index, answer) in answers.values() {
        let request = &case.requests[*index].1;
        let expected = alone.answer(request);
        if answer.end.is_some() {
            assert_eq!(answer, &expected, "request {index} differs from itself alone: {request:?}\n{case:?}");
        } else {
            // Cut off: what came before stands.
            assert_eq!(answer.tokens[..], expected.tokens[..answer.tokens.len()], "request {index}: {request:?}");
        }
    }
}

fn sum(into: &mut Counters, of: &Counters) {
    into.preemptions += of.preemptions;
    into.prefix_hits += of.prefix_hits;
    into.failed_steps += of.failed_steps;
    into.steps += of.steps;
}

#[test]
fn a_request_answers_as_if_it_were_alone() {
    let mut alone = Alone::new(Kind::Attends, null_with(NullOptions::default()));
    let (mut total, mut stopped, mut cut) = (Counters::default(), 0, 0);
    for_seeds(0..2500, |random| {
        let case = Case::random(random, false);
        let (answers, stats) = case.play(Kind::Attends, case.null());
        agree(&case, &answers, &mut alone);
        assert!(answers.values().all(|(_, a)| !a.failed));
        sum(&mut total, &stats.counters);
        stopped += answers.values().filter(|(_, a)| matches!(a.end, Some((FinishReason::Stop(_), _)))).count();
        cut += answers.values().filter(|(_, a)| a.end.is_none()).count();
    });
    // The cases are what they are meant to be.
    assert!(total.preemptions > 300 && total.prefix_hits > 10_000, "{total:?}");
    assert!(stopped > 100 && cut > 100, "{stopped} stopped, {cut} aborted");
}

/// Its state has one more hash of all that it took in, in order and once.
#[test]
fn so_does_a_request_to_a_model_that_keeps_a_state() {
    for kind in [Kind::Hybrid, Kind::Recurrent] {
        let mut alone = Alone::new(kind, null_with(NullOptions::default()));
        let mut total = Counters::default();
        for_seeds(0..800, |random| {
            let case = Case::random(random, false);
            let (answers, stats) = case.play(kind, case.null());
            agree(&case, &answers, &mut alone);
            assert!(answers.values().all(|(_, a)| !a.failed));
            assert_eq!(stats.blocks.cached, 0, "a block tells nothing of the state after it");
            sum(&mut total, &stats.counters);
        });
        assert!(total.preemptions > 100 && total.prefix_hits == 0, "{total:?}");
    }
}

#[test]
fn failed_steps_change_no_answer() {
    for kind in [Kind::Attends, Kind::Hybrid] {
        failed_steps(kind);
    }
}

fn failed_steps(kind: Kind) {
    let mut alone = Alone::new(kind, null_with(NullOptions::default()));
    let (mut total, mut failed, mut whole) = (Counters::default(), 0, 0);
    for_seeds(0..800, |random| {
        let case = Case::random(random, true);
        let (answers, stats) = case.play(kind, case.null());
        agree(&case, &answers, &mut alone);
        sum(&mut total, &stats.counters);
        failed += answers.values().filter(|(_, a)| a.failed).count();
        whole += answers.values().filter(|(_, a)| a.end.is_some()).count();
    });
    // A state is made again from the first token, and is given up when that fails before it is as far as it was.
    let (steps, part) = if kind == Kind::Attends { (1000, 5) } else { (500, 1) };
    assert!(total.failed_steps > steps && whole > part * failed, "{total:?}, {failed} failed, {whole} whole");
}

#[test]
fn a_lost_device_ends_every_request_once() {
    for_seeds(0..50, |random| {
        let case = Case::random(random, false);
        let backend = null_with(NullOptions {
            limits: Some(case.limits.clone()),
            lost_after: Some(random.below(20) as u64),
            ..NullOptions::default()
        });
        case.play(*random.pick(&[Kind::Attends, Kind::Hybrid]), backend);
    });
}

#[test]
fn the_cpu_keeps_the_law_bit_for_bit() {
    for isa in isa_paths() {
        let device = || {
            let isa_name = Some(isa.to_owned());
            let spec = DeviceSpec { kind: DeviceKind::Cpu, threads: Some(2), isa: isa_name, ..DeviceSpec::default() };
            open(&spec).unwrap_or_else(|e| panic!("{isa}: {e}")).backend
        };
        let full = CONTEXT.div_ceil(device().limits().block_tokens);
        for kind in [Kind::Attends, Kind::Hybrid] {
            let mut alone = Alone::new(kind, device());
            let mut total = Counters::default();
            for_seeds(0..12, |random| {
                let mut case = Case::random(random, false);
                case.config.kv_blocks = Some(1 + full + random.below(full / 2));
                let (answers, stats) = case.play(kind, device());
                agree(&case, &answers, &mut alone);
                sum(&mut total, &stats.counters);
            });
            assert!(total.preemptions > 0, "{isa}, {kind:?}: {total:?}");
            assert_eq!(total.prefix_hits > 0, kind == Kind::Attends, "{isa}, {kind:?}: {total:?}");
        }
    }
}

/// A null device with room for long prompts.
fn roomy(limits: Option<Limits>) -> Core {
    let mut backend = null_with(NullOptions { limits, ..NullOptions::default() });
    let model = llama(backend.as_mut(), &LlamaShape { context: 8192, ..SHAPE }, 3).expect("a model of these sizes");
    Core::new(backend, model, &EngineConfig::default()).expect("room for it")
}

fn long(sampling: &Sampling) -> Request {
    Request::new((0..8000).map(|i| i % 90).collect(), sampling.clone())
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one() {
    for (mixed, prefill_seqs) in [(true, 100), (true, 1), (false, 1)] {
        let limits = Limits { mixed, prefill_seqs, ..null_with(NullOptions::default()).limits().clone() };
        let mut core = roomy(Some(limits));
        let sampling = Sampling { max_tokens: Some(4), ..Sampling::default() };
        let late = core.add(long(&sampling)).unwrap();
        core.step();
        let early = core.add(Request::new((0..30).collect(), sampling)).unwrap();
        let mut first = BTreeMap::new();
        for now in 1..100 {
            for (id, event) in core.step().into_iter().flat_map(|s| s.events) {
                if matches!(event, Event::Token(_)) {
                    first.entry(id).or_insert(now);
                }
            }
        }
        assert!(first[&late] >= 8000 / 512 && first[&early] <= 4, "first tokens in steps: {first:?}");
    }
}

#[test]
fn a_long_prompt_does_not_hold_up_those_who_generate() {
    let mut core = roomy(None);
    let sampling = Sampling { max_tokens: Some(30), ignore_eos: true, ..Sampling::default() };
    let talker = core.add(Request::new(vec![5; 8], sampling.clone())).unwrap();
    core.step();
    core.add(long(&sampling)).unwrap();
    for _ in 0..15 {
        let step = core.step().unwrap();
        assert!(step.events.iter().any(|(id, e)| *id == talker && matches!(e, Event::Token(_))), "{step:?}");
    }
}

#[test]
fn prompts_take_no_more_time_than_those_who_generate() {
    let mut core = roomy(None);
    let sampling = Sampling { max_tokens: Some(60), ignore_eos: true, ..Sampling::default() };
    for _ in 0..4 {
        core.add(Request::new(vec![5; 64], sampling.clone())).unwrap();
    }
    // A millisecond a prompt token, 40 for a step that only generates.
    let read = core.step().unwrap();
    assert_eq!((read.generating, read.prompt_tokens), (0, 256));
    core.took(&read, Duration::from_millis(256));
    let generated = core.step().unwrap();
    assert_eq!((generated.generating, generated.prompt_tokens), (4, 0));
    core.took(&generated, Duration::from_millis(40));
    core.add(long(&sampling)).unwrap();
    let both = core.step().unwrap();
    assert_eq!((both.generating, both.prompt_tokens), (4, 40));
    // Eight readers beside four are a crowd: the step is full.
    for _ in 0..7 {
        core.add(long(&sampling)).unwrap();
    }
    let crowd = core.step().unwrap();
    assert_eq!((crowd.generating, crowd.prompt_tokens), (4, core.plan().max_num_batched_tokens - 4));
}
