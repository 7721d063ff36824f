//! A server in this process, on a port of its own, and the bodies that the tests send to it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime};

use dualgauge::{Engine, EngineConfig, Frontend};
use dualgauge_kernels::{NullOptions, null_with};
use dualgauge_models::{Checkpoint, WeightDtype};
use dualgauge_serve::{App, Keys, Limits};
use dualgauge_tests::http::get;
use serde_json::{Value, json};
use tokio::sync::oneshot;

pub const MODEL: &str = "tiny-llama";

/// What differs from the usual server.
pub struct Options {
    pub null: NullOptions,
    pub keys: &'static [&'static str],
    pub aliases: &'static [&'static str],
    pub clock: fn() -> SystemTime,
    pub max_num_seqs: usize,
    pub max_queue: usize,
    pub drain: Duration,
    pub limits: Limits,
    /// Instead of the fixture's own, which holds few tools.
    pub context: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            null: NullOptions::default(),
            keys: &[],
            aliases: &[],
            clock: SystemTime::now,
            max_num_seqs: 64,
            max_queue: 256,
            drain: Duration::from_secs(30),
            limits: Limits::default(),
            context: None,
        }
    }
}

pub struct Running {
    pub at: SocketAddr,
    context: usize,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    ended: mpsc::Receiver<std::io::Result<()>>,
}

impl Running {
    pub fn new() -> Self {
        Self::with(Options::default())
    }

    pub fn with(options: Options) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/families/llama");
        let longer = options.context.map(|context| with_context(&folder, context));
        let folder = longer.as_ref().map_or(folder, |folder| folder.path().to_owned());
        let checkpoint = Checkpoint::open(&folder).expect("the fixture");
        let mut backend = null_with(options.null);
        let model = checkpoint.load(backend.as_mut(), WeightDtype::Auto, &mut |_, _| {}).expect("the fixture loads");
        let text = checkpoint.text().expect("the fixture's tokenizer");
        let config = EngineConfig {
            max_num_seqs: options.max_num_seqs,
            max_queue: options.max_queue,
            kv_blocks: Some(2048),
            ..EngineConfig::default()
        };
        let engine = Engine::start(backend, model, config).expect("an engine");
        let context = engine.max_model_len();
        let mut app = App::new(Frontend::new(engine, text.into()), MODEL);
        app.keys = Keys::new(options.keys.iter().copied());
        app.aliases = options.aliases.iter().map(|a| (*a).to_owned()).collect();
        app.clock = options.clock;
        app.limits = options.limits;
        app.drain_timeout = options.drain;

        let (stop, stopped) = oneshot::channel();
        let (address, at) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
            let result = runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
                address.send(listener.local_addr().expect("an address")).expect("the test waits");
                dualgauge_serve::run(listener, app, async { drop(stopped.await) }).await
            });
            let _ = end.send(result);
        });
        let at = at.recv().expect("a server");
        Self { at, context, stop: Mutex::new(Some(stop)), ended }
    }

    pub fn context(&self) -> usize {
        self.context
    }

    /// As SIGTERM does.
    pub fn stop(&self) {
        drop(self.stop.lock().expect("no panic").take());
    }

    /// The server returns in time and without an error.
    pub fn ended(&self, within: Duration) {
        self.ended.recv_timeout(within).expect("the server ends in time").expect("and well");
    }

    /// The value of a metric that has one.
    pub fn metric(&self, name: &str) -> f64 {
        self.value(&format!("{name}{{model_name=\"{MODEL}\"}} "))
    }

    /// The value of a metric for one state or reason.
    pub fn metric_of(&self, name: &str, label: &str) -> f64 {
        let text = get(self.at, "/metrics").text();
        let line = text.lines().find(|l| l.starts_with(&format!("{name}{{")) && l.contains(&format!("=\"{label}\"}}")));
        number(line.unwrap_or_else(|| panic!("{name} {label} in\n{text}")))
    }

    fn value(&self, start: &str) -> f64 {
        let text = get(self.at, "/metrics").text();
        number(text.lines().find(|l| l.starts_with(start)).unwrap_or_else(|| panic!("{start} in\n{text}")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A copy of a checkpoint that says it has another context: the device that computes hashes does not mind.
fn with_context(folder: &Path, context: usize) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a folder");
    for file in std::fs::read_dir(folder).expect("the fixture").map(|file| file.expect("a file").path()) {
        std::fs::copy(&file, copy.path().join(file.file_name().expect("a name"))).expect("a copy");
    }
    let path = copy.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
    config["max_position_embeddings"] = context.into();
    std::fs::write(&path, config.to_string()).expect("written");
    copy
}

pub fn chat(text: &str) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 24, "temperature": 0, "ignore_eos": true})
}

/// `body` with more fields, or others.
pub fn with(mut body: Value, more: Value) -> Value {
    let more = more.as_object().expect("fields");
    more.iter().for_each(|(key, value)| body[key] = value.clone());
    body
}

/// The text of a chat's chunks.
pub fn content(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect()
}

/// A device that takes its time, so that there is something to interrupt.
pub fn slow() -> NullOptions {
    NullOptions { launch_delay: Some(Duration::from_millis(5)), ..NullOptions::default() }
}

/// Waits for a condition that must come true soon.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}: not within ten seconds");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn number(line: &str) -> f64 {
    line.rsplit(' ').next().expect("a value").parse().expect("a number")
}
