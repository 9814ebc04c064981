//! What can go wrong with files, and whose fault it is.
//!
//! Every message is one line that names the file (or the hub name) first, then the tensor or key, then what was
//! expected. Text that comes out of a file is escaped and cut before it enters a message, so that a hostile file can
//! neither break the line nor fill a terminal.

use std::io;
use std::path::{Path, PathBuf};

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Whose fault an error is; exit codes and HTTP status follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// What was handed in is wrong: a broken file, a path that does not exist, a name that cannot be one.
    Input,
    /// The machine or the network: disk full, permission, memory, a hub that refuses.
    Environment,
    /// A defect of ours.
    Internal,
}

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file is not what it claims to be. Input.
    #[error("{}: {what}", one_line(.path))]
    Malformed {
        /// The file at fault.
        path: PathBuf,
        /// What is wrong in it, tensor or key first.
        what: String,
    },
    /// A file is well formed and not taken: pickled weights, a path that leaves its folder, a name already taken. Input.
    #[error("{}: {what}", one_line(.path))]
    Refused {
        /// The file or folder.
        path: PathBuf,
        /// Why, and what would be taken.
        what: String,
    },
    /// A tensor that the file does not hold was asked for. Input.
    #[error("{}: no tensor named {name:?}", one_line(.path))]
    NoTensor {
        /// The file or folder.
        path: PathBuf,
        /// The name asked for.
        name: String,
    },
    /// There is nothing at this path. Input.
    #[error("{}: no such file or folder", one_line(.path))]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// A model name, revision or address that cannot be one. Input.
    #[error("{what}")]
    Name {
        /// The name and what a name looks like.
        what: String,
    },
    /// The operating system refused. Environment (Input where the path itself is at fault).
    #[error("{}: cannot {action}: {source}", one_line(.path))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What we were doing.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A mapped file was cut short by somebody else while we hold it. Environment.
    #[error("{}: was {mapped_bytes} bytes when opened and is {now_bytes} now: it was cut while in use", one_line(.path))]
    Changed {
        /// The file.
        path: PathBuf,
        /// Length when it was mapped.
        mapped_bytes: u64,
        /// Length now.
        now_bytes: u64,
    },
    /// Memory that the file's real size justifies could not be had. Environment.
    #[error("{}: no memory for {bytes} bytes", one_line(.path))]
    Memory {
        /// The file being read.
        path: PathBuf,
        /// How much was asked for.
        bytes: u64,
    },
    /// The hub did not give what was asked for, or gave something else than it promised. Environment.
    #[error("{name}: {what}")]
    Hub {
        /// The model's name on the hub.
        name: String,
        /// What the hub did.
        what: String,
    },
    /// This crate was called in a way its contract excludes. Internal.
    #[error("{}: {what} (a defect of this program)", one_line(.path))]
    Misuse {
        /// The file being written.
        path: PathBuf,
        /// What was done wrong.
        what: String,
    },
}

impl Error {
    /// Whose fault this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Malformed { .. }
            | Self::Refused { .. }
            | Self::NoTensor { .. }
            | Self::NotFound { .. }
            | Self::Name { .. } => ErrorKind::Input,
            Self::Io { source, .. } if path_at_fault(source) => ErrorKind::Input,
            Self::Io { .. } | Self::Changed { .. } | Self::Memory { .. } | Self::Hub { .. } => ErrorKind::Environment,
            Self::Misuse { .. } => ErrorKind::Internal,
        }
    }

    /// Whether what was handed in is wrong.
    pub fn is_input(&self) -> bool {
        self.kind() == ErrorKind::Input
    }

    /// The file `path` is broken in this way.
    pub(crate) fn malformed(path: &Path, what: impl AsRef<str>) -> Self {
        Self::Malformed { path: path.to_path_buf(), what: clean(what.as_ref()) }
    }

    /// The file `path` is refused for this reason.
    pub(crate) fn refused(path: &Path, what: impl AsRef<str>) -> Self {
        Self::Refused { path: path.to_path_buf(), what: clean(what.as_ref()) }
    }

    /// A bad name, revision or address.
    pub(crate) fn name(what: impl AsRef<str>) -> Self {
        Self::Name { what: clean(what.as_ref()) }
    }

    /// The hub misbehaved about model `name`.
    pub(crate) fn hub(name: &str, what: impl AsRef<str>) -> Self {
        Self::Hub { name: clean(name), what: clean(what.as_ref()) }
    }

    /// Our own caller misbehaved.
    pub(crate) fn misuse(path: &Path, what: impl AsRef<str>) -> Self {
        Self::Misuse { path: path.to_path_buf(), what: clean(what.as_ref()) }
    }

    /// Turns the system's answer into ours: `file.read(..).map_err(Error::io(path, "read"))`.
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { path },
            _ => Self::Io { path, action, source },
        }
    }
}

/// System errors that say the path handed in is wrong rather than the machine.
fn path_at_fault(source: &io::Error) -> bool {
    /// `ELOOP` of Linux; the library's own name for it is not stable yet.
    const SYMLINK_LOOP: i32 = 40;
    matches!(
        source.kind(),
        io::ErrorKind::IsADirectory
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidFilename
    ) || (cfg!(target_os = "linux") && source.raw_os_error() == Some(SYMLINK_LOOP))
}

/// A path as part of one line.
fn one_line(path: &Path) -> String {
    escape(&path.display().to_string(), 4096)
}

/// Text that may hold pieces of a hostile file, as part of one line of bounded length.
pub(crate) fn clean(text: &str) -> String {
    escape(text, 400)
}

/// Escapes control characters, and cuts after `limit` characters.
fn escape(text: &str, limit: usize) -> String {
    let mut out = String::with_capacity(text.len().min(limit));
    for (count, c) in text.chars().enumerate() {
        if count == limit {
            out.push('…');
            break;
        }
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}') {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// A name from a file, quoted and cut, for messages.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", escape(name, 120))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_stay_on_one_line_and_short() {
        let error = Error::malformed(Path::new("a\nb"), format!("tensor {}", "x\n".repeat(10_000)));
        let text = error.to_string();
        assert!(!text.contains('\n') && text.chars().count() < 900, "{text}");
    }

    #[test]
    fn kinds_follow_the_fault() {
        let io = |code: io::ErrorKind| Error::io(Path::new("x"), "read")(code.into()).kind();
        assert_eq!(io(io::ErrorKind::NotFound), ErrorKind::Input);
        assert_eq!(io(io::ErrorKind::NotADirectory), ErrorKind::Input);
        assert_eq!(io(io::ErrorKind::StorageFull), ErrorKind::Environment);
        assert_eq!(io(io::ErrorKind::PermissionDenied), ErrorKind::Environment);
        assert_eq!(Error::misuse(Path::new("x"), "y").kind(), ErrorKind::Internal);
    }
}
