//! Owns the engine without a thread and without a clock: queue a request, make a step, take its events. For tests and for
//! those who have a loop of their own; [`crate::Engine`] is this on a thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use dualgauge_kernels::Backend;
use dualgauge_models::{Model, ModelSpec};

use crate::config::EngineConfig;
use crate::kv::KvBlocks;
use crate::metrics::Stats;
use crate::pace::Pace;
use crate::request::{Event, Rejected, Request, Usage};
use crate::runner::Runner;
use crate::scheduler::{Scheduler, SchedulerBudget};
use crate::sequence::{RequestId, Sequence};
use crate::sizing::StartPlan;
use crate::{Error, check};

/// An engine driven by hand. Every request that [`Core::add`] accepts gets exactly one `Finished` or `Failed`, unless it
/// is aborted.
pub struct Core {
    scheduler: Scheduler,
    pace: Pace,
    kv: KvBlocks,
    runner: Runner,
    spec: ModelSpec,
    plan: StartPlan,
    next_id: u64,
    counts: StepCounts,
}

#[derive(Clone, Copy, Debug, Default)]
struct StepCounts {
    steps: u64,
    failed_steps: u64,
    prefix_queries: u64,
    prefix_hits: u64,
}

/// What one step did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// In order; requests that ended are gone.
    pub events: Vec<(RequestId, Event)>,
    /// Requests that ran for the first time, and how many of their prompt tokens were cached.
    pub admitted: Vec<(RequestId, usize)>,
    /// Sequences that computed one token each.
    pub generating: usize,
    /// Tokens computed of the others.
    pub prompt_tokens: usize,
    /// The step failed; its requests are tried again, or are among the events.
    pub failed: Option<String>,
    /// The device is gone and all requests are among the events.
    pub lost: Option<String>,
}

impl Core {
    /// Sizes and reserves the K/V cache, and the states of a model that keeps some. `model` must have been loaded into `backend`.
    ///
    /// # Errors
    /// As [`crate::Engine::start`].
    pub fn new(mut backend: Box<dyn Backend>, model: Box<dyn Model>, config: &EngineConfig) -> Result<Self, Error> {
        let plan = StartPlan::make(backend.as_ref(), model.as_ref(), config)?;
        backend.reserve_kv(&plan.kv_spec, plan.blocks)?;
        let kv = match plan.state_slots {
            0 => KvBlocks::new(plan.blocks, plan.block_tokens, config.prefix_caching),
            slots => {
                backend.reserve_state(&model.spec().state_layers, slots)?;
                KvBlocks::with_states(plan.blocks, plan.block_tokens, slots)
            }
        };
        let budget = SchedulerBudget {
            tokens: plan.max_num_batched_tokens,
            seqs: plan.max_num_seqs,
            logit_rows: plan.max_logit_rows,
        };
        Ok(Self {
            scheduler: Scheduler::new(budget),
            pace: Pace::default(),
            kv,
            spec: model.spec().clone(),
            runner: Runner::new(backend, model, config.max_programs),
            plan,
            next_id: 0,
            counts: StepCounts::default(),
        })
    }

    pub fn plan(&self) -> &StartPlan {
        &self.plan
    }

    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Queues a request.
    ///
    /// # Errors
    /// A field out of range, or a prompt that the context cannot hold.
    pub fn add(&mut self, request: Request) -> Result<RequestId, Rejected> {
        check::request(&request, &self.spec, self.plan.max_model_len)?;
        let id = RequestId(self.next_id);
        self.add_checked(id, request);
        Ok(id)
    }

    /// As [`Self::add`] for a request that was checked, under an id larger than all before.
    pub(crate) fn add_checked(&mut self, id: RequestId, request: Request) {
        self.next_id = id.0 + 1;
        self.scheduler.add(Sequence::new(id, request, &self.spec, self.plan.max_model_len));
    }

    /// Ends a request at once and frees its blocks; no event tells of it. What it used; `None` when it is over already.
    pub fn abort(&mut self, id: RequestId) -> Option<Usage> {
        self.scheduler.abort(&mut self.kv, id)
    }

    /// Requests that are not over.
    pub fn unfinished(&self) -> Vec<RequestId> {
        self.scheduler.ids()
    }

    pub fn waiting(&self) -> usize {
        self.scheduler.waiting()
    }

    pub fn is_idle(&self) -> bool {
        self.scheduler.running() + self.scheduler.waiting() == 0
    }

    /// Plans, runs, samples and commits one step; `None` when there is nothing to do. A panic on the way is a failed
    /// step.
    pub fn step(&mut self) -> Option<Step> {
        let plan = self.scheduler.plan(&mut self.kv, self.runner.limits(), &self.pace)?;
        self.counts.steps += 1;
        for (id, cached) in &plan.admitted {
            let s = self.scheduler.get(*id).expect("admitted sequences exist: this is a bug");
            self.counts.prefix_queries += s.prompt_tokens() as u64;
            self.counts.prefix_hits += *cached as u64;
        }
        let prompts = plan.chunks.iter().map(|c| c.positions.len()).filter(|len| *len > 1);
        let (reading, prompt_tokens) = prompts.fold((0, 0), |(n, tokens), len| (n + 1, tokens + len));
        let generating = plan.chunks.len() - reading;
        let mut step = Step { admitted: plan.admitted.clone(), generating, prompt_tokens, ..Step::default() };
        let (runner, scheduler) = (&mut self.runner, &mut self.scheduler);
        let ran = catch_unwind(AssertUnwindSafe(|| runner.run(&plan, scheduler)));
        let (reason, fatal) = match ran {
            Ok(Ok(sampled)) => {
                step.events = self.scheduler.commit(&mut self.kv, plan, sampled);
                return Some(step);
            }
            Ok(Err(error)) => (error.to_string(), error.is_fatal()),
            Err(panic) => (format!("a bug stopped the step: {}", said(panic.as_ref())), false),
        };
        self.counts.failed_steps += 1;
        if fatal {
            step.events = self.fail_all(&reason);
            step.lost = Some(reason);
        } else {
            step.events = self.scheduler.step_failed(&mut self.kv, plan, &reason);
            step.failed = Some(reason);
        }
        Some(step)
    }

    /// Tells how long a step took, so that later ones take along no more prompt tokens than those who wait for their
    /// next token can bear. An engine that is never told fills every step.
    pub fn took(&mut self, step: &Step, elapsed: Duration) {
        if step.failed.is_none() && step.lost.is_none() {
            self.pace.observe(step.generating, step.prompt_tokens, elapsed);
        }
    }

    /// Ends every request with [`Event::Failed`].
    pub(crate) fn fail_all(&mut self, message: &str) -> Vec<(RequestId, Event)> {
        let ids = self.scheduler.ids();
        let failed = ids.into_iter().map(|id| {
            self.scheduler.abort(&mut self.kv, id);
            (id, Event::Failed { message: message.into() })
        });
        failed.collect()
    }

    /// A snapshot; nothing in it that needs a clock.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::new();
        self.fill(&mut stats);
        stats
    }

    /// Writes what this knows into `stats`; what needs a clock is left alone.
    pub(crate) fn fill(&self, stats: &mut Stats) {
        (stats.running, stats.waiting) = (self.scheduler.running(), self.scheduler.waiting());
        stats.blocks = self.kv.counts();
        let counters = &mut stats.counters;
        counters.preemptions = self.scheduler.preemptions;
        counters.prefix_queries = self.counts.prefix_queries;
        counters.prefix_hits = self.counts.prefix_hits;
        counters.steps = self.counts.steps;
        counters.failed_steps = self.counts.failed_steps;
        counters.compiled = self.runner.compiled;
        counters.masks = self.runner.masks.masks;
        counters.mask_microseconds = self.runner.masks.microseconds;
    }

    /// Checks what must hold between two steps: blocks and queues add up.
    ///
    /// # Errors
    /// One line saying which promise is broken.
    pub fn verify(&self) -> Result<(), String> {
        self.scheduler.verify(&self.kv)
    }
}

/// The message of a panic.
pub(crate) fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}
