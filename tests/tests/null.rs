//! The null device's promises, without which it proves nothing: its answer is a function of all that is visible and of
//! nothing else, and what must not be read is a fault.

use std::collections::HashSet;

use dualgauge_kernels::{
    Backend, Batch, BatchShape, Candidate, DType, DeviceKind, DeviceSpec, Format, HostTensor, KvLayer, KvSpec,
    NullOptions, Output, ProgramId, Recorder, Tail, Ticket, Weight, null_with, open,
};
use dualgauge_tests::{Pages, Random};

const BLOCKS: usize = 80;
const VOCAB: usize = 5000;

struct Null {
    backend: Box<dyn Backend>,
    table: Weight,
}

impl Null {
    fn new(options: NullOptions) -> Self {
        let mut backend = null_with(options);
        let table = HostTensor::new("table", [VOCAB, 2], Format::F32, vec![0; VOCAB * 8]).expect("a table");
        let table = backend.upload(table, Format::F32).expect("uploads");
        let layers = vec![KvLayer { kv_heads: 1, k_dim: 1, v_dim: 1 }];
        backend.reserve_kv(&KvSpec { layers, block_tokens: 16, dtype: DType::F32 }, BLOCKS).expect("reserves");
        Self { backend, table }
    }

    fn compile(&mut self, shape: BatchShape, tail: Tail) -> ProgramId {
        let g = Recorder::new(shape, 16);
        let head = Weight { shape: [VOCAB, 2].into(), ..self.table };
        let logits = g.linear(g.select_rows(g.embed(g.tokens(), self.table)), head);
        let program = g.finish(logits, tail).expect("records");
        self.backend.compile(&program).expect("compiles")
    }

    fn launch(&mut self, batch: &Batch) -> Result<Ticket, String> {
        let tail = Tail { top_k: 5, logits: true, masked: !batch.masks.is_empty() };
        let id = self.compile(batch.shape, tail);
        self.backend.launch(id, batch).map_err(|e| e.to_string())
    }

    fn run(&mut self, batch: &Batch) -> Result<Output, String> {
        let ticket = self.launch(batch)?;
        self.backend.wait(ticket).map_err(|e| e.to_string())
    }
}

fn pages() -> Pages {
    Pages::new(16, BLOCKS, &mut Random::new(1))
}

/// The answers of one sequence, one a token.
fn answers(tokens: &[u32], mut cut: impl FnMut(usize) -> usize) -> Vec<u32> {
    let (mut null, mut pages) = (Null::new(NullOptions::default()), pages());
    let sequence = pages.add(tokens.to_vec());
    let mut held = vec![];
    while pages.pending(sequence) > 0 {
        let batch = pages.step(&[(sequence, cut(pages.pending(sequence)))]);
        held.extend(null.run(&batch).expect("runs").argmax);
    }
    held
}

#[test]
fn the_answer_depends_on_all_that_is_visible_and_no_more() {
    let mut random = Random::new(2);
    let tokens: Vec<u32> = (0..50).map(|_| random.below(VOCAB) as u32).collect();
    let whole = answers(&tokens, |n| n);
    assert_eq!(answers(&tokens, |n| random.between(1, n.min(9))), whole, "chunked is whole");
    assert!(whole.iter().collect::<HashSet<_>>().len() > 45, "answers differ");
    for at in [0, 15, 16, 31, 49] {
        let mut other = tokens.clone();
        other[at] = (other[at] + 1) % VOCAB as u32;
        let held = answers(&other, |n| n);
        assert_eq!(held[..at], whole[..at], "token {at} is not visible before");
        let same = held[at..].iter().zip(&whole[at..]).filter(|(h, w)| h == w).count();
        assert!(same <= 1, "token {at} is visible from its position on");
    }
    let mut swapped = tokens.clone();
    swapped.swap(3, 4);
    assert_ne!(answers(&swapped, |n| n)[49], whole[49], "the order is visible");
}

#[test]
fn what_must_not_be_read_is_a_fault() {
    let prepared = || {
        let (mut null, mut pages) = (Null::new(NullOptions::default()), pages());
        for first in [0, 100] {
            pages.add((first..first + 60).collect());
        }
        let batch = pages.step(&[(0, 33), (1, 20)]);
        null.run(&batch).expect("runs");
        (null, pages)
    };
    let fault = |what: &str, message: &str, spoil: &dyn Fn(&mut Batch)| {
        let (mut null, mut pages) = prepared();
        let mut batch = pages.step(&[(0, 2), (1, 1)]);
        spoil(&mut batch);
        let said = null.run(&batch).expect_err(what);
        assert!(said.contains(message), "{what}: {said}");
    };
    // Sequence 0 has 35 tokens in three blocks, sequence 1 has 21 in two and a 0.
    fault("blocks in another order", "holds position 16; sequence 0 reads it for 0", &|b| b.block_table.swap(0, 1));
    fault("a block never written", "was never written; sequence 0 reads it for position 0", &|b| {
        let used: HashSet<u32> = b.block_table.iter().copied().collect();
        b.block_table[0] = (1..BLOCKS as u32).find(|id| !used.contains(id)).expect("a free block");
    });
    fault("block 0", "block 0, which is never lent", &|b| b.block_table[1] = 0);
    fault("a batch of another shape", "tokens has 2 entries", &|b| b.tokens.truncate(2));
    fault("two writers of a slot", "two tokens write slot", &|b| {
        // Sequence 1 claims to be where sequence 0 is.
        b.block_table.copy_within(0..3, 3);
        b.context[1] = 35;
        b.positions[2] = 34;
        b.slots[2] = b.slots[1];
    });
    // The wrong block with the right positions is no fault that a cache could see: the answer differs.
    let (mut null, mut pages) = prepared();
    let batch = pages.step(&[(0, 1), (1, 1)]);
    let right = null.run(&batch).expect("runs");
    let mut wrong = batch.clone();
    wrong.block_table[0] = batch.block_table[3];
    assert_ne!(null.run(&wrong).expect("runs").argmax[0], right.argmax[0]);
}

/// A block that is written from its start has a new owner: what the old one left in it cannot be read.
#[test]
fn what_a_former_owner_left_is_poisoned() {
    let (mut null, mut first) = (Null::new(NullOptions::default()), pages());
    first.add((0..16).collect());
    null.run(&first.step(&[(0, 16)])).expect("runs");
    let mut second = pages(); // lends the same blocks again
    second.add((50..60).collect());
    let mut batch = second.step(&[(0, 4)]);
    null.run(&batch).expect("runs");
    batch = second.step(&[(0, 1)]);
    // Skips positions 4 to 6, which the former owner wrote.
    (batch.context[0], batch.positions[0], batch.slots[0]) = (8, 7, batch.slots[0] + 3);
    let said = null.run(&batch).expect_err("reads what is not its own");
    assert!(said.contains("was never written"), "{said}");
}

#[test]
fn all_outputs_tell_of_the_same_logits() {
    let (mut null, mut pages) = (Null::new(NullOptions::default()), pages());
    let mut random = Random::new(3);
    pages.add((0..40).collect());
    let mut batch = pages.step(&[(0, 40)]);
    let words = VOCAB.div_ceil(32);
    batch.masks = (0..40 * words).map(|_| (random.bits() & random.bits()) as u32).collect();
    batch.masks[..words].fill(0); // nothing allowed
    batch.masks[words..2 * words].fill(0);
    batch.masks[words + 3] = 1 << 7 | 1 << 9; // two tokens allowed
    batch.masks[2 * words..3 * words].fill(u32::MAX);
    let out = null.run(&batch).expect("runs");
    let logits = out.logits.expect("asked for");
    for row in 0..40 {
        let logits = &logits[row * VOCAB..][..VOCAB];
        let mask = &batch.masks[row * words..][..words];
        for (id, logit) in logits.iter().enumerate() {
            assert_eq!(logit.is_finite(), mask[id / 32] >> (id % 32) & 1 == 1, "row {row}, token {id}: {logit}");
        }
        let mut order: Vec<usize> = (0..VOCAB).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let best = order[..5].iter().map(|id| Candidate { id: *id as u32, logit: logits[*id] });
        assert_eq!(out.top[row * 5..][..5], best.collect::<Vec<_>>(), "row {row}");
        assert_eq!(out.argmax[row], order[0] as u32, "row {row}");
        let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        assert!((out.log_sum_exp[row] - sum.ln() as f32).abs() < 1e-5 || sum == 0.0, "row {row}");
        assert_eq!(out.log_sum_exp[row] == f32::NEG_INFINITY, sum == 0.0, "row {row}");
        assert!(order.windows(2).all(|w| logits[w[0]] > logits[w[1]] || !logits[w[1]].is_finite()), "row {row}: a tie");
    }
}

#[test]
fn it_fails_as_told() {
    let mut pages = pages();
    pages.add((0..200).collect());
    let options =
        NullOptions { fail_launch_every: Some(3), fail_wait_every: Some(5), lost_after: Some(6), ..Default::default() };
    let mut null = Null::new(options);
    let batches: Vec<Batch> = (0..8).map(|_| pages.step(&[(0, 2)])).collect();
    assert!(null.run(&batches[0]).is_ok());
    assert!(null.run(&batches[1]).is_ok());
    assert!(null.launch(&batches[2]).unwrap_err().contains("fail this launch"), "3rd launch");
    assert!(null.run(&batches[3]).unwrap_err().contains("was never written"), "what the failed one would have written");
    let ticket = null.launch(&batches[1]).expect("5th: launches");
    assert!(null.launch(&batches[1]).unwrap_err().contains("under way"));
    assert!(null.backend.wait(ticket).unwrap_err().to_string().contains("fail this step"), "5th: the step fails");
    assert!(null.launch(&batches[2]).unwrap_err().contains("fail this launch"), "6th launch");
    for _ in 0..3 {
        let id = null.compile(batches[0].shape, Tail::default());
        let error = null.backend.launch(id, &batches[0]).expect_err("lost");
        assert!(error.is_fatal(), "{error}");
    }
}

#[test]
fn it_pads_when_told() {
    let null = null_with(NullOptions { round_to: 8, ..Default::default() });
    let want = BatchShape { tokens: 9, seqs: 3, query: 5, blocks: 2, rows: 3 };
    let held = null.round_up(want).expect("fits");
    assert_eq!(held, BatchShape { tokens: 16, seqs: 8, query: 8, blocks: 8, rows: 8 });
    assert_eq!(null.round_up(held), Some(held));
    let most = null.limits().max_tokens;
    assert_eq!(null.round_up(BatchShape { tokens: most + 1, ..want }), None);
    assert!(open(&DeviceSpec { kind: DeviceKind::Null, ..Default::default() }).is_ok());
}
