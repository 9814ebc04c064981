//! `ernie`, one program for the ERNIE-4.5 series: this file only hands the command line to the rooms.
//!
//! The binary composes the libraries; it alone prints, exits, and reads the environment.

mod adapters;
mod bundled;
mod cli;
mod commands;
mod environment;
mod exit;
mod failure;
mod interrupt;
mod machine;
mod model;
mod printer;
mod progress;
mod quickstart;
mod report;
#[cfg(feature = "otel")]
mod traces;

use ernie_kernels::memory::Checked;
use mimalloc::MiMalloc;

/// Activations of a pass are large and short-lived: an allocator that keeps their pages spares the kernel clearing them
/// anew in every layer. Where there is no more memory, the program ends as for any other lack of its environment.
#[global_allocator]
static ALLOCATOR: Checked<MiMalloc> = Checked::new(MiMalloc, exit::out_of_memory);

fn main() -> std::process::ExitCode {
    exit::report_panics();
    match cli::parse().and_then(commands::run) {
        Ok(code) => code.into(),
        Err(failure) => printer::failure(&failure).into(),
    }
}
