//! Owns the stand-in CUDA driver of machines without a GPU: builds it from the kernels' own sources, once, with the
//! machine's C++ compiler.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use dualgauge_kernels::kernel_source_hash;

/// The stand-in `libcuda.so.1`, or why there is none.
pub fn library() -> Result<PathBuf, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> Result<PathBuf, String> {
    let sources = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../kernels/cu"));
    let beside = std::env::current_exe().map_err(|e| e.to_string())?;
    let target = beside.parent().ok_or("the test binary lies in no folder")?;
    let emulator = fs::read(sources.join("emu/libcuda.cc")).map_err(|e| format!("emu/libcuda.cc: {e}"))?;
    let device = fs::read(sources.join("emu/emu.h")).map_err(|e| format!("emu/emu.h: {e}"))?;
    // Named by its sources, so that a stale one is never taken; the CUDA library's own name stays inside as SONAME.
    let sum = emulator.iter().chain(&device).fold(0u64, |h, b| h.wrapping_mul(0x100_0000_01b3) ^ u64::from(*b));
    let library = target.join(format!("libcuda-emulated-{}-{sum:016x}.so", &kernel_source_hash()[..16]));
    if library.exists() {
        return Ok(library);
    }
    let mine = target.join(format!("libcuda-emulated-{}.tmp", std::process::id()));
    let words = ["-std=c++17", "-O2", "-DHOST_EMU", "-fno-strict-aliasing", "-shared", "-fPIC", "-fvisibility=hidden"];
    let made = Command::new("c++")
        .args(words)
        .args(["-Wall", "-Werror", "-Wno-unused-function", "-Wno-unknown-pragmas", "-Wl,-soname,libcuda.so.1", "-o"])
        .arg(&mine)
        .arg(sources.join("emu/libcuda.cc"))
        .arg("-I")
        .arg(sources)
        .output()
        .map_err(|e| format!("c++ cannot be run: {e}"))?;
    if !made.status.success() {
        return Err(format!("the emulator does not compile:\n{}", String::from_utf8_lossy(&made.stderr)));
    }
    fs::rename(&mine, &library).map_err(|e| e.to_string())?;
    Ok(library)
}
