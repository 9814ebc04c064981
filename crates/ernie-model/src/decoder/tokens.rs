//! A batch: flat rows of tokens, and which run of rows belongs to which sequence.

use std::ops::Range;

pub use ernie_nn::Span;
use ernie_nn::Through;

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
    /// Rows that go through an adapter, by its number in the order in which the decoder was given them; all others go as it says
    /// ([`crate::Decoder::offer_adapters`]).
    pub adapters: Vec<(Range<usize>, usize)>,
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

    /// What each row goes through, where there are `count` adapters and rows that name none go through `usual`.
    pub(crate) fn through(&self, count: usize, usual: Option<usize>) -> Result<Through> {
        if self.adapters.is_empty() {
            return Ok(usual.map_or(Through::Weights, Through::One));
        }
        let mut by_row = vec![usual; self.len()];
        for (rows, adapter) in &self.adapters {
            let named = by_row.get_mut(rows.clone()).filter(|_| *adapter < count);
            let wrong = || Error::Request(format!("rows {rows:?} of {} name adapter {adapter} of {count}", self.len()));
            named.ok_or_else(wrong)?.fill(Some(*adapter));
        }
        Ok(Through::each(by_row))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_through_the_adapter_that_they_name() {
        let mut tokens = Tokens::packed(vec![1, 2, 3, 4], &[1, 2, 1]);
        assert!(matches!(tokens.through(0, None), Ok(Through::Weights)));
        assert!(matches!(tokens.through(2, Some(1)), Ok(Through::One(1))));
        tokens.adapters.push((1..3, 0));
        let through = tokens.through(2, None).unwrap();
        assert_eq!(through.each_is(4, |which| which == 0), [false, true, true, false]);
        let through = tokens.through(2, Some(1)).unwrap();
        assert_eq!(through.each_is(4, |which| which == 1), [true, false, false, true]);
        assert!(tokens.through(0, None).unwrap_err().is_input(), "there is none");
        tokens.adapters.push((3..5, 0));
        assert!(tokens.through(2, None).unwrap_err().is_input(), "there is no such row");
    }
}
