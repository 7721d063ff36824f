//! Owns files in memory: opens what is a regular file, maps it, gives its pages back. The only unsafe code of this
//! crate. Knows no file format.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};

use crate::{Error, Result};

/// A file mapped read-only.
pub(crate) struct Mapping {
    /// `None` for an empty file, which cannot be mapped.
    map: Option<Mmap>,
    name: String,
}

impl Mapping {
    /// # Errors
    /// When the file cannot be opened, is not a regular file, or cannot be mapped.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let name = file_name(path);
        let (file, len) = open_regular(path)?;
        if len == 0 {
            return Ok(Self { map: None, name });
        }
        // SAFETY: the mapping is private and read-only. Another process that writes to the file changes bytes that are
        // only ever read as numbers, after every length was checked; one that shortens it ends this process with a
        // bus error, as with every program that maps files.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::file(&name, format!("cannot be mapped: {e}")))?;
        Ok(Self { map: Some(map), name })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    /// Name of the file, without its folder.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Gives the pages of `range` back to the system. They are read from the file again when touched; so this is only
    /// about memory, and a refusal changes nothing.
    pub(crate) fn release(&self, range: Range<usize>) {
        if let Some(map) = &self.map {
            // SAFETY: the mapping is a read-only view of a file, so dropped pages come back with the same content.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
    }
}

/// Opens a file for reading and checks, on the opened descriptor, that it is a regular one. Also its length.
/// Never blocks: a named pipe is opened without waiting for its writer.
///
/// # Errors
/// When it cannot be opened or is a folder, pipe, socket or device.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let name = file_name(path);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)
        .map_err(|e| Error::file(&name, format!("cannot be opened: {e}")))?;
    let meta = file.metadata().map_err(|e| Error::file(&name, format!("cannot be read: {e}")))?;
    match meta.is_file() {
        true => Ok((file, meta.len())),
        false => Err(Error::file(name, "is not a regular file")),
    }
}

/// The text of a small file, `None` when there is no such file.
///
/// # Errors
/// When it is not a regular file, longer than `limit_bytes`, or not UTF-8.
pub(crate) fn read_text(path: &Path, limit_bytes: u64) -> Result<Option<String>> {
    if matches!(std::fs::symlink_metadata(path), Err(e) if e.kind() == std::io::ErrorKind::NotFound) {
        return Ok(None);
    }
    let name = file_name(path);
    let (file, len) = open_regular(path)?;
    if len > limit_bytes {
        return Err(Error::file(name, format!("is {len} bytes long, at most {limit_bytes} are read")));
    }
    let mut text = String::new();
    // The limit holds for a file that grows while it is read, too.
    file.take(limit_bytes)
        .read_to_string(&mut text)
        .map_err(|e| Error::file(name, format!("cannot be read as UTF-8 text: {e}")))?;
    Ok(Some(text))
}

/// The last part of a path: errors name files, never folders of the machine.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_opened_and_pipes_do_not_block() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("model.safetensors");
        let status = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(status.success());
        for path in [pipe.as_path(), folder.path(), Path::new("/dev/zero")] {
            let error = Mapping::open(path).err().unwrap().to_string();
            assert!(error.ends_with("is not a regular file"), "{error}");
            assert_eq!(error.matches('/').count(), 0, "no folder is shown: {error}");
        }
    }

    #[test]
    fn text_is_bounded_and_absence_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        assert_eq!(read_text(&path, 10).unwrap(), None);
        std::fs::write(&path, "12345678901").unwrap();
        assert!(read_text(&path, 10).unwrap_err().to_string().contains("is 11 bytes long"));
        assert_eq!(read_text(&path, 11).unwrap().as_deref(), Some("12345678901"));
        std::fs::write(&path, b"\xff\xfe").unwrap();
        assert!(read_text(&path, 11).unwrap_err().to_string().starts_with("config.json: "));
    }

    #[test]
    fn released_pages_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let content: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let map = Mapping::open(&path).unwrap();
        map.release(5000..90_000);
        assert_eq!(map.bytes(), content);
    }
}
