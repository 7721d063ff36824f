//! Owns the door to an engine: start, submit, events, statistics, shutdown. What happens behind it is the owner
//! thread's.

use std::sync::Arc;
use std::time::Duration;

use dualgauge_kernels::Backend;
use dualgauge_models::{Model, ModelSpec};

use crate::config::EngineConfig;
use crate::metrics::Stats;
use crate::request::{Event, Rejected, Request};
use crate::Error;

/// A running engine. Clones share it; when the last clone and the last [`Events`] are gone its thread ends.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    spec: ModelSpec,
    plan: StartPlan,
}

/// What was found and decided at start, for the operator to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartPlan {
    pub device: dualgauge_kernels::DeviceInfo,
    pub weight_bytes: u64,
    /// Memory the largest program's values take.
    pub arena_bytes: u64,
    pub kv_bytes: u64,
    /// K/V blocks, the reserved one included.
    pub blocks: usize,
    pub block_tokens: usize,
    /// Tokens that the cache holds, of all sequences together.
    pub kv_tokens: usize,
    /// Most tokens of a prompt and its answer together.
    pub max_model_len: usize,
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
    /// Decisions the operator may want to change: one sentence each.
    pub notes: Vec<String>,
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
    receiver: tokio::sync::mpsc::UnboundedReceiver<Event>,
}

impl Engine {
    /// Sizes the K/V cache and starts the owner thread. `model` must have been loaded into `backend`.
    ///
    /// # Errors
    /// A field of `config` out of range; a cache that does not fit; a device that refuses the model's program.
    pub fn start(backend: Box<dyn Backend>, model: Box<dyn Model>, config: EngineConfig) -> Result<Self, Error> {
        let _ = (backend, model, config);
        todo!()
    }

    /// Queues a request.
    ///
    /// # Errors
    /// When a field is out of range, the queue is full, or the engine is not [`Health::Ready`]. Nothing was queued.
    pub fn submit(&self, request: Request) -> Result<Events, Rejected> {
        let _ = request;
        todo!()
    }

    pub fn stats(&self) -> Stats {
        todo!()
    }

    pub fn health(&self) -> Health {
        todo!()
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
        todo!()
    }

    /// Drains, ends what still runs after `timeout` as [`crate::FinishReason::Aborted`], and waits for the owner
    /// thread. Blocks. False when the thread is stuck in the device.
    pub fn shutdown(&self, timeout: Duration) -> bool {
        let _ = timeout;
        todo!()
    }
}

impl Events {
    /// The next event; `None` after the one that ends the request.
    pub async fn next(&mut self) -> Option<Event> {
        self.receiver.recv().await
    }

    /// As [`Self::next`] for callers outside of any async runtime.
    pub fn next_blocking(&mut self) -> Option<Event> {
        self.receiver.blocking_recv()
    }
}
