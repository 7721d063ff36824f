//! Owns the Neuron runtime library: opens `libnrt.so.1` at run time, calls it, and maps its statuses to errors. The only
//! unsafe code of this back end. Knows no graph and no program of ours.
//!
//! The interface is that of the libnrt 2.x C API, restated here. Handles free themselves, tensors outlive the sets that
//! hold them, and the runtime is closed when the last handle is gone.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::ptr::{NonNull, null, null_mut};
use std::sync::Arc;

use libloading::Library;

use crate::{Error, Result};

type Status = u32;
type Raw = *mut c_void;

/// `nrt_tensor_info_t`.
#[repr(C)]
struct TensorInfo {
    name: [c_char; 256],
    usage: u32,
    size: usize,
    dtype: u32,
    shape: *const u32,
    rank: u32,
}

/// `nrt_tensor_info_array_t`: a count, then that many entries.
#[repr(C)]
struct TensorInfoArray {
    count: u64,
    first: [TensorInfo; 0],
}

/// `nrt_instance_info_t`.
#[repr(C)]
struct InstanceInfo {
    family: u32,
    size: u32,
    arch: [c_char; 16],
    revision: [c_char; 8],
}

/// `nrt_version_t`.
#[repr(C)]
struct Version {
    major: u64,
    minor: u64,
    patch: u64,
    maintenance: u64,
    detail: [c_char; 128],
    hash: [c_char; 64],
}

/// `nrt_vnc_memory_stats_t`, its first two fields.
#[repr(C)]
#[derive(Default)]
struct MemoryStats {
    used: usize,
    limit: usize,
}

// The layouts that the library's own headers give on 64-bit Linux.
const _: () = assert!(size_of::<TensorInfo>() == 296 && offset_of!(TensorInfo, size) == 264);
const _: () = assert!(offset_of!(TensorInfo, shape) == 280 && offset_of!(TensorInfo, rank) == 288);
const _: () = assert!(size_of::<TensorInfoArray>() == 8 && size_of::<InstanceInfo>() == 32);
const _: () = assert!(size_of::<Version>() == 224 && size_of::<MemoryStats>() == 16);

macro_rules! calls {
    ($($name:ident: fn($($arg:ty),*) $(-> $out:ty)?;)*) => {
        /// The functions we call, looked up once.
        struct Calls { $($name: unsafe extern "C" fn($($arg),*) $(-> $out)?,)* }

        impl Calls {
            /// # Safety
            /// `library` must export these names with the signatures of libnrt 2.x, and outlive the result.
            unsafe fn load(library: &Library) -> Result<Self, String> {
                Ok(Self { $($name: {
                    let name = concat!(stringify!($name), "\0");
                    // SAFETY: the caller vouches for the signatures.
                    let symbol = unsafe { library.get(name.as_bytes()) };
                    *symbol.map_err(|_| format!("it has no function {}", stringify!($name)))?
                },)* })
            }
        }
    };
}

calls! {
    nrt_init: fn(u32, *const c_char, *const c_char) -> Status;
    nrt_close: fn();
    nrt_get_version: fn(*mut Version, usize) -> Status;
    nrt_get_instance_info: fn(*mut InstanceInfo, usize) -> Status;
    nrt_get_visible_vnc_count: fn(*mut u32) -> Status;
    nrt_get_vnc_memory_stats: fn(u32, *mut MemoryStats, usize, *mut usize) -> Status;
    nrt_load: fn(*const c_void, usize, i32, i32, *mut Raw) -> Status;
    nrt_unload: fn(Raw) -> Status;
    nrt_get_model_tensor_info: fn(Raw, *mut *mut TensorInfoArray) -> Status;
    nrt_free_model_tensor_info: fn(*mut TensorInfoArray) -> Status;
    nrt_allocate_tensor_set: fn(*mut Raw) -> Status;
    nrt_destroy_tensor_set: fn(*mut Raw);
    nrt_add_tensor_to_tensor_set: fn(Raw, *const c_char, Raw) -> Status;
    nrt_execute: fn(Raw, *const c_void, Raw) -> Status;
    nrt_tensor_allocate: fn(u32, c_int, usize, *const c_char, *mut Raw) -> Status;
    nrt_tensor_free: fn(*mut Raw);
    nrt_tensor_write: fn(Raw, *const c_void, usize, usize) -> Status;
    nrt_tensor_read: fn(*const c_void, *mut c_void, usize, usize) -> Status;
    nrt_tensor_memset: fn(Raw, u64, c_int, usize) -> Status;
}

struct Inner {
    calls: Calls,
    /// Dropped after the last call: fields drop in order.
    _library: Library,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: every handle holds an `Arc` of this, so none is left.
        unsafe { (self.calls.nrt_close)() }
    }
}

/// The runtime, initialised. Closed when it and all handles made from it are gone.
#[derive(Clone)]
pub(super) struct Runtime {
    inner: Arc<Inner>,
    pub facts: Facts,
}

/// What the runtime says of itself and the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// `2.35.30.0`.
    pub version: String,
    /// The library's own words; a stand-in says so here.
    pub detail: String,
    /// `nrt_instance_info_t.family`.
    pub family: u32,
    pub cores: u32,
}

impl Runtime {
    /// Opens `path`, or `libnrt.so.1` where the loader and the Neuron packages put it, and initialises it.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: no library, a foreign version, no device, cores that another process holds.
    pub fn open(path: Option<&Path>, cores: u32) -> Result<Self> {
        let unavailable = |reason: String| Error::Unavailable { device: "neuron".into(), reason };
        let candidates = match path {
            Some(path) => vec![path.to_path_buf()],
            None => ["libnrt.so.1", "/opt/aws/neuron/lib/libnrt.so.1"].map(PathBuf::from).to_vec(),
        };
        let mut tried = vec![];
        // SAFETY: loading runs the library's constructors; the Neuron runtime's are meant to be run by any host.
        let opened = candidates.iter().find_map(|path| match unsafe { Library::new(path) } {
            Ok(library) => Some((library, path)),
            Err(e) => {
                tried.push(format!("{}: {e}", path.display()));
                None
            }
        });
        let Some((library, path)) = opened else {
            let tried = tried.join("; ");
            return Err(unavailable(format!(
                "the Neuron runtime library was not found ({tried}); install aws-neuronx-runtime-lib"
            )));
        };
        // SAFETY: a library of this name and major version (checked below) exports the 2.x interface.
        let calls = unsafe { Calls::load(&library) }
            .map_err(|e| unavailable(format!("{} is not libnrt 2.x: {e}", path.display())))?;
        let mut version = Version { major: 0, minor: 0, patch: 0, maintenance: 0, detail: [0; 128], hash: [0; 64] };
        // SAFETY: `version` is as large as we say. Allowed before init.
        let status = unsafe { (calls.nrt_get_version)(&mut version, size_of::<Version>()) };
        check(status, "reading the runtime's version").map_err(|e| unavailable(e.to_string()))?;
        let Version { major, minor, patch, maintenance, .. } = version;
        let number = format!("{major}.{minor}.{patch}.{maintenance}");
        if major != 2 {
            return Err(unavailable(format!("{} is version {number}; 2.x is needed", path.display())));
        }
        const NO_FRAMEWORK: u32 = 1;
        // SAFETY: both strings end in a zero and outlive the call.
        let status = unsafe { (calls.nrt_init)(NO_FRAMEWORK, c"".as_ptr(), c"".as_ptr()) };
        check(status, "starting the runtime").map_err(|e| unavailable(e.to_string()))?;
        let inner = Arc::new(Inner { calls, _library: library });
        let mut info = InstanceInfo { family: 0, size: 0, arch: [0; 16], revision: [0; 8] };
        let mut seen = 0;
        // SAFETY: both are as large as we say.
        let statuses = unsafe {
            [
                (inner.calls.nrt_get_instance_info)(&mut info, size_of::<InstanceInfo>()),
                (inner.calls.nrt_get_visible_vnc_count)(&mut seen),
            ]
        };
        for status in statuses {
            check(status, "asking for the instance").map_err(|e| unavailable(e.to_string()))?;
        }
        if cores > seen {
            return Err(unavailable(format!(
                "{cores} cores are asked for and this process sees {seen}: see neuron-ls"
            )));
        }
        let facts = Facts { version: number, detail: text(&version.detail), family: info.family, cores: seen };
        Ok(Self { inner, facts })
    }

    /// Bytes used and bytes there are on a core.
    ///
    /// # Errors
    /// What the runtime says.
    pub fn memory(&self, core: u32) -> Result<(u64, u64)> {
        let (mut stats, mut written) = (MemoryStats::default(), 0);
        // SAFETY: `stats` is as large as we say.
        let status = unsafe {
            (self.inner.calls.nrt_get_vnc_memory_stats)(core, &mut stats, size_of::<MemoryStats>(), &mut written)
        };
        check(status, "asking for device memory")?;
        Ok((stats.used as u64, stats.limit as u64))
    }

    /// Device memory of `bytes` on `core`, unwritten.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] names `what`.
    pub fn tensor(&self, core: u32, bytes: usize, what: &str) -> Result<Arc<Tensor>> {
        const ON_DEVICE: u32 = 0;
        let mut raw = null_mut();
        // SAFETY: `raw` is written on success only; no name is given.
        let status =
            unsafe { (self.inner.calls.nrt_tensor_allocate)(ON_DEVICE, core as c_int, bytes, null(), &mut raw) };
        if status == RESOURCE {
            let free = self.memory(core).map_or(0, |(used, limit)| limit.saturating_sub(used));
            return Err(Error::OutOfMemory { what: what.into(), needed: bytes as u64, free });
        }
        check(status, &format!("allocating {what}"))?;
        let raw = handle(raw, "nrt_tensor_allocate")?;
        Ok(Arc::new(Tensor { inner: self.inner.clone(), raw, bytes }))
    }

    /// Loads a compiled program onto `core`.
    ///
    /// # Errors
    /// A program for another device or version; no memory for it.
    pub fn load(&self, neff: &[u8], core: u32) -> Result<Model> {
        // The count of cores is deprecated: -1.
        let (mut raw, count) = (null_mut(), -1);
        // SAFETY: the slice is valid for its length; the runtime copies it.
        let status =
            unsafe { (self.inner.calls.nrt_load)(neff.as_ptr().cast(), neff.len(), core as i32, count, &mut raw) };
        check(status, "loading a compiled program")?;
        Ok(Model { inner: self.inner.clone(), raw: handle(raw, "nrt_load")? })
    }

    /// An empty set.
    ///
    /// # Errors
    /// What the runtime says.
    pub fn set(&self) -> Result<TensorSet> {
        let mut raw = null_mut();
        // SAFETY: `raw` is written on success.
        let status = unsafe { (self.inner.calls.nrt_allocate_tensor_set)(&mut raw) };
        check(status, "making a tensor set")?;
        Ok(TensorSet { inner: self.inner.clone(), raw: handle(raw, "nrt_allocate_tensor_set")?, held: vec![] })
    }
}

/// Device memory.
pub(super) struct Tensor {
    inner: Arc<Inner>,
    raw: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: the runtime's handles are not bound to a thread, and one owner thread uses a back end at a time.
unsafe impl Send for Tensor {}
// SAFETY: as above; shared references are only held by sets of the same back end.
unsafe impl Sync for Tensor {}

impl Tensor {
    /// # Errors
    /// What the runtime says.
    ///
    /// Panics when `bytes` is not the whole tensor.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        assert_eq!(bytes.len(), self.bytes, "a tensor is written whole: this is a bug");
        // SAFETY: the handle lives, the slice is valid for its length, and that is the tensor's.
        let status =
            unsafe { (self.inner.calls.nrt_tensor_write)(self.raw.as_ptr(), bytes.as_ptr().cast(), 0, bytes.len()) };
        check(status, "copying to the device")
    }

    /// # Errors
    /// What the runtime says.
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.bytes];
        // SAFETY: as for `write`.
        let status =
            unsafe { (self.inner.calls.nrt_tensor_read)(self.raw.as_ptr(), bytes.as_mut_ptr().cast(), 0, bytes.len()) };
        check(status, "copying from the device")?;
        Ok(bytes)
    }

    /// # Errors
    /// What the runtime says.
    pub fn clear(&self) -> Result<()> {
        // SAFETY: the handle lives and the range is the whole tensor.
        let status = unsafe { (self.inner.calls.nrt_tensor_memset)(self.raw.as_ptr(), 0, 0, self.bytes) };
        check(status, "clearing device memory")
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        let mut raw = self.raw.as_ptr();
        // SAFETY: ours, and sets that hold it keep it alive.
        unsafe { (self.inner.calls.nrt_tensor_free)(&mut raw) }
    }
}

/// Names to tensors: what a program reads or writes.
pub(super) struct TensorSet {
    inner: Arc<Inner>,
    raw: NonNull<c_void>,
    held: Vec<Arc<Tensor>>,
}

// SAFETY: as for `Tensor`.
unsafe impl Send for TensorSet {}

impl TensorSet {
    /// # Errors
    /// What the runtime says.
    pub fn add(&mut self, name: &str, tensor: &Arc<Tensor>) -> Result<()> {
        let name = CString::new(name).expect("tensor names hold no zero byte: this is a bug");
        // SAFETY: set, name and tensor live; the runtime copies the name.
        let status = unsafe {
            (self.inner.calls.nrt_add_tensor_to_tensor_set)(self.raw.as_ptr(), name.as_ptr(), tensor.raw.as_ptr())
        };
        check(status, "naming a tensor")?;
        self.held.push(tensor.clone());
        Ok(())
    }
}

impl Drop for TensorSet {
    fn drop(&mut self) {
        let mut raw = self.raw.as_ptr();
        // SAFETY: ours; the tensors in `held` are dropped after.
        unsafe { (self.inner.calls.nrt_destroy_tensor_set)(&mut raw) }
    }
}

/// A compiled program on a core.
pub(super) struct Model {
    inner: Arc<Inner>,
    raw: NonNull<c_void>,
}

// SAFETY: as for `Tensor`.
unsafe impl Send for Model {}

/// A tensor of a program's interface, as the compiled program has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub name: String,
    pub output: bool,
    pub bytes: usize,
}

impl Model {
    /// # Errors
    /// What the runtime says.
    pub fn interface(&self) -> Result<Vec<Interface>> {
        let mut array: *mut TensorInfoArray = null_mut();
        // SAFETY: the handle lives; `array` is written on success.
        let status = unsafe { (self.inner.calls.nrt_get_model_tensor_info)(self.raw.as_ptr(), &mut array) };
        check(status, "reading a compiled program's interface")?;
        let array = NonNull::new(array).ok_or_else(|| unexplained("nrt_get_model_tensor_info"))?.as_ptr();
        // SAFETY: the array holds `count` entries after its count, until it is freed below.
        let tensors = unsafe {
            let count = (*array).count as usize;
            let first = (&raw const (*array).first).cast::<TensorInfo>();
            std::slice::from_raw_parts(first, count)
                .iter()
                .map(|t| Interface { name: text(&t.name), output: t.usage == 1, bytes: t.size })
                .collect()
        };
        // SAFETY: made by the runtime above and not used after.
        let status = unsafe { (self.inner.calls.nrt_free_model_tensor_info)(array) };
        check(status, "reading a compiled program's interface")?;
        Ok(tensors)
    }

    /// Runs the program to its end.
    ///
    /// # Errors
    /// [`Error::Launch`], or [`Error::Lost`] when the device needs a new process.
    pub fn execute(&self, inputs: &TensorSet, outputs: &mut TensorSet) -> Result<()> {
        // SAFETY: all three handles live; this back end's one owner thread runs one program at a time.
        let status =
            unsafe { (self.inner.calls.nrt_execute)(self.raw.as_ptr(), inputs.raw.as_ptr(), outputs.raw.as_ptr()) };
        check(status, "running a program")
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: ours and not used after. A failure leaves nothing to do: the process is on its way out.
        unsafe { (self.inner.calls.nrt_unload)(self.raw.as_ptr()) };
    }
}

const RESOURCE: Status = 4;

/// What a status means and what to do about it.
fn check(status: Status, doing: &str) -> Result<()> {
    const DEVICE: &str = "neuron";
    let (fatal, meaning) = match status {
        0 => return Ok(()),
        1 => (false, "the runtime failed; its log (NEURON_RT_LOG_LEVEL=INFO) says more"),
        2 => (false, "the runtime refused an argument; this is a bug of this program"),
        3 => (false, "the runtime refused a handle; this is a bug of this program"),
        4 => (false, "device memory ran out; use a smaller cache, shorter context or more cores"),
        5 => (true, "the device did not answer in time; restart the process, then the instance"),
        6 => (true, "the hardware failed; see neuron-top and the kernel log, then replace the instance"),
        7 => (false, "the device's queue is full"),
        9 => (true, "not enough free NeuronCores; see neuron-ls for who holds them, or set NEURON_RT_VISIBLE_CORES"),
        10 => (false, "the compiled program is of a version that this runtime does not load; update the runtime"),
        13 => (true, "the runtime is not initialised; is the driver loaded (ls /dev/neuron0)?"),
        14 => (true, "the runtime is closed"),
        101 => (true, "the core cannot recover; restart the process"),
        1002 => (false, "a tensor does not match the compiled program; clear the compile cache and report it"),
        1003 => (false, "the result has values that are no numbers"),
        1004 => (false, "the program ended with an error"),
        1005 => (false, "the core is busy; is another process using it?"),
        1006 => (false, "an index was out of bounds; this is a bug of this program"),
        1200 => (true, "a collective failed; restart the process on all ranks"),
        1201 => {
            (true, "device memory had an uncorrectable error; restart the process, replace the instance if it stays")
        }
        1202 => {
            (true, "a NeuronCore had an uncorrectable error; restart the process, replace the instance if it stays")
        }
        1203..=1206 => (true, "the device's DMA, queues or network failed; restart the process"),
        _ => (false, "a status this program does not know; see nrt_status.h of the installed runtime"),
    };
    let reason = format!("{doing}: {meaning} (status {status})");
    if fatal { Err(Error::Lost { device: DEVICE, reason }) } else { Err(Error::Launch { device: DEVICE, reason }) }
}

fn handle(raw: Raw, call: &str) -> Result<NonNull<c_void>> {
    NonNull::new(raw).ok_or_else(|| unexplained(call))
}

/// Success without a result: a library that is not what it says.
fn unexplained(call: &str) -> Error {
    Error::Lost { device: "neuron", reason: format!("{call} reported success and returned nothing") }
}

/// A fixed field of characters up to its zero.
fn text(field: &[c_char]) -> String {
    let bytes: Vec<u8> = field.iter().map(|c| *c as u8).chain([0]).collect();
    CStr::from_bytes_until_nul(&bytes).expect("a zero was added: this is a bug").to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_says_where_it_was_looked_for() {
        let Err(error) = Runtime::open(Some(Path::new("/nowhere/libnrt.so.1")), 1) else { panic!("opened nothing") };
        let message = error.to_string();
        assert!(message.contains("/nowhere/libnrt.so.1") && message.contains("aws-neuronx-runtime-lib"), "{message}");
    }

    /// The statuses after which a process must be restarted.
    #[test]
    fn fatal_statuses_lose_the_device() {
        for status in [5, 6, 9, 13, 14, 101, 1200, 1201, 1202, 1203, 1204, 1205, 1206] {
            assert!(check(status, "x").unwrap_err().is_fatal(), "{status}");
        }
        for status in [1, 2, 3, 4, 7, 10, 1002, 1003, 1004, 1005, 1006, 4711] {
            assert!(!check(status, "x").unwrap_err().is_fatal(), "{status}");
        }
        assert!(check(0, "x").is_ok());
    }
}
