//! Attention against a plain f64 loop over the tokens, and its law: a query's result is the same bits whether its
//! sequence is computed whole, in chunks, token by token, alone or among others, on any number of threads. The cache
//! holds NaN wherever nothing was written.

use half::bf16;

use super::attention::{Attention, Form, Plan, Scratch};
use super::kv::{BLOCK_TOKENS, Cell, KvCache};
use super::lanes::Vectors;
use super::pool::Pool;
use super::rows::Apart;
use crate::{Batch, BatchShape, DType, KvLayer, KvSpec, Temperature};

/// A plain generator of repeatable values.
struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize
    }

    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.bits() % 20_001) as f32 / 10_000.0 - 1.0).collect()
    }
}

/// Some sequences with all their queries, keys and values.
struct World {
    form: Form,
    dtype: DType,
    lengths: Vec<usize>,
    /// `[seq][length, heads, dim]` and so on.
    q: Vec<Vec<f32>>,
    k: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
    sinks: Option<Vec<f32>>,
}

impl World {
    fn new(form: Form, dtype: DType, lengths: &[usize], sinks: bool, seed: u64) -> Self {
        let mut noise = Noise(seed);
        let mut each = |n: usize| -> Vec<Vec<f32>> { lengths.iter().map(|l| noise.values(l * n)).collect() };
        let q = each(form.heads * form.dim);
        let k = each(form.kv_heads * form.dim);
        let v = each(form.kv_heads * form.v_dim);
        let sinks = sinks.then(|| noise.values(form.heads));
        Self { form, dtype, lengths: lengths.to_vec(), q, k, v, sinks }
    }

    /// Every query by the definition, in f64 over the rounded cache.
    fn wanted(&self) -> Vec<Vec<f64>> {
        let f = &self.form;
        let kept = |x: f32| f64::from(if self.dtype == DType::F32 { x } else { bf16::from_f32(x).to_f32() });
        (0..self.lengths.len())
            .map(|s| {
                let mut out = vec![];
                for p in 0..self.lengths[s] {
                    for h in 0..f.heads {
                        let kv = h / f.group();
                        let q = &self.q[s][(p * f.heads + h) * f.dim..][..f.dim];
                        let from =
                            f.window.map_or(0, |w| (p + 1).saturating_sub(w)).max(f.chunk.map_or(0, |c| p - p % c));
                        let heat = f.temperature.map_or(1.0, |t| {
                            1.0 + f64::from(t.scale) * (1.0 + ((p + 1) as f64 / t.every as f64).floor()).ln()
                        });
                        let score = |j: usize| {
                            let k = &self.k[s][(j * f.kv_heads + kv) * f.dim..][..f.dim];
                            let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * kept(*k)).sum();
                            let score = dot * f64::from(f.scale) * heat;
                            f.softcap.map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh())
                        };
                        let weights: Vec<f64> = (from..=p).map(|j| score(j).exp()).collect();
                        let sink = self.sinks.as_ref().map_or(0.0, |s| f64::from(s[h]).exp());
                        let sum = weights.iter().sum::<f64>() + sink;
                        let v = |j: usize, d: usize| kept(self.v[s][(j * f.kv_heads + kv) * f.v_dim + d]);
                        let weighted = |d: usize| (from..=p).map(|j| weights[j - from] * v(j, d)).sum::<f64>() / sum;
                        out.extend((0..f.v_dim).map(weighted));
                    }
                }
                out
            })
            .collect()
    }

    /// All results when steps are cut as `cut` says: each step names (sequence, tokens to compute next).
    fn computed(&self, vectors: Vectors, threads: usize, steps: &[Vec<(usize, usize)>]) -> Vec<Vec<f32>> {
        let f = &self.form;
        let pool = Pool::new(threads, 1000).expect("threads start");
        let tables = self.tables();
        let blocks = 2 + self.lengths.iter().map(|l| l.div_ceil(BLOCK_TOKENS)).sum::<usize>() * 2;
        let layers = vec![KvLayer { kv_heads: f.kv_heads, k_dim: f.dim, v_dim: f.v_dim }; 2];
        let spec = KvSpec { layers, block_tokens: BLOCK_TOKENS, dtype: self.dtype };
        let mut cache = KvCache::reserve(&spec, blocks).expect("memory for a small cache");
        if f.dim.is_multiple_of(2) {
            cache.poison(); // the padding of odd dimensions is read, and must be the zeros it was made of
        }
        let (mut plan, mut scratch) = (Plan::default(), Scratch::new(threads));
        let mut out: Vec<Vec<f32>> = self.lengths.iter().map(|_| vec![]).collect();
        let mut done = vec![0; self.lengths.len()];
        for step in steps {
            let batch = batch(step, &done, &tables);
            let row = |all: &[Vec<f32>], n: usize| -> Vec<f32> {
                step.iter().flat_map(|(s, count)| all[*s][done[*s] * n..(done[*s] + count) * n].to_vec()).collect()
            };
            let (q, k) = (row(&self.q, f.heads * f.dim), row(&self.k, f.kv_heads * f.dim));
            let v = row(&self.v, f.kv_heads * f.v_dim);
            let width = f.heads * f.v_dim;
            let mut here = vec![f32::NAN; batch.shape.tokens * width];
            batch.verify(BLOCK_TOKENS, blocks).expect("a sound batch");
            plan.make(f, &batch, threads);
            let attention = Attention {
                form: *f,
                batch: &batch,
                cells: cache.layer(1),
                dtype: self.dtype,
                q: &q,
                k: &k,
                v: &v,
                sinks: self.sinks.as_deref(),
                out: Apart(here.as_mut_ptr()),
            };
            // SAFETY: `here` holds every row; the batch is verified.
            unsafe { attention.run(vectors, &pool, &plan, &mut scratch) };
            for (i, (s, count)) in step.iter().enumerate() {
                let query = batch.query(i);
                out[*s].extend(&here[query.start * width..query.end * width]);
                done[*s] += count;
            }
        }
        assert_eq!(done, self.lengths);
        out
    }

    /// Blocks of each sequence, scattered; 0 is never lent.
    fn tables(&self) -> Vec<Vec<u32>> {
        let needed: usize = self.lengths.iter().map(|l| l.div_ceil(BLOCK_TOKENS)).sum();
        let mut free: Vec<u32> = (1..=2 * needed as u32).collect();
        let mut noise = Noise(77);
        let mut take = || free.swap_remove(noise.bits() % free.len());
        self.lengths.iter().map(|l| (0..l.div_ceil(BLOCK_TOKENS)).map(|_| take()).collect()).collect()
    }
}

fn batch(step: &[(usize, usize)], done: &[usize], tables: &[Vec<u32>]) -> Batch {
    let (tokens, seqs) = (step.iter().map(|s| s.1).sum(), step.len());
    let blocks = tables.iter().map(Vec::len).max().unwrap_or(1);
    let query = step.iter().map(|s| s.1).max().unwrap_or(1);
    let mut batch = Batch { shape: BatchShape { tokens, seqs, query, blocks, rows: 1 }, ..Batch::default() };
    batch.tokens = vec![0; tokens];
    batch.rows = vec![0];
    batch.query_start.push(0);
    for (s, count) in step {
        for position in done[*s]..done[*s] + count {
            batch.positions.push(position as u32);
            let block = tables[*s][position / BLOCK_TOKENS] as usize;
            batch.slots.push((block * BLOCK_TOKENS + position % BLOCK_TOKENS) as u32);
        }
        batch.query_start.push(batch.positions.len() as u32);
        let context = done[*s] + count;
        batch.context.push(context as u32);
        // As the engine does it: 0 beyond the context.
        let used = context.div_ceil(BLOCK_TOKENS);
        batch.block_table.extend(&tables[*s][..used]);
        batch.block_table.resize(batch.block_table.len() + blocks - used, 0);
    }
    batch
}

/// Steps that compute every sequence in chunks of random sizes up to `most`, several sequences a step.
fn chunks(lengths: &[usize], most: usize, seed: u64) -> Vec<Vec<(usize, usize)>> {
    let (mut noise, mut done, mut steps) = (Noise(seed), vec![0; lengths.len()], vec![]);
    while done != lengths {
        let mut step = vec![];
        for s in 0..lengths.len() {
            let left: usize = lengths[s] - done[s];
            if left > 0 && (noise.bits() % 3 > 0 || lengths.len() == 1) {
                let count = (1 + noise.bits() % most).min(left);
                step.push((s, count));
                done[s] += count;
            }
        }
        if !step.is_empty() {
            steps.push(step);
        }
    }
    steps
}

fn check(form: Form, dtype: DType, lengths: &[usize], sinks: bool, seed: u64) {
    let world = World::new(form, dtype, lengths, sinks, seed);
    let wanted = world.wanted();
    let whole = vec![lengths.iter().copied().enumerate().collect::<Vec<_>>()];
    let alone: Vec<_> = lengths.iter().copied().enumerate().map(|one| vec![one]).collect();
    for vectors in super::vectors_of_this_machine() {
        let first = world.computed(vectors, 1, &whole);
        for (got, wanted) in first.iter().flatten().zip(wanted.iter().flatten()) {
            assert!((f64::from(*got) - wanted).abs() < 1e-5, "{form:?} {dtype} {vectors:?}: {got} is not {wanted}");
        }
        let others = [
            ("threads", 2, whole.clone()),
            ("alone", 2, alone.clone()),
            ("chunks", 2, chunks(lengths, 40, seed)),
            ("tokens", 2, chunks(lengths, 1, seed)),
        ];
        for (name, threads, steps) in others {
            let other = world.computed(vectors, threads, &steps);
            let same = first.iter().flatten().zip(other.iter().flatten()).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{form:?} {dtype} {vectors:?}: {name} gives other bits");
        }
    }
}

fn form(heads: usize, kv_heads: usize, dim: usize, v_dim: usize) -> Form {
    Form {
        heads,
        kv_heads,
        dim,
        v_dim,
        scale: (dim as f32).powf(-0.5),
        window: None,
        softcap: None,
        chunk: None,
        temperature: None,
        ahead: false,
    }
}

#[test]
fn attention_is_right_and_blind_to_company() {
    let shapes = [(1, 1, 16, 16), (9, 3, 64, 64), (4, 4, 80, 80), (8, 2, 96, 96), (2, 1, 7, 5), (3, 1, 128, 40)];
    for (seed, (heads, kv_heads, dim, v_dim)) in (1..).zip(shapes) {
        let form = form(heads, kv_heads, dim, v_dim);
        check(form, DType::Bf16, &[37, 1, 65, 16], false, seed);
        check(form, DType::F32, &[5, 80], false, seed);
    }
    check(form(71, 1, 16, 16), DType::Bf16, &[20], false, 9);
    check(form(2, 2, 256, 256), DType::F32, &[33], false, 10);
}

#[test]
fn windows_caps_and_sinks_are_blind_to_company_too() {
    for (seed, window) in (20..).zip([1, 2, 15, 16, 17, 24, 64, 100]) {
        let form = Form { window: Some(window), ..form(4, 2, 16, 16) };
        check(form, DType::Bf16, &[150, 3, 70], seed % 2 == 0, seed);
        let temperature = Some(Temperature { every: window, scale: 0.2 });
        let cut = Form { window: None, chunk: Some(window), temperature, ..form };
        check(cut, DType::Bf16, &[150, 3], seed % 2 == 1, seed);
        check(Form { softcap: Some(2.0), scale: 4.0, ..form }, DType::F32, &[90], true, seed);
    }
}

#[test]
fn splits_of_long_sequences_do_not_show() {
    check(form(2, 1, 16, 16), DType::Bf16, &[1200, 30], true, 40);
    check(Form { window: Some(600), ..form(2, 1, 16, 16) }, DType::F32, &[1200], false, 41);
}

#[test]
fn cells_hold_what_was_stored() {
    let spec = KvSpec {
        layers: vec![KvLayer { kv_heads: 2, k_dim: 5, v_dim: 20 }],
        block_tokens: BLOCK_TOKENS,
        dtype: DType::Bf16,
    };
    let mut cache = KvCache::reserve(&spec, 3).expect("memory for a small cache");
    let (k, v): (Vec<f32>, Vec<f32>) = ((0..10).map(|i| i as f32).collect(), (0..40).map(|i| -i as f32).collect());
    let cells = cache.layer(0);
    // SAFETY: slot 37 is in block 2 of 3; nobody else uses the cache.
    unsafe {
        cells.store::<bf16>(37, &k, &v);
        let keys = cells.keys::<bf16>(2, 1);
        // Dimension 3 of head 1, token 5: second line, lane 5, odd.
        assert_eq!((*keys.add(32 + bf16::place(5, 1))).to_f32(), k[5 + 3]);
        let values = cells.values::<bf16>(2, 1);
        // Dimension 17, token 5: pair 2 of two columns, second column, lane 1, odd.
        assert_eq!((*values.add((2 * 2 + 1) * 32 + bf16::place(1, 1))).to_f32(), v[20 + 17]);
    }
}
