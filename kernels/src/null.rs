//! Owns a device without arithmetic. Its K/V cache holds a hash of (token, position) in each slot, and the answer of a
//! row is a hash of all that is visible to it through the block table: a wrong block, a stale slot or a missing token
//! changes it or is a fault. A program that keeps a state has one more hash, of the tokens that went into it. It proves the engine's laws over many schedules; it knows no weights and no layers.

use std::collections::HashMap;
use std::time::Duration;

use crate::backend::{Backend, Candidate, DeviceInfo, DeviceSpec, Limits, Output, ProgramId, Ticket};
use crate::{
    Batch, BatchShape, DType, Error, Format, HostTensor, KvSpec, Probe, Program, Result, StateLayer, Value, Weight,
    WeightId,
};

/// How a null device is to behave. The default works, at once, with room for any test.
#[derive(Clone, Debug)]
pub struct NullOptions {
    /// Every n-th launch fails in `launch`; the slots it would have written are left unwritten.
    pub fail_launch_every: Option<u64>,
    /// Every n-th launch fails in `wait`, after it wrote; what it wrote is poisoned.
    pub fail_wait_every: Option<u64>,
    /// This many launches succeed; then the device is lost for good.
    pub lost_after: Option<u64>,
    /// How long each step takes.
    pub launch_delay: Option<Duration>,
    pub limits: Option<Limits>,
    /// What `kv_budget` answers.
    pub kv_bytes: u64,
    /// Shapes are rounded up to multiples of this, so that batches are padded; 1 for none.
    pub round_to: usize,
}

impl Default for NullOptions {
    fn default() -> Self {
        Self {
            fail_launch_every: None,
            fail_wait_every: None,
            lost_after: None,
            launch_delay: None,
            limits: None,
            kv_bytes: 1 << 30,
            round_to: 1,
        }
    }
}

/// A null device that behaves as `options` say.
pub fn null_with(options: NullOptions) -> Box<dyn Backend> {
    let limits = options.limits.clone().unwrap_or(Limits {
        mixed: true,
        prefill_seqs: usize::MAX,
        max_tokens: 8192,
        max_seqs: 1024,
        block_tokens: 16,
        max_top_k: 256,
        activations: DType::F32,
        kv_dtype: DType::F32,
    });
    let info = DeviceInfo {
        name: "null".into(),
        description: "no arithmetic: tokens are hashes of what is visible".into(),
        simulated: true,
        memory_bytes: options.kv_bytes,
    };
    Box::new(Null {
        options,
        info,
        limits,
        weights: 0,
        programs: HashMap::new(),
        next_program: 0,
        cache: None,
        states: None,
        launches: 0,
        running: None,
    })
}

pub(crate) fn open(_spec: &DeviceSpec) -> Result<Box<dyn Backend>> {
    Ok(null_with(NullOptions::default()))
}

const DEVICE: &str = "null";

struct Null {
    options: NullOptions,
    info: DeviceInfo,
    limits: Limits,
    weights: u32,
    programs: HashMap<u32, Program>,
    next_program: u32,
    cache: Option<Cache>,
    states: Option<States>,
    launches: u64,
    running: Option<(Ticket, Result<Output>)>,
}

impl Backend for Null {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn round_up(&self, want: BatchShape) -> Option<BatchShape> {
        let up = |n: usize, most: usize| n.next_multiple_of(self.options.round_to.max(1)).min(most);
        let fits = want.tokens <= self.limits.max_tokens && want.seqs <= self.limits.max_seqs;
        let tokens = up(want.tokens, self.limits.max_tokens);
        fits.then(|| BatchShape {
            tokens,
            seqs: up(want.seqs, self.limits.max_seqs),
            query: up(want.query, tokens),
            blocks: up(want.blocks, usize::MAX),
            rows: up(want.rows, tokens.max(want.rows)),
        })
    }

    fn accepts(&self, _: &HostTensor<'_>) -> bool {
        true
    }

    fn upload(&mut self, tensor: HostTensor<'_>, format: Format) -> Result<Weight> {
        let id = WeightId(self.weights);
        self.weights += 1;
        let format = if tensor.shape.rank() == 1 { Format::F32 } else { format };
        Ok(Weight { id, shape: tensor.shape, format })
    }

    fn kv_budget(&self, _largest: &Program) -> u64 {
        self.options.kv_bytes
    }

    fn reserve_kv(&mut self, spec: &KvSpec, blocks: usize) -> Result<()> {
        let needed = spec.block_bytes().saturating_mul(blocks as u64);
        if needed > self.options.kv_bytes {
            return Err(Error::OutOfMemory { what: "the K/V cache".into(), needed, free: self.options.kv_bytes });
        }
        self.cache = Some(Cache { spec: spec.clone(), blocks: vec![None; blocks] });
        Ok(())
    }

    fn reserve_state(&mut self, layers: &[StateLayer], slots: usize) -> Result<()> {
        let needed = StateLayer::slot_bytes(layers).saturating_mul(slots as u64);
        if needed > self.options.kv_bytes {
            return Err(Error::OutOfMemory { what: "the states".into(), needed, free: self.options.kv_bytes });
        }
        self.states = Some(States { layers: layers.to_vec(), held: vec![None; slots] });
        Ok(())
    }

    fn compile(&mut self, program: &Program) -> Result<ProgramId> {
        program.verify()?;
        program.verify_state(self.states.as_ref().map_or(&[], |s| &s.layers))?;
        let cache = self.cache.as_ref().ok_or_else(|| failed("reserve_kv comes before compile"))?;
        program.verify_kv(&cache.spec)?;
        let id = self.next_program;
        self.next_program += 1;
        self.programs.insert(id, program.clone());
        Ok(ProgramId(id))
    }

    fn release(&mut self, program: ProgramId) {
        self.programs.remove(&program.0);
    }

    fn launch(&mut self, program: ProgramId, batch: &Batch) -> Result<Ticket> {
        if self.options.lost_after.is_some_and(|n| self.launches >= n) {
            return Err(Error::Lost { device: DEVICE, reason: "it was told to get lost".into() });
        }
        if self.running.is_some() {
            return Err(failed("a step is under way already"));
        }
        let program = self.programs.get(&program.0).ok_or_else(|| failed("the program was released"))?;
        let cache = self.cache.as_mut().expect("compile needs a cache: this is a bug");
        program.accepts(batch, cache.blocks.len()).map_err(failed)?;
        let mut states = self.states.as_mut().filter(|_| program.keeps_state());
        if let Some(states) = &states {
            batch.verify_states(states.held.len()).map_err(failed)?;
        }
        self.launches += 1;
        let ordinal = self.launches;
        let every = |n: Option<u64>| n.is_some_and(|n| ordinal.is_multiple_of(n.max(1)));
        if every(self.options.fail_launch_every) {
            cache.poison(batch);
            states.iter_mut().for_each(|s| s.poison(batch));
            return Err(failed("it was told to fail this launch"));
        }
        cache.store(batch)?;
        let kept = states.as_mut().map(|s| s.go_on(batch)).transpose()?;
        let result = match every(self.options.fail_wait_every) {
            true => {
                cache.poison(batch);
                states.iter_mut().for_each(|s| s.poison(batch));
                Err(failed("it was told to fail this step"))
            }
            false => cache.visible(batch, kept.as_deref()).map(|rows| answer(program, batch, &rows)),
        };
        self.running = Some((Ticket(ordinal), result));
        Ok(Ticket(ordinal))
    }

    fn wait(&mut self, ticket: Ticket) -> Result<Output> {
        if let Some(delay) = self.options.launch_delay {
            std::thread::sleep(delay);
        }
        match self.running.take() {
            Some((running, result)) if running == ticket => result,
            other => {
                self.running = other;
                Err(failed("this step is not under way"))
            }
        }
    }

    fn probe(&mut self, _program: ProgramId, _v: Value) -> Result<Probe> {
        Err(Error::Unsupported { device: DEVICE, what: "probe: it computes no values".into() })
    }
}

fn failed(reason: impl Into<String>) -> Error {
    Error::Launch { device: DEVICE, reason: reason.into() }
}

/// What a slot holds: which position, and a hash of (token, position). `None`: never written, or poisoned.
type Slot = Option<(u32, u64)>;

struct Cache {
    spec: KvSpec,
    /// Slots of each block, made when the block is first written.
    blocks: Vec<Option<Box<[Slot]>>>,
}

impl Cache {
    fn slot(&mut self, slot: usize) -> &mut Slot {
        let tokens = self.spec.block_tokens;
        let block = self.blocks[slot / tokens].get_or_insert_with(|| vec![None; tokens].into());
        &mut block[slot % tokens]
    }

    fn poison(&mut self, batch: &Batch) {
        for slot in &batch.slots {
            *self.slot(*slot as usize) = None;
        }
    }

    /// Writes the step's tokens. A block that is written from its start was lent anew: the rest of it is poisoned, so
    /// that nothing of its former owner can be read.
    fn store(&mut self, batch: &Batch) -> Result<()> {
        let real = *batch.query_start.last().expect("verified: this is a bug") as usize;
        let mut slots = batch.slots[..real].to_vec();
        slots.sort_unstable();
        if let Some(twice) = slots.windows(2).find(|w| w[0] == w[1]) {
            return Err(failed(format!("two tokens write slot {}", twice[0])));
        }
        let tokens = self.spec.block_tokens;
        for slot in slots.into_iter().map(|s| s as usize).filter(|s| s.is_multiple_of(tokens)) {
            self.blocks[slot / tokens] = None;
        }
        for i in 0..real {
            let (token, position) = (batch.tokens[i], batch.positions[i]);
            let hash = mix(u64::from(token) << 32 | u64::from(position));
            *self.slot(batch.slots[i] as usize) = Some((position, hash));
        }
        Ok(())
    }

    /// For each row, a hash of what its token sees, and of the state after it. All slots that any query of the step sees
    /// are checked.
    fn visible(&self, batch: &Batch, kept: Option<&[u64]>) -> Result<Vec<u64>> {
        let tokens = self.spec.block_tokens;
        let mut seen = vec![None; batch.shape.tokens];
        for seq in (0..batch.shape.seqs).filter(|seq| !batch.query(*seq).is_empty()) {
            let (blocks, query, context) = (batch.blocks(seq), batch.query(seq), batch.context[seq] as usize);
            let mut hash = 0;
            for position in 0..context {
                let block = blocks[position / tokens] as usize;
                if block == 0 {
                    return Err(failed(format!("sequence {seq} sees block 0, which is never lent")));
                }
                let slot = block * tokens + position % tokens;
                let held = self.blocks[block].as_ref().and_then(|b| b[position % tokens]);
                let (at, value) = held.ok_or_else(|| {
                    failed(format!("slot {slot} was never written; sequence {seq} reads it for position {position}"))
                })?;
                if at as usize != position {
                    let what = format!("slot {slot} holds position {at}; sequence {seq} reads it for {position}");
                    return Err(failed(what));
                }
                hash = mix(hash ^ value);
                if position + query.len() >= context {
                    seen[query.start + position + query.len() - context] = Some(hash);
                }
            }
        }
        let row = |r: &u32| {
            let hash = seen[*r as usize].ok_or_else(|| failed(format!("row of token {r}, which is padding")))?;
            Ok(kept.map_or(hash, |kept| mix(hash ^ kept[*r as usize])))
        };
        batch.rows.iter().map(row).collect()
    }
}

/// The states of sequences: how many tokens went into each, and a hash of them in order. `None`: never begun, or
/// poisoned.
struct States {
    layers: Vec<StateLayer>,
    held: Vec<Option<(usize, u64)>>,
}

impl States {
    fn poison(&mut self, batch: &Batch) {
        for seq in (0..batch.shape.seqs).filter(|seq| !batch.query(*seq).is_empty()) {
            self.held[batch.states[seq] as usize] = None;
        }
    }

    /// Takes the step's tokens in; for each, a hash of the state after it.
    fn go_on(&mut self, batch: &Batch) -> Result<Vec<u64>> {
        let mut after = vec![0; batch.shape.tokens];
        for seq in (0..batch.shape.seqs).filter(|seq| !batch.query(*seq).is_empty()) {
            let (slot, start) = (batch.states[seq] as usize, batch.context[seq] as usize - batch.query(seq).len());
            let held = if batch.begins(seq) { Some((0, 0)) } else { self.held[slot] };
            let (count, mut hash) = held.filter(|(count, _)| *count == start).ok_or_else(|| {
                let has = held.map_or("nothing".into(), |(count, _)| format!("{count} tokens"));
                failed(format!("state slot {slot} has seen {has}; sequence {seq} goes on from {start}"))
            })?;
            for token in batch.query(seq) {
                hash = mix(hash ^ mix(u64::from(batch.tokens[token])));
                after[token] = hash;
            }
            self.held[slot] = Some((count + batch.query(seq).len(), hash));
        }
        Ok(after)
    }
}

/// One row's logits, without computing them all: tokens in an order that the hash decides, logits falling by rank.
struct Ranking {
    first: u64,
    stride: u64,
    vocab: u64,
    best: f32,
    step: f32,
}

impl Ranking {
    fn new(hash: u64, vocab: usize) -> Self {
        let vocab = vocab as u64;
        let mut stride = mix(hash ^ 1) % vocab;
        while gcd(stride, vocab) != 1 {
            stride += 1;
        }
        let [best, step] = [2, 3].map(|salt| (mix(hash ^ salt) >> 56) as f32 / 256.0);
        Self { first: hash % vocab, stride: stride % vocab.max(2), vocab, best: 8.0 + best, step: 0.25 + step }
    }

    fn id(&self, rank: usize) -> usize {
        ((u128::from(self.first) + rank as u128 * u128::from(self.stride)) % u128::from(self.vocab)) as usize
    }

    /// Strictly falling over any vocabulary: steep over the likely ranks, then far below by thousandths.
    fn logit(&self, rank: usize) -> f32 {
        match rank.checked_sub(Self::LIKELY) {
            None => self.best - rank as f32 * self.step,
            Some(beyond) => self.best - 100.0 - beyond as f32 / 1024.0,
        }
    }

    /// Ranks that `exp` tells from 0 beside the best.
    const LIKELY: usize = 32;
}

fn answer(program: &Program, batch: &Batch, hashes: &[u64]) -> Output {
    let (vocab, k) = (program.vocab(), program.tail.top_k);
    let mut out = Output { logits: program.tail.logits.then(Vec::new), ..Output::default() };
    let words = vocab.div_ceil(32);
    for (row, hash) in hashes.iter().enumerate() {
        let ranking = Ranking::new(*hash, vocab);
        let mask = batch.masks.get(row * words..(row + 1) * words);
        let allowed = |id: usize| mask.is_none_or(|m| m[id / 32] >> (id % 32) & 1 == 1);
        let ranks = (0..vocab).map(|rank| (ranking.id(rank), ranking.logit(rank))).filter(|(id, _)| allowed(*id));
        // Without a mask, what lies beyond the likely ranks adds nothing to the sum.
        let summed = if mask.is_some() { vocab } else { Ranking::LIKELY };
        let sum: f64 = ranks.clone().take(summed).map(|(_, logit)| f64::from(logit).exp()).sum();
        out.log_sum_exp.push(sum.ln() as f32);
        let mut best: Vec<Candidate> =
            ranks.take(k.max(1)).map(|(id, logit)| Candidate { id: id as u32, logit }).collect();
        let forbidden = (0..vocab).filter(|id| !allowed(*id)).take(k.max(1).saturating_sub(best.len()));
        best.extend(forbidden.map(|id| Candidate { id: id as u32, logit: f32::NEG_INFINITY }));
        out.argmax.push(best[0].id);
        out.top.extend(&best[..k]);
        if let Some(logits) = &mut out.logits {
            let start = logits.len();
            logits.resize(start + vocab, f32::NEG_INFINITY);
            for rank in 0..vocab {
                let id = ranking.id(rank);
                if allowed(id) {
                    logits[start + id] = ranking.logit(rank);
                }
            }
        }
    }
    out
}

/// SplitMix64's finaliser on the next state: every bit of the input changes every bit of the result.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
