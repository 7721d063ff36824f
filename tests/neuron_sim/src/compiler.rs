//! The stand-in `neuronx-cc`: takes the same command line, checks the graph as far as the device's rules are known, and
//! wraps it as a "NEFF" for the stand-in runtime. A log beside the program's name in `argv[0]` counts its runs.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::config::beside;
use crate::graph::parse;
use crate::verify::verify;

pub const VERSION: &str = "2.28.7631.0+simulated";
const MAGIC: &str = "SIMNEFF1 ";

/// What the stand-in says of itself, and nothing a real compiler would.
pub fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let own = arguments.next().map(PathBuf::from);
    let arguments: Vec<String> = arguments.collect();
    if arguments.iter().any(|a| a == "--version") {
        println!("NeuronX Compiler version {VERSION}");
        return ExitCode::SUCCESS;
    }
    let told = own.as_ref().and_then(|own| fs::read_to_string(beside(own, "fail")).ok());
    match told.map_or_else(|| compile(&arguments), Err) {
        Ok(done) => {
            if let Some(own) = own {
                record(&own, &done);
            }
            println!("Compiler status PASS");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("ERROR: {e}");
            println!("Compiler status ERROR");
            ExitCode::from(70)
        }
    }
}

/// Wraps a verified graph for `target`.
pub fn wrap(graph: &[u8], target: &str) -> Vec<u8> {
    [MAGIC.as_bytes(), target.as_bytes(), b"\n", graph].concat()
}

/// The target and the graph in a "NEFF".
pub fn unwrap(neff: &[u8]) -> Option<(&str, &[u8])> {
    let rest = neff.strip_prefix(MAGIC.as_bytes())?;
    let end = rest.iter().position(|b| *b == b'\n')?;
    Some((std::str::from_utf8(&rest[..end]).ok()?, &rest[end + 1..]))
}

fn compile(arguments: &[String]) -> Result<String, String> {
    let value = |key: &str| {
        arguments.iter().enumerate().find_map(|(i, a)| match a.strip_prefix(key) {
            Some("") => arguments.get(i + 1).map(String::as_str),
            Some(rest) => rest.strip_prefix('='),
            None => None,
        })
    };
    if arguments.first().map(String::as_str) != Some("compile") {
        return Err("the first argument is not `compile`".into());
    }
    if value("--framework") != Some("XLA") {
        return Err("[NCC_EARG] --framework XLA is needed".into());
    }
    let target = value("--target").ok_or("--target is needed")?;
    if !["inf2", "trn1", "trn1n", "trn2", "trn3"].contains(&target) {
        return Err(format!("--target {target} is not known"));
    }
    let logical = value("--lnc").unwrap_or("1");
    if logical == "2" && !["trn2", "trn3"].contains(&target) {
        return Err(format!("[NCC_EARG001] Unsupported Logical Neuron Core configuration {logical} for {target}"));
    }
    let file = arguments[1..].iter().find(|a| !a.starts_with('-')).ok_or("no graph is named")?;
    let bytes = fs::read(file).map_err(|e| format!("{file}: {e}"))?;
    verify(&parse(&bytes)?)?;
    let output = value("--output").unwrap_or("file.neff");
    fs::write(output, wrap(&bytes, target)).map_err(|e| format!("{output}: {e}"))?;
    Ok(format!("{target} {} bytes", bytes.len()))
}

/// One line a compilation in `<own>.log`, where the folder allows it.
fn record(own: &Path, done: &str) {
    let log = fs::OpenOptions::new().create(true).append(true).open(beside(own, "log"));
    if let Ok(mut log) = log {
        let _ = writeln!(log, "{done}");
    }
}
