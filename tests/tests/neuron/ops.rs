//! Each lowered operation against the oracle, over random shapes.

use dualgauge_kernels::{
    Act, AttnSpec, Batch, BatchShape, DType, Error, ExpertsSpec, Format, HostTensor, KvLayer, KvSpec, Output,
    Precision, Recorder, RopeSpec, RouterScore, RouterSpec, Tail, Value, open,
};
use dualgauge_tests::case::run;
use dualgauge_tests::{Case, Pages, Random, TestDevice, Tolerance, assert_close};

use super::Simulated;

/// Runs the case on a fresh simulated device in both precisions and compares with the oracle.
fn check(what: &str, seed: u64, tokens: usize, native: f32, build: &dyn Fn(&mut Case<'_>) -> Value) {
    let wanted = run(&TestDevice::reference(), seed, tokens, build);
    for (precision, relative) in [(Precision::Exact, 1e-5), (Precision::Native, native)] {
        let simulated = Simulated::new();
        let held = run(&simulated.device(precision), seed, tokens, build);
        let name = format!("{what}, {precision:?}, {tokens} tokens, seed {seed}");
        assert_close(&name, &held, &wanted, Tolerance::of_largest(relative));
        simulated.assert_clean();
    }
}

#[test]
fn matrices() {
    let mut random = Random::new(11);
    for (seed, format) in (0..).zip([Format::F32, Format::Bf16, Format::F16].into_iter().cycle().take(9)) {
        let (tokens, inner, out) = (random.between(1, 20), random.between(1, 80), random.between(1, 70));
        let bias = random.flip();
        let native = if format == Format::Bf16 { 2e-2 } else { 1e-5 };
        check(&format!("linear {format} [{out}, {inner}] bias {bias}"), seed, tokens, native, &|c| {
            let x = c.input(inner, 1.0);
            let w = c.matrix([out, inner], format);
            let bias = bias.then(|| c.vector(out));
            c.g.linear_bias(x, w, bias)
        });
        check(&format!("embed {format}"), seed, tokens, 0.0, &|c| {
            let table = c.matrix([tokens, inner], format);
            c.g.embed(c.g.tokens(), table)
        });
    }
}

#[test]
fn norms_and_rope() {
    for (seed, width) in (100..).zip([1, 7, 64, 65]) {
        let tokens = 1 + seed as usize % 5;
        check(&format!("rms_norm {width}"), seed, tokens, 1e-5, &|c| {
            let (x, gain) = (c.input(width, 3.0), c.vector(width));
            c.g.rms_norm(x, Some(gain), (seed % 2) as f32, 1e-6)
        });
        check(&format!("rms_norm of heads, {width}"), seed, tokens, 1e-5, &|c| {
            let x = c.input(3 * width, 3.0);
            c.g.rms_norm(c.g.reshape(x, [tokens, 3, width]), None, 0.0, 1e-5)
        });
        check(&format!("layer_norm {width}"), seed, tokens, 1e-5, &|c| {
            let (x, gain, bias) = (c.input(width, 3.0), c.vector(width), c.vector(width));
            c.g.layer_norm(x, Some(gain), Some(bias), 1e-5)
        });
    }
    for (seed, (heads, dim, rotated)) in (200..).zip([(1, 2, 2), (3, 16, 16), (2, 20, 12)]) {
        for interleaved in [false, true] {
            check(&format!("rope {heads} heads of {dim}, {rotated} turned, {interleaved}"), seed, 9, 2e-5, &|c| {
                let x = c.input(heads * dim, 1.0);
                let freqs: Vec<f32> = (0..rotated / 2).map(|i| 0.3f32.powi(i)).collect();
                let freqs = c.vector_of(&freqs);
                let spec = RopeSpec { freqs, interleaved, magnitude: if interleaved { 1.0 } else { 1.25 } };
                c.g.rope(c.g.reshape(x, [9, heads, dim]), spec)
            });
        }
    }
}

#[test]
fn row_work() {
    let limited = Act::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
    for (seed, act) in (300..).zip([Act::Silu, Act::Gelu, Act::GeluTanh, Act::Relu, Act::Relu2, limited]) {
        check(&format!("gated_act {act:?}"), seed, 5, 1e-5, &|c| {
            let (gate, up) = (c.input(33, 4.0), c.input(33, 1.0));
            c.g.gated_act(gate, up, act)
        });
    }
    for (seed, width) in (400..).zip([1, 9, 40]) {
        check("add, mul, scale, softcap", seed, 6, 1e-5, &|c| {
            let (a, b) = (c.input(width, 1.0), c.input(width, 1.0));
            let sum = c.g.add(a, b);
            let all = c.input(width * 6, 1.0);
            let vector = c.g.reshape(c.g.narrow(c.g.reshape(all, [1, width * 36]), width, width), [width]);
            let product = c.g.mul(c.g.add(sum, vector), vector);
            c.g.softcap(c.g.all_reduce(c.g.scale(product, -1.7)), 3.0)
        });
        check("cast", seed, 6, 1e-5, &|c| {
            let x = c.input(width, 1.0);
            c.g.cast(c.g.cast(x, if seed % 2 == 0 { DType::Bf16 } else { DType::F16 }), DType::F32)
        });
    }
}

/// Pairs become visible through experts that answer with constants: expert e adds its weight at column e.
#[test]
fn mixture_of_experts() {
    let plain =
        RouterSpec { top_k: 2, score: RouterScore::Softmax, normalise: false, scale: 1.0, bias: None, groups: None };
    let specs = [
        plain,
        RouterSpec { top_k: 3, normalise: true, ..plain },
        RouterSpec { score: RouterScore::SoftmaxChosen, ..plain },
        RouterSpec { score: RouterScore::Sigmoid, scale: 2.5, ..plain },
    ];
    for (seed, spec) in (500..).zip(specs) {
        for (biased, format, interleaved) in [(false, Format::F32, false), (true, Format::Bf16, true)] {
            let native = if format == Format::Bf16 { 4e-2 } else { 1e-5 };
            check(&format!("experts {spec:?} {format}"), seed, 5, native, &|c| {
                let (experts, hidden, inner) = (6, 12, 8);
                let logits = c.input(experts, 2.0);
                let bias = biased.then(|| c.vector(experts));
                let route = c.g.router(logits, RouterSpec { bias, ..spec });
                let x = c.input(hidden, 1.0);
                let gate_up = c.matrix([experts, 2 * inner, hidden], format);
                let down = c.matrix([experts, hidden, inner], format);
                let gate_up_bias = biased.then(|| c.vector(experts * 2 * inner));
                let down_bias = biased.then(|| c.vector(experts * hidden));
                let act = Act::Silu;
                c.g.experts(x, route, ExpertsSpec { gate_up, gate_up_bias, down, down_bias, act, interleaved })
            });
        }
    }
}

/// Candidates, ties and masks: ids must be equal. Vocabularies on both sides of what is searched in chunks.
#[test]
fn tail() {
    for (seed, vocab) in (600..).zip([1, 31, 32, 100, 1000, 2049]) {
        for (masked, ties) in [(false, false), (true, false), (false, true), (true, true)] {
            let (tokens, mut random) = (4, Random::new(seed));
            let mut values = random.normals(tokens * vocab, 4.0);
            if ties {
                values.iter_mut().for_each(|v| *v = v.round());
            }
            let words = if masked { tokens * vocab.div_ceil(32) } else { 0 };
            let masks: Vec<u32> = (0..words).map(|_| (random.bits() & random.bits()) as u32 | 1).collect();
            let tail = Tail { top_k: 12.min(vocab), logits: true, masked };
            let wanted = tail_of(&TestDevice::reference(), tail, &masks, vocab, &values);
            let simulated = Simulated::new();
            let held = tail_of(&simulated.device(Precision::Native), tail, &masks, vocab, &values);
            let what = format!("vocabulary {vocab}, masked {masked}, ties {ties}, seed {seed}");
            assert_eq!(held.logits, wanted.logits, "{what}: logits");
            assert_eq!(held.argmax, wanted.argmax, "{what}: argmax");
            assert_eq!(held.top, wanted.top, "{what}: top_k");
            let tolerance = Tolerance { absolute: 1e-5, relative: 1e-6 };
            assert_close(&format!("{what}: log_sum_exp"), &held.log_sum_exp, &wanted.log_sum_exp, tolerance);
        }
    }
}

/// What `tail` says of these logits `[rows, vocab]`.
fn tail_of(device: &TestDevice, tail: Tail, masks: &[u32], vocab: usize, logits: &[f32]) -> Output {
    let mut backend = device.open();
    let block_tokens = backend.limits().block_tokens;
    let tokens = logits.len() / vocab;
    let tensor = HostTensor::from_f32("logits", [tokens, vocab], logits).expect("a table");
    let table = backend.upload(tensor, Format::F32).expect("uploads");
    let shape = BatchShape { tokens, seqs: 1, query: tokens, blocks: 1, rows: tokens };
    let g = Recorder::new(shape, block_tokens);
    let rows = g.select_rows(g.embed(g.tokens(), table));
    let program = g.finish(rows, tail).expect("records");
    let kv = KvSpec { layers: vec![], block_tokens, dtype: backend.limits().kv_dtype };
    backend.reserve_kv(&kv, 2).expect("reserves");
    let ids: Vec<u32> = (0..tokens as u32).collect();
    let batch = Batch {
        shape,
        tokens: ids.clone(),
        positions: ids.clone(),
        slots: ids.iter().map(|i| i + block_tokens as u32).collect(),
        query_start: vec![0, tokens as u32],
        context: vec![tokens as u32],
        block_table: vec![1],
        rows: ids,
        masks: masks.to_vec(),
    };
    let id = backend.compile(&program).expect("compiles");
    let ticket = backend.launch(id, &batch).expect("launches");
    backend.wait(ticket).expect("runs")
}

/// Prefill chunks of one sequence and decode steps of three, with every option.
#[test]
fn attention() {
    let plain = AttnSpec { layer: 0, scale: 0.3, window: None, softcap: None, sinks: None };
    let specs = [
        plain,
        AttnSpec { window: Some(1), ..plain },
        AttnSpec { window: Some(19), softcap: Some(2.0), ..plain },
        AttnSpec { softcap: Some(5.0), ..plain },
    ];
    for (i, (heads, kv_heads, k_dim, v_dim)) in [(4, 2, 16, 16), (1, 1, 8, 8), (6, 2, 12, 5)].into_iter().enumerate() {
        for (j, spec) in specs.into_iter().enumerate() {
            let (seed, layer) = (700 + 10 * i as u64 + j as u64, KvLayer { kv_heads, k_dim, v_dim });
            let sinks = j % 2 == 1;
            let wanted = attention_steps(&TestDevice::reference(), seed, layer, heads, spec, sinks);
            for (precision, relative) in [(Precision::Exact, 1e-5), (Precision::Native, 2e-2)] {
                let simulated = Simulated::new();
                let held = attention_steps(&simulated.device(precision), seed, layer, heads, spec, sinks);
                let name = format!("{precision:?}, {heads} heads, {layer:?}, {spec:?}, sinks {sinks}, seed {seed}");
                assert_close(&name, &held, &wanted, Tolerance::of_largest(relative));
                simulated.assert_clean();
            }
        }
    }
}

fn attention_steps(
    device: &TestDevice,
    seed: u64,
    layer: KvLayer,
    heads: usize,
    spec: AttnSpec,
    sinks: bool,
) -> Vec<f32> {
    let mut backend = device.open();
    let (block_tokens, dtype) = (backend.limits().block_tokens, backend.limits().kv_dtype);
    let (mut random, vocab, blocks) = (Random::new(seed), 50, 24);
    let widths = [heads * layer.k_dim, layer.kv_heads * layer.k_dim, layer.kv_heads * layer.v_dim];
    let tables = widths.map(|width| {
        let tensor = random.tensor([vocab, width], Format::F32, 1.0);
        backend.upload(tensor, Format::F32).expect("uploads")
    });
    let values = random.normals(heads, 2.0);
    let sinks = sinks.then(|| {
        let tensor = HostTensor::from_f32("sinks", [heads], &values).expect("a vector");
        backend.upload(tensor, Format::F32).expect("uploads")
    });
    backend.reserve_kv(&KvSpec { layers: vec![layer], block_tokens, dtype }, blocks).expect("reserves");
    let mut pages = Pages::new(block_tokens, blocks, &mut random);
    for length in [37, 20, 61] {
        pages.add((0..length).map(|_| random.below(vocab) as u32).collect());
    }
    let steps = [vec![(0, 1)], vec![(0, 33)], vec![(1, 16)], vec![(2, 17)], vec![(2, 41)]];
    let decode = std::iter::repeat_n(vec![(1, 1), (0, 1), (2, 1)], 3);
    let mut results = vec![];
    for work in steps.into_iter().chain(decode) {
        let batch = pages.step(&work);
        let tokens = batch.shape.tokens;
        let g = Recorder::new(batch.shape, block_tokens);
        let part = |i: usize, heads: usize| {
            g.reshape(g.embed(g.tokens(), tables[i]), [tokens, heads, tables[i].shape.last() / heads])
        };
        let (q, k, v) = (part(0, heads), part(1, layer.kv_heads), part(2, layer.kv_heads));
        let out = g.attention(q, k, v, AttnSpec { sinks, ..spec });
        let logits = g.reshape(out, [tokens, heads * layer.v_dim]);
        let program = g.finish(logits, Tail { logits: true, ..Tail::default() }).expect("records");
        let id = backend.compile(&program).expect("compiles");
        let ticket = backend.launch(id, &batch).expect("launches");
        results.extend(backend.wait(ticket).expect("runs").logits.expect("asked for"));
        backend.release(id);
    }
    results
}

/// What is not there yet is refused by name, not computed in some other way.
#[test]
fn what_is_missing_is_named() {
    let simulated = Simulated::new();
    let mut backend = open(&simulated.device(Precision::Native).spec).expect("opens").backend;
    let tensor = Random::new(1).tensor([2, 32], Format::Q8_0, 1.0);
    let error = backend.upload(tensor, Format::Q8_0).expect_err("quantised");
    assert!(
        matches!(&error, Error::Unsupported { what, .. } if what.contains("q8_0") && what.contains("--dtype bf16"))
    );
    // A quantised tensor is decoded when a plain format is asked for.
    let tensor = Random::new(1).tensor([2, 32], Format::Q8_0, 1.0);
    assert_eq!(backend.upload(tensor, Format::Bf16).expect("decoded").format, Format::Bf16);
}
