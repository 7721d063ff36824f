//! Owns the shortest way to run a loaded model: prompts in, greedy tokens and logits out, in steps of any cut. Stands
//! for the engine where only the model is in question.

use std::path::Path;

use dualgauge_kernels::{Backend, Batch, DeviceKind, KvSpec, Op, Output, Probe, Program, Recorder, Tail, Value};
use dualgauge_models::{Checkpoint, Model, WeightDtype};

use crate::pages::Pages;
use crate::{Random, TestDevice};

/// Prompts that one driver can take, and one.
const STATE_SLOTS: usize = 64;

/// A model on a device, with a paged cache.
pub struct Driver {
    pub backend: Box<dyn Backend>,
    pub model: Box<dyn Model>,
    pages: Pages,
}

/// What came of one prompt.
#[derive(Clone, Debug, Default)]
pub struct Generated {
    pub ids: Vec<u32>,
    /// `[steps, vocab]`: the logits each id was chosen from.
    pub logits: Vec<Vec<f32>>,
    pub log_sum_exp: Vec<f32>,
}

impl Driver {
    /// Loads the checkpoint at `path` and reserves a cache of `blocks`.
    pub fn load(device: &TestDevice, path: &Path, blocks: usize) -> Self {
        let mut backend = device.open();
        let checkpoint = Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"));
        // A device that lacks a quantised format gets it in bf16, which rounds, or in f32, which does not.
        let quantised =
            std::fs::read_to_string(path.join("config.json")).is_ok_and(|c| c.contains("quantization_config"));
        let expands =
            quantised && device.is_exact() && !matches!(device.spec.kind, DeviceKind::Cpu | DeviceKind::Reference);
        let dtype = if expands { WeightDtype::F32 } else { WeightDtype::Auto };
        let model = checkpoint.load(backend.as_mut(), dtype, &mut |_, _| {});
        Self::new(backend, model.unwrap_or_else(|e| panic!("{}: {e}", device.name)), blocks)
    }

    pub fn new(mut backend: Box<dyn Backend>, model: Box<dyn Model>, blocks: usize) -> Self {
        let (block_tokens, dtype) = (backend.limits().block_tokens, backend.limits().kv_dtype);
        let spec = KvSpec { layers: model.spec().kv_layers.clone(), block_tokens, dtype };
        backend.reserve_kv(&spec, blocks).expect("the cache fits");
        let states = &model.spec().state_layers;
        if !states.is_empty() {
            backend.reserve_state(states, STATE_SLOTS).expect("the states fit");
        }
        let mut pages = Pages::new(block_tokens, blocks, &mut Random::new(7));
        pages.long_after = model.spec().long_after;
        Self { backend, model, pages }
    }

    /// Runs all prompts side by side, at most `chunk` tokens of each a step, until each has `count` greedy tokens. With
    /// `forced`, those are fed instead of the model's own choice.
    pub fn greedy(
        &mut self,
        prompts: &[&[u32]],
        count: usize,
        chunk: usize,
        forced: Option<&[&[u32]]>,
    ) -> Vec<Generated> {
        let numbers: Vec<usize> = prompts.iter().map(|p| self.pages.add(p.to_vec())).collect();
        let mut all = vec![Generated::default(); prompts.len()];
        loop {
            let open = |i: &usize| all[*i].ids.len() < count;
            let work: Vec<usize> = (0..prompts.len()).filter(open).collect();
            if work.is_empty() {
                return all;
            }
            let takes: Vec<(usize, usize)> =
                work.iter().map(|i| (numbers[*i], self.pages.pending(numbers[*i]).min(chunk))).collect();
            for part in Pages::parts(self.backend.limits(), &takes) {
                let ready: Vec<bool> = part.iter().map(|(n, take)| self.pages.pending(*n) == *take).collect();
                let mut batch = self.pages.step(&part);
                batch.rows = batch.query_start[1..].iter().map(|end| end - 1).collect();
                batch.shape.rows = batch.rows.len();
                let output = self.run(&batch);
                let logits = output.logits.expect("the tail asks for logits");
                let vocab = self.model.spec().vocab;
                for (row, (number, _)) in part.iter().enumerate().filter(|(row, _)| ready[*row]) {
                    let i = numbers.iter().position(|n| n == number).expect("from this list");
                    let chosen = output.argmax[row];
                    let fed = forced.map_or(chosen, |ids| ids[i][all[i].ids.len()]);
                    all[i].ids.push(chosen);
                    all[i].logits.push(logits[row * vocab..][..vocab].to_vec());
                    all[i].log_sum_exp.push(output.log_sum_exp[row]);
                    self.pages.push(*number, fed);
                }
            }
        }
    }

    /// `[tokens, hidden]` after the embedding, after each layer, and after the last norm, which is the last of them.
    pub fn hidden(&mut self, prompt: &[u32]) -> Vec<Probe> {
        let number = self.pages.add(prompt.to_vec());
        let batch = self.pages.step(&[(number, prompt.len())]);
        let program = self.record(&batch);
        let id = self.backend.compile(&program).expect("compiles");
        let ticket = self.backend.launch(id, &batch).expect("starts");
        self.backend.wait(ticket).expect("runs");
        let values = hidden_values(&program);
        let probes = values.into_iter().map(|v| self.backend.probe(id, v).expect("can be looked at")).collect();
        self.backend.release(id);
        probes
    }

    fn run(&mut self, batch: &Batch) -> Output {
        let program = self.record(batch);
        let id = self.backend.compile(&program).expect("compiles");
        let ticket = self.backend.launch(id, batch).unwrap_or_else(|e| panic!("{e}\n{batch:?}"));
        let output = self.backend.wait(ticket).expect("runs");
        self.backend.release(id);
        output
    }

    fn record(&self, batch: &Batch) -> Program {
        let g = Recorder::new(batch.shape, self.pages.block_tokens);
        let logits = self.model.forward(&g);
        g.finish(logits, Tail { top_k: 0, logits: true, masked: false }).expect("the model keeps the rules")
    }
}

/// The embedding; the last value each layer records outside of its parts; what the head multiplies.
fn hidden_values(program: &Program) -> Vec<Value> {
    let layer = |path: &str| path.strip_prefix("layers.")?.split('.').next()?.parse::<usize>().ok();
    let layers = program.nodes.iter().filter_map(|n| layer(&n.path)).max().expect("every model has layers") + 1;
    let last = |wanted: &dyn Fn(&dualgauge_kernels::Node) -> bool| {
        let found = program.nodes.iter().rposition(wanted).expect("every model has these");
        Value(found as u32)
    };
    let mut values = vec![last(&|n| matches!(n.op, Op::Embed { .. }))];
    values.extend((0..layers - 1).map(|i| last(&|n| n.path == format!("layers.{i}"))));
    values.push(last(&|n| n.path.is_empty() && matches!(n.op, Op::RmsNorm { .. } | Op::LayerNorm { .. })));
    values
}
