//! Progress of long work: a bar on a terminal, a plain line now and then elsewhere, nothing under `--quiet`.

use crate::printer::Printer;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// How often a plain line is printed where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// One piece of long work with a known or unknown end.
pub(crate) struct Progress {
    printer: Printer,
    what: String,
    bar: Option<ProgressBar>,
    unit: Unit,
    position: u64,
    total: Option<u64>,
    said: Instant,
    note: String,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Bytes of a file.
    Bytes,
    /// Steps, examples: things counted one by one.
    Items,
}

impl Progress {
    /// Starts to show work of `total` units.
    pub(crate) fn new(printer: Printer, what: &str, total: Option<u64>, unit: Unit) -> Self {
        let bar = printer.draws_bars().then(|| {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(10));
            bar.set_style(style(unit, total.is_some(), printer.colours_talk()));
            bar.set_message(what.to_owned());
            bar
        });
        Progress {
            printer,
            what: what.to_owned(),
            bar,
            unit,
            position: 0,
            total,
            said: Instant::now(),
            note: String::new(),
        }
    }

    /// Learns the end late.
    pub(crate) fn set_total(&mut self, total: u64) {
        self.total = Some(total);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_style(style(self.unit, true, self.printer.colours_talk()));
        }
    }

    /// Moves to `done` of a total that whoever works says along the way.
    pub(crate) fn at_of(&mut self, done: usize, of: usize) {
        if done == 1 {
            self.set_total(of as u64);
        }
        self.at(done as u64, "");
    }

    /// Moves to `position`, with a note such as `loss 4.2 · 5.1k tokens/s`.
    pub(crate) fn at(&mut self, position: u64, note: &str) {
        self.position = position;
        if self.note != note {
            note.clone_into(&mut self.note);
        }
        match &self.bar {
            Some(bar) => {
                bar.set_position(position);
                if self.note.is_empty() {
                    bar.set_message(self.what.clone());
                } else {
                    bar.set_message(format!("{} · {}", self.what, self.note));
                }
            }
            None if self.said.elapsed() >= PLAIN_EVERY => {
                self.said = Instant::now();
                self.printer.say(self.line());
            }
            None => {}
        }
    }

    /// Prints a line above the bar.
    pub(crate) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.printer.say(text)),
            None => self.printer.say(text),
        }
    }

    /// Ends the work; the bar goes, `summary` stays.
    pub(crate) fn finish(self, summary: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if !summary.is_empty() {
            self.printer.say(summary);
        }
    }

    fn line(&self) -> String {
        let show = |n: u64| match self.unit {
            Unit::Bytes => crate::printer::bytes(n),
            Unit::Items => n.to_string(),
        };
        let end = self.total.map_or_else(String::new, |t| format!("/{}", show(t)));
        let note = if self.note.is_empty() { String::new() } else { format!(" · {}", self.note) };
        format!("{} {}{end}{note}", self.what, show(self.position))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(unit: Unit, has_end: bool, colour: bool) -> ProgressStyle {
    let bar = if colour { "{bar:28.cyan/black.bright}" } else { "{bar:28}" };
    let template = match (unit, has_end) {
        (Unit::Bytes, true) => format!("{bar} {{bytes}}/{{total_bytes}} {{bytes_per_sec}} {{eta}} left · {{msg}}"),
        (Unit::Bytes, false) => "{spinner} {bytes} {bytes_per_sec} · {msg}".to_owned(),
        (Unit::Items, true) => format!("{bar} {{pos}}/{{len}} · {{msg}}"),
        (Unit::Items, false) => "{spinner} {pos} · {msg}".to_owned(),
    };
    ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━━╌")
}
