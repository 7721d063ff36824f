//! Owns the engine's thread: takes commands, makes steps, sends events, reads the clock. It sleeps when there is nothing
//! to do and is woken by a command; it never polls. Nothing else touches the device.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvError, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dualgauge_models::ModelSpec;
use tokio::sync::mpsc::UnboundedSender;

use crate::Error;
use crate::core::{Core, Step, said};
use crate::engine::Health;
use crate::metrics::{End, Stats};
use crate::request::{Event, FinishReason, Rejected, Request};
use crate::sequence::RequestId;
use crate::sizing::StartPlan;

pub enum Command {
    Submit(Box<Submission>),
    Abort(RequestId),
    /// `None`: no deadline.
    Shutdown {
        deadline: Option<Instant>,
    },
}

pub struct Submission {
    pub id: RequestId,
    pub request: Request,
    pub stream: Stream,
}

/// Where one request's events go, and when what happened to it.
pub struct Stream {
    sender: UnboundedSender<Event>,
    cached_tokens: Arc<AtomicUsize>,
    accepted: Instant,
    last_token: Option<Instant>,
    generated: usize,
}

impl Stream {
    pub fn new(sender: UnboundedSender<Event>, cached_tokens: Arc<AtomicUsize>, accepted: Instant) -> Self {
        Self { sender, cached_tokens, accepted, last_token: None, generated: 0 }
    }
}

/// What the owner thread and the callers both see.
pub struct Shared {
    pub spec: ModelSpec,
    pub plan: StartPlan,
    max_queue: usize,
    metrics: Mutex<Stats>,
    door: Mutex<Door>,
    ended: Condvar,
}

struct Door {
    health: Health,
    next_id: u64,
    /// Accepted and not over.
    open_requests: usize,
    /// Waited after the last step.
    left_waiting: usize,
    ended: bool,
}

impl Shared {
    pub fn new(core: &Core, max_queue: usize) -> Self {
        let door = Door { health: Health::Ready, next_id: 0, open_requests: 0, left_waiting: 0, ended: false };
        Self {
            spec: core.spec().clone(),
            plan: core.plan().clone(),
            max_queue,
            metrics: Mutex::new(core.stats()),
            door: Mutex::new(door),
            ended: Condvar::new(),
        }
    }

    pub fn metrics(&self) -> MutexGuard<'_, Stats> {
        // Numbers stay numbers when a thread panicked between two of them.
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn health(&self) -> Health {
        self.door().health.clone()
    }

    pub fn drain(&self) {
        let mut door = self.door();
        if door.health == Health::Ready {
            door.health = Health::Draining;
        }
    }

    /// Takes one request in, unless the engine is closed or full. `send` runs under the lock, so that ids arrive in order.
    pub fn accept(&self, prompt_tokens: usize, send: impl FnOnce(RequestId)) -> Result<RequestId, Rejected> {
        let mut door = self.door();
        match &door.health {
            Health::Ready => {}
            Health::Draining => return Err(Rejected::ShuttingDown),
            Health::Lost(why) => return Err(Rejected::Dead(why.clone())),
        }
        let places = self.plan.max_num_seqs;
        let full = door.open_requests >= places + self.max_queue;
        if full || door.left_waiting > self.max_queue.max(1) - 1 {
            return Err(Rejected::QueueFull {
                waiting: door.left_waiting.max(door.open_requests.saturating_sub(places)),
            });
        }
        let id = RequestId(door.next_id);
        door.next_id += 1;
        door.open_requests += 1;
        // Counted before the owner thread can hear of it: its own numbers, which come later, stay.
        let mut metrics = self.metrics();
        metrics.waiting += 1;
        metrics.counters.accepted += 1;
        metrics.counters.prompt_tokens += prompt_tokens as u64;
        metrics.prompt_length.observe(prompt_tokens as f64);
        drop(metrics);
        send(id);
        Ok(id)
    }

    /// Waits for the owner thread's end. False when it did not come in time.
    pub fn wait_ended(&self, timeout: Duration) -> bool {
        let door = self.door();
        let waited = self.ended.wait_timeout_while(door, timeout, |door| !door.ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    fn door(&self) -> MutexGuard<'_, Door> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Owner {
    core: Core,
    inbox: Receiver<Command>,
    shared: Arc<Shared>,
    streams: HashMap<RequestId, Stream>,
    /// Set by a shutdown: when to stop (`None` inside: when all is done).
    stop: Option<Option<Instant>>,
    disconnected: bool,
}

/// Starts the thread.
///
/// # Errors
/// When the system has none to give.
pub fn spawn(core: Core, inbox: Receiver<Command>, shared: Arc<Shared>) -> Result<(), Error> {
    let mut owner = Owner { core, inbox, shared, streams: HashMap::new(), stop: None, disconnected: false };
    std::thread::Builder::new().name("dualgauge-engine".into()).spawn(move || {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| owner.run())) {
            owner.close(&format!("a bug stopped the engine: {}", said(panic.as_ref())));
        }
        let shared = owner.shared.clone();
        // The device is given back before anybody hears of the end.
        drop(owner);
        shared.door().ended = true;
        shared.ended.notify_all();
    })?;
    Ok(())
}

impl Owner {
    fn run(&mut self) {
        loop {
            self.take_commands();
            if let Some(deadline) = self.stop
                && (self.core.is_idle() || deadline.is_some_and(|at| Instant::now() >= at))
            {
                return self.stop_all();
            }
            if self.core.is_idle() && self.disconnected {
                return;
            }
            let begin = Instant::now();
            match self.core.step() {
                Some(step) => {
                    self.core.took(&step, begin.elapsed());
                    // Before the events: who has seen one finds it counted.
                    self.publish();
                    self.deliver(step);
                }
                None if !self.core.is_idle() => {
                    panic!("requests are unfinished and no step can be made for them: this is a bug")
                }
                None => {}
            }
        }
    }

    /// Takes all commands there are; sleeps for one when there is nothing to do.
    fn take_commands(&mut self) {
        loop {
            let idle = self.core.is_idle() && self.stop.is_none() && !self.disconnected;
            let command = match idle {
                true => self.inbox.recv().map_err(|RecvError| TryRecvError::Disconnected),
                false => self.inbox.try_recv(),
            };
            match command {
                Ok(Command::Submit(submission)) => {
                    let Submission { id, request, stream } = *submission;
                    self.core.add_checked(id, request);
                    self.streams.insert(id, stream);
                }
                Ok(Command::Abort(id)) => {
                    if self.core.abort(id).is_some() {
                        self.end(id, End::Finished(FinishReason::Aborted));
                        self.publish();
                    }
                }
                Ok(Command::Shutdown { deadline }) => {
                    // Of two deadlines the earlier counts.
                    self.stop = Some(match self.stop {
                        Some(Some(before)) => Some(deadline.map_or(before, |at| at.min(before))),
                        _ => deadline,
                    });
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.disconnected = true;
                    return;
                }
            }
        }
    }

    fn deliver(&mut self, step: Step) {
        let now = Instant::now();
        for (id, cached) in step.admitted {
            if let Some(stream) = self.streams.get(&id) {
                stream.cached_tokens.store(cached, Ordering::Relaxed);
                self.shared.metrics().queue_time.observe((now - stream.accepted).as_secs_f64());
            }
        }
        if let Some(why) = &step.failed {
            tracing::warn!("a step failed, its requests are tried again one by one: {why}");
        }
        if let Some(why) = &step.lost {
            tracing::error!("the device is lost: {why}");
            self.shared.door().health = Health::Lost(why.clone());
        }
        for (id, event) in step.events {
            self.send(id, event, now);
        }
    }

    fn send(&mut self, id: RequestId, event: Event, now: Instant) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let mut end = None;
        match &event {
            Event::Token(_) => {
                let mut metrics = self.shared.metrics();
                metrics.counters.generated_tokens += 1;
                match stream.last_token.replace(now) {
                    Some(before) => metrics.inter_token.observe((now - before).as_secs_f64()),
                    None => metrics.time_to_first_token.observe((now - stream.accepted).as_secs_f64()),
                }
                stream.generated += 1;
            }
            Event::Finished { reason, .. } => end = Some(End::Finished(*reason)),
            Event::Failed { message } => {
                tracing::warn!(request = id.0, "request failed: {message}");
                end = Some(End::Failed);
            }
            Event::Prompt(_) => {}
        }
        // A receiver that is gone has sent, or is about to send, its abort.
        let sender = stream.sender.clone();
        if let Some(end) = end {
            self.end(id, end);
        }
        let _ = sender.send(event);
    }

    fn end(&mut self, id: RequestId, end: End) {
        if let Some(stream) = self.streams.remove(&id) {
            self.shared.metrics().ended(end, stream.accepted.elapsed().as_secs_f64(), stream.generated);
            self.shared.door().open_requests -= 1;
        }
    }

    fn publish(&self) {
        self.core.fill(&mut self.shared.metrics());
        self.shared.door().left_waiting = self.core.waiting();
    }

    /// The deadline: what still runs is cut off.
    fn stop_all(&mut self) {
        let now = Instant::now();
        for id in self.core.unfinished() {
            if let Some(usage) = self.core.abort(id) {
                self.publish();
                self.send(id, Event::Finished { reason: FinishReason::Aborted, usage }, now);
            }
        }
    }

    /// The thread cannot go on.
    fn close(&mut self, why: &str) {
        tracing::error!("{why}");
        self.shared.door().health = Health::Lost(why.into());
        let now = Instant::now();
        // The core may be in any state: only the streams are told.
        for id in self.streams.keys().copied().collect::<Vec<_>>() {
            let Some(stream) = self.streams.remove(&id) else { continue };
            self.shared.metrics().ended(End::Failed, (now - stream.accepted).as_secs_f64(), stream.generated);
            let _ = stream.sender.send(Event::Failed { message: why.into() });
        }
        while let Ok(command) = self.inbox.try_recv() {
            if let Command::Submit(submission) = command {
                let _ = submission.stream.sender.send(Event::Failed { message: why.into() });
            }
        }
    }
}
