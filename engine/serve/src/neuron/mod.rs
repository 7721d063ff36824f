//! Owns `serve neuron`: what a user does about AWS Trainium and Inferentia before serving. Plans a model's memory and
//! programs, compiles them ahead of time, looks at the machine, and tests the device against the CPU.

mod flags;
mod plan;
mod selftest;

use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Command, CommandFactory, Parser, Subcommand};
use dualgauge_kernels::neuron_doctor;

pub use flags::NeuronFlags;

use crate::args::Args;

const OVERVIEW: &str = "\
In this order on a new instance:
  serve neuron doctor                              what the machine has, and what to do about what it lacks
  serve neuron plan --model DIR                    does the model fit, and what will be compiled
  serve neuron compile --model DIR                 compile it all; also on a machine without a device
  serve neuron selftest                            every operation against the CPU
  serve --model DIR --device neuron                serve

plan and compile take the flags that you serve with: a cache fits a server only if both have the same ones.
docs/trainium.md says more. Exit codes: 0 when all is well, 2 when not.";

/// AWS Trainium and Inferentia: plan, compile and check before serving.
#[derive(Clone, Debug, Parser)]
#[command(name = "neuron", bin_name = "serve neuron", after_help = OVERVIEW, max_term_width = 120)]
pub struct NeuronCli {
    #[command(subcommand)]
    command: NeuronCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum NeuronCommand {
    /// Memory and buckets of a model before anything is loaded: it fits, or which flag to change.
    #[command(after_help = "")]
    Plan(Prepare),
    /// Compile every program that a server will meet into the cache. Needs no device.
    #[command(after_help = "")]
    Compile {
        #[command(flatten)]
        prepare: Prepare,
        /// Compilations at a time. Each takes gigabytes of memory.
        #[arg(long, default_value_t = 2, value_parser = crate::args::count, help_heading = "Compiling")]
        jobs: usize,
        /// Also the programs that return all logits: penalties, bias, constrained answers, many log-probabilities ask for them.
        #[arg(long, help_heading = "Compiling")]
        logits: bool,
    },
    /// What the machine has and lacks: driver, runtime, cores, memory, compiler, cache.
    Doctor(NeuronFlags),
    /// Every operation and a tiny model on the device against the CPU: a table to send with a report.
    Selftest {
        #[command(flatten)]
        flags: NeuronFlags,
        /// Multiply in f32 throughout, instead of what weights make fast.
        #[arg(long)]
        exact: bool,
    },
}

/// What plan and compile prepare for.
#[derive(Clone, Debug, clap::Args)]
struct Prepare {
    #[command(flatten)]
    args: Args,
    /// What to prepare for: inf2, trn1, trn1n, trn2 or trn3.
    #[arg(long, default_value = "trn2", help_heading = "Compiling")]
    target: String,
}

impl NeuronCli {
    /// The command line, without the flags of sockets where there are none.
    pub fn spelled_out() -> Command {
        let quiet = |command: Command| {
            command.mut_args(|arg| match arg.get_help_heading() {
                Some("Server") => arg.hide(true),
                _ => arg,
            })
        };
        Self::command().mut_subcommands(quiet)
    }

    /// Runs the command; it prints to standard output what it finds.
    ///
    /// # Errors
    /// One line when all is not well.
    pub fn run(&self, begun: Instant) -> Result<()> {
        match &self.command {
            NeuronCommand::Plan(prepare) => plan::plan(prepare).map(drop),
            NeuronCommand::Compile { prepare, jobs, logits } => plan::compile(prepare, *jobs, *logits, begun),
            NeuronCommand::Doctor(flags) => doctor(flags),
            NeuronCommand::Selftest { flags, exact } => selftest::selftest(&flags.options(), *exact),
        }
    }
}

/// One line a finding; what to do stands below what is wrong.
fn doctor(flags: &NeuronFlags) -> Result<()> {
    let findings = neuron_doctor(&flags.options());
    let mut wrong = 0;
    for finding in &findings {
        match &finding.found {
            Ok(found) => println!("ok      {:<10}{found}", finding.what),
            Err(reason) => {
                wrong += 1;
                println!("wrong   {:<10}{reason}\n        {:<10}to do: {}", finding.what, "", finding.remedy);
            }
        }
    }
    if wrong > 0 {
        bail!("{wrong} of {} checks failed", findings.len());
    }
    Ok(())
}
