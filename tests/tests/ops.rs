//! Operations that see one token at a time, on every device against the oracle, over random shapes.

use dualgauge_kernels::{Act, DType, Format, HostTensor, KvSpec, Recorder, RopeSpec, Tail};
use dualgauge_tests::case::{check, run};
use dualgauge_tests::{Allowed, Pages, Random, Tolerance, assert_close, each_device};

/// Token counts around what kernels treat apart: one row, a few, a block and one more.
const TOKENS: [usize; 7] = [1, 2, 5, 8, 16, 17, 33];

#[test]
fn embed() {
    for (seed, format) in (100..).zip(Format::ALL) {
        let width = 256 * (1 + seed as usize % 2);
        check("embed", &format!("{format} width {width}"), seed, 9, Allowed::SAME, &|c| {
            let table = c.matrix([9, width], format);
            c.g.embed(c.g.tokens(), table)
        });
    }
}

#[test]
fn linear() {
    let mut random = Random::new(7);
    for (seed, format) in (200..).zip(Format::ALL.iter().cycle().take(44)) {
        let format = *format;
        let tokens = TOKENS[seed as usize % TOKENS.len()];
        let inner = match format.block_len() {
            1 => random.between(1, 300),
            block => block * random.between(1, 512 / block),
        };
        let (out, bias) = (random.between(1, 150), random.flip());
        let allowed = if format == Format::F32 { Allowed::F32 } else { Allowed::PRODUCTS };
        check("linear", &format!("{format} [{out}, {inner}] bias {bias}"), seed, tokens, allowed, &|c| {
            let x = c.input(inner, 1.0);
            let w = c.matrix([out, inner], format);
            let bias = bias.then(|| c.vector(out));
            c.g.linear_bias(x, w, bias)
        });
    }
}

#[test]
fn head_linear() {
    let shapes = [(1, 1, 1), (3, 40, 17), (4, 16, 32), (5, 256, 64), (2, 64, 130)];
    for (seed, (heads, inner, out)) in (280..).zip(shapes) {
        for format in [Format::F32, Format::Bf16, Format::F16] {
            let tokens = TOKENS[seed as usize % TOKENS.len()];
            let allowed = if format == Format::F32 { Allowed::F32 } else { Allowed::PRODUCTS };
            let what = format!("{format} {heads} heads [{out}, {inner}]");
            check("head_linear", &what, seed, tokens, allowed, &|c| {
                let x = c.input(heads * inner, 1.0);
                let w = c.matrix([heads, out, inner], format);
                c.g.head_linear(c.g.reshape(x, [tokens, heads, inner]), w)
            });
        }
    }
}

/// By hand: two heads, each with a matrix of its own; rows beside rows.
#[test]
fn heads_and_rows_are_where_they_belong() {
    each_device!("head_linear", |device| {
        let held = run(device, 1, 1, &|c| {
            let x = c.given(4, &[1.0, 2.0, 3.0, 4.0]);
            let w = HostTensor::from_f32("w", [2, 1, 2], &[1.0, 10.0, 100.0, 1000.0]).expect("a tensor");
            let w = c.upload(w);
            let y = c.g.head_linear(c.g.reshape(x, [1, 2, 2]), w); // 21, 4300
            c.g.concat(c.g.reshape(x, [1, 2, 2]), y)
        });
        assert_close(&device.name, &held, &[1.0, 2.0, 21.0, 3.0, 4.0, 4300.0], Tolerance::of_largest(1e-6));
    });
}

#[test]
fn norms() {
    for (seed, width) in (300..).zip([1, 7, 16, 63, 64, 192, 577]) {
        let tokens = TOKENS[seed as usize % TOKENS.len()];
        for (offset, deviation) in [(0.0, 1.0), (1.0, 100.0), (0.0, 1e-3)] {
            let what = format!("width {width}, offset {offset}, deviation {deviation}");
            check("rms_norm", &what, seed, tokens, Allowed::F32, &|c| {
                let x = c.input(width, deviation);
                let gain = c.vector(width);
                c.g.rms_norm(x, Some(gain), offset, 1e-6)
            });
            check("layer_norm", &what, seed, tokens, Allowed::F32, &|c| {
                let x = c.input(width, deviation);
                let (gain, bias) = (c.vector(width), c.vector(width));
                c.g.layer_norm(x, Some(gain), Some(bias), 1e-5)
            });
        }
        // The mean is a hundred deviations away: a variance by the difference of squares would lose all but two digits.
        let far = Allowed { exact: 1e-4, native: 1e-4 };
        check("layer_norm", &format!("width {width}, far from 0"), seed, tokens, far, &|c| {
            let values = c.random.normals(tokens * width, 1.0).iter().map(|v| v + 100.0).collect::<Vec<_>>();
            let x = c.given(width, &values);
            c.g.layer_norm(x, None, None, 1e-5)
        });
        check("rms_norm", &format!("heads of {width}, no gain"), seed, tokens, Allowed::F32, &|c| {
            let x = c.input(3 * width, 2.0);
            c.g.rms_norm(c.g.reshape(x, [tokens, 3, width]), None, 0.0, 1e-5)
        });
        check("layer_norm", &format!("width {width}, no gain"), seed, tokens, Allowed::F32, &|c| {
            let x = c.input(width, 2.0);
            c.g.layer_norm(x, None, None, 1e-5)
        });
    }
}

#[test]
fn rope() {
    for (seed, (heads, dim, rotated)) in (400..).zip([(1, 2, 2), (3, 16, 16), (4, 64, 64), (2, 80, 32), (5, 10, 6)]) {
        for interleaved in [false, true] {
            let tokens = TOKENS[seed as usize % TOKENS.len()];
            let what = format!("{heads} heads of {dim}, rotated {rotated}, interleaved {interleaved}");
            // Angles reach 100 radians, where an f32 angle is good to 4e-6.
            let allowed = Allowed { exact: 2e-5, native: 2e-5 };
            check("rope", &what, seed, tokens, allowed, &|c| {
                let x = c.input(heads * dim, 1.0);
                let freqs: Vec<f32> = (0..rotated / 2).map(|i| 0.3f32.powi(i)).collect();
                let long: Vec<f32> = freqs.iter().map(|f| f / 3.0).collect();
                let (freqs, long) = (c.vector_of(&freqs), (heads > 2).then(|| c.vector_of(&long)));
                let spec = RopeSpec { freqs, long, interleaved, magnitude: if interleaved { 1.0 } else { 1.25 } };
                c.g.rope(c.g.reshape(x, [tokens, heads, dim]), spec)
            });
        }
    }
}

#[test]
fn positions() {
    for (seed, tokens) in (450..).zip(TOKENS) {
        check("positions", "rows of a table", seed, tokens, Allowed::SAME, &|c| {
            let values = c.random.normals(128 * 5, 1.0);
            let table = c.upload(HostTensor::from_f32("table", [128, 5], &values).unwrap());
            c.g.embed(c.g.positions(), table)
        });
    }
}

#[test]
fn activations() {
    let limited = Act::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
    let bent = Act::Xielu { positive: 0.8, negative: 0.6, beta: 0.5 };
    for (seed, act) in (500..).zip([Act::Silu, Act::Gelu, Act::GeluTanh, Act::Relu, Act::Relu2, bent, limited]) {
        for (width, deviation) in [(1, 1.0), (67, 1.0), (64, 4.0), (33, 40.0)] {
            let what = format!("{act:?} width {width}, deviation {deviation}");
            check("gated_act", &what, seed, 5, Allowed::F32, &|c| {
                let (gate, up) = (c.input(width, deviation), c.input(width, deviation));
                c.g.gated_act(gate, up, act)
            });
            if act != limited {
                check("gated_act", &format!("{what}, no up"), seed, 5, Allowed::F32, &|c| {
                    let gate = c.input(width, deviation);
                    c.g.act(gate, act)
                });
            }
        }
    }
}

#[test]
fn elementwise() {
    for (seed, width) in (600..).zip([1, 3, 64, 129]) {
        let tokens = TOKENS[seed as usize % TOKENS.len()];
        let what = format!("width {width}");
        check("add", &what, seed, tokens, Allowed::SAME, &|c| {
            let (a, b) = (c.input(width, 1.0), c.input(width, 1.0));
            c.g.add(a, b)
        });
        check("mul", &what, seed, tokens, Allowed::SAME, &|c| {
            let (a, b) = (c.input(width, 1.0), c.input(width, 1.0));
            c.g.mul(a, b)
        });
        check("add and mul", &format!("{what}, vector"), seed, tokens, Allowed::F32, &|c| {
            let (a, b) = (c.input(tokens * width, 1.0), c.input(width, 1.0));
            let b = c.g.reshape(b, [tokens * width]);
            c.g.mul(c.g.add(a, b), b)
        });
        check("scale", &what, seed, tokens, Allowed::SAME, &|c| {
            let x = c.input(width, 1.0);
            c.g.scale(x, 0.3)
        });
        check("softcap", &what, seed, tokens, Allowed::F32, &|c| {
            let x = c.input(width, 50.0);
            c.g.softcap(x, 30.0)
        });
        check("all_reduce", &what, seed, tokens, Allowed::SAME, &|c| {
            let x = c.input(width, 1.0);
            c.g.all_reduce(x)
        });
        check("narrow", &what, seed, tokens, Allowed::SAME, &|c| {
            let x = c.input(2 * width + 1, 1.0);
            c.g.narrow(x, width, width)
        });
        check("narrow", &format!("{what}, heads"), seed, tokens, Allowed::SAME, &|c| {
            let x = c.input(3 * (width + 2), 1.0);
            c.g.narrow(c.g.reshape(x, [tokens, 3, width + 2]), 1, width)
        });
        check("concat", &what, seed, tokens, Allowed::SAME, &|c| {
            let (a, b) = (c.input(3 * width, 1.0), c.input(6, 1.0));
            c.g.concat(c.g.reshape(a, [tokens, 3, width]), c.g.reshape(b, [tokens, 3, 2]))
        });
        for to in [DType::F32, DType::F16, DType::Bf16] {
            check("cast", &format!("{what} to {to}"), seed, tokens, Allowed::SAME, &|c| {
                let x = c.input(width, 3.0);
                c.g.scale(c.g.cast(x, to), 1.0)
            });
        }
    }
}

#[test]
fn rows_are_selected_in_their_order() {
    each_device!("select_rows", |device| {
        let mut backend = device.open();
        let (block_tokens, dtype) = (backend.limits().block_tokens, backend.limits().kv_dtype);
        backend.reserve_kv(&KvSpec { layers: vec![], block_tokens, dtype }, 4).expect("reserves");
        let mut random = Random::new(5);
        let mut pages = Pages::new(block_tokens, 4, &mut random);
        let sequence = pages.add((0..11).collect());
        let mut batch = pages.step(&[(sequence, 11)]);
        batch.rows = vec![10, 0, 3, 3];
        batch.shape.rows = 4;
        let values = random.normals(11 * 5, 1.0);
        let table = HostTensor::from_f32("table", [11, 5], &values).expect("a table");
        let table = backend.upload(table, Format::F32).expect("uploads");
        let g = Recorder::new(batch.shape, block_tokens);
        let logits = g.select_rows(g.embed(g.tokens(), table));
        let program = g.finish(logits, Tail { logits: true, ..Tail::default() }).expect("records");
        let id = backend.compile(&program).expect("compiles");
        let ticket = backend.launch(id, &batch).expect("launches");
        let held = backend.wait(ticket).expect("runs").logits.expect("asked for");
        let wanted: Vec<f32> = [10, 0, 3, 3].iter().flat_map(|r: &usize| values[r * 5..][..5].to_vec()).collect();
        assert_close(&format!("select_rows on {}", device.name), &held, &wanted, Tolerance::EXACT);
    });
}
