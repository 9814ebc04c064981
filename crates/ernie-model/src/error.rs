//! What can go wrong in this room, and whose fault it is.
//!
//! Every message is one line that names the file, key or tensor and what was expected there; the binary adds
//! the hint and the exit code, which follow from [`Error::kind`].

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose fault an error is; exit codes and HTTP statuses follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller handed in something that cannot be used: a file, a name, token ids.
    Input,
    /// The machine refused: disk, memory, permissions.
    Environment,
    /// A defect of ours.
    Internal,
}

/// Everything this crate refuses or fails at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // ---- input: configs ---------------------------------------------------------------------------------------
    /// A config that is not JSON, or not a JSON object.
    #[error("{place}: {problem}")]
    Malformed {
        /// The file or section at fault.
        place: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// A key with a value that no model can have, or that changes the numbers in a way we do not implement.
    #[error("{place}: key `{key}`: {problem}")]
    Key {
        /// The file or section at fault, `config.json` or `GGUF metadata`.
        place: String,
        /// The key, with its path when nested.
        key: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// A preset that does not exist.
    #[error("no preset is called `{name}`; there are {known}")]
    UnknownPreset {
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// Something of the family that this build does not have yet.
    #[error("{what}: not built yet")]
    NotBuilt {
        /// What was asked for.
        what: String,
    },

    // ---- input: weights ---------------------------------------------------------------------------------------
    /// A path that holds no model we can read.
    #[error("{}: {problem}", path.display())]
    NotAModel {
        /// The path at fault.
        path: PathBuf,
        /// What was expected there.
        problem: String,
    },
    /// A tensor with a shape, type or value that the config does not allow.
    #[error("{place}: tensor `{name}`: {problem}")]
    Tensor {
        /// The file or folder.
        place: String,
        /// The tensor's name as stored.
        name: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// Tensors that the config calls for and the file lacks.
    #[error("{place}: missing tensors: {names}")]
    MissingTensors {
        /// The file or folder.
        place: String,
        /// The first few names and how many more.
        names: String,
    },
    /// Tensors that nothing in the model uses and that are not on the short list of what may be skipped.
    #[error("{place}: tensors that this model has no use for: {names}")]
    UnusedTensors {
        /// The file or folder.
        place: String,
        /// The first few names and how many more.
        names: String,
    },

    // ---- input: calls -----------------------------------------------------------------------------------------
    /// Token ids, spans or lengths that do not fit the model.
    #[error("{0}")]
    Request(String),

    // ---- rooms below ------------------------------------------------------------------------------------------
    /// A file could not be read or written.
    #[error(transparent)]
    Files(#[from] ernie_files::Error),
    /// An op failed.
    #[error(transparent)]
    Nn(#[from] ernie_nn::Error),

    // ---- ours -------------------------------------------------------------------------------------------------
    /// A broken invariant of this crate.
    #[error("internal: {0}")]
    Internal(String),
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Files(error) => match error.kind() {
                ernie_files::ErrorKind::Input => ErrorKind::Input,
                ernie_files::ErrorKind::Environment => ErrorKind::Environment,
                ernie_files::ErrorKind::Internal => ErrorKind::Internal,
            },
            Error::Nn(_) | Error::Internal(_) => ErrorKind::Internal,
            _ => ErrorKind::Input,
        }
    }

    /// Whether the caller handed in something that cannot be used.
    pub fn is_input(&self) -> bool {
        self.kind() == ErrorKind::Input
    }

    pub(crate) fn key(place: &str, key: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Key { place: place.to_owned(), key: one_line(&key.into()), problem: one_line(&problem.into()) }
    }

    pub(crate) fn tensor(place: &str, name: &str, problem: impl Into<String>) -> Self {
        Error::Tensor { place: place.to_owned(), name: one_line(name), problem: one_line(&problem.into()) }
    }

    pub(crate) fn not_built(what: impl Into<String>) -> Self {
        Error::NotBuilt { what: one_line(&what.into()) }
    }
}

/// Text that may hold pieces of a hostile file as part of one line: control characters escaped, length bounded.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == 400 {
            line.push('…');
            break;
        }
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}
