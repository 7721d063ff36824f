//! Owns the way from arguments to a server that can answer: find the model, open the device, load, size, and say what was
//! found. Knows no sockets.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use dualgauge::{Engine, EngineConfig, Frontend};
use dualgauge_kernels::Backend;
use dualgauge_models::source::{DEFAULT_PRESET, Report, locate};
use dualgauge_models::{Checkpoint, Model, Text, WeightDtype};

use crate::app::App;
use crate::args::{Args, Dtype, Quantize, ReasoningChoice};
use crate::auth::Keys;
use crate::defaults::recommended;
use crate::progress::Progress;

/// Why a server cannot start. Each message names the file, the device or the flag.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    #[error(transparent)]
    Model(#[from] dualgauge_models::Error),
    #[error(transparent)]
    Device(#[from] dualgauge_kernels::Error),
    #[error(transparent)]
    Engine(#[from] dualgauge::Error),
}

/// A server that can answer, and how it came to be.
pub struct Started {
    pub app: App,
    pub timeline: Timeline,
    /// What was found, for a person to read: a word and a sentence each.
    pub facts: Vec<(&'static str, String)>,
}

/// Steps of the start and how long each took.
pub struct Timeline {
    begun: Instant,
    last: Instant,
    steps: Vec<(&'static str, Duration)>,
}

impl Timeline {
    pub fn new(begun: Instant) -> Self {
        Self { begun, last: begun, steps: vec![] }
    }

    /// Ends a step.
    pub fn step(&mut self, name: &'static str) {
        let now = Instant::now();
        self.steps.push((name, now - self.last));
        self.last = now;
    }

    /// `locate 1 ms, load 210 ms; 240 ms in all`
    pub fn line(&self) -> String {
        let steps: Vec<String> =
            self.steps.iter().map(|(name, took)| format!("{name} {}", milliseconds(*took))).collect();
        format!("{}; {} in all", steps.join(", "), milliseconds(self.last - self.begun))
    }
}

/// Finds and loads what `args` name. `random` are a seed, used where `args` have none, and a number that makes
/// identifiers differ between servers.
///
/// # Errors
/// When the model cannot be found or read, the device cannot be opened, or the two do not fit.
pub fn start(args: &Args, mut timeline: Timeline, random: (u64, u64)) -> Result<Started, StartError> {
    let mut facts = vec![];
    let mut say = |what, fact: String| facts.push((what, fact));
    let mut progress = Progress::new(std::io::stderr().is_terminal());
    let asked = args.model.as_deref().filter(|model| !model.is_empty());
    let path = locate(asked, &args.locations(), &mut progress)?;
    progress.end();
    timeline.step("locate");

    let opened = dualgauge_kernels::open(&args.device_spec())?;
    let mut backend = opened.backend;
    let info = backend.info();
    say("device", format!("{}: {} ({})", info.name, info.description, opened.reason));
    timeline.step("open device");

    let checkpoint = Checkpoint::open(&path)?;
    let (model, mut text) = load(&checkpoint, backend.as_mut(), weight_dtype(args), &mut progress)?;
    if let Some(format) = args.tool_parser {
        text.set_call_format(format);
    }
    if let Some(ReasoningChoice(format)) = args.reasoning_parser {
        text.set_reasoning_format(format);
    }
    let name = served_name(asked, &checkpoint.name);
    for part in checkpoint.left_out() {
        say("note", format!("the {part} part of the checkpoint is left out: the model reads and writes text alone"));
    }
    drop(checkpoint);
    timeline.step("load");

    let spec = model.spec().clone();
    let engine = Engine::start(backend, model, engine_config(args))?;
    timeline.step("reserve K/V");

    let plan = engine.plan();
    let parameters = spec.parameters as f64 / 1e6;
    say(
        "model",
        format!("{name}: {}, {parameters:.1} M parameters, dtype {}", spec.family, dtype_name(weight_dtype(args))),
    );
    say("weights", mebibytes(plan.weight_bytes));
    spec.notes.iter().for_each(|note| say("note", note.clone()));
    let (bytes, blocks, size) = (mebibytes(plan.kv_bytes), plan.blocks, plan.block_tokens);
    say("K/V", format!("{bytes} in {blocks} blocks of {size} tokens: {} tokens fit", plan.kv_tokens));
    if plan.state_slots > 0 {
        say("states", format!("{} in {} slots, one a running request", mebibytes(plan.state_bytes), plan.state_slots));
    }
    say("arena", mebibytes(plan.arena_bytes));
    let (context, seqs, tokens) = (plan.max_model_len, plan.max_num_seqs, plan.max_num_batched_tokens);
    say("limits", format!("context {context} tokens, {seqs} requests at once, {tokens} tokens a step"));
    plan.notes.iter().for_each(|note| say("note", note.clone()));
    let (defaults, recommendation) = recommended(&path);
    if let Some(advice) = recommendation {
        say("sampling", format!("{advice} unless a request says otherwise (generation_config.json)"));
    }

    let mut app = App::new(Frontend::new(engine, text.into()), name);
    if !args.served_model_name.is_empty() {
        app.names.clone_from(&args.served_model_name);
    }
    app.aliases.clone_from(&args.alias);
    app.keys = Keys::new(args.api_key.iter().map(String::as_str));
    app.defaults = defaults;
    app.drain_timeout = args.drain_timeout;
    app.seed = args.seed.unwrap_or(random.0);
    app.identity = random.1;
    Ok(Started { app, timeline, facts })
}

/// Weights and tokenizer at the same time: neither needs the other.
fn load(
    checkpoint: &Checkpoint,
    backend: &mut dyn Backend,
    dtype: WeightDtype,
    progress: &mut Progress,
) -> Result<(Box<dyn Model>, Text), StartError> {
    std::thread::scope(|scope| {
        let text = scope.spawn(|| checkpoint.text());
        progress.begin(&checkpoint.name);
        let model = checkpoint.load(backend, dtype, &mut |done, total| progress.bytes(done, total));
        progress.end();
        let text = text.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((model?, text?))
    })
}

pub(crate) fn engine_config(args: &Args) -> EngineConfig {
    let mut config = EngineConfig {
        max_model_len: args.max_model_len,
        kv_bytes: args.kv_cache_memory_bytes,
        prefix_caching: !args.no_enable_prefix_caching,
        ..EngineConfig::default()
    };
    config.max_num_seqs = args.max_num_seqs.unwrap_or(config.max_num_seqs);
    config.max_queue = args.max_queue.unwrap_or(config.max_queue);
    // A step must have a token for each running request.
    let tokens = args.max_num_batched_tokens.unwrap_or(config.max_num_batched_tokens.max(config.max_num_seqs));
    config.max_num_batched_tokens = tokens;
    config
}

/// A preset or hub id is its own name, without the revision; of a path only the last part is told to clients.
fn served_name(asked: Option<&str>, checkpoint: &str) -> String {
    match asked {
        None => DEFAULT_PRESET.to_owned(),
        Some(asked) if Path::new(asked).exists() => checkpoint.to_owned(),
        Some(asked) => asked.split('@').next().unwrap_or(asked).to_owned(),
    }
}

pub(crate) fn weight_dtype(args: &Args) -> WeightDtype {
    match (args.quantize, args.dtype) {
        (Some(Quantize::Q8), _) => WeightDtype::Q8,
        (Some(Quantize::Q4), _) => WeightDtype::Q4,
        (Some(Quantize::Fp8), _) => WeightDtype::Fp8,
        (None, Dtype::Auto) => WeightDtype::Auto,
        (None, Dtype::Bf16) => WeightDtype::Bf16,
        (None, Dtype::F16) => WeightDtype::F16,
        (None, Dtype::F32) => WeightDtype::F32,
    }
}

pub(crate) fn dtype_name(dtype: WeightDtype) -> &'static str {
    match dtype {
        WeightDtype::Auto => "auto (as the files have it)",
        WeightDtype::F32 => "f32 (exact)",
        other => other.name(),
    }
}

pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn milliseconds(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1e3)
}
