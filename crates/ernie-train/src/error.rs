//! The errors of training, grouped by whose fault they are.
//!
//! Each prints as one line that names the file, key, step or tensor at fault and what was expected.

use std::path::{Path, PathBuf};

/// The result of everything fallible in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Whose fault an [`Error`] is; exit codes follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The recipe, the data or the checkpoint that was handed in.
    Input,
    /// Disk, memory, permissions.
    Environment,
    /// A defect of ours.
    Internal,
}

/// What can go wrong between a recipe and a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recipe is not TOML.
    #[error("{path}: not TOML: {message}")]
    Syntax {
        /// The recipe file, or `--set` with its argument.
        path: String,
        /// What the parser says, on one line.
        message: String,
    },
    /// The recipe is TOML, but not a recipe; all problems at once.
    #[error("{path}: {}", problems.join("; "))]
    Recipe {
        /// The recipe file.
        path: String,
        /// One sentence a problem, each starting with the dotted key.
        problems: Vec<String>,
    },
    /// The recipe asks for something that this build does not do yet.
    #[error("{key} = {value} is not built yet; built: {built}")]
    NotBuilt {
        /// The dotted key.
        key: &'static str,
        /// What it was set to.
        value: String,
        /// What it may be set to.
        built: &'static str,
    },
    /// The data give no example to train on.
    #[error("{what}: no training example: {message}")]
    NoData {
        /// The recipe's key.
        what: &'static str,
        /// What was found.
        message: String,
    },
    /// The output folder has something in it and resuming was not asked for.
    #[error("{}: not empty, expected a new or empty folder for a new run", path.display())]
    NotEmpty {
        /// The output folder.
        path: PathBuf,
    },
    /// The run cannot go on as it began.
    #[error("{}: cannot resume: {message}", path.display())]
    Resume {
        /// The checkpoint.
        path: PathBuf,
        /// What differs, and what was expected.
        message: String,
    },
    /// A file of a saved training state is broken or of another version.
    #[error("{}: {message}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong and what was expected.
        message: String,
    },
    /// The loss, the gradient or a weight stopped being a number.
    #[error("step {step}: {what} is {value}, expected a finite number; {last}")]
    NotFinite {
        /// The step, counted from 1, as in the log.
        step: u64,
        /// `loss`, `grad_norm`, or the name of a weight.
        what: String,
        /// The value met.
        value: f64,
        /// Which checkpoint is left.
        last: String,
    },
    /// The operating system refused a read or a write.
    #[error("{}: {message}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done, and the system's reason.
        message: String,
        /// The system's error, which says whose fault it is.
        #[source]
        source: std::io::Error,
    },
    /// A reader of files said no.
    #[error(transparent)]
    Files(#[from] ernie_files::Error),
    /// A tokenizer or a source said no.
    #[error(transparent)]
    Data(#[from] ernie_data::Error),
    /// A model could not be built, loaded or saved.
    #[error(transparent)]
    Model(#[from] ernie_model::Error),
    /// An operation on tensors failed.
    #[error(transparent)]
    Nn(#[from] ernie_nn::Error),
    /// A promise between our own parts was broken.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// An I/O error at `path` while `doing` something, such as `"cannot write"`.
    pub(crate) fn io(path: &Path, doing: &str, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), message: format!("{doing}: {source}"), source }
    }

    /// A broken state file.
    pub(crate) fn state(path: &Path, message: impl Into<String>) -> Self {
        Self::State { path: path.to_owned(), message: message.into() }
    }

    /// Whose fault this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Syntax { .. }
            | Self::Recipe { .. }
            | Self::NotBuilt { .. }
            | Self::NoData { .. }
            | Self::NotEmpty { .. }
            | Self::Resume { .. }
            | Self::State { .. }
            | Self::NotFinite { .. } => ErrorKind::Input,
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound
                | std::io::ErrorKind::NotADirectory
                | std::io::ErrorKind::AlreadyExists
                | std::io::ErrorKind::IsADirectory
                | std::io::ErrorKind::InvalidData
                | std::io::ErrorKind::InvalidInput => ErrorKind::Input,
                _ => ErrorKind::Environment,
            },
            Self::Files(error) => match error.kind() {
                ernie_files::ErrorKind::Input => ErrorKind::Input,
                ernie_files::ErrorKind::Environment => ErrorKind::Environment,
                ernie_files::ErrorKind::Internal => ErrorKind::Internal,
            },
            Self::Data(error) => match error.kind() {
                ernie_data::ErrorKind::Input => ErrorKind::Input,
                ernie_data::ErrorKind::Environment => ErrorKind::Environment,
                ernie_data::ErrorKind::Internal => ErrorKind::Internal,
            },
            Self::Model(error) => match error.kind() {
                ernie_model::ErrorKind::Input => ErrorKind::Input,
                ernie_model::ErrorKind::Environment => ErrorKind::Environment,
                ernie_model::ErrorKind::Internal => ErrorKind::Internal,
            },
            Self::Nn(_) | Self::Internal(_) => ErrorKind::Internal,
        }
    }

    /// Whether whoever called handed in something wrong.
    pub fn is_input(&self) -> bool {
        self.kind() == ErrorKind::Input
    }
}
