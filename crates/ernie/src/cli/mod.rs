//! The command line: what can be typed, and the help that answers.
//!
//! Only commands and flags that do something exist here. A command of the contract that is still to
//! come is refused by name (see [`unbuilt`]), so that nobody mistakes it for a typing error.

pub(crate) mod options;
pub(crate) mod sampling;
mod unbuilt;

#[cfg(feature = "http")]
use crate::commands::serve;
use crate::{
    commands::{
        bench, chat, classify, convert, eval, generate, inspect, logits, merge, quantize, report, score, store,
        tokenize, train, upcycle,
    },
    exit::Exit,
    failure::{Failure, Result},
    quickstart,
};
use clap::{
    CommandFactory, FromArgMatches, Parser, Subcommand,
    builder::styling::{AnsiColor, Styles},
    error::{ContextKind, ContextValue, ErrorKind},
};

/// The ERNIE-4.5 series in one program: run, train, compress and evaluate, without Python.
#[derive(Debug, Parser)]
#[command(
    name = "ernie",
    version = crate::commands::VERSION,
    styles = STYLES,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    infer_long_args = false,
    before_help = "Example:\n  ernie quickstart\n  ernie chat runs/quickstart",
    after_help = "A MODEL is a folder in the published layout, a .gguf file, a hub name fetched with `ernie pull`,\n\
                  preset:NAME (that shape, random weights), or a run folder written by `ernie train`.\n\
                  `ernie COMMAND --help` shows an example first."
)]
pub(crate) struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub(crate) global: options::Global,
    /// The command.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// One command each.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Quickstart(quickstart::Args),
    Chat(chat::Args),
    Generate(generate::Args),
    Inspect(inspect::Args),
    Train(train::Args),
    Report(report::Args),
    Eval(eval::Args),
    Score(score::Args),
    Classify(classify::Args),
    Logits(logits::Args),
    Bench(bench::Args),
    #[cfg(feature = "http")]
    Serve(serve::Args),
    Quantize(quantize::Args),
    Merge(merge::Args),
    Upcycle(upcycle::Args),
    Convert(convert::Args),
    /// Text to ids, ids to text, and a new byte-level BPE tokenizer
    #[command(before_help = "Example:\n  echo 'The quick brown fox' | ernie tokenize encode runs/quickstart")]
    Tokenize {
        /// Which way.
        #[command(subcommand)]
        action: tokenize::Action,
    },
    Pull(store::PullArgs),
    List(store::ListArgs),
    Remove(store::RemoveArgs),
}

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Parses this process's command line. Help and version are printed here and end the program well.
pub(crate) fn parse() -> Result<Cli> {
    let matches = Cli::command().try_get_matches();
    match matches.and_then(|m| Cli::from_arg_matches(&m)) {
        Ok(cli) => Ok(cli),
        Err(error) => Err(refuse(&error)),
    }
}

/// Turns clap's answer into ours: one `error:` line, then a `hint:` line.
fn refuse(error: &clap::Error) -> Failure {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Help is data: it was asked for. A closed pipe is fine.
            let _ = error.print();
            Failure::quiet()
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            Failure { exit: Exit::Input, ..Failure::quiet() }
        }
        kind => {
            if let Some(failure) = not_built(error, kind) {
                return failure;
            }
            let text = error.render().to_string();
            let mut parts = text.split("\n\n");
            let first = parts.next().unwrap_or_default();
            let message = first.strip_prefix("error: ").unwrap_or(first);
            let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
            let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: ")).map(str::to_owned);
            let usage = text
                .lines()
                .find_map(|line| line.trim().strip_prefix("Usage: "))
                .map(|usage| format!("usage: {usage}"));
            let hint = tip.or(usage).unwrap_or_else(|| "see `ernie --help`".to_owned());
            Failure::input(message).hint(hint)
        }
    }
}

/// The refusal of a command of the contract that is still to come.
fn not_built(error: &clap::Error, kind: ErrorKind) -> Option<Failure> {
    let (ErrorKind::InvalidSubcommand, Some(ContextValue::String(typed))) =
        (kind, error.get(ContextKind::InvalidSubcommand))
    else {
        return None;
    };
    let what = unbuilt::command(typed)?;
    Some(Failure::not_built(&format!("`ernie {typed}` ({what})")).hint("`ernie --help` lists what is built"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declaration_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example_first() {
        fn check(command: &mut clap::Command, path: &str) {
            let help = command.render_long_help().to_string();
            assert!(help.starts_with("Example:\n  "), "{path}: {help}");
            let subcommands: Vec<_> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
            for name in subcommands {
                if let Some(sub) = command.find_subcommand_mut(&name) {
                    check(sub, &format!("{path} {name}"));
                }
            }
        }
        check(&mut Cli::command(), "ernie");
    }

    #[test]
    fn what_is_unbuilt_is_not_also_built() {
        for name in unbuilt::commands() {
            assert!(Cli::command().find_subcommand(name).is_none(), "{name} is built");
        }
    }
}
