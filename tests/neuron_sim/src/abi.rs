//! Owns the C interface of `libnrt.so.1`: the names, layouts and statuses of libnrt 2.x, in our own words. All rules are
//! [`crate::device`]'s. Pointers are the caller's to keep valid, as for the real library.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use crate::config::{Config, beside};
use crate::device::{Device, INVALID, OK, Status};

static DEVICE: LazyLock<Mutex<Device>> = LazyLock::new(|| Mutex::new(Device::new(Config::of(library().as_deref()))));

/// `nrt_tensor_info_t`.
#[repr(C)]
struct TensorInfo {
    name: [u8; 256],
    usage: u32,
    size: usize,
    dtype: u32,
    shape: *mut u32,
    rank: u32,
}

const _: () = assert!(size_of::<TensorInfo>() == 296);

/// The device, after counting the call; an injected fault or a runtime that is not running is the answer at once.
fn enter(call: &'static str) -> Result<MutexGuard<'static, Device>, Status> {
    let mut device = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(fault) = device.count(call) {
        return Err(fault);
    }
    device.live()?;
    Ok(device)
}

/// Runs a call on the device.
fn call(name: &'static str, f: impl FnOnce(&mut Device) -> Result<(), Status>) -> Status {
    enter(name).and_then(|mut device| f(&mut device)).map_or_else(|status| status, |()| OK)
}

fn status(status: Status) -> Result<(), Status> {
    if status == OK { Ok(()) } else { Err(status) }
}

#[unsafe(no_mangle)]
extern "C" fn nrt_init(framework: u32, _version: *const c_char, _fal: *const c_char) -> Status {
    let mut device = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    device.count("nrt_init").unwrap_or_else(|| device.init(framework))
}

#[unsafe(no_mangle)]
extern "C" fn nrt_close() {
    let report = DEVICE.lock().unwrap_or_else(PoisonError::into_inner).close();
    if let Some(library) = library()
        && let Err(e) = std::fs::write(beside(&library, "report"), report)
    {
        eprintln!("sim-nrt: the report could not be written: {e}");
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_get_version(out: *mut c_void, size: usize) -> Status {
    // u64 major, minor, patch, maintenance; 128 characters of words; 64 of a hash.
    let mut version = [0; 224];
    for (i, part) in [2u64, 35, 30, 0].into_iter().enumerate() {
        version[i * 8..][..8].copy_from_slice(&part.to_le_bytes());
    }
    let words = b"simulated device";
    version[32..][..words.len()].copy_from_slice(words);
    let size = size.min(version.len());
    // SAFETY: the caller says that `out` holds `size` bytes.
    unsafe { std::ptr::copy_nonoverlapping(version.as_ptr(), out.cast(), size) };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_get_instance_info(out: *mut c_void, size: usize) -> Status {
    let device = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    // u32 family, size; 16 characters of architecture, 8 of revision.
    let mut info = [0; 32];
    info[..4].copy_from_slice(&device.config.family.to_le_bytes());
    info[8..11].copy_from_slice(b"sim");
    let size = size.min(info.len());
    // SAFETY: as above.
    unsafe { std::ptr::copy_nonoverlapping(info.as_ptr(), out.cast(), size) };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_get_visible_vnc_count(out: *mut u32) -> Status {
    let device = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the caller gives a place for the count.
    unsafe { out.write(device.config.cores) };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_get_vnc_memory_stats(core: u32, out: *mut usize, size: usize, written: *mut usize) -> Status {
    call("nrt_get_vnc_memory_stats", |device| {
        if core >= device.config.cores || size < 16 {
            return Err(INVALID);
        }
        // SAFETY: the caller says that `out` holds `size` bytes and gives a place for the count.
        unsafe {
            out.write(device.used());
            out.add(1).write(device.config.hbm_bytes);
            written.write(16);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_tensor_allocate(
    placement: u32,
    core: c_int,
    size: usize,
    _name: *const c_char,
    out: *mut *mut c_void,
) -> Status {
    call("nrt_tensor_allocate", |device| {
        if placement > 2 {
            return Err(INVALID);
        }
        let handle = device.allocate(core, size)?;
        // SAFETY: the caller gives a place for the handle.
        unsafe { out.write(handle as *mut c_void) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_tensor_free(tensor: *mut *mut c_void) {
    if let Ok(mut device) = enter("nrt_tensor_free") {
        // SAFETY: the caller gives the place of its handle.
        unsafe {
            device.free(tensor.read() as usize);
            tensor.write(std::ptr::null_mut());
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_tensor_write(tensor: *mut c_void, from: *const u8, offset: usize, size: usize) -> Status {
    call("nrt_tensor_write", |device| {
        let to = device.writable(tensor as usize, offset, size)?;
        // SAFETY: the caller's buffer holds `size` bytes, and so does `to`.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), size) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_tensor_read(tensor: *const c_void, to: *mut u8, offset: usize, size: usize) -> Status {
    call("nrt_tensor_read", |device| {
        let from = device.readable(tensor as usize, offset, size)?;
        // SAFETY: as for writing.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, size) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nrt_tensor_memset(tensor: *mut c_void, offset: u64, value: c_int, size: usize) -> Status {
    call("nrt_tensor_memset", |device| {
        device.writable(tensor as usize, offset as usize, size)?.fill(value as u8);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_load(neff: *const u8, size: usize, core: i32, _count: i32, out: *mut *mut c_void) -> Status {
    call("nrt_load", |device| {
        if core != 0 {
            return Err(INVALID);
        }
        // SAFETY: the caller's buffer holds `size` bytes; it gives a place for the handle.
        unsafe {
            let handle = device.load(std::slice::from_raw_parts(neff, size))?;
            out.write(handle as *mut c_void);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nrt_unload(model: *mut c_void) -> Status {
    call("nrt_unload", |device| status(device.unload(model as usize)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_get_model_tensor_info(model: *mut c_void, out: *mut *mut u64) -> Status {
    call("nrt_get_model_tensor_info", |device| {
        let ports = device.interface(model as usize)?;
        // A count and that many entries in one block of 8-byte words.
        let mut words = vec![0u64; 1 + ports.len() * (size_of::<TensorInfo>() / 8)].into_boxed_slice();
        words[0] = ports.len() as u64;
        let first = words[1..].as_mut_ptr().cast::<TensorInfo>();
        for (i, (output, port)) in ports.iter().enumerate() {
            let mut name = [0; 256];
            name[..port.name.len()].copy_from_slice(port.name.as_bytes());
            let dims: Box<[u32]> = port.shape.dims.iter().map(|d| *d as u32).collect();
            let info = TensorInfo {
                name,
                usage: u32::from(*output),
                size: port.shape.bytes(),
                dtype: port.shape.ty.runtime_code(),
                rank: dims.len() as u32,
                shape: Box::into_raw(dims).cast(),
            };
            // SAFETY: the block was made for this many entries.
            unsafe { first.add(i).write(info) };
        }
        // SAFETY: the caller gives a place for the pointer.
        unsafe { out.write(Box::into_raw(words).cast()) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_free_model_tensor_info(array: *mut u64) -> Status {
    call("nrt_free_model_tensor_info", |_| {
        // SAFETY: made above: a count, that many entries, each with a boxed shape.
        unsafe {
            let count = array.read() as usize;
            let first = array.add(1).cast::<TensorInfo>();
            for i in 0..count {
                let info = &*first.add(i);
                drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(info.shape, info.rank as usize)));
            }
            let words = 1 + count * (size_of::<TensorInfo>() / 8);
            drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(array, words)));
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_allocate_tensor_set(out: *mut *mut c_void) -> Status {
    call("nrt_allocate_tensor_set", |device| {
        // SAFETY: the caller gives a place for the handle.
        unsafe { out.write(device.allocate_set() as *mut c_void) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_destroy_tensor_set(set: *mut *mut c_void) {
    if let Ok(mut device) = enter("nrt_destroy_tensor_set") {
        // SAFETY: the caller gives the place of its handle.
        unsafe {
            device.destroy_set(set.read() as usize);
            set.write(std::ptr::null_mut());
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nrt_add_tensor_to_tensor_set(
    set: *mut c_void,
    name: *const c_char,
    tensor: *mut c_void,
) -> Status {
    call("nrt_add_tensor_to_tensor_set", |device| {
        // SAFETY: the caller's name ends in a zero.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        status(device.add(set as usize, name, tensor as usize))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nrt_execute(model: *mut c_void, inputs: *const c_void, outputs: *mut c_void) -> Status {
    call("nrt_execute", |device| status(device.execute(model as usize, inputs as usize, outputs as usize)))
}

/// Where this library was loaded from.
fn library() -> Option<PathBuf> {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    let own: extern "C" fn() = nrt_close;
    // SAFETY: asks the loader about one of our own functions; the name it gives ends in a zero and stays.
    unsafe {
        let found = libc::dladdr(own as *const c_void, &mut info) != 0 && !info.dli_fname.is_null();
        found.then(|| CStr::from_ptr(info.dli_fname).to_string_lossy().into_owned().into())
    }
}
