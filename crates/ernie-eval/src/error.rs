//! What can go wrong in an evaluation, grouped by whose fault it is.

use std::path::PathBuf;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Whose fault an [`Error`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller's file or setting.
    Input,
    /// The machine.
    Environment,
    /// A defect of ours.
    Internal,
}

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task that does not exist.
    #[error("task {name}: there is none of this name (expected one of {known})")]
    UnknownTask {
        /// What was asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A task whose data may not be shipped was run without data.
    #[error("task {task}: it needs data that may not be shipped; {had}")]
    NeedsData {
        /// The task.
        task: &'static str,
        /// Where the data is had and how it is named to us.
        had: &'static str,
    },
    /// Data in another form than the task documents.
    #[error("{at}: {what}")]
    Data {
        /// File and line.
        at: String,
        /// What is wrong and what was expected.
        what: String,
    },
    /// A setting out of its range.
    #[error("{name} is {value}: expected {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is accepted.
        expected: String,
    },
    /// A server that cannot be measured.
    #[error("{url}: {what}")]
    Server {
        /// Where.
        url: String,
        /// What it did.
        what: String,
    },
    /// A file that cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The engine refused or failed.
    #[error(transparent)]
    Serve(#[from] ernie_serve::Error),
    /// Text could not be turned into ids.
    #[error(transparent)]
    Text(#[from] ernie_data::Error),
    /// Something that cannot happen did.
    #[error("internal: {0}")]
    Internal(String),
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownTask { .. } | Self::NeedsData { .. } | Self::Data { .. } | Self::Setting { .. } => {
                ErrorKind::Input
            }
            // A path that the caller named and that is not there is the caller's; a disk that fails is not.
            Self::Read { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound
                | std::io::ErrorKind::IsADirectory
                | std::io::ErrorKind::InvalidInput
                | std::io::ErrorKind::InvalidData
                | std::io::ErrorKind::UnexpectedEof => ErrorKind::Input,
                _ => ErrorKind::Environment,
            },
            Self::Server { .. } => ErrorKind::Environment,
            Self::Serve(error) => match error.kind() {
                ernie_serve::ErrorKind::Input => ErrorKind::Input,
                ernie_serve::ErrorKind::Environment => ErrorKind::Environment,
                ernie_serve::ErrorKind::Internal => ErrorKind::Internal,
            },
            Self::Text(error) => match error.kind() {
                ernie_data::ErrorKind::Input => ErrorKind::Input,
                ernie_data::ErrorKind::Environment => ErrorKind::Environment,
                ernie_data::ErrorKind::Internal => ErrorKind::Internal,
            },
            Self::Internal(_) => ErrorKind::Internal,
        }
    }

    /// Whether the caller is at fault.
    pub fn is_input(&self) -> bool {
        self.kind() == ErrorKind::Input
    }
}
