//! Owns the lock by which processes that want the same model wait for each other. The system frees it when its holder
//! ends, however that happens.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use super::locate::Report;

/// Held until dropped.
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Makes `folder` and takes the lock in it; waits while another process has it, and says so.
    pub(super) fn take(folder: &Path, what: &str, report: &mut dyn Report) -> Result<Self, String> {
        std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        let options = File::options().create(true).truncate(false).write(true).open(folder.join(".lock"));
        let file = options.map_err(|error| error.to_string())?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) => {
                    if !told {
                        report.line(&format!("another process is fetching {what}: waiting for it"));
                        told = true;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(TryLockError::Error(error)) => return Err(error.to_string()),
            }
        }
    }
}
