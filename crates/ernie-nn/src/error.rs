//! What can go wrong between a tensor and a kernel.

/// Errors of this room. All of them are defects of the caller's program, never of a user's file:
/// shapes are checked at the door, when a model is loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Shapes that do not fit together.
    #[error("{op}: {what}")]
    Shape {
        /// The op that refused.
        op: &'static str,
        /// Both shapes, in words.
        what: String,
    },
    /// `backward` on a value that nothing recorded, or that is not a scalar.
    #[error("backward: {0}")]
    Backward(&'static str),
    /// A failure inside candle.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Result with this room's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A shape error of `op`.
    pub fn shape(op: &'static str, what: impl Into<String>) -> Self {
        Self::Shape { op, what: what.into() }
    }
}

/// Refuses with a shape error unless `ok`.
pub(crate) fn ensure(ok: bool, op: &'static str, what: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::shape(op, what())) }
}
