//! Operations that keep a state, on every device: against their formulas in f64, and law 1: the same bits whole, in
//! chunks, alone, among others, padded, on any number of threads. Slots are lent again, with what their former owner left.

use dualgauge_kernels::{
    Act, Backend, Batch, ConvSpec, DeltaSpec, Error, Format, HostTensor, KvSpec, Recorder, ScanSpec, StateLayer, Tail,
    Value, Weight,
};
use dualgauge_tests::{Pages, Random, TestDevice, Tolerance, assert_bits, assert_close, each_device};

const BLOCKS: usize = 64;

/// One operation and its sizes.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Conv { channels: usize, taps: usize, bias: bool, silu: bool },
    Scan { heads: usize, dim: usize, groups: usize, n: usize },
    Delta { heads: usize, v_dim: usize, k_heads: usize, k_dim: usize },
}

impl Kind {
    /// Values of a token that go in, of one that come out.
    fn widths(self) -> (usize, usize) {
        match self {
            Self::Conv { channels, .. } => (channels, channels),
            Self::Scan { heads, dim, groups, n } => (heads * dim + heads + 2 * groups * n, heads * dim),
            Self::Delta { heads, v_dim, k_heads, k_dim } => {
                (2 * k_heads * k_dim + heads * v_dim + 2 * heads, heads * v_dim)
            }
        }
    }

    fn state(self) -> StateLayer {
        let shape = match self {
            Self::Conv { channels, taps, .. } => [taps - 1, channels].into(),
            Self::Scan { heads, dim, n, .. } => [heads, n, dim].into(),
            Self::Delta { heads, v_dim, k_dim, .. } => [heads, k_dim, v_dim].into(),
        };
        StateLayer { shape }
    }

    /// The vectors of the operation, in the order of its spec.
    fn vectors(self, random: &mut Random) -> Vec<Vec<f32>> {
        let below_0 = |random: &mut Random, n| (0..n).map(|_| -0.05 - 2.0 * random.unit()).collect();
        match self {
            Self::Conv { channels, taps, .. } => {
                vec![random.normals(taps * channels, 0.6), random.normals(channels, 1.0)]
            }
            Self::Scan { heads, .. } => {
                vec![below_0(random, heads), random.normals(heads, 1.0), random.normals(heads, 1.0)]
            }
            Self::Delta { heads, .. } => vec![below_0(random, heads), random.normals(heads, 1.0)],
        }
    }

    fn record(self, g: &Recorder, x: Value, v: &[Weight]) -> Value {
        let tokens = g.shape().tokens;
        let mut at = 0;
        let mut part = |heads: usize, dim: usize| {
            at += heads * dim;
            g.reshape(g.narrow(x, at - heads * dim, heads * dim), [tokens, heads, dim])
        };
        let flat = |x: Value, width: usize| g.reshape(x, [tokens, width]);
        match self {
            Self::Conv { taps, bias, silu, .. } => {
                let (bias, act) = (bias.then_some(v[1]), silu.then_some(Act::Silu));
                g.short_conv(x, ConvSpec { state: 0, taps, weight: v[0], bias, act })
            }
            Self::Scan { heads, dim, groups, n } => {
                let (x, dt) = (part(heads, dim), flat(part(heads, 1), heads));
                let bc = [part(groups, n), part(groups, n)];
                let spec = ScanSpec { state: 0, a: v[0], d: v[1], dt_bias: v[2], dt_limit: (0.01, 2.0) };
                g.ssm_scan(x, dt, bc, spec)
            }
            Self::Delta { heads, v_dim, k_heads, k_dim } => {
                let qkv = [part(k_heads, k_dim), part(k_heads, k_dim), part(heads, v_dim)];
                // Keys of length 1, as models have them: longer ones let the state grow without bound.
                let one = |x| g.scale(g.rms_norm(x, None, 0.0, 1e-6), (k_dim as f32).powf(-0.5));
                let (dt, beta) = (flat(part(heads, 1), heads), flat(part(heads, 1), heads));
                g.gated_delta(
                    [one(qkv[0]), one(qkv[1]), qkv[2]],
                    dt,
                    beta,
                    DeltaSpec { state: 0, a: v[0], dt_bias: v[1] },
                )
            }
        }
    }

    /// The formula over one sequence, in f64. `rows` are the inputs of its tokens.
    fn formula(self, rows: &[&[f32]], v: &[Vec<f32>]) -> Vec<f32> {
        let f = f64::from;
        let softplus = |x: f64| x.exp().ln_1p();
        let mut out = vec![];
        let shape = self.state().shape;
        let mut state = vec![0.0f64; shape.elements()];
        for (t, row) in rows.iter().enumerate() {
            match self {
                Self::Conv { channels, taps, bias, silu } => out.extend((0..channels).map(|c| {
                    let tap = |j: usize| match (t + j).checked_sub(taps - 1) {
                        Some(from) => f(v[0][j * channels + c]) * f(rows[from][c]),
                        None => 0.0,
                    };
                    let y = (0..taps).map(tap).sum::<f64>() + if bias { f(v[1][c]) } else { 0.0 };
                    if silu { y / (1.0 + (-y).exp()) } else { y }
                })),
                Self::Scan { heads, dim, groups, n } => {
                    let (x, rest) = row.split_at(heads * dim);
                    let (dt, rest) = rest.split_at(heads);
                    let (b, c) = rest.split_at(groups * n);
                    for h in 0..heads {
                        let group = h / (heads / groups) * n;
                        let step = softplus(f(dt[h]) + f(v[2][h])).clamp(f(0.01f32), 2.0);
                        for p in 0..dim {
                            let x = f(x[h * dim + p]);
                            let mut y = f(v[1][h]) * x;
                            for i in 0..n {
                                let s = &mut state[(h * n + i) * dim + p];
                                *s = *s * (step * f(v[0][h])).exp() + step * f(b[group + i]) * x;
                                y += f(c[group + i]) * *s;
                            }
                            out.push(y);
                        }
                    }
                }
                Self::Delta { heads, v_dim, k_heads, k_dim } => {
                    let (q, rest) = row.split_at(k_heads * k_dim);
                    let (k, rest) = rest.split_at(k_heads * k_dim);
                    let (value, rest) = rest.split_at(heads * v_dim);
                    let (dt, beta) = rest.split_at(heads);
                    for h in 0..heads {
                        let at = h / (heads / k_heads) * k_dim;
                        let unit = |x: &[f32]| -> Vec<f64> {
                            let squares: f64 = x.iter().map(|x| f(*x) * f(*x)).sum();
                            x.iter().map(|x| f(*x) / (squares + 1e-6 * k_dim as f64).sqrt()).collect()
                        };
                        let (q, k) = (unit(&q[at..at + k_dim]), unit(&k[at..at + k_dim]));
                        let fade = (f(v[0][h]) * softplus(f(dt[h]) + f(v[1][h]))).exp();
                        let beta = 1.0 / (1.0 + (-f(beta[h])).exp());
                        for p in 0..v_dim {
                            let column = |i: usize| (h * k_dim + i) * v_dim + p;
                            (0..k_dim).for_each(|i| state[column(i)] *= fade);
                            let held: f64 = (0..k_dim).map(|i| k[i] * state[column(i)]).sum();
                            let change = beta * (f(value[h * v_dim + p]) - held);
                            (0..k_dim).for_each(|i| state[column(i)] += k[i] * change);
                            out.push((0..k_dim).map(|i| q[i] * state[column(i)]).sum());
                        }
                    }
                }
            }
        }
        out.into_iter().map(|y| y as f32).collect()
    }
}

/// Sequences whose token ids are the rows of a table that holds every token's inputs.
struct World {
    kind: Kind,
    lengths: Vec<usize>,
    table: Vec<f32>,
    vectors: Vec<Vec<f32>>,
    /// Changes the state slots of each step.
    spoil: Option<fn(&mut Vec<u32>)>,
}

impl World {
    fn new(kind: Kind, lengths: &[usize], seed: u64) -> Self {
        let mut random = Random::new(seed);
        let table = random.normals(lengths.iter().sum::<usize>() * kind.widths().0, 1.0);
        Self { kind, lengths: lengths.to_vec(), table, vectors: kind.vectors(&mut random), spoil: None }
    }

    fn tokens(&self, seq: usize) -> Vec<u32> {
        let first: usize = self.lengths[..seq].iter().sum();
        (first as u32..(first + self.lengths[seq]) as u32).collect()
    }

    fn wanted(&self) -> Vec<Vec<f32>> {
        let width = self.kind.widths().0;
        let rows: Vec<&[f32]> = self.table.chunks_exact(width).collect();
        let all = |seq| self.tokens(seq).iter().map(|t| rows[*t as usize]).collect::<Vec<_>>();
        (0..self.lengths.len()).map(|seq| self.kind.formula(&all(seq), &self.vectors)).collect()
    }

    /// Every sequence's results on `device`, computed as `cut` says which come next and how much of each, padded by
    /// `padding`. `None` when the device keeps no state.
    fn computed(
        &self,
        device: &TestDevice,
        padding: usize,
        mut cut: impl FnMut(&[usize]) -> Vec<(usize, usize)>,
    ) -> Option<Vec<Vec<f32>>> {
        let (width, out_width) = self.kind.widths();
        let mut backend = device.open();
        let (block_tokens, dtype) = (backend.limits().block_tokens, backend.limits().kv_dtype);
        backend.reserve_kv(&KvSpec { layers: vec![], block_tokens, dtype }, BLOCKS).expect("reserves");
        match backend.reserve_state(&[self.kind.state()], self.lengths.len() + 4) {
            Err(Error::Unsupported { what, .. }) => {
                eprintln!("skipped on {}: it does not support {what}", device.name);
                return None;
            }
            reserved => reserved.expect("reserves"),
        }
        let table = HostTensor::from_f32("table", [self.table.len() / width, width], &self.table).expect("a table");
        let table = backend.upload(table, Format::F32).expect("uploads");
        let vectors: Vec<Weight> = self
            .vectors
            .iter()
            .map(|v| HostTensor::from_f32("vector", [v.len()], v).expect("a vector"))
            .map(|v| backend.upload(v, Format::F32).expect("uploads"))
            .collect();
        let mut pages = Pages::new(block_tokens, BLOCKS, &mut Random::new(5));
        let sequences: Vec<usize> = (0..self.lengths.len()).map(|seq| pages.add(self.tokens(seq))).collect();
        let mut held = vec![vec![]; sequences.len()];
        loop {
            let open: Vec<usize> = sequences.iter().map(|s| pages.pending(*s)).collect();
            let work = cut(&open);
            if work.is_empty() {
                return Some(held);
            }
            let mut batch = pages.step(&work);
            if let Some(spoil) = self.spoil {
                spoil(&mut batch.states);
            }
            let queries: Vec<_> = (0..work.len()).map(|i| batch.query(i)).collect();
            let mut shape = batch.shape;
            shape.tokens += 2 * padding;
            shape.seqs += padding;
            batch.pad_to(shape, block_tokens);
            let g = Recorder::new(shape, block_tokens);
            let y = self.kind.record(&g, g.embed(g.tokens(), table), &vectors);
            let logits = g.select_rows(g.reshape(y, [shape.tokens, out_width]));
            let all = run(backend.as_mut(), g, logits, &batch);
            for (query, (sequence, _)) in queries.into_iter().zip(work) {
                held[sequence].extend_from_slice(&all[query.start * out_width..query.end * out_width]);
            }
        }
    }
}

fn run(backend: &mut dyn Backend, g: Recorder, logits: Value, batch: &Batch) -> Vec<f32> {
    let program = g.finish(logits, Tail { logits: true, ..Tail::default() }).expect("records");
    let id = backend.compile(&program).expect("compiles");
    let ticket = backend.launch(id, batch).expect("launches");
    let out = backend.wait(ticket).expect("runs");
    backend.release(id);
    out.logits.expect("asked for")
}

/// All that is left of every open sequence.
fn whole(open: &[usize]) -> Vec<(usize, usize)> {
    open.iter().copied().enumerate().filter(|(_, left)| *left > 0).collect()
}

fn kinds() -> Vec<Kind> {
    vec![
        Kind::Conv { channels: 64, taps: 3, bias: false, silu: false },
        Kind::Conv { channels: 300, taps: 4, bias: true, silu: true },
        Kind::Conv { channels: 5, taps: 2, bias: true, silu: false },
        Kind::Conv { channels: 17, taps: 9, bias: false, silu: true },
        Kind::Scan { heads: 8, dim: 16, groups: 1, n: 16 },
        Kind::Scan { heads: 4, dim: 64, groups: 2, n: 33 },
        Kind::Scan { heads: 3, dim: 7, groups: 3, n: 5 },
        Kind::Delta { heads: 4, v_dim: 16, k_heads: 2, k_dim: 16 },
        Kind::Delta { heads: 3, v_dim: 37, k_heads: 1, k_dim: 30 },
        Kind::Delta { heads: 2, v_dim: 64, k_heads: 2, k_dim: 128 },
    ]
}

const LENGTHS: [usize; 4] = [1, 7, 33, 50];

#[test]
fn operations_follow_their_formulas() {
    for (seed, kind) in (1..).zip(kinds()) {
        let world = World::new(kind, &LENGTHS, seed);
        let wanted = world.wanted();
        each_device!(&format!("{kind:?}"), |device| {
            let Some(held) = world.computed(device, 0, whole) else { return };
            for (i, (held, wanted)) in held.iter().zip(&wanted).enumerate() {
                let name = format!("{kind:?} on {}, sequence {i}", device.name);
                assert_close(&name, held, wanted, Tolerance::of_largest(1e-5));
            }
        });
    }
}

#[test]
fn company_chunks_and_padding_do_not_matter() {
    for (seed, kind) in (1..).zip(kinds()) {
        let world = World::new(kind, &LENGTHS, seed);
        each_device!(&format!("law 1, {kind:?}"), |device| {
            let Some(wanted) = world.computed(device, 0, whole) else { return };
            for round in 0..4 {
                let (mut random, padding) = (Random::new(round), [0, 0, 1, 9][round as usize]);
                let cut = |open: &[usize]| {
                    let mut work = whole(open);
                    random.shuffle(&mut work);
                    work.truncate(random.between(1, 4));
                    for (_, count) in &mut work {
                        *count = random.between(1, (*count).min(if round % 2 == 0 { 1 } else { 17 }));
                    }
                    work
                };
                let held = world.computed(device, padding, cut).expect("as before");
                for (i, (held, wanted)) in held.iter().zip(&wanted).enumerate() {
                    assert_bits(&format!("{kind:?} on {}, round {round}, sequence {i}", device.name), held, wanted);
                }
            }
        });
    }
}

#[test]
fn threads_do_not_matter() {
    for (seed, kind) in (1..).zip(kinds()) {
        let world = World::new(kind, &LENGTHS, seed);
        for device in TestDevice::cpus() {
            let run = |threads: usize| {
                let mut device = device.clone();
                device.spec.threads = Some(threads);
                world.computed(&device, 0, whole).expect("the CPU keeps states")
            };
            assert_bits(&format!("{kind:?} on {}", device.name), &run(3).concat(), &run(1).concat());
        }
    }
}

/// A slot is lent to another sequence, which begins from zeros.
#[test]
fn a_new_owner_sees_nothing_of_the_old_one() {
    for kind in kinds() {
        let world = World::new(kind, &[20, 9], 4);
        each_device!(&format!("one slot, {kind:?}"), |device| {
            let Some(wanted) = world.computed(device, 0, whole) else { return };
            let shared = World { spoil: Some(|states| states.fill(2)), ..World::new(kind, &[20, 9], 4) };
            let one_by_one = |open: &[usize]| whole(open).into_iter().take(1).map(|(s, n)| (s, n.min(6))).collect();
            let held = shared.computed(device, 0, one_by_one).expect("as before");
            assert_bits(&format!("{kind:?} on {}: the second owner", device.name), &held[1], &wanted[1]);
        });
    }
}

#[test]
fn a_step_with_the_wrong_slots_is_refused() {
    let world = World::new(kinds()[0], &[4, 4], 4);
    for (spoil, said) in [
        ((|states: &mut Vec<u32>| states[1] = states[0]) as fn(&mut Vec<u32>), "two sequences have state slot 1"),
        (|states| states[0] = 0, "slot 0, which is never lent"),
        (|states| states[1] = 6, "state slot 6 does not exist"),
        (Vec::clear, "states has 0 entries"),
    ] {
        each_device!(said, |device| {
            let spoiled = World { spoil: Some(spoil), ..World::new(world.kind, &[4, 4], 4) };
            let refused = std::panic::catch_unwind(|| spoiled.computed(device, 0, whole));
            let panic = match refused {
                Ok(None) => return,
                Ok(Some(_)) => panic!("{} ran it", device.name),
                Err(panic) => panic,
            };
            let message = panic.downcast_ref::<String>().expect("an error's text");
            assert!(message.contains(said), "{}: {message}", device.name);
        });
    }
}
