//! A batch finds planted faults in itself; padding it up keeps it sound.

use dualgauge_kernels::{Batch, BatchShape, Format, Recorder, Shape, Tail, Weight, WeightId};
use dualgauge_tests::{Pages, Random};

const BLOCK_TOKENS: usize = 8;
const BLOCKS: usize = 20;

/// Two steps on, three sequences: a decode, a chunk that crosses a block, a first token.
fn sound() -> Batch {
    let mut random = Random::new(4);
    let mut pages = Pages::new(BLOCK_TOKENS, BLOCKS, &mut random);
    for _ in 0..3 {
        pages.add((0..30).collect());
    }
    pages.step(&[(0, 12), (1, 5)]);
    pages.step(&[(0, 1), (1, 7), (2, 1)])
}

fn sizes() -> (usize, usize) {
    (BLOCK_TOKENS, BLOCKS)
}

#[test]
fn a_batch_finds_planted_faults() {
    let (block_tokens, blocks) = sizes();
    let good = sound();
    good.verify(block_tokens, blocks).expect("is sound");
    let plant = |what: &str, message: &str, fault: &dyn Fn(&mut Batch)| {
        let mut bad = good.clone();
        fault(&mut bad);
        let said = bad.verify(block_tokens, blocks).expect_err(what);
        assert!(said.contains(message), "{what}: {said}");
    };
    plant("a token short", "tokens has 8 entries, the shape says 9", &|b| b.tokens.truncate(8));
    plant("a position short", "positions has 8", &|b| b.positions.truncate(8));
    plant("a slot short", "slots has 8", &|b| b.slots.truncate(8));
    plant("a start short", "query_start has 3", &|b| b.query_start.truncate(3));
    plant("a context short", "context has 2", &|b| b.context.truncate(2));
    plant("a table short", "block_table has 5", &|b| b.block_table.truncate(5));
    plant("a row short", "rows has 8", &|b| b.rows.truncate(8));
    plant("starts that fall", "query_start", &|b| b.query_start.swap(1, 2));
    plant("a late start", "query_start", &|b| b.query_start[0] = 1);
    plant("starts beyond the end", "query_start", &|b| b.query_start[3] = 10);
    plant("a row beyond the end", "rows", &|b| b.rows[2] = 9);
    plant("a slot beyond the cache", "slots points beyond", &|b| b.slots[0] = (block_tokens * blocks) as u32);
    plant("a block beyond the cache", "block_table", &|b| b.block_table[1] = blocks as u32);
    plant("another position", "sequence 1: token 3 is not at position 7", &|b| b.positions[3] += 1);
    plant("another context", "sequence 0", &|b| b.context[0] += 1);
    plant("less context than queries", "sequence 1: 7 queries", &|b| b.context[1] = 6);
    plant("more context than blocks", "sequence 2", &|b| b.context[2] = 17);
    plant("another slot", "the slot of token 0", &|b| b.slots[0] += 1);
    plant("a slot of another block", "the slot of token 8", &|b| b.slots[8] = b.slots[0]);
    plant("block 0 read", "block 0, which is never lent", &|b| b.block_table[0] = 0);
    plant("more queries than the shape", "sequence 1: 7 queries", &|b| b.shape.query = 6);
}

#[test]
fn a_padded_batch_is_sound_and_the_same() {
    let (block_tokens, blocks) = sizes();
    let good = sound();
    for by in 0..20 {
        let s = good.shape;
        let shape = BatchShape {
            tokens: s.tokens + by,
            seqs: s.seqs + by % 3,
            query: s.query + by % 4,
            blocks: s.blocks + by % 5,
            rows: s.rows + by % 7,
        };
        let mut padded = good.clone();
        padded.masks = (0..s.rows as u32 * 3).collect();
        padded.pad_to(shape, block_tokens);
        padded.verify(block_tokens, blocks).unwrap_or_else(|e| panic!("padded to {shape:?}: {e}"));
        for seq in 0..s.seqs {
            assert_eq!(padded.query(seq), good.query(seq), "sequence {seq}, {shape:?}");
            assert_eq!(padded.blocks(seq)[..s.blocks], *good.blocks(seq), "sequence {seq}, {shape:?}");
        }
        assert!((s.seqs..shape.seqs).all(|seq| padded.query(seq).is_empty() && padded.context[seq] == 0));
        assert_eq!(padded.tokens[..s.tokens], good.tokens);
        assert_eq!(padded.rows[..s.rows], good.rows);
        assert!(padded.masks[s.rows * 3..].iter().all(|m| *m == u32::MAX));
        let mut bad = padded.clone();
        if let Some(slot) = bad.slots.get_mut(s.tokens) {
            *slot = block_tokens as u32;
            let said = bad.verify(block_tokens, blocks).expect_err("padding writes to block 0 only");
            assert!(said.contains("padding"), "{said}");
            bad = padded.clone();
            bad.rows[0] = s.tokens as u32;
            assert!(bad.verify(block_tokens, blocks).expect_err("a row of padding").contains("rows"));
        }
    }
}

#[test]
fn a_program_accepts_only_its_own_batches() {
    let (block_tokens, blocks) = sizes();
    let batch = sound();
    let record = |shape: BatchShape, vocab: usize, masked: bool| {
        let g = Recorder::new(shape, block_tokens);
        let table = Weight { id: WeightId(0), shape: Shape::new(&[vocab, 40]), format: Format::F32 };
        let logits = g.select_rows(g.embed(g.tokens(), table));
        g.finish(logits, Tail { masked, ..Tail::default() }).expect("records")
    };
    record(batch.shape, 30, false).accepts(&batch, blocks).expect("is its own");
    let other = BatchShape { rows: batch.shape.rows - 1, ..batch.shape };
    assert!(record(other, 30, false).accepts(&batch, blocks).unwrap_err().contains("shape"));
    let small = record(batch.shape, 12, false).accepts(&batch, blocks).unwrap_err();
    assert_eq!(small, "token 12 is not in a vocabulary of 12");
    let mut masks = batch.clone();
    masks.masks = vec![u32::MAX; batch.shape.rows * 2]; // 40 logits are two words
    record(batch.shape, 30, true).accepts(&masks, blocks).expect("is its own");
    assert!(record(batch.shape, 30, false).accepts(&masks, blocks).unwrap_err().contains("masks has 18"));
    masks.masks.pop();
    assert!(record(batch.shape, 30, true).accepts(&masks, blocks).unwrap_err().contains("masks has 17"));
    let mut broken = batch.clone();
    broken.slots[0] += 1;
    assert!(record(batch.shape, 30, true).accepts(&broken, blocks).is_err());
}
