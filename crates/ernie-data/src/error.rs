//! The one error type of this crate, grouped by whose fault it is.
//!
//! Messages are one line: what, where, and what was expected.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose fault an error is; exit codes and HTTP statuses follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller's file, text or setting is wrong.
    Input,
    /// Disk, memory or network.
    Environment,
    /// A defect of ours.
    Internal,
}

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // Input.
    /// A tokenizer file is malformed or asks for something that is not supported.
    #[error("tokenizer {at}: {what}")]
    Tokenizer {
        /// File, or where in it.
        at: String,
        /// What is wrong and what was expected.
        what: String,
    },
    /// A folder holds no tokenizer.
    #[error(
        "{}: no tokenizer (expected tokenizer.json or tokenizer.model)",
        path.display()
    )]
    NoTokenizer {
        /// The folder.
        path: PathBuf,
    },
    /// Text that a tokenizer cannot encode within its limits.
    #[error("text cannot be encoded: {0}")]
    Encode(String),
    /// A chat template is malformed, or failed on these messages.
    #[error("chat template: {0}")]
    Template(String),
    /// A data file is malformed, or a data setting matches nothing.
    #[error("data {at}: {what}")]
    Data {
        /// File and line, or the pattern at fault.
        at: String,
        /// What is wrong and what was expected.
        what: String,
    },
    /// A data setting is wrong.
    #[error("{key}: {what}")]
    Setting {
        /// The key as the recipe spells it.
        key: String,
        /// What is wrong and what was expected.
        what: String,
    },
    /// The saved position does not belong to this data.
    #[error("cannot resume: {0}")]
    Resume(String),
    /// A file below this crate could not be read.
    #[error(transparent)]
    Files(#[from] ernie_files::Error),
    // Environment.
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    // Internal.
    /// A defect of ours.
    #[error("internal: {0}")]
    Internal(String),
}

impl Error {
    /// Whose fault this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Tokenizer { .. } | Error::NoTokenizer { .. } | Error::Encode(_) | Error::Template(_) => {
                ErrorKind::Input
            }
            Error::Files(_) => ErrorKind::Input,
            Error::Data { .. } | Error::Setting { .. } | Error::Resume(_) => ErrorKind::Input,
            Error::Io { .. } => ErrorKind::Environment,
            Error::Internal(_) => ErrorKind::Internal,
        }
    }

    /// True when the caller's input is at fault.
    pub fn is_input(&self) -> bool {
        self.kind() == ErrorKind::Input
    }
}
