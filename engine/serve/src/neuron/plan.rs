//! Owns `plan` and `compile`: a model's memory on a device that need not be there, the programs that a server with the
//! same flags will run, and their compilation.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use dualgauge::StartPlan;
use dualgauge_kernels::{Backend, Built, KvSpec, Ladder, NeuronAhead};
use dualgauge_models::source::locate;
use dualgauge_models::{Checkpoint, Model};

use super::Prepare;
use crate::progress::Progress;
use crate::start::{dtype_name, engine_config, mebibytes, weight_dtype};

/// A model as it would be on the device.
pub struct Planned {
    ahead: NeuronAhead,
    model: Box<dyn Model>,
    plan: StartPlan,
}

/// Prints what the model takes and what would be compiled.
pub fn plan(prepare: &Prepare) -> Result<Planned> {
    let args = &prepare.args;
    let mut progress = Progress::new(std::io::stderr().is_terminal());
    let asked = args.model.as_deref().filter(|model| !model.is_empty());
    let path = locate(asked, &args.locations(), &mut progress)?;
    progress.end();
    let spec = args.device_spec();
    let (options, cores) = (&spec.neuron, args.neuron.tp);
    let mut ahead = NeuronAhead::open(&prepare.target, spec.precision, options)?;
    let checkpoint = Checkpoint::open(&path)?;
    let model = checkpoint.load(&mut ahead, weight_dtype(args), &mut |_, _| {})?;
    let name = &checkpoint.name;
    let (core, weights) = (ahead.core_bytes(), ahead.weight_bytes());
    let parameters = model.spec().parameters as f64 / 1e6;
    line(
        "model",
        &format!(
            "{name}: {}, {parameters:.1} M parameters, dtype {}",
            model.spec().family,
            dtype_name(weight_dtype(args))
        ),
    );
    line("target", &format!("{}: {cores} core(s) of {} each", prepare.target, mebibytes(core)));
    line("weights", &format!("{}: {} a core", mebibytes(weights), mebibytes(weights / cores as u64)));
    // One part in sixteen is kept for compiled code.
    let room = core * cores as u64 / 16 * 15;
    if weights >= room {
        let enough = (1..=64).find(|n| core * n / 16 * 15 > weights * 9 / 8).unwrap_or(64).next_power_of_two();
        bail!(
            "does not fit: the weights alone take {} of the {} that {cores} core(s) have; take a quantised model, or \
             {enough} cores (--tp {enough})",
            mebibytes(weights),
            mebibytes(room)
        );
    }
    let plan = StartPlan::make(&ahead, model.as_ref(), &engine_config(args))
        .context("does not fit: ask for a shorter --max-model-len, fewer --max-num-seqs or more cores with --tp")?;
    let (blocks, size, tokens) = (plan.blocks, plan.block_tokens, plan.kv_tokens);
    line("K/V", &format!("{} in {blocks} blocks of {size} tokens: {tokens} tokens fit", mebibytes(plan.kv_bytes)));
    line("values", &format!("{} in the largest step", mebibytes(plan.arena_bytes)));
    let left = (core * cores as u64).saturating_sub(weights + plan.kv_bytes + plan.arena_bytes);
    line("free", &format!("{} beside all that", mebibytes(left)));
    let (context, seqs, batched) = (plan.max_model_len, plan.max_num_seqs, plan.max_num_batched_tokens);
    line("limits", &format!("context {context} tokens, {seqs} requests at once, {batched} tokens a step"));
    plan.notes.iter().for_each(|note| line("note", note));
    let shapes = plan.shapes(&ahead);
    let ladder = met(&shapes, size);
    ladder.to_string().lines().enumerate().for_each(|(i, row)| line(if i == 0 { "buckets" } else { "" }, row));
    if cores > 1 {
        line("note", "this build plans for several cores, and compiles and serves on one: --tp is not there yet");
    }
    line(
        "programs",
        &format!("{} to compile, minutes each: `serve neuron compile` with these flags", 2 * shapes.len()),
    );
    println!("fits");
    Ok(Planned { ahead, model, plan })
}

/// Compiles all programs of a plan.
pub fn compile(prepare: &Prepare, jobs: usize, logits: bool, begun: Instant) -> Result<()> {
    let Planned { mut ahead, model, plan } = plan(prepare)?;
    let dtype = ahead.limits().kv_dtype;
    let layers = model.spec().kv_layers.clone();
    ahead.reserve_kv(&KvSpec { layers, block_tokens: plan.block_tokens, dtype }, plan.blocks)?;
    let programs = plan.programs(&ahead, model.as_ref(), logits)?;
    let (all, mut done, mut compiled) = (programs.len(), 0, 0);
    ahead.build(&programs, jobs, &mut |Built { what, compiled: result }| {
        done += 1;
        let word = match result {
            Ok(true) => "compiled",
            Ok(false) => "in the cache",
            Err(_) => "FAILED",
        };
        compiled += usize::from(matches!(result, Ok(true)));
        println!("[{done}/{all}] {what}: {word} ({:.0} s)", begun.elapsed().as_secs_f64());
    })?;
    println!("{compiled} compiled, {} were there; serve with the same flags and", all - compiled);
    // The number of blocks is part of every program.
    println!("  --device neuron --kv-cache-memory-bytes {}", plan.kv_bytes);
    Ok(())
}

/// The buckets that these shapes are made of.
fn met(shapes: &[dualgauge_kernels::BatchShape], block_tokens: usize) -> Ladder {
    let list = |of: &dyn Fn(&dualgauge_kernels::BatchShape) -> Option<usize>| {
        shapes.iter().filter_map(of).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    Ladder {
        prefill_tokens: list(&|s| (s.query > 1).then_some(s.tokens)),
        decode_seqs: list(&|s| (s.query == 1).then_some(s.seqs)),
        context_tokens: list(&|s| Some(s.blocks * block_tokens)),
    }
}

fn line(what: &str, fact: &str) {
    println!("  {what:<9}{fact}");
}
