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

/// Takes examples in; [`Packer::finish`] gives the store.
pub struct Packer {
    builder: Builder,
    /// By length; those of one length in the order they came.
    waiting: BTreeMap<usize, VecDeque<Example>>,
    count: usize,
    cut: u64,
    silent: u64,
}

impl Packer {
    /// Packs into the rows of `builder`.
    pub fn new(builder: Builder) -> Self {
        Self { builder, waiting: BTreeMap::new(), count: 0, cut: 0, silent: 0 }
    }

    /// Takes an example. One longer than a row loses its end; one that then has nothing to learn is passed over.
    ///
    /// # Errors
    /// As [`Builder::piece`].
    pub fn push(&mut self, mut example: Example) -> Result<()> {
        let most = self.builder.seq_len();
        if example.ids.len() > most {
            example.ids.truncate(most);
            example.trained.truncate(most);
            self.cut += 1;
        }
        if !example.trained.iter().skip(1).any(|&trained| trained) {
            self.silent += 1;
            return Ok(());
        }
        self.waiting.entry(example.ids.len()).or_default().push_back(example);
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
        let mut notes = Vec::new();
        if self.cut > 0 {
            let most = self.builder.seq_len();
            notes.push(format!("{} examples were longer than {most} tokens (batch.seq_len) and were cut", self.cut));
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
            let example = queue.pop_front();
            if queue.is_empty() {
                self.waiting.remove(&length);
            }
            let Some(Example { ids, trained, text_bytes }) = example else { continue };
            self.builder.example(&ids, &trained, text_bytes)?;
            self.count -= 1;
            room -= length;
        }
        self.builder.end_row()
    }
}
