//! Owns large memory: cache-line aligned, zeroed, in huge pages when large (without them the DRAM stream loses to TLB
//! misses). Knows nothing of what is kept in it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Zeroed memory, aligned to 64 bytes.
///
/// Untouched pages of a large buffer take no memory; the thread that first writes a page brings it in.
pub(crate) struct Buffer {
    start: NonNull<u8>,
    len: usize,
    held: Held,
}

enum Held {
    Heap(Layout),
    /// What was mapped; `start` is the first huge page in it.
    #[cfg(target_os = "linux")]
    Mapped {
        base: NonNull<u8>,
        bytes: usize,
    },
}

// SAFETY: plain memory, owned; shared access is read-only.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// At least `bytes` zero bytes (64 at least). Aborts when memory is out, as `Vec` does.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        Self::try_zeroed(bytes).unwrap_or_else(|| handle_alloc_error(layout(bytes)))
    }

    /// The same, or `None` when the system has no such memory.
    pub(crate) fn try_zeroed(bytes: usize) -> Option<Self> {
        #[cfg(target_os = "linux")]
        if bytes >= HUGE_BYTES {
            return Self::mapped(bytes);
        }
        let layout = layout(bytes);
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { start, len: layout.size(), held: Held::Heap(layout) })
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Bytes that may be used: what was asked for, rounded up to 64.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes, owned.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    #[cfg(target_os = "linux")]
    fn mapped(bytes: usize) -> Option<Self> {
        let len = bytes.checked_next_multiple_of(64)?;
        let mapped = len.checked_add(2 * HUGE_BYTES)?; // room to align, and whole huge pages to the end
        // SAFETY: a fresh anonymous mapping; madvise only hints on memory we own, before it is touched.
        unsafe {
            let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let base = libc::mmap(std::ptr::null_mut(), mapped, access, kind, -1, 0);
            if base == libc::MAP_FAILED {
                return None;
            }
            let base = NonNull::new(base.cast::<u8>())?;
            let start = base.add(base.as_ptr().align_offset(HUGE_BYTES));
            libc::madvise(start.as_ptr().cast(), len.next_multiple_of(HUGE_BYTES), libc::MADV_HUGEPAGE);
            Some(Self { start, len, held: Held::Mapped { base, bytes: mapped } })
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated or mapped exactly so.
        match self.held {
            Held::Heap(layout) => unsafe { dealloc(self.start.as_ptr(), layout) },
            #[cfg(target_os = "linux")]
            Held::Mapped { base, bytes } => unsafe { _ = libc::munmap(base.as_ptr().cast(), bytes) },
        }
    }
}

#[cfg(target_os = "linux")]
const HUGE_BYTES: usize = 2 << 20;

fn layout(bytes: usize) -> Layout {
    let size = bytes.max(64).checked_next_multiple_of(64).expect("the size fits the address space: this is a bug");
    Layout::from_size_align(size, 64).expect("the size fits the address space: this is a bug")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_aligned_and_writable_to_its_end() {
        for bytes in [0, 1, 64, 4097, (2 << 20) - 1, 2 << 20, (5 << 20) + 3] {
            let mut buffer = Buffer::zeroed(bytes);
            assert!(buffer.len() >= bytes.max(64) && buffer.len() < bytes.max(64) + 64);
            assert_eq!(buffer.as_ptr().align_offset(64), 0);
            assert!(buffer.as_slice().iter().all(|b| *b == 0));
            // SAFETY: inside the buffer.
            unsafe { buffer.as_mut_ptr().add(buffer.len() - 1).write(7) };
            assert_eq!(buffer.as_slice().last(), Some(&7));
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(Buffer::try_zeroed(1 << 60).is_none());
    }
}
