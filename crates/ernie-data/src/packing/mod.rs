//! Packing: documents of any length become rows of one length, and no token is lost on the way.
//!
//! # The stream
//!
//! A document of ids `d1 … dn` takes `n + 1` positions. Its inputs are `start d1 … dn`; the targets at those positions
//! are `d1 … dn end`. So every id of the text, the first one included, is predicted exactly once, and so is the end of
//! the document. `start` and `end` are [`Marks`]; with one mark for both, the usual case, the stream is the familiar
//! `eos d1 … dn eos d1 …`.
//!
//! # Rows
//!
//! Documents are laid end to end and the stream is cut every `seq_len` positions. A document that does not fit goes on
//! in the next row, where its first position carries the token that the row before predicted last: one token of
//! context is carried over, no target is lost, none is counted twice. Each stretch of one document inside one row is a
//! *segment*; attention stays inside it and positions count from 0 in it ([`Batch::lengths`]). A target is never a
//! token of another document.
//!
//! The last row of a stream is filled with `end` ids whose targets are −100 (no loss), as a segment of their own.
//!
//! # Examples
//!
//! What is learned in part, such as the answers of a conversation, is packed otherwise ([`Packer`]): an [`Example`] lies whole in one row, and
//! each of its ids says whether it carries a loss.
//!
//! # Bits per byte
//!
//! [`TokenStore::text_bytes`] counts the bytes of the text that all targets together cover: the UTF-8 bytes of every
//! document, and the separator that was cut off after it (a line's `\n`), which `end` stands for. Hence
//! `bits_per_byte = total_nll_nats / ln 2 / text_bytes`, with the ends of documents paid for. For a file split into
//! lines, or taken whole, `text_bytes` is the size of the file (blank lines aside), so the figure stands beside that
//! of a compressor on the same bytes.

mod examples;
mod store;

use serde::{Deserialize, Serialize};

pub use examples::{Example, Group, Packer};
pub(crate) use store::hex;
pub use store::{Builder, Place, TokenStore};

/// The target of a position that carries no loss.
pub const IGNORED: i64 = -100;

/// The ids that stand around a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// The input before a document's first token.
    pub start: u32,
    /// The target after a document's last token, and the id of padding.
    pub end: u32,
}

impl Marks {
    /// One id for both, the usual way in pre-training.
    pub fn eos(id: u32) -> Self {
        Marks { start: id, end: id }
    }
}

/// Rows of token ids, ready for a step.
///
/// # Shapes
/// `ids` and `targets` are flat `[rows * seq_len]`, row after row; `lengths` are the lengths of the segments in the same
/// order, with `sum(lengths) == rows * seq_len`, and no segment crosses a row. `places` has one entry a row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Inputs.
    pub ids: Vec<u32>,
    /// The id that should follow, or [`IGNORED`].
    pub targets: Vec<i64>,
    /// Lengths of the segments: attention does not cross them, positions restart in each.
    pub lengths: Vec<usize>,
    /// How many rows.
    pub rows: usize,
    /// Positions in a row.
    pub seq_len: usize,
    /// Where each row came from, for a sampler that learns from losses.
    pub places: Vec<Place>,
}

impl Batch {
    /// An empty batch of rows of `seq_len`.
    pub fn new(seq_len: usize) -> Self {
        Batch { seq_len, ..Batch::default() }
    }

    /// Targets that carry a loss.
    pub fn unmasked(&self) -> usize {
        self.targets.iter().filter(|&&t| t != IGNORED).count()
    }

    /// The segments that carry a loss, as ranges of positions, two by two in each row: the chosen and the rejected answer of each preference.
    pub fn pairs(&self) -> Vec<[std::ops::Range<usize>; 2]> {
        let mut start = 0;
        let segments = self.lengths.iter().map(|length| {
            start += length;
            start - length..start
        });
        let learned = segments.filter(|segment| self.targets[segment.clone()].iter().any(|&target| target != IGNORED));
        let learned: Vec<_> = learned.collect();
        let rows = learned.chunk_by(|a, b| a.start / self.seq_len == b.start / self.seq_len);
        rows.flat_map(|row| row.chunks_exact(2)).map(|pair| [pair[0].clone(), pair[1].clone()]).collect()
    }

    /// Positions counted from 0 in each segment, flat as `ids`.
    pub fn positions(&self) -> Vec<u32> {
        let mut positions = Vec::with_capacity(self.ids.len());
        for &length in &self.lengths {
            positions.extend(0..length as u32);
        }
        positions
    }
}
