//! Owns what each step computes. There are no phases: every sequence has tokens known and tokens computed, and a step
//! closes the gap under a token budget. Chunked prefill, prefix hits and resumption after preemption are that one line
//! of arithmetic. Pure: no clock, no device; what a device restricts is data ([`Limits`]).
//!
//! Order: sequences that lack one token (they generate) come first, so that long prompts do not hold them up. The rest
//! of the budget, as far as [`Pace`] allows it beside them, goes to prompts: half to the oldest, so that it always moves, half to the shortest of the others, so
//! that a short prompt does not wait for a long one. When blocks run out the youngest sequence gives its own back and
//! is computed again later.

use std::collections::{BTreeMap, BTreeSet};

use dualgauge_kernels::Limits;

use crate::grammar::{GrammarState, MaskCost};
use crate::kv::KvBlocks;
use crate::pace::Pace;
use crate::request::{Event, FinishReason, Usage};
use crate::sequence::{Chunk, RequestId, Sampled, Sequence};

pub struct Scheduler {
    budget: SchedulerBudget,
    /// By age: ids ascend.
    sequences: BTreeMap<RequestId, Sequence>,
    running: BTreeSet<RequestId>,
    waiting: BTreeSet<RequestId>,
    /// Were in a failed step: each is tried again alone.
    suspects: BTreeSet<RequestId>,
    /// Whose turn it is where a step has room for one prompt only.
    oldest_next: bool,
    prefill_next: bool,
    pub preemptions: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerBudget {
    /// Most tokens in one step.
    pub tokens: usize,
    /// Most sequences in one step.
    pub seqs: usize,
    /// Most tokens in one step of prompts whose log-probabilities are wanted: each has a row of logits.
    pub logit_rows: usize,
}

/// One step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub chunks: Vec<Chunk>,
    /// Sequences that run for the first time, and their cached prompt tokens.
    pub admitted: Vec<(RequestId, usize)>,
    /// Tokens that the step still has room for.
    left: usize,
    /// Of these, with a row of logits each.
    rows_left: usize,
}

impl Scheduler {
    pub fn new(budget: SchedulerBudget) -> Self {
        Self {
            budget,
            sequences: BTreeMap::new(),
            running: BTreeSet::new(),
            waiting: BTreeSet::new(),
            suspects: BTreeSet::new(),
            oldest_next: true,
            prefill_next: true,
            preemptions: 0,
        }
    }

    /// Queues a sequence that fits the cache when alone.
    pub fn add(&mut self, sequence: Sequence) {
        self.waiting.insert(sequence.id);
        self.sequences.insert(sequence.id, sequence);
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn get(&self, id: RequestId) -> Option<&Sequence> {
        self.sequences.get(&id)
    }

    pub fn ids(&self) -> Vec<RequestId> {
        self.sequences.keys().copied().collect()
    }

    /// Makes the masks of the sequences that a plan chooses tokens for. What it took.
    pub fn prepare_masks(&mut self, plan: &Plan) -> MaskCost {
        let mut cost = MaskCost::default();
        for chunk in plan.chunks.iter().filter(|chunk| chunk.samples) {
            let grammar = self.sequences.get_mut(&chunk.id).and_then(|s| s.grammar.as_mut());
            cost += grammar.map(GrammarState::prepare).unwrap_or_default();
        }
        cost
    }

    /// What to compute next; `None` when there is nothing to do.
    pub fn plan(&mut self, kv: &mut KvBlocks, limits: &Limits, pace: &Pace) -> Option<Plan> {
        let mut plan = Plan { left: self.budget.tokens, rows_left: self.budget.logit_rows, ..Plan::default() };
        if let Some(id) = self.suspects.first().copied() {
            // When it has to give up its own blocks it is let in again, alone if need be.
            while !self.fill(kv, &mut plan, id, usize::MAX) {}
        } else if limits.mixed {
            self.decode(kv, &mut plan);
            let generating = plan.chunks.len();
            if generating > 0 {
                // Who waits for a place does not count: a queue is no reason to let the running ones wait.
                let places = self.budget.seqs - self.running.len();
                let reading = self.running.len() - generating + self.waiting.len().min(places);
                plan.left = plan.left.min(pace.prompt_tokens(generating, reading));
            }
            self.prefill(kv, limits, &mut plan);
        } else if self.prefill_next {
            self.prefill(kv, limits, &mut plan);
            if plan.chunks.is_empty() {
                self.decode(kv, &mut plan);
            }
            self.prefill_next = false;
        } else {
            self.decode(kv, &mut plan);
            if plan.chunks.is_empty() {
                self.prefill(kv, limits, &mut plan);
            }
            self.prefill_next = true;
        }
        (!plan.chunks.is_empty()).then_some(plan)
    }

    /// Takes the results of a step, one for each chunk.
    pub fn commit(
        &mut self,
        kv: &mut KvBlocks,
        plan: Plan,
        sampled: Vec<Result<Sampled, String>>,
    ) -> Vec<(RequestId, Event)> {
        let mut events = vec![];
        for (chunk, sampled) in plan.chunks.into_iter().zip(sampled) {
            let id = chunk.id;
            let sampled = match sampled {
                Ok(sampled) => sampled,
                Err(message) => {
                    self.fail(kv, id, message, &mut events);
                    continue;
                }
            };
            let s = self.sequences.get_mut(&id).expect("planned sequences exist: this is a bug");
            s.computed = chunk.positions.end;
            if s.computed >= s.lost {
                self.suspects.remove(&id);
                (s.failures, s.lost) = (0, 0);
            }
            let (salt, was_long) = (s.salt(), s.is_long());
            kv.store(&mut s.table, salt.as_deref(), &s.tokens, chunk.positions.start, chunk.positions.end);
            if let Some(prompt) = s.add_prompt_logprobs(sampled.prompt) {
                events.push((id, Event::Prompt(prompt)));
            }
            let over = match sampled.token {
                Some(token) => {
                    let over = s.push(token.id);
                    events.push((id, Event::Token(token)));
                    over
                }
                None => (chunk.samples && s.max_tokens == 0).then_some(FinishReason::Length),
            };
            let grown = s.is_long() != was_long;
            if let Some(reason) = over {
                let usage = self.remove(kv, id, false).usage();
                events.push((id, Event::Finished { reason, usage }));
            } else if grown {
                // What was computed of the shorter sequence is of no use to the long one.
                self.start_over(kv, id);
            }
        }
        events
    }

    /// A step failed and computed nothing. Its sequences are tried again one by one; one that fails twice is given up.
    /// A state may have taken some of the step's tokens in, and is made again from the first.
    pub fn step_failed(&mut self, kv: &mut KvBlocks, plan: Plan, why: &str) -> Vec<(RequestId, Event)> {
        let mut events = vec![];
        for chunk in plan.chunks {
            let s = self.sequences.get_mut(&chunk.id).expect("planned sequences exist: this is a bug");
            s.failures += 1;
            if kv.keeps_state() {
                (s.computed, s.lost) = (0, s.lost.max(chunk.positions.end));
            }
            if s.failures > 1 {
                self.fail(kv, chunk.id, why.into(), &mut events);
            } else {
                self.suspects.insert(chunk.id);
            }
        }
        events
    }

    /// Ends a sequence at once and frees its blocks. What it used; `None` when it is over already.
    pub fn abort(&mut self, kv: &mut KvBlocks, id: RequestId) -> Option<Usage> {
        self.sequences.contains_key(&id).then(|| self.remove(kv, id, false).usage())
    }

    /// Checks what must hold between two steps.
    ///
    /// # Errors
    /// One line saying which promise is broken.
    pub fn verify(&self, kv: &KvBlocks) -> Result<(), String> {
        for s in self.sequences.values() {
            let (id, running) = (s.id.0, self.running.contains(&s.id));
            if running == self.waiting.contains(&s.id) {
                return Err(format!("sequence {id} must either run or wait"));
            }
            if s.computed >= s.tokens.len() || s.computed > s.table.len() * kv.block_tokens() {
                return Err(format!("sequence {id} has more computed than it can have"));
            }
            if !running && (s.computed > 0 || !s.table.is_empty()) {
                return Err(format!("sequence {id} waits and holds blocks"));
            }
        }
        if self.running.len() + self.waiting.len() != self.sequences.len() {
            return Err("a sequence is queued that does not exist".into());
        }
        kv.verify(self.sequences.values().map(|s| &s.table))
    }

    /// Sequences that lack one token.
    fn decode(&mut self, kv: &mut KvBlocks, plan: &mut Plan) {
        for id in self.running.iter().copied().collect::<Vec<_>>() {
            // One of them may have been preempted by an older one meanwhile.
            if self.running.contains(&id) && self.sequences[&id].gap() == 1 {
                self.fill(kv, plan, id, 1);
            }
        }
    }

    /// Sequences that lack more, and those that wait.
    fn prefill(&mut self, kv: &mut KvBlocks, limits: &Limits, plan: &mut Plan) {
        let lacking = |id: &RequestId| self.sequences[id].gap() > 1;
        let mut order: Vec<RequestId> = self.running.iter().copied().filter(lacking).collect();
        order.extend(&self.waiting);
        order.sort_unstable();
        if order.is_empty() {
            return;
        }
        order[1..].sort_by_key(|id| (self.sequences[id].gap(), *id));
        let mut most = limits.prefill_seqs.max(1);
        if most == 1 {
            return self.prefill_one(kv, plan, &order);
        }
        let (first, others) = (order[0], &order[1..]);
        let mut open = self.admit(kv, plan, first);
        let kept = match open {
            true => self.sequences[&first].gap().min(plan.left.div_ceil(2)),
            false => 0,
        };
        most -= usize::from(open);
        for id in others {
            if most == 0 || plan.left <= kept {
                break;
            }
            // Behind one that waits for blocks nobody younger gets in, or it might wait for ever.
            if self.waiting.contains(id) && !(open && self.admit(kv, plan, *id)) {
                open = false;
                continue;
            }
            let room = plan.left - kept;
            if self.running.contains(id) && self.fill(kv, plan, *id, room) {
                most -= 1;
            }
        }
        if self.running.contains(&first) {
            self.fill(kv, plan, first, usize::MAX);
        }
    }

    /// As [`Self::prefill`] where a step takes one prompt: the oldest and the shortest other take turns.
    fn prefill_one(&mut self, kv: &mut KvBlocks, plan: &mut Plan, order: &[RequestId]) {
        let oldest = order[0];
        let runs = self.running.contains(&oldest);
        let mut turns = vec![oldest];
        // While the oldest waits for blocks nobody younger gets in, or it might wait for ever.
        if let Some(other) = order[1..].iter().find(|other| runs || self.running.contains(other)) {
            turns.insert(if self.oldest_next || !runs { 1 } else { 0 }, *other);
        }
        self.oldest_next = !self.oldest_next;
        for id in turns {
            if self.admit(kv, plan, id) && self.fill(kv, plan, id, usize::MAX) {
                return;
            }
        }
    }

    /// Lets a waiting sequence run if there is a place and blocks for all that it knows, beside all that the running ones
    /// know: a sequence that was let in is rarely thrown out again.
    fn admit(&mut self, kv: &mut KvBlocks, plan: &mut Plan, id: RequestId) -> bool {
        if self.running.contains(&id) {
            return true;
        }
        if self.running.len() >= self.budget.seqs {
            return false;
        }
        let promised: usize = self
            .running
            .iter()
            .map(|r| {
                let s = &self.sequences[r];
                kv.blocks_for(s.tokens.len()).saturating_sub(s.table.len())
            })
            .sum();
        let s = self.sequences.get_mut(&id).expect("waiting sequences exist: this is a bug");
        let cached = match s.wants_prompt_logprobs() {
            true => crate::kv::BlockTable::default(),
            false => kv.find(s.salt().as_deref(), &s.tokens),
        };
        s.table = cached;
        let needed = kv.blocks_for(s.tokens.len()) - s.table.len();
        if !self.running.is_empty() && needed + promised > kv.available() {
            kv.release(&mut s.table, false);
            return false;
        }
        s.computed = s.table.len() * kv.block_tokens();
        if s.cached_tokens.is_none() {
            s.cached_tokens = Some(s.computed);
            plan.admitted.push((id, s.computed));
        }
        self.waiting.remove(&id);
        self.running.insert(id);
        true
    }

    /// Plans up to `most` tokens of a sequence, if there is room in the step. Younger sequences give up their blocks for
    /// it; when there are none it gives up its own and waits.
    fn fill(&mut self, kv: &mut KvBlocks, plan: &mut Plan, id: RequestId, most: usize) -> bool {
        if self.waiting.contains(&id) && !self.admit(kv, plan, id) {
            // A suspect that waits: it must run alone, so the others make room for it.
            while let Some(other) = self.running.last().copied() {
                self.preempt(kv, plan, other);
            }
            let alone = self.admit(kv, plan, id);
            debug_assert!(alone);
        }
        loop {
            let s = self.sequences.get_mut(&id).expect("running sequences exist: this is a bug");
            let mut len = s.gap().min(plan.left).min(most);
            if s.wants_prompt_logprobs() {
                len = len.min(plan.rows_left);
            }
            if len == 0 {
                return false;
            }
            if kv.grow(&mut s.table, s.computed + len) {
                plan.left -= len;
                plan.rows_left -= if s.wants_prompt_logprobs() { len } else { 0 };
                plan.chunks.push(s.chunk(len));
                return true;
            }
            let youngest = *self.running.last().expect("this sequence runs: this is a bug");
            self.preempt(kv, plan, youngest);
            if youngest == id {
                return false;
            }
        }
    }

    fn preempt(&mut self, kv: &mut KvBlocks, plan: &mut Plan, id: RequestId) {
        self.start_over(kv, id);
        self.preemptions += 1;
        if let Some(at) = plan.chunks.iter().position(|c| c.id == id) {
            plan.left += plan.chunks.remove(at).positions.len();
        }
    }

    /// The sequence gives its blocks back and waits to be computed again.
    fn start_over(&mut self, kv: &mut KvBlocks, id: RequestId) {
        let s = self.sequences.get_mut(&id).expect("running sequences exist: this is a bug");
        kv.release(&mut s.table, false);
        s.computed = 0;
        self.running.remove(&id);
        self.waiting.insert(id);
    }

    fn fail(&mut self, kv: &mut KvBlocks, id: RequestId, message: String, events: &mut Vec<(RequestId, Event)>) {
        self.remove(kv, id, true);
        events.push((id, Event::Failed { message }));
    }

    fn remove(&mut self, kv: &mut KvBlocks, id: RequestId, forget: bool) -> Sequence {
        let mut s = self.sequences.remove(&id).expect("only sequences that exist end: this is a bug");
        kv.release(&mut s.table, forget);
        self.running.remove(&id);
        self.waiting.remove(&id);
        self.suspects.remove(&id);
        s
    }
}
