//! Owns the way of a plan through the device: batch, shape, program, launch, output. Keeps compiled programs, the least
//! recently used goes first. Knows no queue and no clock.

use std::collections::HashMap;

use dualgauge_kernels::{Backend, Batch, BatchShape, Error, Limits, Program, ProgramId, Recorder, Tail};
use dualgauge_models::Model;

use crate::grammar::{GrammarState, Mask, MaskCost};
use crate::sampler::{MAX_LOGPROBS, Need, Place, Row, logprobs_of, need, sample};
use crate::scheduler::{Plan, Scheduler};
use crate::sequence::{Chunk, Sampled, Sequence};

/// Candidates a step returns when any row needs some: enough for every log-probability and the usual top_k.
pub const CANDIDATES: usize = 64;

pub struct Runner {
    backend: Box<dyn Backend>,
    model: Box<dyn Model>,
    programs: HashMap<(BatchShape, Tail), Compiled>,
    max_programs: usize,
    uses: u64,
    pub compiled: u64,
    pub masks: MaskCost,
}

struct Compiled {
    id: ProgramId,
    last_use: u64,
}

impl Runner {
    pub fn new(backend: Box<dyn Backend>, model: Box<dyn Model>, max_programs: usize) -> Self {
        Self {
            backend,
            model,
            programs: HashMap::new(),
            max_programs,
            uses: 0,
            compiled: 0,
            masks: MaskCost::default(),
        }
    }

    pub fn limits(&self) -> &Limits {
        self.backend.limits()
    }

    /// Runs one step and samples it: a result for each chunk of the plan.
    ///
    /// # Errors
    /// The step failed as a whole; nothing was computed.
    pub fn run(&mut self, plan: &Plan, scheduler: &mut Scheduler) -> Result<Vec<Result<Sampled, String>>, Error> {
        let sequences = planned(plan, scheduler);
        let vocab = self.model.spec().vocab;
        let most = CANDIDATES.min(self.limits().max_top_k).min(vocab);
        let tail = tail(&plan.chunks, &sequences, most);
        let mut batch = batch(&plan.chunks, &sequences, self.limits().block_tokens);
        let want = batch.shape;
        let shape = rounded(self.backend.as_ref(), want);
        let shape =
            shape.ok_or_else(|| Error::Launch { device: "engine", reason: format!("no program holds {want:?}") })?;
        batch.pad_to(shape, self.limits().block_tokens);
        let program = self.program(shape, tail)?;
        let ticket = self.backend.launch(program, &batch)?;
        // While the device works.
        self.masks += scheduler.prepare_masks(plan);
        let sequences = planned(plan, scheduler);
        let output = self.backend.wait(ticket)?;
        let rows = shape.rows;
        let logits = output.logits.as_ref().map_or(tail.logits.then_some(0), |l| Some(l.len()));
        if output.argmax.len() < rows
            || output.top.len() < rows * tail.top_k
            || logits.is_some_and(|l| l < rows * vocab)
        {
            let reason = "the device returned fewer rows than asked for".into();
            return Err(Error::Launch { device: "engine", reason });
        }
        let mut row = 0;
        let results = plan.chunks.iter().zip(sequences).map(|(chunk, s)| {
            let first = row;
            row += chunk.rows.len();
            sampled(chunk, s, |i| Row::of(&output, first + i, tail.top_k, vocab))
        });
        Ok(results.collect())
    }

    /// The program for a shape, recorded and compiled when it is not at hand.
    fn program(&mut self, shape: BatchShape, tail: Tail) -> Result<ProgramId, Error> {
        self.uses += 1;
        if let Some(found) = self.programs.get_mut(&(shape, tail)) {
            found.last_use = self.uses;
            return Ok(found.id);
        }
        if self.programs.len() >= self.max_programs {
            let (oldest, id) = self
                .programs
                .iter()
                .min_by_key(|(_, c)| c.last_use)
                .map(|(key, c)| (*key, c.id))
                .expect("the bound is at least 1: this is a bug");
            self.programs.remove(&oldest);
            self.backend.release(id);
        }
        let program = record(self.model.as_ref(), shape, tail, self.limits().block_tokens)?;
        let id = self.backend.compile(&program)?;
        self.compiled += 1;
        self.programs.insert((shape, tail), Compiled { id, last_use: self.uses });
        Ok(id)
    }
}

fn planned<'a>(plan: &Plan, scheduler: &'a Scheduler) -> Vec<&'a Sequence> {
    let sequence = |chunk: &Chunk| scheduler.get(chunk.id).expect("planned sequences exist: this is a bug");
    plan.chunks.iter().map(sequence).collect()
}

/// Records the model's step for a shape.
///
/// # Errors
/// The first shape rule that the model breaks.
pub fn record(model: &dyn Model, shape: BatchShape, tail: Tail, block_tokens: usize) -> Result<Program, Error> {
    let recorder = Recorder::new(shape, block_tokens);
    let logits = model.forward(&recorder);
    recorder.finish(logits, tail)
}

/// What the step must return: few variants, so that few programs serve all.
fn tail(chunks: &[Chunk], sequences: &[&Sequence], most: usize) -> Tail {
    let mut tail = Tail::default();
    for (chunk, s) in chunks.iter().zip(sequences) {
        let prompt_rows = chunk.rows.len() > usize::from(chunk.samples);
        let needed = match chunk.samples && s.max_tokens > 0 {
            true if s.grammar.is_some() => Need::Logits,
            true => need(&s.request.sampling, &place(s, None), most),
            false => Need::Candidates(0),
        };
        match needed {
            Need::Candidates(0) => {}
            Need::Candidates(_) => tail.top_k = most,
            Need::Logits => tail.logits = true,
        }
        tail.logits |= prompt_rows;
    }
    // Candidates are in the logits.
    if tail.logits {
        tail.top_k = 0;
    }
    tail
}

fn place<'a>(s: &'a Sequence, mask: Option<&'a Mask>) -> Place<'a> {
    Place { position: s.tokens.len(), generated: s.generated(), stop_ids: &s.stop_ids, seen: s.seen.as_ref(), mask }
}

/// The shape that a step of `want` runs in.
pub fn rounded(backend: &dyn Backend, want: BatchShape) -> Option<BatchShape> {
    backend.round_up(coarse(want)).or_else(|| backend.round_up(want))
}

/// Dimensions that cost nothing to be larger are powers of two: a growing context finds its program again.
fn coarse(want: BatchShape) -> BatchShape {
    BatchShape { query: want.query.next_power_of_two(), blocks: want.blocks.next_power_of_two().max(8), ..want }
}

fn batch(chunks: &[Chunk], sequences: &[&Sequence], block_tokens: usize) -> Batch {
    let blocks = sequences.iter().map(|s| s.table.len()).max().unwrap_or(0);
    let tokens: usize = chunks.iter().map(|c| c.positions.len()).sum();
    let rows: usize = chunks.iter().map(|c| c.rows.len()).sum();
    let query = chunks.iter().map(|c| c.positions.len()).max().unwrap_or(0);
    let mut batch = Batch {
        shape: BatchShape { tokens, seqs: chunks.len(), query, blocks, rows: rows.max(1) },
        query_start: vec![0],
        ..Batch::default()
    };
    for (chunk, s) in chunks.iter().zip(sequences) {
        let start = batch.tokens.len();
        for position in chunk.positions.clone() {
            batch.tokens.push(s.tokens[position]);
            batch.positions.push(position as u32);
            batch.long.push(s.is_long().into());
            let block = s.table[position / block_tokens] as usize;
            batch.slots.push((block * block_tokens + position % block_tokens) as u32);
        }
        batch.query_start.push(batch.tokens.len() as u32);
        batch.context.push(chunk.positions.end as u32);
        if s.table.state() != 0 {
            batch.states.push(s.table.state());
        }
        batch.block_table.extend(s.table.iter());
        batch.block_table.resize(batch.context.len() * blocks, 0);
        batch.rows.extend(chunk.rows.clone().map(|p| (start + p - chunk.positions.start) as u32));
    }
    // A program has at least one row; of a step that wants none it is not read.
    if rows == 0 {
        batch.rows.push(0);
    }
    batch
}

/// What the rows of one chunk say; `row(i)` is its i-th.
fn sampled<'a>(chunk: &Chunk, s: &Sequence, row: impl Fn(usize) -> Row<'a>) -> Result<Sampled, String> {
    let mut sampled = Sampled::default();
    if let Some(n) = s.request.prompt_logprobs.filter(|_| s.wants_prompt_logprobs()) {
        let n = n.min(MAX_LOGPROBS);
        for (i, position) in chunk.rows.clone().enumerate().filter(|(_, p)| p + 1 < s.prompt_tokens()) {
            sampled.prompt.push(logprobs_of(&row(i), s.tokens[position + 1], n)?);
        }
    }
    if chunk.samples && s.max_tokens > 0 {
        let last = chunk.rows.len() - 1;
        let mask = s.grammar.as_ref().map(GrammarState::mask).transpose()?;
        sampled.token = Some(sample(&row(last), &s.request.sampling, &place(s, mask))?);
    }
    Ok(sampled)
}
