//! Packing of examples that must stay whole: none is cut by the end of a row, none sees another.
//!
//! Some hundreds of examples wait at a time. A row takes the longest that still fits, again and again, until none does, and what is
//! left of it carries no loss (best fit, as in Ding et al., arXiv:2404.10830).

use std::collections::{BTreeMap, VecDeque};

use super::store::{Builder, TokenStore};
use crate::Result;

/// Examples that wait to be packed.
const WAITING: usize = 512;

/// One example: what is read, and which of it is learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The whole of it, from the first token to the one that ends it.
    pub ids: Vec<u32>,
    /// Which of `ids` carry a loss when they are predicted. The first never is.
    pub trained: Vec<bool>,
    /// Bytes of text that those stand for.
    pub text_bytes: u64,
}

/// Examples that lie in one row, one after another; often one alone, or the two answers of a preference.
pub type Group = Vec<Example>;

/// Takes examples in; [`Packer::finish`] gives the store.
pub struct Packer {
    builder: Builder,
    /// By length; those of one length in the order they came.
    waiting: BTreeMap<usize, VecDeque<Group>>,
    count: usize,
    cut: u64,
    long: u64,
    silent: u64,
}

impl Packer {
    /// Packs into the rows of `builder`.
    pub fn new(builder: Builder) -> Self {
        Self { builder, waiting: BTreeMap::new(), count: 0, cut: 0, long: 0, silent: 0 }
    }

    /// Takes a group. An example longer than a row loses its end, and several that do not fit one are passed over: what is judged beside
    /// another must be whole. So are those with nothing to learn in one of them.
    ///
    /// # Errors
    /// As [`Builder::piece`].
    pub fn push(&mut self, mut group: Group) -> Result<()> {
        let most = self.builder.seq_len();
        if let [example] = &mut group[..]
            && example.ids.len() > most
        {
            example.ids.truncate(most);
            example.trained.truncate(most);
            self.cut += 1;
        }
        let length: usize = group.iter().map(|example| example.ids.len()).sum();
        let learned = |example: &Example| example.trained.iter().skip(1).any(|&trained| trained);
        if length > most {
            self.long += 1;
            return Ok(());
        }
        if group.is_empty() || !group.iter().all(learned) {
            self.silent += 1;
            return Ok(());
        }
        self.waiting.entry(length).or_default().push_back(group);
        self.count += 1;
        if self.count > WAITING { self.row() } else { Ok(()) }
    }

    /// Packs what still waits and closes the stream.
    ///
    /// # Errors
    /// As [`Builder::finish`].
    pub fn finish(mut self) -> Result<TokenStore> {
        while self.count > 0 {
            self.row()?;
        }
        self.builder.finish()
    }

    /// One line for each kind of oddity met so far.
    pub fn notes(&self) -> Vec<String> {
        let most = self.builder.seq_len();
        let mut notes = Vec::new();
        if self.cut > 0 {
            notes.push(format!("{} examples were longer than {most} tokens (batch.seq_len) and were cut", self.cut));
        }
        if self.long > 0 {
            notes.push(format!(
                "{} preferences do not fit {most} tokens (batch.seq_len), both answers together, and were passed over",
                self.long
            ));
        }
        if self.silent > 0 {
            notes.push(format!("{} examples had nothing to learn in them and were passed over", self.silent));
        }
        notes
    }

    /// Fills a row.
    fn row(&mut self) -> Result<()> {
        let mut room = self.builder.seq_len();
        while let Some((&length, _)) = self.waiting.range(..=room).next_back() {
            let Some(queue) = self.waiting.get_mut(&length) else { break };
            let group = queue.pop_front();
            if queue.is_empty() {
                self.waiting.remove(&length);
            }
            let Some(group) = group else { continue };
            for Example { ids, trained, text_bytes } in group {
                self.builder.example(&ids, &trained, text_bytes)?;
            }
            self.count -= 1;
            room -= length;
        }
        self.builder.end_row()
    }
}
