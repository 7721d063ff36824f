//! Owns the record of what was run: for each graph, once, `FOLDER/<number of the graph>/` with `graph.hlo.pb`, the bytes
//! of its inputs (`in-0` ...) as they were before, and of its outputs (`out-0` ...). Another evaluator can be asked the same.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;

/// Writes one execution, unless the graph is there already.
///
/// # Errors
/// When the folder cannot be written.
pub fn write(folder: &Path, graph: &[u8], inputs: &[Vec<u8>], outputs: &[Vec<u8>]) -> io::Result<()> {
    let mut hasher = DefaultHasher::new();
    graph.hash(&mut hasher);
    let place = folder.join(format!("{:016x}", hasher.finish()));
    fs::create_dir_all(folder)?;
    // Made by one of the tests that run side by side.
    if fs::create_dir(&place).is_err() {
        return Ok(());
    }
    for (name, all) in [("in", inputs), ("out", outputs)] {
        for (i, bytes) in all.iter().enumerate() {
            fs::write(place.join(format!("{name}-{i}")), bytes)?;
        }
    }
    fs::write(place.join("graph.hlo.pb"), graph)
}
