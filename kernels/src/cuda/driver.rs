//! Owns the CUDA driver's handles: context, memory, module, launches, graphs. Every call maps its status to our errors;
//! nothing here knows programs. The only file of this back end with `unsafe`.
//!
//! Source: the CUDA driver API reference; cudarc loads `libcuda.so.1` at run time.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use crate::{Error, Result};

const DEVICE: &str = "cuda";

/// An opened device: its primary context and one stream. Kept alive by all that was made on it.
pub(super) struct Device {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    pub ordinal: usize,
    pub name: String,
    /// `(9, 0)` for Hopper.
    pub compute_capability: (i32, i32),
    pub memory_bytes: u64,
    pub multiprocessors: i32,
    pub driver_version: i32,
}

// SAFETY: driver handles may be used from any thread; each entry sets the context current on its thread.
unsafe impl Send for Device {}
// SAFETY: as above; the driver locks internally.
unsafe impl Sync for Device {}

/// Opens a driver library for good, so that it is found under its own name from now on.
pub(super) fn load(library: &Path) -> Result<()> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the caller names a CUDA driver or its stand-in.
    let opened = unsafe { Library::open(Some(library), RTLD_NOW | RTLD_GLOBAL) };
    let reason = "the driver library that was named cannot be opened";
    std::mem::forget(opened.map_err(|_| Error::Unavailable { device: DEVICE.into(), reason: reason.into() })?);
    Ok(())
}

/// The number of devices, or why there is none. The gate before every other call: it never panics.
pub(super) fn probe() -> std::result::Result<usize, String> {
    // SAFETY: only tries to open the library.
    if !unsafe { sys::is_culib_present() } {
        return Err("the machine has no CUDA driver (libcuda.so.1 was not found)".into());
    }
    let count = catch_unwind(|| result::init().and_then(|()| result::device::get_count()));
    match count {
        Ok(Ok(0)) => Err("the CUDA driver reports no device".into()),
        Ok(Ok(count)) => Ok(count as usize),
        Ok(Err(e)) => Err(format!("the CUDA driver does not start: {}", describe(&e))),
        Err(_) => Err("the CUDA driver is too old: it lacks a function that is needed".into()),
    }
}

impl Device {
    /// # Errors
    /// [`Error::Unavailable`] with the reason.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        let unavailable = |reason: String| Error::Unavailable { device: format!("{DEVICE}:{ordinal}"), reason };
        let count = probe().map_err(unavailable)?;
        if ordinal >= count {
            return Err(unavailable(format!("the machine has {count} CUDA device(s), numbered from 0")));
        }
        let failed = |e: DriverError| unavailable(describe(&e));
        let device = result::device::get(ordinal as i32).map_err(failed)?;
        use sys::CUdevice_attribute as A;
        // SAFETY: `device` came from the driver; the context is set current before the stream is made.
        unsafe {
            let attribute = |a| result::device::get_attribute(device, a).map_err(failed);
            let compute_capability = (
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            );
            let multiprocessors = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
            let memory_bytes = result::device::total_mem(device).map_err(failed)? as u64;
            let mut driver_version = 0;
            sys::cuDriverGetVersion(&mut driver_version).result().map_err(failed)?;
            let context = result::primary_ctx::retain(device).map_err(failed)?;
            result::ctx::set_current(context).map_err(failed)?;
            let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed)?;
            let name = result::device::get_name(device).map_err(failed)?;
            Ok(Arc::new(Self {
                device,
                context,
                stream,
                ordinal,
                name,
                compute_capability,
                memory_bytes,
                multiprocessors,
                driver_version,
            }))
        }
    }

    /// Makes the context current on this thread. Every entry of the back end begins with it.
    pub fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.context) }.map_err(|e| failed("entering the context", e))
    }

    /// Bytes free on the device now.
    pub fn free_bytes(&self) -> Result<u64> {
        self.enter()?;
        Ok(result::mem_get_info().map_err(|e| failed("asking for free memory", e))?.0 as u64)
    }

    pub fn allocate(self: &Arc<Self>, bytes: usize, what: &str) -> Result<Memory> {
        self.enter()?;
        // SAFETY: a plain allocation; `Memory` frees it once.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(address) => Ok(Memory { device: self.clone(), address, bytes }),
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let free = self.free_bytes().unwrap_or(0);
                Err(Error::OutOfMemory { what: what.into(), needed: bytes as u64, free })
            }
            Err(e) => Err(failed("allocating memory", e)),
        }
    }

    /// Waits for all that was launched.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(|e| failed("a step", e))
    }

    pub fn load(self: &Arc<Self>, image: &[u8]) -> Result<Module> {
        self.enter()?;
        // SAFETY: the image is a whole cubin; the driver checks it.
        let module =
            unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(|e| failed("loading kernels", e))?;
        Ok(Module { device: self.clone(), module, functions: HashMap::new() })
    }

    /// Starts one kernel on the stream.
    pub fn launch(&self, launch: &Launch) -> Result<()> {
        let mut storage: Vec<u64> = launch.arguments.iter().map(|a| a.bits()).collect();
        let mut pointers: Vec<*mut c_void> = storage.iter_mut().map(|a| std::ptr::from_mut(a).cast()).collect();
        let Launch { function, grid, block, shared_bytes, .. } = *launch;
        // SAFETY: the launch list passes what the kernel's signature names; addresses lie in live allocations, which
        // the program holds.
        unsafe { result::launch_kernel(function.0, grid, block, shared_bytes, self.stream, &mut pointers) }
            .map_err(|e| failed("launching a kernel", e))
    }

    /// Records what `work` launches as a graph.
    pub fn capture(self: &Arc<Self>, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is valid; the capture is ended on every path.
        unsafe {
            result::stream::begin_capture(self.stream, mode).map_err(|e| failed("beginning a capture", e))?;
            let worked = work();
            let graph = result::stream::end_capture(self.stream).map_err(|e| failed("ending a capture", e));
            worked?;
            let graph = graph?;
            let flags = sys::CUgraphInstantiate_flags(0);
            let exec = result::graph::instantiate(graph, flags).map_err(|e| failed("instantiating a graph", e));
            let _ = result::graph::destroy(graph);
            Ok(Graph { device: self.clone(), exec: exec? })
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: nothing made on the device is left: all of it holds the device. Errors at the end change nothing.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// Device memory, freed when dropped.
pub(super) struct Memory {
    device: Arc<Device>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl Memory {
    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies from the host; returns when `from` may be reused.
    pub fn write(&self, at: usize, from: &[u8]) -> Result<()> {
        assert!(at + from.len() <= self.bytes, "a copy stays inside its allocation: this is a bug");
        // SAFETY: in bounds, checked above. Ordered before later launches by the stream.
        unsafe { result::memcpy_htod_async(self.address + at as u64, from, self.device.stream) }
            .map_err(|e| failed("copying to the device", e))?;
        Ok(())
    }

    /// Copies to the host and waits for it.
    pub fn read(&self, at: usize, to: &mut [u8]) -> Result<()> {
        assert!(at + to.len() <= self.bytes, "a copy stays inside its allocation: this is a bug");
        // SAFETY: in bounds, checked above; `to` outlives the copy because the stream is waited for.
        unsafe { result::memcpy_dtoh_async(to, self.address + at as u64, self.device.stream) }
            .map_err(|e| failed("copying from the device", e))?;
        self.device.synchronize()
    }

    pub fn zero(&self) -> Result<()> {
        // SAFETY: the whole allocation.
        unsafe { result::memset_d8_async(self.address, 0, self.bytes, self.device.stream) }
            .map_err(|e| failed("clearing memory", e))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated once in `Device::allocate`. A lost device frees nothing, and nothing more can be done.
        unsafe {
            let _ = result::ctx::set_current(self.device.context);
            let _ = result::free_sync(self.address);
        }
    }
}

/// Loaded kernels, by name.
pub(super) struct Module {
    device: Arc<Device>,
    module: sys::CUmodule,
    functions: HashMap<&'static str, Function>,
}

// SAFETY: driver handles, used from the owner thread.
unsafe impl Send for Module {}

impl Module {
    pub fn function(&mut self, name: &'static str) -> Result<Function> {
        if let Some(f) = self.functions.get(name) {
            return Ok(*f);
        }
        let c_name = CString::new(name).expect("kernel names have no zero byte: this is a bug");
        // SAFETY: the module is loaded.
        let f = unsafe { result::module::get_function(self.module, c_name) }
            .map_err(|e| failed(&format!("finding the kernel {name}"), e))?;
        self.functions.insert(name, Function(f));
        Ok(Function(f))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded once in `Device::load`.
        unsafe {
            let _ = result::ctx::set_current(self.device.context);
            let _ = result::module::unload(self.module);
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Function(sys::CUfunction);

// SAFETY: a driver handle.
unsafe impl Send for Function {}

/// One kernel launch with everything fixed: what a graph replays.
pub(super) struct Launch {
    pub function: Function,
    pub grid: (u32, u32, u32),
    pub block: (u32, u32, u32),
    pub shared_bytes: u32,
    pub arguments: Vec<Argument>,
}

#[derive(Clone, Copy)]
pub(super) enum Argument {
    Address(u64),
    U32(u32),
    F32(f32),
}

impl Argument {
    /// The low bytes are the value: both sides are little-endian.
    fn bits(self) -> u64 {
        match self {
            Self::Address(a) => a,
            Self::U32(x) => x.into(),
            Self::F32(x) => x.to_bits().into(),
        }
    }
}

/// A captured launch list.
pub(super) struct Graph {
    device: Arc<Device>,
    exec: sys::CUgraphExec,
}

// SAFETY: a driver handle, used from the owner thread.
unsafe impl Send for Graph {}

impl Graph {
    pub fn launch(&self) -> Result<()> {
        // SAFETY: instantiated in `Device::capture`; what it addresses is held by the program.
        unsafe { result::graph::launch(self.exec, self.device.stream) }.map_err(|e| failed("launching a graph", e))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        unsafe {
            let _ = result::ctx::set_current(self.device.context);
            let _ = result::graph::exec_destroy(self.exec);
        }
    }
}

/// Errors after which the context is gone (CUDA driver API: sticky errors) become [`Error::Lost`].
fn failed(what: &str, e: DriverError) -> Error {
    use sys::CUresult as R;
    let lost = [
        R::CUDA_ERROR_ILLEGAL_ADDRESS,
        R::CUDA_ERROR_LAUNCH_FAILED,
        R::CUDA_ERROR_LAUNCH_TIMEOUT,
        R::CUDA_ERROR_ILLEGAL_INSTRUCTION,
        R::CUDA_ERROR_MISALIGNED_ADDRESS,
        R::CUDA_ERROR_ASSERT,
        R::CUDA_ERROR_ECC_UNCORRECTABLE,
        R::CUDA_ERROR_HARDWARE_STACK_ERROR,
        R::CUDA_ERROR_CONTEXT_IS_DESTROYED,
        R::CUDA_ERROR_UNKNOWN,
    ];
    let reason = format!("{what}: {}", describe(&e));
    match lost.contains(&e.0) {
        true => Error::Lost { device: DEVICE, reason },
        false => Error::Launch { device: DEVICE, reason },
    }
}

/// The driver's own name and sentence for an error.
fn describe(e: &DriverError) -> String {
    let text = |s: std::result::Result<&std::ffi::CStr, DriverError>| s.ok().map(|s| s.to_string_lossy().into_owned());
    match (text(e.error_name()), text(e.error_string())) {
        (Some(name), Some(sentence)) => format!("{name}: {sentence}"),
        _ => format!("status {}", e.0 as i32),
    }
}
