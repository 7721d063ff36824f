//! `serve neuron` as a program of its own, here so that cargo builds it with the tests that run it.

use std::process::ExitCode;
use std::time::Instant;

use dualgauge_serve::args::Invocation;

fn main() -> ExitCode {
    let Invocation::Neuron(cli) = Invocation::of_process() else { return ExitCode::FAILURE };
    match cli.run(Instant::now()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("serve: {error:#}");
            ExitCode::from(2)
        }
    }
}
