//! Where words go: stdout is data, stderr is talk.
//!
//! `--quiet` silences the talk, never errors and warnings. Colour appears on terminals only and
//! never under `NO_COLOR`. A reader that closes the pipe ends the program quietly.

use crate::{
    exit::Exit,
    failure::{Failure, Result},
};
use std::{
    fmt::Display,
    io::{IsTerminal, Write},
};

/// How one run of the program speaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    quiet: bool,
    colour_out: bool,
    colour_talk: bool,
    terminal_talk: bool,
}

impl Printer {
    /// A printer for this process's standard streams.
    pub(crate) fn new(quiet: bool) -> Self {
        let colour = crate::environment::colour_wanted();
        let terminal_talk = std::io::stderr().is_terminal();
        Printer {
            quiet,
            colour_out: colour && std::io::stdout().is_terminal(),
            colour_talk: colour && terminal_talk,
            terminal_talk,
        }
    }

    /// Whether a moving progress bar makes sense.
    pub(crate) fn draws_bars(&self) -> bool {
        self.terminal_talk && !self.quiet
    }

    /// Whether talk may be coloured.
    pub(crate) fn colours_talk(&self) -> bool {
        self.colour_talk
    }

    /// One line of data.
    pub(crate) fn line(&self, text: impl Display) -> Result<()> {
        self.write(format!("{text}\n").as_bytes())
    }

    /// Data as it is, flushed at once: streamed answers.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| Failure::io("writing to standard output", &e))
    }

    /// The one JSON document of `--json`.
    pub(crate) fn json(&self, value: &serde_json::Value) -> Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(|e| Failure::defect(format!("writing JSON: {e}")))?;
        self.line(text)
    }

    /// Talk: what is being done. Silent under `--quiet`.
    pub(crate) fn say(&self, text: impl Display) {
        if !self.quiet {
            tell(&format!("{text}\n"));
        }
    }

    /// Something the reader should know even under `--quiet`.
    pub(crate) fn warn(&self, text: impl Display) {
        let label = paint(self.colour_talk, "33;1", "warning:");
        tell(&format!("{label} {text}\n"));
    }

    /// Faint text for data, where stdout is a terminal.
    pub(crate) fn faint(&self, text: &str) -> String {
        paint(self.colour_out, "2", text)
    }

    /// Bold text for data, where stdout is a terminal.
    pub(crate) fn bold(&self, text: &str) -> String {
        paint(self.colour_out, "1", text)
    }

    /// Bold text for talk.
    pub(crate) fn bold_talk(&self, text: &str) -> String {
        paint(self.colour_talk, "1", text)
    }

    /// Faint text for talk.
    pub(crate) fn faint_talk(&self, text: &str) -> String {
        paint(self.colour_talk, "2", text)
    }
}

/// Writes whole lines to standard error at once, so that whatever another thread says begins a line of its own. Talk nobody
/// can hear is not worth failing for.
fn tell(lines: &str) {
    let _ = std::io::stderr().lock().write_all(lines.as_bytes());
}

/// Prints a failure, `error:` then `hint:`, and returns the code to leave with.
pub(crate) fn failure(failure: &Failure) -> Exit {
    if !failure.message.is_empty() {
        let colour = crate::environment::colour_wanted() && std::io::stderr().is_terminal();
        let mut lines = format!("{} {}\n", paint(colour, "31;1", "error:"), failure.message);
        if let Some(hint) = &failure.hint {
            lines += &format!("{} {hint}\n", paint(colour, "36;1", "hint:"));
        }
        tell(&lines);
    }
    failure.exit
}

fn paint(on: bool, code: &str, text: &str) -> String {
    if on { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// A byte count as people read it: `1.4 MB` (powers of ten, as disks and hubs count).
pub(crate) fn bytes(n: u64) -> String {
    scaled(n as f64, &["B", "kB", "MB", "GB", "TB"], 0)
}

/// A count as people read it: `360.7 M`.
pub(crate) fn count(n: u64) -> String {
    scaled(n as f64, &["", "k", "M", "B", "T"], 0).trim_end().to_owned()
}

fn scaled(mut n: f64, units: &[&str], smallest_digits: usize) -> String {
    let mut unit = 0;
    while n >= 999.95 && unit + 1 < units.len() {
        n /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 {
        smallest_digits
    } else if n < 10.0 {
        2
    } else {
        1
    };
    format!("{n:.digits$} {}", units[unit])
}

/// A count with its thousands set apart: `360,748,032`.
pub(crate) fn exact(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A length of time as people read it: `3m 05s`.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "–".to_owned();
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 if seconds < 10.0 => format!("{seconds:.1}s"),
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        _ => format!("{}h {:02}m", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(exact(360_748_032), "360,748,032");
        assert_eq!(exact(12), "12");
        assert_eq!(count(360_748_032), "360.7 M");
        assert_eq!(count(14), "14");
        assert_eq!(bytes(1_483_686), "1.48 MB");
        assert_eq!(bytes(17), "17 B");
        assert_eq!(duration(185.2), "3m 05s");
        assert_eq!(duration(3.04), "3.0s");
        assert_eq!(duration(7260.0), "2h 01m");
        assert_eq!(duration(f64::NAN), "–");
    }
}
