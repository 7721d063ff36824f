//! Owns the door to an engine: start, submit, events, statistics, shutdown. What happens behind it is the owner
//! thread's ([`crate::owner`]).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use dualgauge_kernels::Backend;
use dualgauge_models::{Model, ModelSpec};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::config::EngineConfig;
use crate::core::Core;
use crate::metrics::Stats;
use crate::owner::{Command, Shared, Stream, Submission};
use crate::request::{Event, Rejected, Request};
use crate::sequence::RequestId;
use crate::sizing::StartPlan;
use crate::{Error, check, owner};

/// A running engine. Clones share it; when the last clone and the last [`Events`] are gone its thread ends.
///
/// ```
/// # use dualgauge_kernels::{Backend, BatchShape, Format, HostTensor, Recorder, Value, Weight};
/// # use dualgauge_models::{Model, ModelSpec};
/// # struct Tiny(ModelSpec, Weight);
/// # impl Model for Tiny {
/// #     fn spec(&self) -> &ModelSpec { &self.0 }
/// #     fn forward(&self, g: &Recorder) -> Value { g.linear(g.select_rows(g.embed(g.tokens(), self.1)), self.1) }
/// # }
/// # let mut backend = dualgauge_kernels::null_with(Default::default());
/// # let table = HostTensor::from_f32("table", [32, 4], &[0.0; 128]).unwrap();
/// # let table = backend.upload(table, Format::F32).unwrap();
/// # let spec = ModelSpec {
/// #     family: "tiny", vocab: 32, context: 64, long_after: None, kv_layers: vec![], state_layers: vec![], eos: vec![],
/// #     parameters: 128, weight_bytes: 512, notes: vec![],
/// # };
/// # let model = Box::new(Tiny(spec, table));
/// use dualgauge::{Engine, EngineConfig, Event, Request, Sampling};
///
/// // `backend` comes from `dualgauge_kernels::open`, `model` from `dualgauge_models::Checkpoint::load`.
/// let engine = Engine::start(backend, model, EngineConfig::default())?;
/// let sampling = Sampling { max_tokens: Some(3), ..Sampling::default() };
/// let mut events = engine.submit(Request::new(vec![1, 2, 3], sampling))?;
/// let mut tokens = vec![];
/// while let Some(event) = events.next_blocking() {
///     match event {
///         Event::Token(token) => tokens.push(token.id),
///         Event::Failed { message } => panic!("{message}"),
///         Event::Prompt(_) | Event::Finished { .. } => {}
///     }
/// }
/// assert_eq!(tokens.len(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Engine {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Ready,
    /// Running requests go on, new ones are refused.
    Draining,
    /// The device is gone; why.
    Lost(String),
}

/// The events of one request, in order. Dropping it aborts the request.
pub struct Events {
    id: RequestId,
    receiver: UnboundedReceiver<Event>,
    commands: mpsc::Sender<Command>,
    cached_tokens: Arc<AtomicUsize>,
    over: bool,
}

impl Engine {
    /// Sizes the K/V cache and starts the owner thread. `model` must have been loaded into `backend`.
    ///
    /// # Errors
    /// A field of `config` out of range; a cache that does not fit; a device that refuses the model's program.
    pub fn start(backend: Box<dyn Backend>, model: Box<dyn Model>, config: EngineConfig) -> Result<Self, Error> {
        let core = Core::new(backend, model, &config)?;
        let shared = Arc::new(Shared::new(&core, config.max_queue));
        let (commands, inbox) = mpsc::channel();
        owner::spawn(core, inbox, shared.clone())?;
        Ok(Self { commands, shared })
    }

    /// Queues a request.
    ///
    /// # Errors
    /// When a field is out of range, the queue is full, or the engine is not [`Health::Ready`]. Nothing was queued.
    pub fn submit(&self, request: Request) -> Result<Events, Rejected> {
        let checked = check::request(&request, &self.shared.spec, self.shared.plan.max_model_len);
        let (sender, receiver) = unbounded_channel();
        let cached_tokens = Arc::new(AtomicUsize::new(0));
        let (stream, prompt_tokens) =
            (Stream::new(sender, cached_tokens.clone(), Instant::now()), request.prompt.len());
        let accepted = checked.and_then(|()| {
            self.shared.accept(prompt_tokens, |id| {
                let _ = self.commands.send(Command::Submit(Box::new(Submission { id, request, stream })));
            })
        });
        if accepted.is_err() {
            self.shared.metrics().counters.rejected += 1;
        }
        let id = accepted?;
        Ok(Events { id, receiver, commands: self.commands.clone(), cached_tokens, over: false })
    }

    /// A snapshot, taken between two steps.
    pub fn stats(&self) -> Stats {
        self.shared.metrics().clone()
    }

    pub fn health(&self) -> Health {
        self.shared.health()
    }

    pub fn spec(&self) -> &ModelSpec {
        &self.shared.spec
    }

    pub fn plan(&self) -> &StartPlan {
        &self.shared.plan
    }

    /// Most tokens of a prompt and its answer together.
    pub fn max_model_len(&self) -> usize {
        self.shared.plan.max_model_len
    }

    /// Refuses new requests from now on; those accepted go on.
    pub fn drain(&self) {
        self.shared.drain();
    }

    /// Drains, ends what still runs after `timeout` as [`crate::FinishReason::Aborted`], and waits for the owner
    /// thread. Blocks. False when the thread does not end: it is stuck in the device.
    pub fn shutdown(&self, timeout: Duration) -> bool {
        self.shared.drain();
        let deadline = Instant::now().checked_add(timeout);
        let _ = self.commands.send(Command::Shutdown { deadline });
        // A step that is under way at the deadline may end.
        self.shared.wait_ended(timeout.saturating_add(Duration::from_secs(10)))
    }
}

impl Events {
    /// The next event; `None` after the one that ends the request.
    pub async fn next(&mut self) -> Option<Event> {
        let event = self.receiver.recv().await;
        self.note(event)
    }

    /// As [`Self::next`] for callers outside of any async runtime.
    ///
    /// Panics inside of one, as it would block it.
    pub fn next_blocking(&mut self) -> Option<Event> {
        let event = self.receiver.blocking_recv();
        self.note(event)
    }

    /// Tokens of the prompt that were found in the prefix cache; 0 until the request runs.
    pub fn cached_tokens(&self) -> usize {
        self.cached_tokens.load(Ordering::Relaxed)
    }

    fn note(&mut self, event: Option<Event>) -> Option<Event> {
        if self.over {
            return None;
        }
        // The sender is dropped without a last event only when the owner thread was gone before it took the request.
        let event = event.unwrap_or_else(|| Event::Failed { message: "the engine has stopped".into() });
        self.over = matches!(event, Event::Finished { .. } | Event::Failed { .. });
        Some(event)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if !self.over {
            let _ = self.commands.send(Command::Abort(self.id));
        }
    }
}
