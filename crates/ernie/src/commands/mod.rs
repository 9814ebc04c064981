//! One file a command: its arguments, what it does, what it prints.

pub(crate) mod bench;
pub(crate) mod chat;
mod checkpoint;
pub(crate) mod classify;
pub(crate) mod convert;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod merge;
pub(crate) mod quantize;
pub(crate) mod report;
pub(crate) mod score;
#[cfg(feature = "http")]
pub(crate) mod serve;
pub(crate) mod store;
pub(crate) mod tokenize;
pub(crate) mod train;
pub(crate) mod upcycle;

use std::path::Path;

use tracing_subscriber::{Layer, layer::SubscriberExt, util::SubscriberInitExt};

#[cfg(feature = "otel")]
use crate::traces::Traces;
use crate::{
    cli::{Cli, Command, options::Global},
    environment,
    exit::Exit,
    failure::{Failure, Result},
    interrupt, machine,
    printer::Printer,
    quickstart,
};

/// The version as `ernie --version` prints it.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit this program was built from; `unknown` where the build was told none.
pub(crate) const COMMIT: &str = match option_env!("ERNIE_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// That a file can be written there, said before anything is measured.
pub(crate) fn check_place(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() || !folder.is_dir() {
        return Err(Failure::input(format!("{}: expected a file name in a folder that exists", path.display())));
    }
    Ok(())
}

/// Runs the command that was typed.
pub(crate) fn run(cli: Cli) -> Result<Exit> {
    interrupt::install();
    let printer = Printer::new(cli.global.quiet);
    let _logs = log(&cli, &printer)?;
    threads(&cli.global);
    let workers = machine::threads(cli.global.threads);
    match cli.command {
        Command::Quickstart(args) => quickstart::run(&args, &printer),
        Command::Chat(args) => chat::run(&args, &printer),
        Command::Generate(args) => generate::run(&args, &printer),
        Command::Inspect(args) => inspect::run(&args, &printer),
        Command::Train(args) => train::run(&args, &printer),
        Command::Report(args) => report::run(&args, &printer),
        Command::Eval(args) => eval::run(&args, &printer),
        Command::Score(args) => score::run(&args, &printer),
        Command::Classify(args) => classify::run(&args, &printer),
        Command::Logits(args) => logits::run(&args, &printer),
        #[cfg(feature = "http")]
        Command::Serve(args) => serve::run(&args, &printer),
        Command::Bench(args) => bench::run(&args, workers, &printer),
        Command::Quantize(args) => quantize::run(&args, &printer),
        Command::Merge(args) => merge::run(&args, &printer),
        Command::Upcycle(args) => upcycle::run(&args, &printer),
        Command::Convert(args) => convert::run(&args, &printer),
        Command::Tokenize { action } => tokenize::run(&action, &printer),
        Command::Pull(args) => store::pull(&args, &printer),
        Command::List(args) => store::list(&args, &printer),
        Command::Remove(args) => store::remove(&args, &printer),
    }
}

/// The libraries' log goes to stderr, and only when it is asked for. A server logs its requests unless told otherwise.
fn log(cli: &Cli, printer: &Printer) -> Result<Logs> {
    #[cfg(feature = "http")]
    let (usual, json) = match &cli.command {
        Command::Serve(args) => (!cli.global.quiet, args.logs_json()),
        _ => (false, false),
    };
    #[cfg(not(feature = "http"))]
    let (usual, json) = (false, false);
    let lines = environment::log_filter().or_else(|| usual.then(|| "ernie_serve=info".to_owned())).map(|filter| {
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let lines = lines.with_ansi(printer.colours_talk() && !json);
        let lines = if json { lines.json().flatten_event(true).boxed() } else { lines.boxed() };
        lines.with_filter(tracing_subscriber::EnvFilter::new(filter))
    });
    #[cfg(feature = "otel")]
    let traces = if let Command::Serve(_) = &cli.command { Traces::wanted().map_err(Failure::input)? } else { None };
    let silent = lines.is_none();
    let subscriber = tracing_subscriber::registry().with(lines);
    #[cfg(feature = "otel")]
    let (silent, subscriber) = (silent && traces.is_none(), subscriber.with(traces.as_ref().map(Traces::layer)));
    if !silent {
        let _ = subscriber.try_init();
    }
    Ok(Logs {
        #[cfg(feature = "otel")]
        _traces: traces,
    })
}

/// What must be sent before the program ends.
struct Logs {
    #[cfg(feature = "otel")]
    _traces: Option<Traces>,
}

/// Sets the number of worker threads before anything runs on them.
fn threads(global: &Global) {
    if let Some(threads) = global.threads {
        ernie_kernels::set_threads(usize::from(threads));
    }
}
