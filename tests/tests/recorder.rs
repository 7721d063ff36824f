//! The recorder keeps the first broken rule with its layer path; a program finds planted faults in itself, prints
//! itself and counts its cost.

use dualgauge_kernels::{
    Act, AttnSpec, BatchShape, DType, Error, ExpertsSpec, Format, KvLayer, KvSpec, Op, Program, Recorder, RopeSpec,
    RouterGroups, RouterScore, RouterSpec, Shape, Tail, Value, Weight, WeightId,
};
use dualgauge_tests::{Pages, Random, Runner, TestDevice, TinyLlama};

const SHAPE: BatchShape = BatchShape { tokens: 5, seqs: 2, query: 3, blocks: 4, rows: 2 };

fn weight(id: u32, shape: impl Into<Shape>) -> Weight {
    Weight { id: WeightId(id), shape: shape.into(), format: Format::F32 }
}

fn rope_spec(freqs: impl Into<Shape>) -> RopeSpec {
    RopeSpec { freqs: weight(9, freqs), long: None, interleaved: false, magnitude: 1.0 }
}

fn attn(layer: usize) -> AttnSpec {
    AttnSpec::new(layer, 1.0)
}

fn routing(top_k: usize) -> RouterSpec {
    RouterSpec {
        top_k,
        score: RouterScore::Softmax,
        normalise: false,
        scale: 1.0,
        bias: None,
        gains: None,
        groups: None,
    }
}

fn mixture(gate_up: [usize; 3], down: [usize; 3]) -> ExpertsSpec {
    let (gate_up, down) = (weight(1, gate_up), weight(2, down));
    ExpertsSpec {
        gate_up,
        gate_up_bias: None,
        down,
        down_bias: None,
        act: Act::Silu,
        interleaved: false,
        weigh_input: false,
    }
}

type Fault = fn(&Recorder, Value) -> Value;

/// What is wrong, a piece of the message, and how to do it with `x [5, 8]` f32.
const FAULTS: [(&str, &str, Fault); 36] = [
    ("ids of floats", "embed: ids are not u32", |g, x| g.embed(x, weight(1, [9, 8]))),
    ("a table that is a vector", "embed: weight [9] is not a matrix", |g, _| g.embed(g.tokens(), weight(1, [9]))),
    ("another inner size", "linear: x [5, 8] does not fit w [3, 7]", |g, x| g.linear(x, weight(1, [3, 7]))),
    ("a matrix of rank 3", "linear: weight [1, 3, 8] is not a matrix", |g, x| g.linear(x, weight(1, [1, 3, 8]))),
    ("a bias of another length", "linear: vector [4] is not of length 3", |g, x| {
        g.linear_bias(x, weight(1, [3, 8]), Some(weight(2, [4])))
    }),
    ("ids into a product", "linear: a u32 value where floats", |g, _| g.linear(g.tokens(), weight(1, [3, 5]))),
    ("a gain of another length", "rms_norm: vector [7]", |g, x| g.rms_norm(x, Some(weight(1, [7])), 0.0, 1e-5)),
    ("a bias of another length", "layer_norm: vector [9]", |g, x| g.layer_norm(x, None, Some(weight(1, [9])), 1e-5)),
    ("rope without heads", "rope: x [5, 8] is not [tokens, heads, dim]", |g, x| g.rope(x, rope_spec([4]))),
    ("rope of selected rows", "rope: x [2, 2, 4] is not", |g, x| {
        g.rope(g.reshape(g.select_rows(x), [2, 2, 4]), rope_spec([2]))
    }),
    ("rope of too much", "rope: rotates 6 of 4 dimensions", |g, x| g.rope(g.reshape(x, [5, 2, 4]), rope_spec([3]))),
    ("rope by a matrix", "rope: vector [1, 2]", |g, x| g.rope(g.reshape(x, [5, 2, 4]), rope_spec([1, 2]))),
    ("attention without heads", "attention: q [5, 8], k [5, 8]", |g, x| g.attention(x, x, x, attn(0))),
    ("heads that do not group", "attention: 2 query heads are not a multiple of 4", |g, x| {
        let (q, k) = (g.reshape(x, [5, 2, 4]), g.reshape(x, [5, 4, 2]));
        g.attention(q, k, k, attn(0))
    }),
    ("keys of another size", "attention: k [5, 1, 8] and v [5, 1, 8] do not fit q [5, 2, 4]", |g, x| {
        let k = g.reshape(x, [5, 1, 8]);
        g.attention(g.reshape(x, [5, 2, 4]), k, k, attn(0))
    }),
    ("sinks of another length", "attention: vector [3]", |g, x| {
        let h = g.reshape(x, [5, 2, 4]);
        g.attention(h, h, h, AttnSpec { sinks: Some(weight(1, [3])), ..attn(0) })
    }),
    ("an empty window", "attention: the window is 0", |g, x| {
        let h = g.reshape(x, [5, 2, 4]);
        g.attention(h, h, h, AttnSpec { window: Some(0), ..attn(0) })
    }),
    ("an empty chunk", "attention: a chunk of 0", |g, x| {
        let h = g.reshape(x, [5, 2, 4]);
        g.attention(h, h, h, AttnSpec { chunk: Some(0), ..attn(0) })
    }),
    ("a chunk beside a window", "attention: a chunk of 0, or beside a window", |g, x| {
        let h = g.reshape(x, [5, 2, 4]);
        g.attention(h, h, h, AttnSpec { chunk: Some(8), window: Some(8), ..attn(0) })
    }),
    ("gate and up differ", "gated_act: gate [5, 8] and up [5, 4] differ", |g, x| {
        g.gated_act(x, g.narrow(x, 0, 4), Act::Silu)
    }),
    ("a gate alone", "gated_act: the clamped SwiGLU needs an up", |g, x| {
        g.act(x, Act::ClampedSwiglu { alpha: 1.0, limit: 7.0 })
    }),
    ("a sum of two shapes", "add: [5, 8] and [2, 8] do not fit", |g, x| g.add(x, g.select_rows(x))),
    ("a product of two shapes", "mul: [5, 4] and [5, 8] do not fit", |g, x| g.mul(g.narrow(x, 0, 4), x)),
    ("a cap of nothing", "softcap: the cap is 0", |g, x| g.softcap(x, 0.0)),
    ("more experts than there are", "router: cannot choose 9 of logits [5, 8]", |g, x| g.router(x, routing(9))),
    ("groups that do not divide", "router: 2 of 8 experts in 3 groups, 1 kept", |g, x| {
        g.router(x, RouterSpec { groups: Some(RouterGroups { groups: 3, kept: 1, summed: 2 }), ..routing(2) })
    }),
    ("groups that keep too few", "router: 3 of 8 experts in 4 groups, 1 kept", |g, x| {
        g.router(x, RouterSpec { groups: Some(RouterGroups { groups: 4, kept: 1, summed: 2 }), ..routing(3) })
    }),
    ("a route of floats", "experts: route is not one row of pairs a token", |g, x| {
        g.experts(x, x, mixture([4, 6, 8], [4, 8, 3]))
    }),
    ("experts of another size", "experts: gate_up [4, 6, 8] and down [4, 8, 2] do not fit x [5, 8]", |g, x| {
        g.experts(x, g.router(x, routing(2)), mixture([4, 6, 8], [4, 8, 2]))
    }),
    ("heads of another size", "head_linear: x [5, 2, 4] does not fit w [2, 3, 5]", |g, x| {
        g.head_linear(g.reshape(x, [5, 2, 4]), weight(1, [2, 3, 5]))
    }),
    ("rows of two lengths", "concat: [5, 8] and [2, 8] do not fit", |g, x| g.concat(x, g.select_rows(x))),
    ("rows twice", "select_rows: x [2, 8] is not one row a token", |g, x| g.select_rows(g.select_rows(x))),
    ("a cast to ids", "cast: cannot cast to u32", |g, x| g.cast(x, DType::U32)),
    ("a cut beyond the end", "narrow: 6 + 3 is beyond x [5, 8]", |g, x| g.narrow(x, 6, 3)),
    ("a view of more", "reshape: [5, 8] has other elements than [5, 9]", |g, x| g.reshape(x, [5, 9])),
    ("a view without dimensions", "reshape: [5, 8] has other elements than []", |g, x| g.reshape(x, [])),
];

#[test]
fn the_first_broken_rule_is_kept_with_its_path() {
    for (what, message, fault) in FAULTS {
        let g = Recorder::new(SHAPE, 16);
        let x = g.embed(g.tokens(), weight(0, [10, 8]));
        {
            let _layer = g.layer(7);
            let _part = g.scope("attn");
            let y = fault(&g, x);
            // What follows a broken rule neither panics nor replaces it.
            g.rms_norm(g.linear(y, weight(3, [3, 1000])), Some(weight(4, [77])), 0.0, 1e-5);
        }
        let _elsewhere = g.layer(8);
        g.reshape(x, [1, 2, 3]);
        drop(_elsewhere);
        let logits = g.select_rows(x);
        match g.finish(logits, Tail::default()) {
            Err(Error::Record { path, message: said }) => {
                assert_eq!(path, "layers.7.attn", "{what}");
                assert!(said.starts_with(message), "{what}: {said}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn the_tail_has_rules() {
    let finish = |tail: Tail, logits: fn(&Recorder, Value) -> Value| {
        let g = Recorder::new(SHAPE, 16);
        let x = g.embed(g.tokens(), weight(0, [10, 8]));
        let logits = logits(&g, x);
        g.finish(logits, tail).map_err(|e| e.to_string())
    };
    let two = Tail { top_k: 2, logits: true, masked: true };
    assert!(finish(two, |g, x| g.select_rows(x)).is_ok());
    assert_eq!(finish(two, |_, x| x).unwrap_err(), "model: logits: [5, 8] is not [rows, vocab]");
    assert_eq!(finish(Tail { top_k: 9, ..two }, |g, x| g.select_rows(x)).unwrap_err(), "model: top_k: 9 of 8 tokens");
    assert!(finish(Tail::default(), |g, x| g.cast(g.select_rows(x), DType::F16)).is_err(), "logits are f32");
}

/// A program with one of most things, whose nodes are then spoilt one by one.
fn sound() -> Program {
    let g = Recorder::new(SHAPE, 16);
    let x = g.embed(g.tokens(), weight(0, [10, 8]));
    let h = {
        let _scope = g.layer(0);
        let h = g.reshape(g.linear(x, weight(1, [8, 8])), [5, 2, 4]);
        g.attention(g.rope(h, rope_spec([2])), h, h, attn(0))
    };
    let _scope = g.layer(1);
    let y = g.add(g.reshape(h, [5, 8]), x);
    drop(_scope);
    let logits = g.linear(g.select_rows(y), weight(2, [11, 8]));
    g.finish(logits, Tail { top_k: 3, logits: false, masked: true }).expect("is sound")
}

#[test]
fn a_program_finds_planted_faults() {
    let good = sound();
    good.verify().expect("is sound");
    let at = |name: &str| good.nodes.iter().position(|n| n.op.name() == name).expect("is in the program");
    let plant = |what: &str, message: &str, fault: &dyn Fn(&mut Program)| {
        let mut bad = good.clone();
        fault(&mut bad);
        let error = bad.verify().expect_err(what).to_string();
        assert!(error.contains(message), "{what}: {error}");
    };
    let last = Value(good.nodes.len() as u32 - 1);
    let add = at("add");
    plant("a value read too early", "layers.1: add: reads %13 before it is made", &|p| {
        p.nodes[add].op = Op::Add { a: last, b: Value(1) };
    });
    plant("a value that reads itself", "before it is made", &|p| {
        p.nodes[add].op = Op::Scale { x: Value(add as u32), by: 1.0 };
    });
    plant("nothing in it", "has no elements", &|p| p.nodes[add].shape = Shape::new(&[0, 8]));
    plant("another shape", "layers.1: add: makes [5, 8] f32, not [8, 5] f32", &|p| {
        p.nodes[add].shape = Shape::new(&[8, 5]);
    });
    plant("another type", "layers.1: add: makes [5, 8] f32, not [5, 8] f16", &|p| p.nodes[add].dtype = DType::F16);
    plant("a rule broken", "layers.1: linear: x [5, 8] does not fit", &|p| {
        p.nodes[add].op = Op::Linear { x: Value(1), w: weight(1, [8, 9]), bias: None };
    });
    plant("a view of more", "reshape: [5, 8] has other elements", &|p| {
        p.nodes[at("reshape")].op = Op::Reshape { x: Value(2), shape: Shape::new(&[5, 3, 4]) };
        p.nodes[at("reshape")].shape = Shape::new(&[5, 3, 4]);
    });
    plant("a cache layer used twice", "layers.0: attention: uses cache layer 0 a second time", &|p| {
        let again = p.nodes[at("attention")].clone();
        p.nodes[at("attention") + 1] = again;
    });
    plant("no argmax", "argmax", &|p| p.outputs.argmax = Value(1));
    plant("an argmax of other logits", "argmax", &|p| {
        p.nodes[at("argmax")].op = Op::Argmax { x: Value(good.outputs.logits.0 - 1) };
    });
    plant("a value beyond the end", "log_sum_exp", &|p| p.outputs.log_sum_exp = Value(900));
    plant("logits that are not there", "argmax", &|p| p.outputs.logits = Value(900));
    plant("candidates dropped", "the tail asks for 3", &|p| p.outputs.top = None);
    plant("another number of candidates", "the tail asks for 4", &|p| p.tail.top_k = 4);
    plant("masks forgotten", "logits", &|p| p.tail.masked = false);
}

#[test]
fn a_program_knows_its_cache() {
    let program = sound();
    let layer = KvLayer { kv_heads: 2, k_dim: 4, v_dim: 4 };
    let spec = KvSpec { layers: vec![layer], block_tokens: 16, dtype: DType::F32 };
    program.verify_kv(&spec).expect("fits");
    for (what, spec) in [
        ("no layer", KvSpec { layers: vec![], ..spec.clone() }),
        ("other heads", KvSpec { layers: vec![KvLayer { kv_heads: 1, ..layer }], ..spec.clone() }),
        ("other values", KvSpec { layers: vec![KvLayer { v_dim: 8, ..layer }], ..spec.clone() }),
        ("other blocks", KvSpec { block_tokens: 32, ..spec.clone() }),
    ] {
        let error = program.verify_kv(&spec).expect_err(what).to_string();
        assert!(error.starts_with("layers.0: attention: "), "{what}: {error}");
    }
}

#[test]
fn the_dump_reads_like_a_listing() {
    let dump = sound().dump();
    let lines: Vec<Vec<&str>> = dump.lines().map(|l| l.split_whitespace().collect()).collect();
    let text = |i: usize| lines[i].join(" ");
    // Alive at once are the embedding, what rope reads and makes, and attention's result: 4 x 192 bytes.
    assert_eq!(text(0), "program tokens=5 seqs=2 query=3 blocks=4 rows=2 nodes=14 arena=768 bytes");
    assert_eq!(text(1), "%0 tokens -> [5] u32");
    assert_eq!(text(2), "%1 embed %0, w0[10, 8] f32 -> [5, 8] f32");
    assert_eq!(text(3), "%2 linear %1, w1[8, 8] f32 -> [5, 8] f32 layers.0");
    assert_eq!(text(6), "%5 attention %4, %3, %3 -> [5, 2, 4] f32 layers.0");
    assert_eq!(text(8), "%7 add %6, %1 -> [5, 8] f32 layers.1");
    assert_eq!(text(11), "%10 mask_logits %9 -> [2, 11] f32");
    assert_eq!(text(13), "%12 top_k %10 -> [2, 3] pair");
    assert_eq!(text(lines.len() - 1), "return argmax=%11 log_sum_exp=%13 top=%12 logits=%10");
    assert!(dump.lines().all(|l| l.len() <= 120), "a line is too long:\n{dump}");
}

/// Against what a person computes for a llama: two operations a weight and token, and attention over the whole table.
#[test]
fn cost_is_that_of_a_llama() {
    let m = TinyLlama::default();
    let runner = Runner::new(&TestDevice::reference(), m, 8);
    let mut random = Random::new(1);
    let mut pages = Pages::new(16, 8, &mut random);
    let sequence = pages.add(vec![3; 20]);
    let batch = pages.step(&[(sequence, 20)]);
    let program = runner.record(&batch, Tail { logits: true, ..Tail::default() });
    let (wide, narrow) = (m.heads * m.head_dim, m.kv_heads * m.head_dim);
    let layer = m.hidden * (2 * wide + 2 * narrow) + 3 * m.hidden * m.inner;
    let products = 2 * 20 * (m.layers * layer + m.vocab * m.hidden);
    let flops: u64 = ["linear", "attention"].iter().map(|op| of(&program, op).0).sum();
    let attention = m.layers * 2 * 20 * m.heads * 32 * 2 * m.head_dim;
    assert_eq!(flops, (products + attention) as u64);
    assert!(program.cost().flops > flops && program.cost().flops < flops * 11 / 10, "{:?}", program.cost());
    let weights = 4 * (m.layers * layer + m.vocab * m.hidden);
    let moved = of(&program, "linear").1;
    assert!(moved > weights as u64 && moved < weights as u64 * 3, "{moved} bytes for {weights} of weights");
}

fn of(program: &Program, op: &str) -> (u64, u64) {
    let nodes = program.nodes.iter().filter(|n| n.op.name() == op);
    nodes.map(|n| program.node_cost(n)).fold((0, 0), |(f, b), c| (f + c.flops, b + c.bytes))
}
