//! What went wrong, whose fault it is, and the cure where we know one.
//!
//! Libraries say whose fault an error is (`kind()`); here that becomes an exit code. A failure
//! prints as one `error:` line and at most one `hint:` line.

use crate::exit::{Exit, HOW_TO_GET_MEMORY, HOW_TO_REPORT};

/// The result of everything a command does.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// One failure, ready to be printed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The code the program leaves with.
    pub(crate) exit: Exit,
    /// One line: what, where, what was expected. Empty means nothing is printed.
    pub(crate) message: String,
    /// The cure, where we know it.
    pub(crate) hint: Option<String>,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        // Errors of readers may quote a file; whatever they quote, a failure stays one line.
        let message = one_line(&message.into());
        let hint = (exit == Exit::Defect).then(|| HOW_TO_REPORT.to_owned());
        Failure { exit, message, hint }
    }

    /// Bad usage or bad input.
    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self::new(Exit::Input, message)
    }

    /// Disk, memory, network.
    pub(crate) fn environment(message: impl Into<String>) -> Self {
        Self::new(Exit::Environment, message)
    }

    /// A defect of ours.
    pub(crate) fn defect(message: impl Into<String>) -> Self {
        Self::new(Exit::Defect, message)
    }

    /// Something of the contract that does not exist yet, named.
    pub(crate) fn not_built(what: &str) -> Self {
        Self::input(format!("{what} is not built yet"))
    }

    /// The user or a signal stopped the program.
    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self::new(Exit::Interrupted, message)
    }

    /// A reader of our output went away; that is no error and says nothing.
    pub(crate) fn quiet() -> Self {
        Failure { exit: Exit::Done, message: String::new(), hint: None }
    }

    /// Adds the cure.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(one_line(&hint.into()));
        self
    }

    /// Adds what we were doing, in front.
    pub(crate) fn context(mut self, doing: impl std::fmt::Display) -> Self {
        self.message = one_line(&format!("{doing}: {}", self.message));
        self
    }

    /// Files the error of the operating system by whose fault it is.
    pub(crate) fn io(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let message = format!("{what}: {error}");
        match error.kind() {
            K::BrokenPipe => Self::quiet(),
            K::NotFound | K::InvalidData | K::InvalidInput | K::IsADirectory | K::NotADirectory => Self::input(message),
            _ => Self::environment(message),
        }
    }
}

/// Line breaks and other control characters become spaces, and the line is kept readable.
fn one_line(text: &str) -> String {
    const LONGEST: usize = 600;
    let flat: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if flat.chars().count() <= LONGEST {
        return flat;
    }
    let cut: String = flat.chars().take(LONGEST).collect();
    format!("{cut}…")
}

/// Whether the system's answer behind an error is that it has no memory, as for a file that cannot be mapped.
fn lacks_memory(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::OutOfMemory)
}

/// Each room's error brings the room's own judgement of whose fault it is.
macro_rules! from_room {
    ($($room:ident),*) => {$(
        impl From<$room::Error> for Failure {
            fn from(error: $room::Error) -> Self {
                let exit = match error.kind() {
                    $room::ErrorKind::Input => Exit::Input,
                    $room::ErrorKind::Environment => Exit::Environment,
                    $room::ErrorKind::Internal => Exit::Defect,
                };
                let failure = Failure::new(exit, error.to_string());
                if lacks_memory(&error) { failure.hint(HOW_TO_GET_MEMORY) } else { failure }
            }
        }
    )*};
}

from_room!(ernie_files, ernie_data, ernie_model, ernie_train, ernie_serve, ernie_eval);

/// Shapes are checked where models are loaded, so whatever reaches this far is ours.
impl From<ernie_nn::Error> for Failure {
    fn from(error: ernie_nn::Error) -> Self {
        Failure::defect(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_whatever_it_quotes() {
        let failure = Failure::input("bad\nheader\u{1b}[31m").context("reading a\tfile");
        assert_eq!(failure.message, "reading a file: bad header [31m");
    }

    #[test]
    fn defects_say_how_to_report_them() {
        let failure = Failure::defect("x");
        assert_eq!(failure.exit, Exit::Defect);
        assert!(failure.hint.is_some_and(|h| h.contains("report")));
    }

    #[test]
    fn a_reader_that_went_away_is_no_error() {
        let gone = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let failure = Failure::io("writing", &gone);
        assert_eq!(failure.exit, Exit::Done);
        assert!(failure.message.is_empty());
    }
}
