//! Owns the store of compiled programs: content-addressed folders that can be moved, copied and shared read-only.
//!
//! `<root>/<sha256 of graph and flags>/<compiler version>/{model.neff, graph.hlo.pb, compile.log, manifest}`. An entry
//! appears by one rename, made under a lock, so readers need none; the manifest's hash shows damage. Without a compiler
//! the newest version there is serves.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::compiler::{Compiler, GRAPH, NEFF};
use crate::{Error, Result};

const MANIFEST: &str = "manifest";

/// A folder of compiled programs, and the compiler that fills it.
pub(super) struct Cache {
    root: PathBuf,
    /// Or why there is none: an entry in the cache needs no compiler.
    compiler: Result<Compiler, String>,
    /// A program that is not there is an error, whatever compiler there is.
    closed: bool,
}

/// A compiled program, and whether it was there already.
pub(super) struct Found {
    pub neff: Vec<u8>,
    pub compiled: bool,
}

impl Cache {
    pub fn new(root: PathBuf, compiler: Result<Compiler, String>, closed: bool) -> Self {
        Self { root, compiler, closed }
    }

    /// The compiled form of `graph`: from the cache, else compiled into it. `what` names it in the log.
    ///
    /// # Errors
    /// [`Error::Compile`]: no compiler where one is needed, a graph that it refuses, a folder that cannot be written.
    pub fn get(&self, graph: &[u8], flags: &[String], what: &str) -> Result<Found> {
        let folder = self.root.join(key(graph, flags));
        if let Some(neff) = self.read(&folder, what) {
            return Ok(Found { neff, compiled: false });
        }
        if self.closed {
            let place = self.root.display();
            return Err(failed(format!(
                "{what} is not in the cache {place}, and compiling while serving is turned off \
                 (--neuron-no-compile); fill the cache with `serve neuron compile`"
            )));
        }
        let compiler = self.compiler.as_ref().map_err(|why| {
            failed(format!("{what} is not in the cache {} and there is no compiler: {why}", self.root.display()))
        })?;
        let unwritable = |e: io::Error| failed(format!("the cache {} cannot be written: {e}", self.root.display()));
        fs::create_dir_all(&folder).map_err(unwritable)?;
        let lock = File::create(folder.join("lock")).map_err(unwritable)?;
        lock.lock().map_err(unwritable)?;
        // Another process may have compiled it while we waited.
        if let Some(neff) = self.read(&folder, what) {
            return Ok(Found { neff, compiled: false });
        }
        tracing::info!("compiling {what} with neuronx-cc {}; this takes minutes, once", compiler.version);
        // Stays when compilation fails: the error names its files.
        let work = folder.join(format!("{}.work", compiler.version));
        let entry = folder.join(&compiler.version);
        remove(&work).and_then(|()| fs::create_dir(&work)).map_err(unwritable)?;
        fs::write(work.join(GRAPH), graph).map_err(unwritable)?;
        compiler.compile(&work, flags)?;
        let neff = fs::read(work.join(NEFF)).map_err(unwritable)?;
        let manifest = format!("{}\n{}\n{}\n", digest(&neff), compiler.version, flags.join(" "));
        fs::write(work.join(MANIFEST), manifest).map_err(unwritable)?;
        remove(&entry).and_then(|()| fs::rename(&work, &entry)).map_err(unwritable)?;
        Ok(Found { neff, compiled: true })
    }

    /// An entry that is whole: of this compiler's version, or of any without a compiler.
    fn read(&self, folder: &Path, what: &str) -> Option<Vec<u8>> {
        let versions = match &self.compiler {
            Ok(compiler) => vec![compiler.version.clone()],
            Err(_) => versions(folder),
        };
        versions.iter().find_map(|version| {
            let entry = folder.join(version);
            let manifest = fs::read_to_string(entry.join(MANIFEST)).ok()?;
            let neff = fs::read(entry.join(NEFF)).unwrap_or_default();
            if manifest.lines().next() == Some(digest(&neff).as_str()) {
                return Some(neff);
            }
            tracing::warn!("the compiled {what} in {} is damaged and will be compiled again", entry.display());
            None
        })
    }
}

/// Names of the finished entries of a graph, newest version first.
fn versions(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|e| e.path().join(MANIFEST).is_file())
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|n| !n.ends_with(".work"))
        .collect();
    let numbers = |name: &String| name.split(['.', '+']).map(|n| n.parse().unwrap_or(0)).collect::<Vec<u64>>();
    names.sort_by_key(|n| std::cmp::Reverse(numbers(n)));
    names
}

fn key(graph: &[u8], flags: &[String]) -> String {
    let mut all = Vec::from(Sha256::digest(graph).as_slice());
    flags.iter().for_each(|flag| {
        all.extend(flag.bytes());
        all.push(0);
    });
    digest(&all)
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn failed(reason: String) -> Error {
    Error::Compile { device: "neuron", reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_graph_and_flags() {
        let flags = |all: &[&str]| all.iter().map(|f| f.to_string()).collect::<Vec<_>>();
        let a = key(b"graph", &flags(&["-O1", "--lnc=2"]));
        assert_eq!(a, key(b"graph", &flags(&["-O1", "--lnc=2"])));
        assert_ne!(a, key(b"grapi", &flags(&["-O1", "--lnc=2"])));
        assert_ne!(a, key(b"graph", &flags(&["-O1"])));
        assert_ne!(a, key(b"graph", &flags(&["-O1--", "lnc=2"])));
    }

    /// The digest of "abc" in the standard (FIPS 180-2).
    #[test]
    fn digests_are_written_in_hex() {
        assert_eq!(digest(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
