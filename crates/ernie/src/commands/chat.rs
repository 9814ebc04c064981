//! `chat`: a conversation in the terminal, or through a pipe.
//!
//! On a terminal lines are edited and remembered; Ctrl-C stops the answer, not the program. Through a
//! pipe each line is a message and only answers reach stdout.

use crate::{
    cli::{options::WeightsOption, sampling::SamplingOptions},
    commands::generate::{engine, summary},
    environment,
    exit::Exit,
    failure::{Failure, Result},
    interrupt,
    model::Model,
    printer::Printer,
};
use ernie_serve::session::{Conversation, Options, Session};
use rustyline::{DefaultEditor, error::ReadlineError};
use std::{
    io::{BufRead, IsTerminal},
    ops::ControlFlow,
};

/// The longest line taken from a pipe.
const MAX_LINE_BYTES: u64 = 16 << 20;

const HELP: &str = "\
/help    this list
/reset   forget the conversation, keep the system message
/exit    leave (so does Ctrl-D)
Ctrl-C   stop the answer";

/// Talk to a model in the terminal
///
/// Answers stream; earlier turns are remembered as far as the context holds them. /help lists what else can
/// be typed. Ctrl-C stops an answer and keeps the program. Through a pipe each line is one message.
#[derive(Debug, clap::Args)]
#[command(before_help = "Example:\n  ernie chat\n  ernie chat runs/quickstart")]
pub(crate) struct Args {
    /// The model [default: the small one inside the program]
    model: Option<String>,
    /// A system message before the conversation
    #[arg(long, value_name = "S", allow_hyphen_values = true)]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingOptions,
    #[command(flatten)]
    weights: WeightsOption,
}

/// Runs the command.
pub(crate) fn run(args: &Args, printer: &Printer) -> Result<Exit> {
    let model = Model::find_or_bundled(args.model.as_deref())?;
    let (loaded, tokenizer, template) =
        model.load_to_talk(Some("`chat`"), &args.weights, args.sampling.seed, printer)?;
    let mut options = args.sampling.get();
    options.cancel = Some(interrupt::flag());
    let mut talk = Talk {
        session: Session::new(engine(loaded.decoder, 1)?, tokenizer, template),
        conversation: Conversation::new(args.system.clone()),
        options,
        printer: *printer,
    };
    // Options that cannot be are refused now, not at the first message.
    talk.options.sampling.check(talk.session.engine().vocab_size())?;
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        printer.say(printer.faint_talk(&format!("{}; /help for help, Ctrl-D to leave", model.name)));
        talk.at_terminal()?;
    } else {
        talk.through_pipe()?;
    }
    Ok(Exit::Done)
}

/// What a line asks for.
enum Line<'a> {
    Nothing,
    Help,
    Reset,
    Exit,
    Unknown(&'a str),
    Message(&'a str),
}

fn read(line: &str) -> Line<'_> {
    match line.trim() {
        "" => Line::Nothing,
        "/help" | "/?" => Line::Help,
        "/reset" => Line::Reset,
        "/exit" | "/quit" => Line::Exit,
        other if other.starts_with('/') && !other.starts_with("//") => Line::Unknown(other),
        _ => Line::Message(line),
    }
}

struct Talk {
    session: Session,
    conversation: Conversation,
    options: Options,
    printer: Printer,
}

impl Talk {
    fn at_terminal(&mut self) -> Result<()> {
        let trouble = |e: ReadlineError| Failure::environment(format!("reading the terminal: {e}"));
        let mut editor = DefaultEditor::new().map_err(trouble)?;
        let history = environment::history_file();
        if let Some(file) = &history {
            // A first run has no history yet.
            let _ = editor.load_history(file);
        }
        loop {
            match editor.readline("> ") {
                Ok(line) => {
                    if !line.trim().is_empty() {
                        let _ = editor.add_history_entry(line.as_str());
                    }
                    if self.take(&line)?.is_break() {
                        break;
                    }
                }
                Err(ReadlineError::Interrupted) => {
                    self.printer.say(self.printer.faint_talk("Ctrl-D or /exit leaves"));
                }
                Err(ReadlineError::Eof) => break,
                Err(e) => return Err(trouble(e)),
            }
        }
        if let Some(file) = history {
            let kept = file
                .parent()
                .map_or(Ok(()), std::fs::create_dir_all)
                .map_err(ReadlineError::from)
                .and_then(|()| editor.save_history(&file));
            if let Err(e) = kept {
                self.printer.warn(format!("the history was not kept: {}: {e}", file.display()));
            }
        }
        Ok(())
    }

    fn through_pipe(&mut self) -> Result<()> {
        let mut input = std::io::stdin().lock();
        loop {
            let mut line = Vec::new();
            let read = std::io::Read::take(&mut input, MAX_LINE_BYTES + 1)
                .read_until(b'\n', &mut line)
                .map_err(|e| Failure::io("reading standard input", &e))?;
            if read as u64 > MAX_LINE_BYTES {
                return Err(Failure::input(format!("standard input: a line is longer than {MAX_LINE_BYTES} bytes")));
            }
            let text = String::from_utf8_lossy(&line);
            if read == 0 || self.take(text.trim_end_matches(['\n', '\r']))?.is_break() {
                return Ok(());
            }
        }
    }

    /// Does what a line asks for.
    fn take(&mut self, line: &str) -> Result<ControlFlow<()>> {
        match read(line) {
            Line::Nothing => {}
            Line::Help => self.printer.say(HELP),
            Line::Reset => {
                self.conversation.reset();
                self.printer.say(self.printer.faint_talk("the conversation is forgotten"));
            }
            Line::Exit => return Ok(ControlFlow::Break(())),
            Line::Unknown(command) => {
                self.printer
                    .say(format!("{command} is not a command; /help lists them, // begins a message with a slash"));
            }
            Line::Message(message) => {
                let message = message.strip_prefix('/').filter(|m| m.starts_with('/')).unwrap_or(message);
                self.answer(message)?;
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn answer(&mut self, message: &str) -> Result<()> {
        let printer = self.printer;
        let mut broken = None;
        let guard = interrupt::graceful();
        let reply = self.conversation.say(&mut self.session, message, &self.options, &mut |text| match printer
            .write(text.as_bytes())
        {
            Ok(()) => ControlFlow::Continue(()),
            Err(failure) => {
                broken = Some(failure);
                ControlFlow::Break(())
            }
        });
        drop(guard);
        if let Some(failure) = broken {
            return Err(failure);
        }
        match reply {
            Ok(reply) => {
                printer.line("")?;
                let mut note = summary(&reply.answer);
                if reply.forgotten_turns > 0 {
                    note += &format!("; the context is full, {} old turns are forgotten", reply.forgotten_turns);
                }
                printer.say(printer.faint_talk(&note));
                Ok(())
            }
            // A message that is too long is the message's fault, not the conversation's.
            Err(error) if error.is_input() => {
                crate::printer::failure(&Failure::from(error));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Line, read};

    #[test]
    fn slashes_are_commands_and_two_of_them_are_not() {
        assert!(matches!(read(" /reset "), Line::Reset));
        assert!(matches!(read("/frob"), Line::Unknown("/frob")));
        assert!(matches!(read("//etc"), Line::Message("//etc")));
        assert!(matches!(read("  "), Line::Nothing));
        assert!(matches!(read("hello"), Line::Message("hello")));
    }
}
