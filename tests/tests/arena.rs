//! The arena of random programs, by an independent count: no operation writes over a value that is still read, and the
//! peak is neither below what is alive nor needlessly far above.

use dualgauge_kernels::{
    Act, Arena, AttnSpec, BatchShape, DType, Format, Op, Program, Recorder, Shape, Tail, Value, Weight, WeightId,
};
use dualgauge_tests::Random;

#[test]
fn values_that_are_alive_never_overlap() {
    for seed in 0..300 {
        let program = random_program(seed);
        program.verify().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let arena = program.arena();
        let most = check(&program, &arena).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{}", program.dump()));
        let peak = arena.peak_bytes;
        assert!(peak >= most, "seed {seed}: the peak is {peak}, but {most} bytes are alive at once");
        assert!(peak <= 2 * most, "seed {seed}: the peak is {peak} where {most} bytes are alive at most");
    }
}

/// The check itself sees a fault: two values of a sum in one place.
#[test]
fn an_overlap_is_seen() {
    let program = random_program(1);
    let mut arena = program.arena();
    let add = program.nodes.iter().find_map(|n| match n.op {
        Op::Add { a, b } if a != b => Some((a, b)),
        _ => None,
    });
    let (a, b) = add.expect("seed 1 has a sum of two values");
    arena.offsets[a.index()] = arena.offsets[b.index()];
    assert!(check(&program, &arena).is_err());
}

/// Plays the program: each byte belongs to the value last written there, and must be the reader's when read. Returns
/// the most bytes alive at one time, in whole cache lines.
fn check(program: &Program, arena: &Arena) -> Result<usize, String> {
    let count = program.nodes.len();
    let source = |mut i: usize| {
        while let Op::Reshape { x, .. } = program.nodes[i].op {
            i = x.index();
        }
        i
    };
    let bytes = |i: usize| program.nodes[i].shape.elements() * program.nodes[i].dtype.bytes();
    let mut owner = vec![usize::MAX; arena.peak_bytes];
    let holds = |owner: &[usize], i: usize| owner[arena.offsets[i]..][..bytes(i)].iter().all(|o| *o == source(i));
    for (i, node) in program.nodes.iter().enumerate() {
        let at = arena.offsets[i];
        if !at.is_multiple_of(Arena::ALIGN) || at + bytes(i) > arena.peak_bytes {
            return Err(format!("%{i} lies at {at}, {} bytes", bytes(i)));
        }
        if matches!(node.op, Op::Reshape { .. }) {
            continue;
        }
        // While an operation runs, it writes its result and still reads its inputs.
        owner[at..at + bytes(i)].fill(i);
        for v in node.op.inputs() {
            if !holds(&owner, v.index()) {
                return Err(format!("%{i} reads %{}, which was written over", v.0));
            }
        }
    }
    let out = program.outputs;
    for v in [Some(out.logits), Some(out.argmax), out.top, Some(out.log_sum_exp)].into_iter().flatten() {
        if !holds(&owner, v.index()) {
            return Err(format!("the output %{} was written over", v.0));
        }
    }
    let mut end = vec![0; count];
    for i in 0..count {
        end[source(i)] = end[source(i)].max(i);
        for v in program.nodes[i].op.inputs() {
            end[source(v.index())] = i;
        }
    }
    for v in [Some(out.logits), Some(out.argmax), out.top, Some(out.log_sum_exp)].into_iter().flatten() {
        end[source(v.index())] = count;
    }
    let lines = |i: usize| bytes(i).next_multiple_of(Arena::ALIGN);
    let alive = |at: usize| (0..count).filter(|i| source(*i) == *i && *i <= at && at <= end[*i]).map(lines).sum();
    Ok((0..count).map(alive).max().unwrap_or(0))
}

/// Random operations on random earlier values of fitting shapes.
fn random_program(seed: u64) -> Program {
    let mut random = Random::new(seed);
    let tokens = random.between(1, 9);
    let rows = random.between(1, tokens);
    let g = Recorder::new(BatchShape { tokens, seqs: 1, query: tokens, blocks: 1, rows }, 16);
    let weight = |shape: &[usize]| Weight { id: WeightId(0), shape: Shape::new(shape), format: Format::F32 };
    let width = 8 * random.between(1, 6);
    let mut values = vec![g.embed(g.tokens(), weight(&[50, width]))]; // all [tokens, width]
    let mut layers = 0;
    for _ in 0..random.between(5, 60) {
        let x = *random.pick(&values);
        // Often the newest, as models do.
        let y = if random.flip() { values[values.len() - 1] } else { *random.pick(&values) };
        let heads = |v: Value| g.reshape(v, [tokens, 2, width / 2]);
        let made = match random.below(9) {
            0 => {
                let wide = g.linear(x, weight(&[3 * width, width]));
                g.linear(g.act(wide, Act::Silu), weight(&[width, 3 * width]))
            }
            1 => g.rms_norm(y, None, 0.0, 1e-5),
            2 => g.gated_act(x, y, Act::Relu),
            3 => g.narrow(g.linear(x, weight(&[width + 3, width])), 1, width),
            4 => g.cast(x, *random.pick(&[DType::F16, DType::Bf16, DType::F32])),
            5 => {
                layers += 1;
                let spec = AttnSpec::new(layers - 1, 1.0);
                g.reshape(g.attention(heads(x), heads(y), heads(y), spec), [tokens, width])
            }
            6 => g.reshape(heads(y), [tokens, width]),
            _ => g.add(x, y),
        };
        values.push(made);
    }
    let logits = g.linear(g.select_rows(values[values.len() - 1]), weight(&[50, width]));
    let tail = Tail { top_k: random.below(4), logits: random.flip(), masked: random.flip() };
    g.finish(logits, tail).expect("keeps the rules")
}
