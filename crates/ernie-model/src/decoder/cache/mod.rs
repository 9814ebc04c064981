//! Where keys and values of running sequences live.
//!
//! [`PagedCache`] is the one that serves: pages of [`PAGE`] positions, reached through block tables, so that sequences
//! share a prefix and grow without being moved. [`ContiguousCache`] is its plain twin: one buffer a sequence.

mod contiguous;
mod paged;

pub use contiguous::ContiguousCache;
pub use paged::{PAGE, PagedCache};

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
