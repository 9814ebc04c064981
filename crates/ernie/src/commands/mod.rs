//! One file a command: its arguments, what it does, what it prints.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod quantize;
pub(crate) mod score;
#[cfg(feature = "http")]
pub(crate) mod serve;
pub(crate) mod store;
pub(crate) mod tokenize;
pub(crate) mod train;

use crate::{
    cli::{Cli, Command, options::Global},
    environment,
    exit::Exit,
    failure::Result,
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

/// Runs the command that was typed.
pub(crate) fn run(cli: Cli) -> Result<Exit> {
    interrupt::install();
    let printer = Printer::new(cli.global.quiet);
    log(&cli, &printer);
    threads(&cli.global);
    let workers = machine::threads(cli.global.threads);
    match cli.command {
        Command::Quickstart(args) => quickstart::run(&args, &printer),
        Command::Chat(args) => chat::run(&args, &printer),
        Command::Generate(args) => generate::run(&args, &printer),
        Command::Inspect(args) => inspect::run(&args, &printer),
        Command::Train(args) => train::run(&args, &printer),
        Command::Eval(args) => eval::run(&args, &printer),
        Command::Score(args) => score::run(&args, &printer),
        Command::Logits(args) => logits::run(&args, &printer),
        #[cfg(feature = "http")]
        Command::Serve(args) => serve::run(&args, &printer),
        Command::Bench(args) => bench::run(&args, workers, &printer),
        Command::Quantize(args) => quantize::run(&args, &printer),
        Command::Tokenize { action } => tokenize::run(&action, &printer),
        Command::Pull(args) => store::pull(&args, &printer),
        Command::List(args) => store::list(&args, &printer),
        Command::Remove(args) => store::remove(&args, &printer),
    }
}

/// The libraries' log goes to stderr, and only when it is asked for. A server logs its requests unless told otherwise.
fn log(cli: &Cli, printer: &Printer) {
    #[cfg(feature = "http")]
    let (usual, json) = match &cli.command {
        Command::Serve(args) => (!cli.global.quiet, args.logs_json()),
        _ => (false, false),
    };
    #[cfg(not(feature = "http"))]
    let (usual, json) = (false, false);
    if let Some(filter) = environment::log_filter().or_else(|| usual.then(|| "ernie_serve=info".to_owned())) {
        let log = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
            .with_ansi(printer.colours_talk() && !json)
            .with_writer(std::io::stderr);
        let _ = if json { log.json().flatten_event(true).try_init() } else { log.try_init() };
    }
}

/// Sets the number of worker threads before anything runs on them.
fn threads(global: &Global) {
    if let Some(threads) = global.threads {
        ernie_kernels::set_threads(usize::from(threads));
    }
}
