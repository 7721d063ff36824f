//! Owns the self-test: every operation and a tiny model, on the Neuron device and on the CPU, with the largest difference
//! of each in a table. Knows nothing of how either computes.

use anyhow::{Context, Result, bail};
use dualgauge_kernels::{
    Act, AttnSpec, Backend, Batch, BatchShape, DType, DeviceKind, DeviceSpec, Error, ExpertsSpec, Format, HostTensor,
    KvSpec, NeuronOptions, Output, Precision, Recorder, RopeSpec, RouterScore, RouterSpec, Tail, Value, Weight, format,
    open,
};
use dualgauge_models::Model;
use dualgauge_models::source::random::{self, LlamaShape};

/// Allowed part of the largest value: sums of f32 in another order; products of bf16.
const EXACT: f32 = 1e-3;
const NATIVE: f32 = 4e-2;
/// What weights are stored as on the device.
const FORMATS: [Format; 8] =
    [Format::F32, Format::F16, Format::Bf16, Format::Q8_0, Format::Q4_0, Format::Q4_1, Format::Q6K, Format::Mxfp4];
/// Blocks of the cache, and tokens of a case.
const BLOCKS: usize = 8;
const TOKENS: usize = 6;

/// Runs all cases and prints the table.
pub fn selftest(options: &NeuronOptions, exact: bool) -> Result<()> {
    let precision = if exact { Precision::Exact } else { Precision::Native };
    let device = |kind, precision| DeviceSpec { kind, precision, neuron: options.clone(), ..DeviceSpec::default() };
    let mut bench = Bench {
        neuron: Side::open(&device(DeviceKind::Neuron, precision)).context("the device does not open")?,
        cpu: Side::open(&device(DeviceKind::Cpu, Precision::Exact))?,
        allowed: if exact { EXACT } else { NATIVE },
        failed: 0,
        run: 0,
    };
    println!("dualgauge {}, {}", env!("CARGO_PKG_VERSION"), bench.neuron.backend.info().description);
    println!("{:<14}{:<30}{:>12}{:>10}  result", "operation", "case", "largest off", "allowed");
    bench.operations();
    bench.model();
    if bench.failed > 0 {
        bail!("{} of {} cases failed: please send this table (docs/trainium.md says where)", bench.failed, bench.run);
    }
    println!("all {} cases passed", bench.run);
    Ok(())
}

struct Bench {
    neuron: Side,
    cpu: Side,
    allowed: f32,
    failed: usize,
    run: usize,
}

/// A device with the tiny model and its cache.
struct Side {
    backend: Box<dyn Backend>,
    model: Box<dyn Model>,
}

impl Side {
    fn open(spec: &DeviceSpec) -> Result<Self> {
        let mut backend = open(spec)?.backend;
        let model = random::llama(backend.as_mut(), &LlamaShape::TINY, 7)?;
        let (block_tokens, dtype) = (backend.limits().block_tokens, backend.limits().kv_dtype);
        let layers = model.spec().kv_layers.clone();
        backend.reserve_kv(&KvSpec { layers, block_tokens, dtype }, BLOCKS)?;
        Ok(Self { backend, model })
    }

    /// One sequence's next tokens, in the smallest shape of the device that holds them.
    fn step(
        &mut self,
        tokens: &[u32],
        first: usize,
        tail: Tail,
        record: impl FnOnce(&mut dyn Backend, &dyn Model, &Recorder) -> Result<Value, Error>,
    ) -> Result<Output, Error> {
        let (n, block_tokens) = (tokens.len(), self.backend.limits().block_tokens);
        let positions: Vec<u32> = (first..first + n).map(|p| p as u32).collect();
        let blocks = (first + n).div_ceil(block_tokens);
        let shape = BatchShape { tokens: n, seqs: 1, query: n, blocks, rows: n };
        let mut batch = Batch {
            shape,
            tokens: tokens.to_vec(),
            // Block 0 is never lent.
            slots: positions.iter().map(|p| p + block_tokens as u32).collect(),
            positions,
            query_start: vec![0, n as u32],
            context: vec![(first + n) as u32],
            block_table: (1..=blocks as u32).collect(),
            rows: (0..n as u32).collect(),
            ..Batch::default()
        };
        let rounded = self.backend.round_up(shape).unwrap_or(shape);
        batch.pad_to(rounded, block_tokens);
        let g = Recorder::new(rounded, block_tokens);
        let logits = record(self.backend.as_mut(), self.model.as_ref(), &g)?;
        let program = g.finish(logits, tail)?;
        let id = self.backend.compile(&program)?;
        let ran = self.backend.launch(id, &batch).and_then(|ticket| self.backend.wait(ticket));
        self.backend.release(id);
        let mut output = ran?;
        // Rows of padding say nothing.
        if let Some(logits) = &mut output.logits {
            logits.truncate(n * program.vocab());
        }
        Ok(output)
    }
}

impl Bench {
    fn operations(&mut self) {
        self.case("embed", "f32", |c| Ok(c.input(24)));
        for format in FORMATS {
            self.case("linear", format.name(), move |c| {
                let (x, w) = (c.input(256), c.matrix([40, 256], format)?);
                Ok(c.g.linear(x, w))
            });
        }
        self.case("linear", "bias", |c| {
            let (x, w, bias) = (c.input(48), c.matrix([40, 48], Format::Bf16)?, c.vector(40)?);
            Ok(c.g.linear_bias(x, w, Some(bias)))
        });
        self.case("rms_norm", "gain", |c| {
            let (x, gain) = (c.input(48), c.vector(48)?);
            Ok(c.g.rms_norm(x, Some(gain), 1.0, 1e-6))
        });
        self.case("layer_norm", "gain and bias", |c| {
            let (x, gain, bias) = (c.input(48), c.vector(48)?, c.vector(48)?);
            Ok(c.g.layer_norm(x, Some(gain), Some(bias), 1e-5))
        });
        for interleaved in [false, true] {
            self.case("rope", if interleaved { "interleaved" } else { "halves" }, move |c| {
                let freqs: Vec<f32> = (0..6).map(|i| 0.4f32.powi(i)).collect();
                let freqs = c.upload(HostTensor::from_f32("freqs", [6], &freqs)?)?;
                let x = c.input(3 * 16);
                let x = c.g.reshape(x, [c.tokens(), 3, 16]);
                Ok(c.g.rope(x, RopeSpec { freqs, long: None, interleaved, magnitude: 1.25 }))
            });
        }
        let plain = AttnSpec::new(0, 0.3);
        let window = AttnSpec { window: Some(3), ..plain };
        let capped = AttnSpec { softcap: Some(2.0), ..plain };
        for (name, spec, sinks) in
            [("causal", plain, false), ("window", window, false), ("softcap", capped, false), ("sinks", plain, true)]
        {
            self.case("attention", name, move |c| {
                let sinks = if sinks { Some(c.vector(4)?) } else { None };
                let (q, k, v) = (c.input(4 * 16), c.input(2 * 16), c.input(2 * 16));
                let heads = |x, n| c.g.reshape(x, [c.tokens(), n, 16]);
                Ok(c.g.attention(heads(q, 4), heads(k, 2), heads(v, 2), AttnSpec { sinks, ..spec }))
            });
        }
        let limited = Act::ClampedSwiglu { alpha: 1.702, limit: 2.0 };
        for act in [Act::Silu, Act::Gelu, Act::GeluTanh, Act::Relu, Act::Relu2, limited] {
            self.case("gated_act", &format!("{act:?}"), move |c| {
                let (gate, up) = (c.input(40), c.input(40));
                Ok(c.g.gated_act(gate, up, act))
            });
        }
        self.case("add and mul", "same shape", |c| {
            let (a, b) = (c.input(40), c.input(40));
            Ok(c.g.mul(c.g.add(a, b), b))
        });
        self.case("softcap", "30", |c| {
            let x = c.input(40);
            Ok(c.g.softcap(c.g.scale(x, 20.0), 30.0))
        });
        self.case("cast", "bf16 and back", |c| {
            let x = c.input(40);
            Ok(c.g.cast(c.g.cast(x, DType::Bf16), DType::F32))
        });
        for score in [RouterScore::Softmax, RouterScore::SoftmaxChosen, RouterScore::Sigmoid] {
            self.case("experts", &format!("{score:?}"), move |c| {
                let (logits, x) = (c.input(6), c.input(32));
                let spec =
                    RouterSpec { top_k: 2, score, normalise: true, scale: 1.5, bias: None, gains: None, groups: None };
                let gate_up = c.matrix([6, 2 * 32, 32], Format::Bf16)?;
                let down = c.matrix([6, 32, 32], Format::Bf16)?;
                let (act, interleaved) = (Act::Silu, false);
                let spec = (
                    c.g.router(logits, spec),
                    ExpertsSpec {
                        gate_up,
                        gate_up_bias: None,
                        down,
                        down_bias: None,
                        act,
                        interleaved,
                        weigh_input: false,
                    },
                );
                Ok(c.g.experts(x, spec.0, spec.1))
            });
        }
    }

    /// Runs one case on both sides: the value that `build` makes, a row a token.
    fn case(&mut self, op: &str, name: &str, build: impl Fn(&mut Case<'_>) -> Result<Value, Error>) {
        let tokens: Vec<u32> = (0..TOKENS as u32).collect();
        let tail = Tail { logits: true, ..Tail::default() };
        let [held, wanted] = [&mut self.neuron, &mut self.cpu].map(|side| {
            let output = side.step(&tokens, 0, tail, |backend, _, g| {
                let mut case = Case { backend, g, seed: 1, failed: None };
                let value = build(&mut case)?;
                case.failed.take().map_or(Ok(()), Err)?;
                let rows = g.shape().tokens;
                let flat = g.reshape(value, [rows, g.shape_of(value).elements() / rows]);
                Ok(g.select_rows(flat))
            })?;
            Ok::<_, Error>(output.logits.unwrap_or_default())
        });
        self.report(op, name, held, wanted);
    }

    /// Greedy tokens of the tiny model: a prompt, then one token after another.
    fn model(&mut self) {
        let run = |side: &mut Side, forced: Option<&[u32]>| -> Result<(Vec<u32>, Vec<f32>), Error> {
            let tail = Tail { logits: true, ..Tail::default() };
            let (mut tokens, mut first, mut chosen, mut logits) = (vec![5, 17, 99, 3, 200, 41, 8], 0, vec![], vec![]);
            for step in 0..12 {
                let output = side.step(&tokens, first, tail, |_, model, g| Ok(model.forward(g)))?;
                let (last, vocab) = (tokens.len() - 1, side.model.spec().vocab);
                logits.extend_from_slice(&output.logits.unwrap_or_default()[last * vocab..][..vocab]);
                chosen.push(output.argmax[last]);
                first += tokens.len();
                tokens = vec![forced.map_or(output.argmax[last], |ids| ids[step])];
            }
            Ok((chosen, logits))
        };
        let wanted = run(&mut self.cpu, None);
        // Both are fed the CPU's tokens, so that one close decision does not hide the rest.
        let held = match &wanted {
            Ok((ids, _)) => run(&mut self.neuron, Some(ids)),
            Err(_) => return self.report("tiny model", "12 tokens", Ok(vec![]), wanted.map(|(_, logits)| logits)),
        };
        let (ids, held) = match held {
            Ok((ids, logits)) => (ids, Ok(logits)),
            Err(e) => (vec![], Err(e)),
        };
        let same = wanted.as_ref().map_or(0, |(w, _)| w.iter().zip(&ids).filter(|(w, h)| w == h).count());
        self.report("tiny model", &format!("12 tokens, {same} the same"), held, wanted.map(|(_, logits)| logits));
    }

    fn report(&mut self, op: &str, name: &str, held: Result<Vec<f32>, Error>, wanted: Result<Vec<f32>, Error>) {
        let (verdict, off) = match (held, wanted) {
            (Ok(held), Ok(wanted)) if held.len() == wanted.len() => {
                let largest = wanted.iter().fold(f32::MIN_POSITIVE, |m, w| m.max(w.abs()));
                let off = held.iter().zip(&wanted).map(|(h, w)| (h - w).abs() / largest);
                let off = off.fold(0.0, |m: f32, d| if d.is_nan() { f32::INFINITY } else { m.max(d) });
                (if off <= self.allowed { Ok("ok".to_string()) } else { Err("DIFFERS".into()) }, format!("{off:.1e}"))
            }
            (Ok(held), Ok(wanted)) => (Err(format!("{} values for {}", held.len(), wanted.len())), "-".into()),
            (Err(Error::Unsupported { what, .. }), _) => (Ok(format!("not supported: {what}")), "-".into()),
            (Err(e), _) => (Err(format!("FAILED: {e}")), "-".into()),
            (_, Err(e)) => (Err(format!("the CPU failed: {e}")), "-".into()),
        };
        self.run += 1;
        self.failed += usize::from(verdict.is_err());
        let (Ok(words) | Err(words)) = verdict;
        println!("{op:<14}{name:<30}{off:>12}{:>10.0e}  {words}", self.allowed);
    }
}

/// One case under construction on one side: inputs and weights come from a seed, so that both sides get the same.
struct Case<'a> {
    backend: &'a mut dyn Backend,
    g: &'a Recorder,
    seed: u64,
    failed: Option<Error>,
}

impl Case<'_> {
    fn tokens(&self) -> usize {
        self.g.shape().tokens
    }

    /// `[tokens, width]`, of a table with a row for each token.
    fn input(&mut self, width: usize) -> Value {
        let values = self.numbers(TOKENS * width, 1.0);
        let table = HostTensor::from_f32("input", [TOKENS, width], &values).and_then(|t| self.upload(t));
        match table {
            Ok(table) => self.g.embed(self.g.tokens(), table),
            Err(e) => {
                self.failed = Some(e);
                self.g.tokens()
            }
        }
    }

    fn matrix<const N: usize>(&mut self, shape: [usize; N], kind: Format) -> Result<Weight, Error> {
        let width = shape[N - 1];
        let values = self.numbers(shape.iter().product(), (width as f32).powf(-0.5));
        let bytes = match kind {
            // Nothing writes this format: codes and scales of a pattern.
            Format::Q6K => values.chunks(256).flat_map(|v| six_bits(v[0])).collect(),
            _ => format::encode(kind, &values),
        };
        self.upload(HostTensor::new("matrix", shape, kind, bytes)?)
    }

    fn vector(&mut self, len: usize) -> Result<Weight, Error> {
        let values = self.numbers(len, 1.0);
        self.upload(HostTensor::from_f32("vector", [len], &values)?)
    }

    fn upload(&mut self, tensor: HostTensor<'_>) -> Result<Weight, Error> {
        let format = tensor.format;
        self.backend.upload(tensor, format)
    }

    /// Uniform in `-spread .. spread`, by SplitMix64.
    fn numbers(&mut self, count: usize, spread: f32) -> Vec<f32> {
        let mut next = || {
            self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let x = (self.seed ^ self.seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((x ^ x >> 31) >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next() * spread).collect()
    }
}

/// A q6_k block whose codes count up: low nibbles, high pairs, scales, and the scale of all.
fn six_bits(seed: f32) -> Vec<u8> {
    let mut block: Vec<u8> = (0..208u32).map(|i| (i * 37 + (seed * 1e6) as u32 % 251) as u8).collect();
    block.extend(format::encode(Format::F16, &[2e-5]));
    block
}
