//! Several watchers as one.

use crate::engine::{Verdict, Watcher};

/// Watchers that look over the same shoulder: a grammar and stop strings. What one of them forbids is forbidden, and the
/// first that says so ends the answer.
#[derive(Default)]
pub struct Watchers(Vec<Box<dyn Watcher>>);

impl Watchers {
    /// Adds one.
    pub fn push(&mut self, watcher: Box<dyn Watcher>) {
        self.0.push(watcher);
    }

    /// As one, if there are any.
    pub fn into_watcher(mut self) -> Option<Box<dyn Watcher>> {
        match self.0.len() {
            0 | 1 => self.0.pop(),
            _ => Some(Box::new(self)),
        }
    }
}

impl Watcher for Watchers {
    fn mask(&mut self, logits: &mut [f32]) {
        self.0.iter_mut().for_each(|watcher| watcher.mask(logits));
    }

    fn accept(&mut self, id: u32) -> Verdict {
        let stop = self.0.iter_mut().fold(false, |stop, watcher| (watcher.accept(id) == Verdict::Stop) | stop);
        if stop { Verdict::Stop } else { Verdict::Continue }
    }

    fn trouble(&self) -> Option<&str> {
        self.0.iter().find_map(|watcher| watcher.trouble())
    }
}
