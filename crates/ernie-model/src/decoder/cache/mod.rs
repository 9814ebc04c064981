//! Where keys and values of running sequences live.
//!
//! [`PagedCache`] is the one that serves: pages of [`PAGE`] positions, reached through block tables, so that sequences
//! share a prefix and grow without being moved. [`ContiguousCache`] is its plain twin: a sequence owns its pages.

mod contiguous;
mod paged;

pub use contiguous::ContiguousCache;
pub use ernie_nn::{CacheFormat, PAGE};
pub use paged::PagedCache;

use ernie_nn::ops::Write;
use ernie_nn::{Heads, Value};

use super::Span;
use crate::Result;

/// Keys and values of sequences, by slot.
pub trait KvCache {
    /// Puts the new keys and values of each span behind its sequence and attends over all of it.
    ///
    /// # Shapes
    /// `q: [T, N · D]`, `k, v: [T, K · D]`, after RoPE → `[T, N · D]`.
    ///
    /// # Errors
    /// [`crate::Error::Request`] if a span does not continue its sequence where that ends.
    fn attend(&mut self, layer: usize, q: &Value, k: &Value, v: &Value, spans: &[Span], heads: Heads) -> Result<Value>;
}

/// The rows of a span, page by page; `pages` are those of its sequence from position 0 on.
fn writes<'a>(span: &Span, pages: impl Iterator<Item = &'a mut [u8]>) -> Vec<Write<'a>> {
    let end = span.past + span.rows.len();
    let row = |position: usize| span.rows.start + position - span.past;
    let mut writes = Vec::new();
    for (index, page) in pages.enumerate().skip(span.past / PAGE).take_while(|(index, _)| index * PAGE < end) {
        let from = span.past.max(index * PAGE);
        let to = end.min((index + 1) * PAGE);
        writes.push(Write { page, first: from % PAGE, rows: row(from)..row(to) });
    }
    writes
}
