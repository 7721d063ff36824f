//! Owns the ways a device can fail its caller. Messages say what was tried, on what, and what to do.

/// What every fallible call of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device is not there, or cannot be used. Says why.
    #[error("{device}: {reason}")]
    Unavailable { device: String, reason: String },
    /// A tensor's bytes, shape and format contradict each other.
    #[error("tensor {0}")]
    Tensor(String),
    /// A model broke a shape rule while it was recorded; the path names the layer.
    #[error("{path}: {message}")]
    Record { path: String, message: String },
    /// The device cannot do what the program asks.
    #[error("{device} does not support {what}")]
    Unsupported { device: &'static str, what: String },
    /// A device's own compiler failed on a program, or none was found where one is needed.
    #[error("{device}: compiling failed: {reason}")]
    Compile { device: &'static str, reason: String },
    /// Memory ran out. `needed` and `free` in bytes.
    #[error("{what} needs {needed} bytes of memory but only {free} are free")]
    OutOfMemory { what: String, needed: u64, free: u64 },
    /// A launch failed; the device still works.
    #[error("{device}: step failed: {reason}")]
    Launch { device: &'static str, reason: String },
    /// The device is gone; nothing on it works any more.
    #[error("{device} lost: {reason}")]
    Lost { device: &'static str, reason: String },
}

impl Error {
    /// True when no later call on this device can succeed.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Unavailable { .. })
    }
}
