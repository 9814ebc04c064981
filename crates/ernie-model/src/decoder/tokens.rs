//! A batch: flat rows of tokens, and which run of rows belongs to which sequence.

pub use ernie_nn::Span;

use crate::{Error, Result};

/// The rows of one pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// One id a row.
    pub ids: Vec<u32>,
    /// Each row's position in its sequence: what RoPE turns by.
    pub positions: Vec<u32>,
    /// The sequences, in row order, covering every row.
    pub spans: Vec<Span>,
}

impl Tokens {
    /// Independent documents, one after the other; each starts at position 0.
    ///
    /// `lengths` sum to `ids.len()`.
    pub fn packed(ids: Vec<u32>, lengths: &[usize]) -> Self {
        let mut tokens = Self { ids: Vec::with_capacity(ids.len()), ..Self::default() };
        let mut start = 0;
        for &length in lengths {
            let end = (start + length).min(ids.len());
            tokens.push(0, 0, &ids[start.min(end)..end]);
            start = end;
        }
        tokens
    }

    /// One sequence from its first token on.
    pub fn sequence(ids: Vec<u32>) -> Self {
        let length = ids.len();
        Self::packed(ids, &[length])
    }

    /// Appends a run of rows that continues the sequence in `slot` at position `past`.
    pub fn push(&mut self, slot: usize, past: usize, ids: &[u32]) {
        let start = self.ids.len();
        self.ids.extend_from_slice(ids);
        self.positions.extend((past..past + ids.len()).map(|position| position as u32));
        self.spans.push(Span { slot, rows: start..self.ids.len(), past });
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    pub(crate) fn check(&self, vocab_size: usize) -> Result<()> {
        if let Some(id) = self.ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::Request(format!("token id {id} is not below the vocabulary size {vocab_size}")));
        }
        let mut next = 0;
        for span in &self.spans {
            if span.rows.start != next || span.rows.end < next {
                return Err(Error::Request(format!("span {:?} does not follow row {next}", span.rows)));
            }
            next = span.rows.end;
        }
        if next != self.ids.len() || self.positions.len() != self.ids.len() {
            return Err(Error::Request(format!("spans end at row {next} of {}", self.ids.len())));
        }
        Ok(())
    }
}
