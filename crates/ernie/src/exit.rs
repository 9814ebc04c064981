//! Exit codes, and the one way out for defects of ours.
//!
//! The numbers are part of the contract with scripts. A panic anywhere in the program becomes one
//! `error:` line that says how to report it and code 4, never a stack of frames.

use std::{io::Write, process::ExitCode};

/// What the program answers its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// The answer is no: a gate failed. No command has a gate yet.
    #[allow(dead_code)]
    No = 1,
    /// Bad usage or bad input.
    Input = 2,
    /// The environment: disk, memory, network, port.
    Environment = 3,
    /// A defect of ours.
    Defect = 4,
    /// Interrupted by the user or by a termination signal.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// How a defect is reported; printed as the hint of every such error.
pub(crate) const HOW_TO_REPORT: &str =
    "this is a defect of ernie: please report it with this line, the command, and the output of `ernie --version`";

/// Turns a panic on any thread into one `error:` line and exit code 4.
pub(crate) fn report_defects() {
    std::panic::set_hook(Box::new(|panic| {
        if ernie_data::source::panics_are_caught() {
            return;
        }
        // A reader that has gone away makes printing fail; nothing more can be said then.
        let _ = writeln!(std::io::stderr(), "{}", defect_lines(panic));
        // A server fails the requests of the thread that broke, and goes on.
        if ernie_kernels::panics_are_caught() {
            return;
        }
        // Threads that wait for the one that broke would wait for ever, so the process ends here.
        #[allow(clippy::exit)]
        std::process::exit(Exit::Defect as i32);
    }));
}

/// The two lines printed for a panic.
fn defect_lines(panic: &std::panic::PanicHookInfo<'_>) -> String {
    let what = panic
        .payload()
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.payload().downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned());
    let place = panic.location().map_or_else(String::new, |l| format!(" at {}:{}", l.file(), l.line()));
    let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("error: internal: {what}{place}\nhint: {HOW_TO_REPORT}")
}

#[cfg(test)]
mod tests {
    use super::Exit;

    #[test]
    fn codes_are_those_of_the_contract() {
        let codes =
            [Exit::Done, Exit::No, Exit::Input, Exit::Environment, Exit::Defect, Exit::Interrupted].map(|e| e as u8);
        assert_eq!(codes, [0, 1, 2, 3, 4, 130]);
    }
}
