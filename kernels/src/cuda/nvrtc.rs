//! Owns compiling kernel sources with NVRTC: no toolkit, no headers, one translation unit for all kernels.
//!
//! Source: NVIDIA's NVRTC documentation. `cargo xtask kernels` is the only caller so far.

use std::ffi::{CStr, CString, c_char};
use std::path::Path;

use cudarc::nvrtc::sys;

/// Every kernel, by file name; `dev.cuh` is their only include.
pub(super) const SOURCES: [(&str, &str); 6] = [
    ("attention.cu", include_str!("../../cu/attention.cu")),
    ("elementwise.cu", include_str!("../../cu/elementwise.cu")),
    ("linear.cu", include_str!("../../cu/linear.cu")),
    ("moe.cu", include_str!("../../cu/moe.cu")),
    ("norm.cu", include_str!("../../cu/norm.cu")),
    ("tail.cu", include_str!("../../cu/tail.cu")),
];
const DEVICE_LAYER: (&str, &str) = ("dev.cuh", include_str!("../../cu/dev.cuh"));

/// Device code for one architecture, and what the assembler said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cubin {
    pub bytes: Vec<u8>,
    /// Registers, spills and shared memory of each kernel, as `ptxas -v` prints them.
    pub log: String,
}

/// What a pack is made from: its sha256 (hex) tells whether a pack is stale.
pub fn kernel_source_hash() -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for (name, text) in SOURCES.iter().chain([&DEVICE_LAYER]) {
        hash.update(name);
        hash.update([0]);
        hash.update(text);
        hash.update([0]);
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// Compiles every kernel for `arch` (`sm_90a`) with the NVRTC library in `folder`.
///
/// # Errors
/// The library is not there, or the compiler's own messages.
pub fn compile_kernels(folder: &Path, arch: &str) -> Result<Cubin, String> {
    load(folder)?;
    let units: String = SOURCES.iter().map(|(name, _)| format!("#include \"{name}\"\n")).collect();
    let text = |s: &str| CString::new(s).expect("sources have no zero byte: this is a bug");
    let headers: Vec<(CString, CString)> =
        SOURCES.iter().chain([&DEVICE_LAYER]).map(|(name, source)| (text(name), text(source))).collect();
    let (names, sources): (Vec<*const c_char>, Vec<*const c_char>) =
        headers.iter().map(|(n, s)| (n.as_ptr(), s.as_ptr())).unzip();
    let options = ["--std=c++17", &format!("--gpu-architecture={arch}"), "--ptxas-options=-v", "-default-device"];
    let options: Vec<CString> = options.iter().map(|o| text(o)).collect();
    let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
    let (unit, unit_name) = (text(&units), text("kernels.cu"));
    let status = |what: &str, code: sys::nvrtcResult| match code {
        sys::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        other => Err(format!("NVRTC: {what} failed with status {}", other as i32)),
    };
    let mut program = std::ptr::null_mut();
    // SAFETY: every pointer lives until the program is destroyed; sizes are asked for before buffers are filled.
    unsafe {
        let count = headers.len() as i32;
        let made = sys::nvrtcCreateProgram(
            &mut program,
            unit.as_ptr(),
            unit_name.as_ptr(),
            count,
            sources.as_ptr(),
            names.as_ptr(),
        );
        status("creating a program", made)?;
        let compiled = sys::nvrtcCompileProgram(program, options.len() as i32, options.as_ptr());
        let mut size = 0;
        status("reading the log", sys::nvrtcGetProgramLogSize(program, &mut size))?;
        let mut log = vec![0u8; size.max(1)];
        status("reading the log", sys::nvrtcGetProgramLog(program, log.as_mut_ptr().cast()))?;
        let log = CStr::from_bytes_until_nul(&log).map(|l| l.to_string_lossy().into_owned()).unwrap_or_default();
        let made = status("compiling", compiled).map_err(|e| format!("{e}\n{log}")).and_then(|()| {
            let mut size = 0;
            status("reading the cubin", sys::nvrtcGetCUBINSize(program, &mut size))?;
            let mut bytes = vec![0u8; size];
            status("reading the cubin", sys::nvrtcGetCUBIN(program, bytes.as_mut_ptr().cast()))?;
            Ok(Cubin { bytes, log })
        });
        sys::nvrtcDestroyProgram(&mut program);
        made
    }
}

/// Opens NVRTC from `folder` for good, so that the loader finds it under its own name afterwards.
fn load(folder: &Path) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    for name in ["libnvrtc-builtins.so.12.9", "libnvrtc.so.12"] {
        // SAFETY: NVIDIA's libraries have no initialisers that need care.
        let library = unsafe { Library::open(Some(folder.join(name)), RTLD_NOW | RTLD_GLOBAL) };
        std::mem::forget(library.map_err(|_| format!("NVRTC: {name} is not in the folder given"))?);
    }
    Ok(())
}
