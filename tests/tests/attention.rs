//! Paged attention on every device against the oracle: several sequences, several steps, all options.

use dualgauge_kernels::{
    AttnSpec, Backend, DeviceKind, Format, HostTensor, KvLayer, KvSpec, Recorder, Tail, Temperature, Weight,
};
use dualgauge_tests::{Pages, Random, TestDevice, Tolerance, assert_close, each_device};

/// One layer of attention over several steps; the largest context crosses blocks and windows.
fn attention_steps(device: &TestDevice, seed: u64, layer: KvLayer, heads: usize, spec: &AttnCase) -> Vec<f32> {
    let mut backend = device.open();
    let (block_tokens, dtype) = (backend.limits().block_tokens, backend.limits().kv_dtype);
    let mut random = Random::new(seed);
    let vocab = 50;
    let mut table = |backend: &mut dyn Backend, width: usize| {
        let tensor = random.tensor([vocab, width], Format::F32, 1.0);
        backend.upload(tensor, Format::F32).expect("uploads")
    };
    let q = table(backend.as_mut(), heads * layer.k_dim);
    let k = table(backend.as_mut(), layer.kv_heads * layer.k_dim);
    let v = table(backend.as_mut(), layer.kv_heads * layer.v_dim);
    let sinks = spec.sinks.then(|| {
        let values = random.normals(heads, 2.0);
        let sinks = HostTensor::from_f32("sinks", [heads], &values).expect("a vector");
        backend.upload(sinks, Format::F32).expect("uploads")
    });
    let blocks = 40;
    backend.reserve_kv(&KvSpec { layers: vec![layer], block_tokens, dtype }, blocks).expect("reserves");
    let mut pages = Pages::new(block_tokens, blocks, &mut random);
    for _ in 0..3 {
        let length = random.between(20, 90);
        pages.add((0..length).map(|_| random.below(vocab) as u32).collect());
    }
    let mut results = vec![];
    for _ in 0..6 {
        let mut work = vec![];
        for sequence in 0..3 {
            let most = pages.pending(sequence).min(*random.pick(&[1, 7, 16, 40]));
            if most > 0 && random.below(4) > 0 {
                work.push((sequence, random.between(1, most)));
            }
        }
        if work.is_empty() {
            continue;
        }
        let mut step = vec![vec![]; work.len()];
        for part in Pages::parts(backend.limits(), &work) {
            let batch = pages.step(&part);
            let tokens = batch.shape.tokens;
            let g = Recorder::new(batch.shape, block_tokens);
            let of = |table: Weight, heads: usize| {
                g.reshape(g.embed(g.tokens(), table), [tokens, heads, table.shape.last() / heads])
            };
            let (q, k, v) = (of(q, heads), of(k, layer.kv_heads), of(v, layer.kv_heads));
            let scale = 0.5 * (layer.k_dim as f32).powf(-0.5) + 0.3;
            let AttnCase { window, softcap, chunk, temperature, ahead, .. } = *spec;
            let out =
                g.attention(q, k, v, AttnSpec { layer: 0, scale, window, softcap, sinks, chunk, temperature, ahead });
            let width = heads * layer.v_dim;
            let logits = g.reshape(out, [tokens, width]);
            let program = g.finish(logits, Tail { logits: true, ..Tail::default() }).expect("records");
            let id = backend.compile(&program).expect("compiles");
            let ticket = backend.launch(id, &batch).expect("launches");
            let values = backend.wait(ticket).expect("runs").logits.expect("asked for");
            backend.release(id);
            for (i, (sequence, _)) in part.iter().enumerate() {
                let place = work.iter().position(|(s, _)| s == sequence).expect("a part of this work");
                step[place] = values[batch.query(i).start * width..batch.query(i).end * width].to_vec();
            }
        }
        results.extend(step.concat());
    }
    results
}

#[derive(Clone, Copy, Debug)]
struct AttnCase {
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: bool,
    chunk: Option<usize>,
    temperature: Option<Temperature>,
    ahead: bool,
}

#[test]
fn attention() {
    let plain = AttnCase { window: None, softcap: None, sinks: false, chunk: None, temperature: None, ahead: false };
    let cases = [
        plain,
        AttnCase { window: Some(1), ..plain },
        AttnCase { window: Some(19), ..plain },
        AttnCase { chunk: Some(24), ..plain },
        AttnCase { temperature: Some(Temperature { every: 16, scale: 0.4 }), ..plain },
        AttnCase { ahead: true, ..plain },
        AttnCase { ahead: true, window: Some(19), sinks: true, ..plain },
        AttnCase { softcap: Some(2.0), ..plain },
        AttnCase { sinks: true, ..plain },
        AttnCase { window: Some(33), softcap: Some(5.0), sinks: true, ..plain },
    ];
    let shapes = [(4, 2, 16, 16), (1, 1, 64, 64), (9, 3, 64, 64), (6, 1, 24, 8), (8, 8, 33, 17)];
    for (i, spec) in cases.iter().enumerate() {
        for (j, (heads, kv_heads, k_dim, v_dim)) in shapes.into_iter().enumerate() {
            let seed = 700 + (i * shapes.len() + j) as u64;
            let layer = KvLayer { kv_heads, k_dim, v_dim };
            let wanted = attention_steps(&TestDevice::reference(), seed, layer, heads, spec);
            assert!(wanted.iter().all(|v| v.is_finite()), "attention read a slot that was never written, seed {seed}");
            each_device!("attention", |device| {
                if spec.ahead && !matches!(device.spec.kind, DeviceKind::Reference | DeviceKind::Cpu) {
                    eprintln!("skipped attention on {}: it lacks keys ahead", device.name);
                    return;
                }
                let held = attention_steps(device, seed, layer, heads, spec);
                let name = format!("attention on {}: {heads} heads, {layer:?}, {spec:?}, seed {seed}", device.name);
                // Native devices may keep K/V in bf16: 8 bits, twice.
                let relative = if device.is_exact() { 1e-5 } else { 2e-2 };
                assert_close(&name, &held, &wanted, Tolerance::of_largest(relative));
            });
        }
    }
}
