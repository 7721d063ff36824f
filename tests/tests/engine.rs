//! The engine with its thread: many callers, hang-ups, a full queue, failing and lost devices, shutdown.

use std::time::{Duration, Instant};

use dualgauge::{
    Engine, EngineConfig, Error, Event, Events, FinishReason, Health, Rejected, Request, Sampling, TokenLogprobs, Usage,
};
use dualgauge_kernels::{
    Backend, Batch, BatchShape, DeviceInfo, Format, HostTensor, KvSpec, Limits, NullOptions, Output, Probe, Program,
    ProgramId, Result as DeviceResult, Ticket, Value, Weight, null_with,
};
use dualgauge_models::source::random::{LlamaShape, llama};

const SHAPE: LlamaShape = LlamaShape { vocab: 96, context: 256, layers: 1, ..LlamaShape::TINY };

fn start(backend: Box<dyn Backend>, config: EngineConfig) -> Engine {
    try_start(backend, config).unwrap_or_else(|e| panic!("{e}"))
}

fn try_start(mut backend: Box<dyn Backend>, config: EngineConfig) -> Result<Engine, Error> {
    let model = llama(backend.as_mut(), &SHAPE, 3).expect("a model of these sizes");
    Engine::start(backend, model, config)
}

fn null() -> Box<dyn Backend> {
    null_with(NullOptions::default())
}

/// A device whose steps take a while, so that others come and go meanwhile.
fn slow() -> Box<dyn Backend> {
    null_with(NullOptions { launch_delay: Some(Duration::from_millis(2)), ..NullOptions::default() })
}

/// Greedy, never stopped by an end token.
fn request(first: u32, max_tokens: usize) -> Request {
    let sampling = Sampling { max_tokens: Some(max_tokens), ignore_eos: true, ..Sampling::default() };
    Request::new((0..20).map(|i| (first * 7 + i * i) % 96).collect(), sampling)
}

#[derive(Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<u32>,
    prompt: Vec<TokenLogprobs>,
    end: Option<Result<(FinishReason, Usage), String>>,
}

fn read(mut events: Events) -> Answer {
    let mut answer = Answer::default();
    while let Some(event) = events.next_blocking() {
        assert!(answer.end.is_none(), "{event:?} comes after the end");
        match event {
            Event::Prompt(prompt) => answer.prompt = prompt,
            Event::Token(token) => answer.tokens.push(token.id),
            Event::Finished { reason, usage } => answer.end = Some(Ok((reason, usage))),
            Event::Failed { message } => answer.end = Some(Err(message)),
        }
    }
    assert!(answer.end.is_some(), "every request ends");
    answer
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(5), "not within five seconds: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn many_callers_at_once_get_what_each_gets_alone() {
    let engine = start(null(), EngineConfig::default());
    let alone: Vec<Answer> = (0..32).map(|i| read(engine.submit(request(i, 40)).unwrap())).collect();
    let crowded = start(slow(), EngineConfig { kv_blocks: Some(60), ..EngineConfig::default() });
    let together: Vec<Answer> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..32)
            .map(|i| {
                let engine = crowded.clone();
                scope.spawn(move || read(engine.submit(request(i, 40)).unwrap()))
            })
            .collect();
        callers.into_iter().map(|c| c.join().unwrap()).collect()
    });
    for (alone, together) in alone.iter().zip(&together) {
        assert_eq!(alone.tokens, together.tokens);
        assert_eq!(alone.tokens.len(), 40);
    }
    let stats = crowded.stats();
    assert_eq!((stats.counters.accepted, stats.counters.finished_length), (32, 32));
    assert_eq!((stats.running, stats.waiting, stats.blocks.held), (0, 0, 0));
    assert_eq!(stats.counters.generated_tokens, 32 * 40);
    assert_eq!(stats.time_to_first_token.count(), 32);
    assert_eq!(stats.inter_token.count(), 32 * 39);
    assert_eq!(stats.end_to_end.count(), 32);
}

#[test]
fn a_caller_that_hangs_up_frees_its_blocks_at_once() {
    let engine = start(slow(), EngineConfig::default());
    let mut events = engine.submit(request(1, 200)).unwrap();
    assert!(matches!(events.next_blocking(), Some(Event::Token(_))));
    assert!(engine.stats().blocks.held > 0);
    drop(events);
    let dropped = Instant::now();
    wait_until("blocks are free", || engine.stats().blocks.held == 0);
    assert!(dropped.elapsed() < Duration::from_millis(500), "took {:?}", dropped.elapsed());
    let stats = engine.stats();
    assert_eq!((stats.counters.finished_aborted, stats.running), (1, 0));
    // A queued one too.
    let one = EngineConfig { max_num_seqs: 1, ..EngineConfig::default() };
    let engine = start(slow(), one);
    let running = engine.submit(request(1, 200)).unwrap();
    drop(engine.submit(request(2, 200)).unwrap());
    wait_until("the queued one is gone", || engine.stats().counters.finished_aborted == 1);
    drop(running);
}

#[test]
fn a_full_queue_refuses_and_loses_nobody() {
    let config = EngineConfig { max_num_seqs: 2, max_queue: 3, ..EngineConfig::default() };
    let engine = start(slow(), config);
    let accepted: Vec<Events> = (0..5).map(|i| engine.submit(request(i, 20)).unwrap()).collect();
    assert!(matches!(engine.submit(request(9, 20)), Err(Rejected::QueueFull { .. })));
    for events in accepted {
        assert_eq!(read(events).tokens.len(), 20);
    }
    assert_eq!(engine.stats().counters.rejected, 1);
    assert_eq!(read(engine.submit(request(9, 20)).unwrap()).tokens.len(), 20);
}

#[test]
fn an_idle_engine_sleeps() {
    let engine = start(null(), EngineConfig::default());
    read(engine.submit(request(1, 3)).unwrap());
    let steps = engine.stats().counters.steps;
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(engine.stats().counters.steps, steps);
}

#[test]
fn fields_out_of_range_are_refused_by_name() {
    let engine = start(null(), EngineConfig::default());
    let with = |change: &dyn Fn(&mut Request)| {
        let mut request = request(1, 5);
        change(&mut request);
        match engine.submit(request).map(|_| ()) {
            Err(Rejected::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(with(&|r| r.prompt.clear()), "prompt");
    assert_eq!(with(&|r| r.prompt[3] = 96), "prompt");
    assert_eq!(with(&|r| r.prompt_logprobs = Some(21)), "prompt_logprobs");
    assert_eq!(with(&|r| r.sampling.temperature = -0.1), "temperature");
    assert_eq!(with(&|r| r.sampling.temperature = f32::NAN), "temperature");
    assert_eq!(with(&|r| r.sampling.temperature = f32::INFINITY), "temperature");
    assert_eq!(with(&|r| r.sampling.top_p = 0.0), "top_p");
    assert_eq!(with(&|r| r.sampling.top_p = 1.1), "top_p");
    assert_eq!(with(&|r| r.sampling.min_p = -1.0), "min_p");
    assert_eq!(with(&|r| r.sampling.repetition_penalty = 0.0), "repetition_penalty");
    assert_eq!(with(&|r| r.sampling.presence_penalty = 2.5), "presence_penalty");
    assert_eq!(with(&|r| r.sampling.frequency_penalty = f32::NAN), "frequency_penalty");
    assert_eq!(with(&|r| r.sampling.logit_bias = [(96, 1.0)].into()), "logit_bias");
    assert_eq!(with(&|r| r.sampling.logit_bias = [(1, f32::NAN)].into()), "logit_bias");
    assert_eq!(with(&|r| r.sampling.logprobs = Some(21)), "logprobs");
    assert_eq!(with(&|r| r.sampling.stop_ids = vec![1 << 30]), "stop_ids");
    assert_eq!(with(&|r| r.sampling.min_tokens = 6), "min_tokens");
    let long = Request::new(vec![1; 256], Sampling::default());
    assert_eq!(engine.submit(long).map(|_| ()), Err(Rejected::TooLong { prompt_tokens: 256, context: 256 }));
    assert_eq!(engine.stats().counters.accepted, 0);
    assert_eq!(engine.stats().counters.rejected, 18);
}

#[test]
fn the_context_ends_the_answer() {
    let engine = start(null(), EngineConfig::default());
    let sampling = Sampling { ignore_eos: true, ..Sampling::default() };
    let answer = read(engine.submit(Request::new(vec![1; 250], sampling)).unwrap());
    let usage = Usage { prompt_tokens: 250, cached_tokens: 0, completion_tokens: 6 };
    assert_eq!((answer.tokens.len(), answer.end), (6, Some(Ok((FinishReason::Length, usage)))));
}

#[test]
fn prompt_logprobs_come_without_a_token_when_none_is_wanted() {
    let engine = start(null(), EngineConfig { max_num_batched_tokens: 128, ..EngineConfig::default() });
    let mut request = Request::new((0..200).map(|i| i % 96).collect(), Sampling::default());
    request.prompt_logprobs = Some(2);
    request.sampling.max_tokens = Some(0);
    let answer = read(engine.submit(request).unwrap());
    assert_eq!(answer.prompt.len(), 199);
    assert!(answer.prompt.iter().zip(1u32..).all(|(l, i)| l.id == i % 96 && l.top.len() == 2));
    assert!(answer.tokens.is_empty() && matches!(answer.end, Some(Ok((FinishReason::Length, _)))));
}

#[test]
fn a_second_turn_finds_the_first_in_the_cache() {
    let engine = start(null(), EngineConfig::default());
    let first = request(1, 30);
    let answer = read(engine.submit(first.clone()).unwrap());
    let mut second = first;
    second.prompt.extend(&answer.tokens);
    second.prompt.push(5);
    let Some(Ok((_, usage))) = read(engine.submit(second).unwrap()).end else { panic!("it ends well") };
    // 20 + 30 tokens, of which the last was never computed: three blocks of 16.
    assert_eq!(usage.cached_tokens, 48);
}

#[test]
fn a_failed_step_is_tried_again_and_nobody_notices() {
    let options = NullOptions { fail_launch_every: Some(40), ..NullOptions::default() };
    let healthy = start(null(), EngineConfig::default());
    let engine = start(null_with(options), EngineConfig::default());
    let events: Vec<Events> = (0..8).map(|i| engine.submit(request(i, 50)).unwrap()).collect();
    for (i, events) in (0..).zip(events) {
        assert_eq!(read(events), read(healthy.submit(request(i, 50)).unwrap()));
    }
    assert!(engine.stats().counters.failed_steps > 0);
    assert_eq!(engine.health(), Health::Ready);
}

/// A device that fails every step in which token 95 takes part, by an error or by a panic.
struct Allergic {
    inner: Box<dyn Backend>,
    panics: bool,
}

impl Backend for Allergic {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }
    fn limits(&self) -> &Limits {
        self.inner.limits()
    }
    fn round_up(&self, want: BatchShape) -> Option<BatchShape> {
        self.inner.round_up(want)
    }
    fn upload(&mut self, tensor: HostTensor<'_>, format: Format) -> DeviceResult<Weight> {
        self.inner.upload(tensor, format)
    }
    fn kv_budget(&self, largest: &Program) -> u64 {
        self.inner.kv_budget(largest)
    }
    fn reserve_kv(&mut self, spec: &KvSpec, blocks: usize) -> DeviceResult<()> {
        self.inner.reserve_kv(spec, blocks)
    }
    fn compile(&mut self, program: &Program) -> DeviceResult<ProgramId> {
        self.inner.compile(program)
    }
    fn release(&mut self, program: ProgramId) {
        self.inner.release(program);
    }
    fn launch(&mut self, program: ProgramId, batch: &Batch) -> DeviceResult<Ticket> {
        if batch.tokens.contains(&95) {
            assert!(!self.panics, "token 95");
            let reason = "token 95".into();
            return Err(dualgauge_kernels::Error::Launch { device: "allergic", reason });
        }
        self.inner.launch(program, batch)
    }
    fn wait(&mut self, ticket: Ticket) -> DeviceResult<Output> {
        self.inner.wait(ticket)
    }
    fn probe(&mut self, program: ProgramId, v: Value) -> DeviceResult<Probe> {
        self.inner.probe(program, v)
    }
}

#[test]
fn a_poisoned_request_fails_alone() {
    for panics in [false, true] {
        let engine = start(Box::new(Allergic { inner: slow(), panics }), EngineConfig::default());
        // Never chosen by the healthy ones.
        let healthy = |i| {
            let mut request = request(i, 30);
            request.prompt.iter_mut().for_each(|t| *t %= 95);
            request.sampling.logit_bias.insert(95, -100.0);
            request
        };
        let events: Vec<Events> = (0..6).map(|i| engine.submit(healthy(i)).unwrap()).collect();
        let poisoned = engine.submit(Request::new(vec![1, 95, 2], Sampling::default())).unwrap();
        let Some(Err(message)) = read(poisoned).end else { panic!("it fails") };
        assert!(message.contains("token 95"), "{message}");
        for events in events {
            assert_eq!(read(events).tokens.len(), 30);
        }
        assert_eq!((engine.stats().counters.failed, engine.stats().counters.failed_steps), (1, 2));
    }
}

#[test]
fn a_lost_device_ends_all_and_takes_none() {
    let options = NullOptions { lost_after: Some(10), ..NullOptions::default() };
    let engine = start(null_with(options), EngineConfig::default());
    let events: Vec<Events> = (0..4).map(|i| engine.submit(request(i, 100)).unwrap()).collect();
    for events in events {
        let Some(Err(message)) = read(events).end else { panic!("it fails") };
        assert!(message.contains("lost"), "{message}");
    }
    assert!(matches!(engine.health(), Health::Lost(_)));
    assert!(matches!(engine.submit(request(1, 1)), Err(Rejected::Dead(_))));
    assert_eq!(engine.stats().blocks.held, 0);
    assert!(engine.shutdown(Duration::from_secs(1)));
}

#[test]
fn a_drained_engine_finishes_what_runs_and_takes_no_more() {
    let engine = start(slow(), EngineConfig::default());
    let events = engine.submit(request(1, 30)).unwrap();
    engine.drain();
    assert_eq!(engine.health(), Health::Draining);
    assert_eq!(engine.submit(request(2, 30)).map(|_| ()), Err(Rejected::ShuttingDown));
    assert!(engine.shutdown(Duration::from_secs(20)));
    assert_eq!(read(events).tokens.len(), 30);
}

#[test]
fn a_shutdown_cuts_off_at_its_deadline() {
    let engine = start(slow(), EngineConfig::default());
    let events: Vec<Events> = (0..3).map(|i| engine.submit(request(i, 200)).unwrap()).collect();
    let asked = Instant::now();
    assert!(engine.shutdown(Duration::from_millis(50)));
    assert!(asked.elapsed() < Duration::from_secs(2), "took {:?}", asked.elapsed());
    for events in events {
        let answer = read(events);
        let Some(Ok((reason, usage))) = answer.end else { panic!("it was cut off") };
        assert_eq!((reason, usage.completion_tokens), (FinishReason::Aborted, answer.tokens.len()));
    }
    assert!(engine.shutdown(Duration::ZERO), "a second time is harmless");
}

#[test]
fn the_thread_ends_with_the_last_handle() {
    let alive = std::sync::Arc::new(());
    let mut device = null();
    let model = llama(device.as_mut(), &SHAPE, 3).unwrap();
    struct Held(
        Box<dyn dualgauge_models::Model>,
        #[allow(dead_code, reason = "dropped with the model")] std::sync::Arc<()>,
    );
    impl dualgauge_models::Model for Held {
        fn spec(&self) -> &dualgauge_models::ModelSpec {
            self.0.spec()
        }
        fn forward(&self, g: &dualgauge_kernels::Recorder) -> Value {
            self.0.forward(g)
        }
    }
    let engine = Engine::start(device, Box::new(Held(model, alive.clone())), EngineConfig::default()).unwrap();
    let events = engine.submit(request(1, 5)).unwrap();
    drop(engine);
    assert_eq!(read(events).tokens.len(), 5);
    wait_until("the model is dropped", || std::sync::Arc::strong_count(&alive) == 1);
}

#[test]
fn seeds_decide_and_nothing_else_does() {
    let engine = start(null(), EngineConfig::default());
    let drawn = |seed| {
        let mut request = request(1, 30);
        request.sampling.temperature = 2.0;
        request.sampling.seed = seed;
        read(engine.submit(request).unwrap()).tokens
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
}

#[test]
fn sizes_that_do_not_fit_are_refused_at_start_with_numbers() {
    let fails = |config: EngineConfig| match try_start(null(), config) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("it must not start"),
    };
    let little = fails(EngineConfig { kv_blocks: Some(4), max_model_len: Some(200), ..EngineConfig::default() });
    assert!(little.contains("200") && little.contains("48"), "{little}");
    let much = fails(EngineConfig { kv_bytes: Some(1 << 40), ..EngineConfig::default() });
    assert!(much.contains("1048576 MiB") && much.contains("1024 MiB"), "{much}");
    let long = fails(EngineConfig { max_model_len: Some(257), ..EngineConfig::default() });
    assert!(long.contains("257") && long.contains("256"), "{long}");
    assert!(fails(EngineConfig { max_num_seqs: 0, ..EngineConfig::default() }).contains("max_num_seqs"));
    // What took the memory is named: the activations of a large step, or the length itself.
    let tight = |max_num_batched_tokens| {
        let sizes = EngineConfig { max_model_len: Some(200), max_num_seqs: 1, ..EngineConfig::default() };
        let config = EngineConfig { max_num_batched_tokens, ..sizes };
        match try_start(null_with(NullOptions { kv_bytes: 1000, ..NullOptions::default() }), config) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("it must not start"),
        }
    };
    let step = tight(1 << 14);
    assert!(step.contains("smaller max_num_batched_tokens") && !step.contains("max_model_len"), "{step}");
    assert!(tight(1).contains("shorter max_model_len"), "{}", tight(1));
    // Nobody asked for a length: what fits is taken, and said.
    let engine = start(null(), EngineConfig { kv_blocks: Some(4), ..EngineConfig::default() });
    assert_eq!(engine.max_model_len(), 48);
    assert!(engine.plan().notes[0].contains("48") && engine.plan().notes[0].contains("256"), "{:?}", engine.plan());
}

#[test]
fn events_can_be_awaited() {
    let engine = start(null(), EngineConfig::default());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut events = engine.submit(request(1, 5)).unwrap();
    let tokens = runtime.block_on(async {
        let mut tokens = 0;
        while let Some(event) = events.next().await {
            tokens += usize::from(matches!(event, Event::Token(_)));
        }
        tokens
    });
    assert_eq!(tokens, 5);
}
