//! Owns the ways a checkpoint can fail: always the file (by name, not by path) and the reason.

/// What every fallible call of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file is missing, broken or not what it should be.
    #[error("{file}: {reason}")]
    File { file: String, reason: String },
    /// No source had the model: which were tried, why each failed, what to do.
    #[error("{0}")]
    Source(String),
    /// The architecture is not known: its name, the nearest known family, where to look.
    #[error("{0}")]
    Architecture(String),
    /// A chat template refused the conversation, or text cannot be encoded.
    #[error("{0}")]
    Text(String),
    #[error(transparent)]
    Device(#[from] dualgauge_kernels::Error),
}

impl Error {
    /// One line, whatever the file smuggles into a name that the reason quotes.
    pub fn file(file: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        let line = |text: String| text.replace(char::is_control, " ");
        Self::File { file: line(file.into()), reason: line(reason.to_string()) }
    }
}
