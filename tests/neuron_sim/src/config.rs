//! Owns how a stand-in is told what to be: a small file beside the library, so that several can be in one process.

use std::path::{Path, PathBuf};

/// One setting a line: `hbm_bytes N`, `cores N`, `family N`, `fault CALL NTH STATUS` (the NTH call, from 1, of that
/// function returns STATUS), `record FOLDER` (see [`crate::record`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub hbm_bytes: usize,
    pub cores: u32,
    pub family: u32,
    pub faults: Vec<Fault>,
    pub record: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub call: String,
    pub nth: usize,
    pub status: u32,
}

impl Default for Config {
    /// A trn2 with four logical cores and a GiB each.
    fn default() -> Self {
        Self { hbm_bytes: 1 << 30, cores: 4, family: 5, faults: vec![], record: None }
    }
}

impl Config {
    /// The settings of the library at `library`, or of the file that `SIM_NRT_CONFIG` names. Lines that are not
    /// understood are said and skipped: this is for tests.
    pub fn of(library: Option<&Path>) -> Self {
        let file =
            std::env::var_os("SIM_NRT_CONFIG").map(PathBuf::from).or_else(|| library.map(|l| beside(l, "config")));
        let text = file.and_then(|f| std::fs::read_to_string(f).ok()).unwrap_or_default();
        let mut config = Self::default();
        for line in text.lines().filter(|l| !l.trim().is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let understood = match words[..] {
                ["hbm_bytes", n] => n.parse().map(|n| config.hbm_bytes = n).is_ok(),
                ["cores", n] => n.parse().map(|n| config.cores = n).is_ok(),
                ["family", n] => n.parse().map(|n| config.family = n).is_ok(),
                ["record", folder] => {
                    config.record = Some(folder.into());
                    true
                }
                ["fault", call, nth, status] => match (nth.parse(), status.parse()) {
                    (Ok(nth), Ok(status)) => {
                        config.faults.push(Fault { call: call.into(), nth, status });
                        true
                    }
                    _ => false,
                },
                _ => false,
            };
            if !understood {
                eprintln!("sim-nrt: {line:?} is not understood");
            }
        }
        config
    }
}

/// `<library>.<what>`
pub fn beside(library: &Path, what: &str) -> PathBuf {
    let mut name = library.as_os_str().to_os_string();
    name.push(format!(".{what}"));
    name.into()
}
