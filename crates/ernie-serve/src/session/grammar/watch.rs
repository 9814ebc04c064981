//! A grammar over a request's shoulder.

use llguidance::Matcher;

use crate::engine::{Verdict, Watcher};

/// Holds one answer to a grammar: ids that would break it are forbidden, ids that end an answer are allowed exactly where
/// the grammar may end, and when nothing more may follow the answer is complete.
pub struct GrammarWatcher {
    matcher: Matcher,
    end_ids: Vec<u32>,
    trouble: Option<String>,
}

impl GrammarWatcher {
    pub(super) fn new(matcher: Matcher, end_ids: &[u32]) -> Self {
        Self { matcher, end_ids: end_ids.to_vec(), trouble: None }
    }

    /// Whether the answer may end here.
    pub fn may_end(&mut self) -> bool {
        self.matcher.is_stopped() || self.matcher.is_accepting().unwrap_or(false)
    }

    fn fail(&mut self, error: impl std::fmt::Display) {
        let what = super::one_line(&error.to_string());
        self.trouble.get_or_insert_with(|| format!("the grammar cannot go on here: {what}"));
    }
}

impl Watcher for GrammarWatcher {
    fn mask(&mut self, logits: &mut [f32]) {
        let allowed = match self.matcher.is_stopped() && self.trouble.is_none() {
            true => None,
            false => match self.matcher.compute_mask() {
                Ok(allowed) => Some(allowed),
                Err(error) => {
                    self.fail(error);
                    return logits.fill(f32::NEG_INFINITY);
                }
            },
        };
        let Some(allowed) = allowed else {
            // Complete: nothing but the end may follow.
            let end_ids = &self.end_ids;
            let others = logits.iter_mut().enumerate().filter(|(id, _)| !end_ids.contains(&(*id as u32)));
            return others.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
        };
        let mut words = allowed.as_slice().iter();
        for chunk in logits.chunks_mut(32) {
            match words.next() {
                None | Some(0) => chunk.fill(f32::NEG_INFINITY),
                Some(&u32::MAX) => {}
                Some(word) => {
                    for (bit, logit) in chunk.iter_mut().enumerate() {
                        if word & (1 << bit) == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }

    fn accept(&mut self, id: u32) -> Verdict {
        if let Err(error) = self.matcher.consume_token(id) {
            self.fail(error);
            return Verdict::Continue;
        }
        if self.matcher.is_stopped() { Verdict::Stop } else { Verdict::Continue }
    }

    fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }
}
