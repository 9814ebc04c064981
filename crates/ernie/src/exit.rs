//! Exit codes, and the ways out that are no [`crate::failure::Failure`]: a panic, and a lack of memory.
//!
//! The numbers are part of the contract with scripts. A panic anywhere in the program becomes one
//! `error:` line that says how to report it and code 4, never a stack of frames; one because the system gives no thread, and
//! an allocation that it refuses, are the environment's and code 3.

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

/// What helps where memory is short.
pub(crate) const HOW_TO_GET_MEMORY: &str =
    "a smaller model, `--weights int8`, a shorter context or a higher limit of memory (`ulimit -v`, the container's)";

/// What helps where threads are short.
pub(crate) const HOW_TO_GET_THREADS: &str =
    "`--threads 1`, or a higher limit of threads (`ulimit -u`) or memory (`ulimit -v`)";

/// How the panics begin by which the standard library and the runtime of the server say that the system gives no thread.
const NO_THREAD: [&str; 3] =
    ["failed to spawn thread", "OS can't spawn worker thread", "failed to allocate an alternative stack"];

/// Room for the lines of [`out_of_memory`]; what does not fit is left out.
const LINES_BYTES: usize = 400;

/// Ends the program because an allocation was refused. Nothing here allocates.
pub(crate) fn out_of_memory(bytes: usize) -> ! {
    let mut lines = [0; LINES_BYTES];
    let mut rest = &mut lines[..];
    let _ = writeln!(rest, "error: out of memory: the system refuses {bytes} bytes more\nhint: {HOW_TO_GET_MEMORY}");
    let written = LINES_BYTES - rest.len();
    ernie_kernels::memory::leave(Exit::Environment as i32, &lines[..written])
}

/// Turns a panic on any thread into one `error:` line and its exit code.
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        if ernie_data::source::panics_are_caught() {
            return;
        }
        let (exit, lines) = last_words(panic);
        // A server fails the requests of the thread that broke, and goes on.
        if ernie_kernels::panics_are_caught() {
            // A reader that has gone away makes printing fail; nothing more can be said then.
            let _ = std::io::stderr().write_all(lines.as_bytes());
            return;
        }
        // Threads that wait for the one that broke would wait for ever, so the process ends here; and at once, because one that
        // ends for want of a thread may be short of memory before it has ended.
        ernie_kernels::memory::leave(exit as i32, lines.as_bytes());
    }));
}

/// The exit code of a panic, and the two lines that are printed for it.
fn last_words(panic: &std::panic::PanicHookInfo<'_>) -> (Exit, String) {
    let what = panic.payload_as_str().unwrap_or("a panic without a message");
    let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
    if NO_THREAD.iter().any(|begin| what.starts_with(begin)) {
        return (Exit::Environment, format!("error: {what}\nhint: {HOW_TO_GET_THREADS}\n"));
    }
    let place = panic.location().map_or_else(String::new, |l| format!(" at {}:{}", l.file(), l.line()));
    (Exit::Defect, format!("error: internal: {what}{place}\nhint: {HOW_TO_REPORT}\n"))
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
