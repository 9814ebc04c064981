//! What can go wrong while serving, grouped by whose fault it is.

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Whose fault an [`Error`] is: decides exit codes and HTTP statuses above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller asked for something that cannot be done; asking again will not help.
    Input,
    /// The machine or the load stands in the way; the same request may pass later.
    Environment,
    /// A defect of ours.
    Internal,
}

/// What the engine or a session refuses or fails at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request without a single prompt id.
    #[error("the prompt is empty: at least one token id is needed")]
    EmptyPrompt,
    /// A score request without a continuation.
    #[error("the continuation is empty: at least one token id is needed")]
    EmptyContinuation,
    /// A token id the model does not have.
    #[error(
        "{what}: token id {id} at index {index} is outside the vocabulary (expected 0 to {})",
        vocab_size.saturating_sub(1)
    )]
    UnknownId {
        /// Which list the id stands in.
        what: &'static str,
        /// The id.
        id: u32,
        /// Where it stands in that list.
        index: usize,
        /// Rows of the model's vocabulary.
        vocab_size: usize,
    },
    /// More tokens than the context holds.
    #[error("{what} has {tokens} tokens, the context holds {context_length}{}", if *.room { " and one must stay free for the answer" } else { "" })]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its length in tokens.
        tokens: usize,
        /// What the context holds in tokens.
        context_length: usize,
        /// Whether one position must stay free for an answer.
        room: bool,
    },
    /// More tokens than the cache may ever hold.
    #[error("the request needs {needed_tokens} tokens of cache, the engine was given {cache_tokens}")]
    TooLarge {
        /// Positions the request needs, its answer included.
        needed_tokens: usize,
        /// Positions the whole cache may hold.
        cache_tokens: usize,
    },
    /// A parameter out of its range.
    #[error("{name} is {value}: expected {expected}")]
    Parameter {
        /// The parameter's name.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is accepted.
        expected: String,
    },
    /// A schema, pattern, tool or message that cannot be honoured.
    #[error("{at}: {what}")]
    Refused {
        /// Where it stands: `schema #/properties/age`, `tools[2].function.name`.
        at: String,
        /// What is wrong with it, or what was expected.
        what: String,
    },
    /// The queue is at its limit.
    #[error("{waiting} requests are waiting already, the limit is {limit}: try again later")]
    QueueFull {
        /// Requests in the queue.
        waiting: usize,
        /// The queue's limit.
        limit: usize,
    },
    /// One request failed while it ran; the engine goes on.
    #[error("the request failed: {0}")]
    Failed(String),
    /// The model could not run.
    #[error(transparent)]
    Model(#[from] ernie_model::Error),
    /// Arithmetic could not be done.
    #[error(transparent)]
    Arithmetic(#[from] ernie_nn::Error),
    /// Text could not be turned into ids.
    #[error(transparent)]
    Data(#[from] ernie_data::Error),
    /// The operating system gives no threads or sockets.
    #[error("the system refuses: {0}")]
    System(String),
    /// Something that cannot happen did.
    #[error("internal: {0}")]
    Internal(String),
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::EmptyPrompt
            | Self::EmptyContinuation
            | Self::UnknownId { .. }
            | Self::TooLong { .. }
            | Self::Parameter { .. }
            | Self::Refused { .. }
            | Self::Failed(_) => ErrorKind::Input,
            Self::TooLarge { .. } | Self::QueueFull { .. } | Self::System(_) => ErrorKind::Environment,
            Self::Model(error) => match error.kind() {
                ernie_model::ErrorKind::Input => ErrorKind::Input,
                ernie_model::ErrorKind::Environment => ErrorKind::Environment,
                ernie_model::ErrorKind::Internal => ErrorKind::Internal,
            },
            Self::Data(error) => match error.kind() {
                ernie_data::ErrorKind::Input => ErrorKind::Input,
                ernie_data::ErrorKind::Environment => ErrorKind::Environment,
                ernie_data::ErrorKind::Internal => ErrorKind::Internal,
            },
            Self::Arithmetic(_) | Self::Internal(_) => ErrorKind::Internal,
        }
    }

    /// Whether the caller is at fault.
    pub fn is_input(&self) -> bool {
        self.kind() == ErrorKind::Input
    }

    pub(crate) fn refused(at: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Refused { at: at.into(), what: what.into() }
    }

    pub(crate) fn parameter(name: &'static str, value: impl ToString, expected: impl Into<String>) -> Self {
        Self::Parameter { name, value: value.to_string(), expected: expected.into() }
    }
}
