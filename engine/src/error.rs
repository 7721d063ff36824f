//! Owns the ways an engine can fail to start. Requests fail with [`crate::Rejected`] or [`crate::Event::Failed`].

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of [`crate::EngineConfig`] is out of range.
    #[error("{field}: {message}")]
    Config { field: &'static str, message: String },
    /// The K/V cache, or what was asked of it, does not fit the memory. Says what would.
    #[error("{0}")]
    DoesNotFit(String),
    /// What was given to an embedding model cannot be computed.
    #[error("{0}")]
    Input(String),
    #[error(transparent)]
    Device(#[from] dualgauge_kernels::Error),
    #[error("the engine's thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

impl Error {
    pub(crate) fn config(field: &'static str, message: impl Into<String>) -> Self {
        Self::Config { field, message: message.into() }
    }
}
