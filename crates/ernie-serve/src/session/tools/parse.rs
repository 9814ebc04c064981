//! Finds calls in the text of an answer while it comes.

use super::CallForm;
use super::scan::{Fed, Found, Scanner};
use crate::session::stop::overlap;

/// More of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// Text beside the calls.
    Text(String),
    /// A call begins.
    CallStart {
        /// Its number in the answer, from 0.
        index: usize,
        /// Names it.
        id: String,
        /// The tool's name.
        name: String,
    },
    /// More of a call's arguments.
    Arguments {
        /// The call's number.
        index: usize,
        /// The next part of their text.
        delta: String,
    },
}

#[derive(Debug, Clone)]
enum Place {
    /// Text; behind a call, white space in front of it is left out.
    Text { behind: bool },
    /// In front of the bracket of a call, or in front of another one of a list.
    Front { list: bool },
    /// In the object of a call.
    Object { list: bool, scanner: Box<Scanner> },
    /// Behind an object of a list.
    Rest,
    /// Behind the last object: the closing tag.
    Close,
    /// Text to the end.
    Plain,
}

/// Divides an answer into text and calls. Nothing is lost: what turns out to be no call is text, and a call that is cut
/// off is given as far as it came. White space around calls is left out. What it gives depends on the text alone, never
/// on how it was cut into pieces.
#[derive(Debug, Clone)]
pub struct ToolParser {
    open: String,
    close: String,
    /// Without tags only calls of these count.
    names: Vec<String>,
    id_prefix: String,
    place: Place,
    /// What came and is not dealt with.
    held: String,
    /// What the call that may have begun took from the text, until its name is known.
    taken: String,
    started: usize,
    cut_off: bool,
}

impl ToolParser {
    /// A parser for one answer. `names` are the tools that there are; ids of calls are `id_prefix` and a number.
    pub fn new(form: &CallForm, names: impl IntoIterator<Item = String>, id_prefix: impl Into<String>) -> Self {
        let (open, close) = match form {
            CallForm::Tagged { open, close } => (open.clone(), close.clone()),
            CallForm::Json { .. } => (String::new(), String::new()),
        };
        Self {
            open,
            close,
            names: names.into_iter().collect(),
            id_prefix: id_prefix.into(),
            place: Place::Text { behind: false },
            held: String::new(),
            taken: String::new(),
            started: 0,
            cut_off: false,
        }
    }

    /// Takes more text; gives what is certain.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        self.held.push_str(text);
        let mut out = Vec::new();
        while self.step(false, &mut out) {}
        out
    }

    /// The end of the text: gives what was held back.
    pub fn finish(&mut self) -> Vec<Delta> {
        let mut out = Vec::new();
        while self.step(true, &mut out) {}
        let place = std::mem::replace(&mut self.place, Place::Plain);
        match place {
            Place::Object { mut scanner, .. } if scanner.named() => {
                self.cut_off = true;
                let mut found = Vec::new();
                scanner.cut_off(&mut found);
                self.tell(found, &mut out);
            }
            _ => {}
        }
        let rest = std::mem::take(&mut self.taken) + &std::mem::take(&mut self.held);
        let lost = self.started > 0 && rest.trim().is_empty();
        if !lost {
            text(&rest, &mut out);
        }
        out
    }

    /// Calls that have begun.
    pub fn calls(&self) -> usize {
        self.started
    }

    /// Whether the answer ended inside a call.
    pub fn cut_off(&self) -> bool {
        self.cut_off
    }

    /// Does one thing; whether there may be more to do.
    fn step(&mut self, end: bool, out: &mut Vec<Delta>) -> bool {
        match std::mem::replace(&mut self.place, Place::Plain) {
            Place::Plain => {
                text(&std::mem::take(&mut self.held), out);
                false
            }
            Place::Text { behind } => self.in_text(behind, end, out),
            Place::Front { list } => self.in_front(list, out),
            Place::Object { list, scanner } => self.in_object(list, scanner, out),
            Place::Rest => {
                self.skip_space();
                let next = match self.held.chars().next() {
                    None => Place::Rest,
                    Some(',') => Place::Front { list: true },
                    Some(']') => Place::Close,
                    Some(_) => Place::Text { behind: true },
                };
                if matches!(next, Place::Front { .. } | Place::Close) {
                    self.held.remove(0);
                }
                self.place = next;
                !self.held.is_empty()
            }
            Place::Close => {
                self.skip_space();
                if let Some(rest) = self.held.strip_prefix(&self.close) {
                    self.held = rest.to_owned();
                } else if self.close.starts_with(&self.held) {
                    if end {
                        self.held.clear();
                    }
                    self.place = Place::Close;
                    return false;
                }
                self.place = Place::Text { behind: true };
                !self.held.is_empty()
            }
        }
    }

    fn in_text(&mut self, behind: bool, end: bool, out: &mut Vec<Delta>) -> bool {
        if behind {
            self.skip_space();
        }
        if self.open.is_empty() {
            // Without tags a call stands at the front, or behind another one.
            return match self.held.trim_start().chars().next() {
                None => {
                    self.place = Place::Text { behind };
                    false
                }
                Some('{' | '[') => {
                    let space = self.held.len() - self.held.trim_start().len();
                    self.taken = self.held.drain(..space).collect();
                    self.place = Place::Front { list: false };
                    true
                }
                Some(_) => true,
            };
        }
        if let Some(at) = self.held.find(&self.open) {
            let before = self.held[..at].trim_end().len();
            text(&self.held[..before], out);
            self.taken = self.held[before..at + self.open.len()].to_owned();
            self.held.drain(..at + self.open.len());
            self.place = Place::Front { list: false };
            return true;
        }
        if end {
            self.place = Place::Text { behind };
            return false;
        }
        let keep = overlap(&self.held, &self.open);
        let certain = self.held[..self.held.len() - keep].trim_end().len();
        let rest = self.held.split_off(certain);
        let ready = std::mem::replace(&mut self.held, rest);
        text(&ready, out);
        self.place = Place::Text { behind: behind && ready.is_empty() };
        false
    }

    fn in_front(&mut self, list: bool, out: &mut Vec<Delta>) -> bool {
        let space = self.held.len() - self.held.trim_start().len();
        self.taken.extend(self.held.drain(..space));
        match self.held.chars().next() {
            None => {
                self.place = Place::Front { list };
                false
            }
            Some('[') if !list => {
                self.taken.push(self.held.remove(0));
                self.place = Place::Front { list: true };
                true
            }
            Some('{') => {
                let scanner = Box::new(Scanner::new(self.open.is_empty()));
                self.place = Place::Object { list, scanner };
                true
            }
            Some(_) => self.no_call(out),
        }
    }

    fn in_object(&mut self, list: bool, mut scanner: Box<Scanner>, out: &mut Vec<Delta>) -> bool {
        let mut found = Vec::new();
        let mut fed = Fed::More;
        let mut used = 0;
        for c in self.held.chars() {
            let named = scanner.named();
            fed = scanner.feed(c, &mut found);
            if fed != Fed::Bad {
                used += c.len_utf8();
            }
            let known = found.iter().all(|found| match found {
                Found::Name(name) => !self.open.is_empty() || self.names.contains(name),
                Found::Arguments(_) => true,
            });
            if !named && scanner.named() && !known {
                found.clear();
                self.taken.extend(self.held.drain(..used));
                return self.no_call(out);
            }
            if fed != Fed::More {
                break;
            }
        }
        let used: String = self.held.drain(..used).collect();
        if scanner.named() {
            self.taken.clear();
        } else {
            self.taken += &used;
        }
        if fed == Fed::Bad {
            if !scanner.named() {
                return self.no_call(out);
            }
            // The call is not as it should be; what it has is given, and what follows is looked at as text.
            scanner.done(&mut found);
        }
        self.tell(found, out);
        self.place = match fed {
            Fed::More => Place::Object { list, scanner },
            Fed::Done if list => Place::Rest,
            Fed::Done | Fed::Bad => Place::Close,
        };
        fed != Fed::More
    }

    /// What looked like a call is text: its first tag is given, and the rest is looked at again.
    fn no_call(&mut self, out: &mut Vec<Delta>) -> bool {
        let taken = std::mem::take(&mut self.taken);
        if self.open.is_empty() {
            text(&taken, out);
            return true;
        }
        let tag = taken.find(&self.open).map_or(0, |at| at + self.open.len());
        text(&taken[..tag], out);
        self.held.insert_str(0, &taken[tag..]);
        self.place = Place::Text { behind: false };
        true
    }

    fn tell(&mut self, found: Vec<Found>, out: &mut Vec<Delta>) {
        for found in found {
            match found {
                Found::Name(name) => {
                    let index = self.started;
                    self.started += 1;
                    out.push(Delta::CallStart { index, id: format!("{}{index}", self.id_prefix), name });
                }
                Found::Arguments(delta) => out.push(Delta::Arguments { index: self.started - 1, delta }),
            }
        }
    }

    fn skip_space(&mut self) {
        self.held.drain(..self.held.len() - self.held.trim_start().len());
    }
}

fn text(more: &str, out: &mut Vec<Delta>) {
    if let Some(Delta::Text(last)) = out.last_mut() {
        last.push_str(more);
    } else if !more.is_empty() {
        out.push(Delta::Text(more.to_owned()));
    }
}
