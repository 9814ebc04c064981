//! The merge loop of byte-pair encoding, shared by every kind of tokenizer here.
//!
//! A linked list of symbols and a priority queue: O(n log n) for n symbols, so a megabyte of one character is as
//! harmless as prose. The caller says which pairs merge and how urgently; ties go to the leftmost pair, as in
//! SentencePiece and in `tokenizers`.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// "No neighbour."
const NONE: u32 = u32::MAX;

/// A run of text that is one token so far. `len` 0 means: merged into its left neighbour.
#[derive(Debug, Clone, Copy)]
pub(super) struct Symbol {
    prev: u32,
    next: u32,
    /// First byte in the text.
    pub(super) start: u32,
    /// Bytes covered.
    pub(super) len: u32,
    /// Token id, or [`Symbol::UNKNOWN`].
    pub(super) id: u32,
    /// Never merges.
    pub(super) frozen: bool,
}

impl Symbol {
    /// The id of a symbol that is not in the vocabulary.
    pub(super) const UNKNOWN: u32 = u32::MAX;

    pub(super) fn new(start: usize, len: usize, id: u32, frozen: bool) -> Self {
        // Texts are limited to MAX_TEXT_BYTES, far below 4 GiB.
        Self { prev: NONE, next: NONE, start: start as u32, len: len as u32, id, frozen }
    }
}

/// A candidate merge. Greater means earlier.
#[derive(PartialEq)]
struct Candidate {
    priority: f64,
    left: u32,
    right: u32,
    len: u32,
    id: u32,
}

impl Eq for Candidate {}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.priority.total_cmp(&other.priority).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Merges until no pair merges. `lookup(left, right)` gives the priority (greater first; never NaN) and the id of the
/// merged token. The surviving symbols come back in order.
pub(super) fn merge(
    mut symbols: Vec<Symbol>,
    mut lookup: impl FnMut(&Symbol, &Symbol) -> Option<(f64, u32)>,
) -> Vec<Symbol> {
    let n = symbols.len();
    for (i, s) in symbols.iter_mut().enumerate() {
        s.prev = if i == 0 { NONE } else { i as u32 - 1 };
        s.next = if i + 1 == n { NONE } else { i as u32 + 1 };
    }
    let mut initial = Vec::new();
    for i in 1..n {
        initial.extend(candidate(&symbols, i as u32 - 1, i as u32, &mut lookup));
    }
    // Heapify at once: linear, where pushing one by one is not.
    let mut agenda = BinaryHeap::from(initial);
    while let Some(top) = agenda.pop() {
        let (left, right) = (symbols[top.left as usize], symbols[top.right as usize]);
        if left.len == 0 || right.len == 0 || left.len + right.len != top.len {
            continue;
        }
        symbols[top.right as usize].len = 0;
        let merged = &mut symbols[top.left as usize];
        merged.len = top.len;
        merged.id = top.id;
        merged.next = right.next;
        if right.next != NONE {
            symbols[right.next as usize].prev = top.left;
        }
        if left.prev != NONE {
            agenda.extend(candidate(&symbols, left.prev, top.left, &mut lookup));
        }
        if right.next != NONE {
            agenda.extend(candidate(&symbols, top.left, right.next, &mut lookup));
        }
    }
    symbols.retain(|s| s.len > 0);
    symbols
}

fn candidate(
    symbols: &[Symbol],
    left: u32,
    right: u32,
    lookup: &mut impl FnMut(&Symbol, &Symbol) -> Option<(f64, u32)>,
) -> Option<Candidate> {
    let (a, b) = (&symbols[left as usize], &symbols[right as usize]);
    if a.frozen || b.frozen {
        return None;
    }
    let (priority, id) = lookup(a, b)?;
    Some(Candidate { priority, left, right, len: a.len + b.len, id })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Doubling merges: two equal lengths merge, up to 8.
    #[test]
    fn a_million_equal_symbols_are_fast_and_leftmost_wins() {
        let symbols = (0..1_000_003).map(|i| Symbol::new(i, 1, 0, false)).collect();
        let started = std::time::Instant::now();
        let out = merge(symbols, |a, b| (a.len == b.len && a.len < 8).then_some((-f64::from(a.len), a.id + 1)));
        assert!(started.elapsed().as_secs() < 10);
        assert_eq!(out.len(), 125_002);
        assert!(out[..125_000].iter().all(|s| s.len == 8 && s.id == 3));
        assert_eq!((out[125_000].len, out[125_001].len), (2, 1));
    }

    #[test]
    fn frozen_symbols_stay() {
        let symbols = vec![Symbol::new(0, 1, 0, false), Symbol::new(1, 1, 0, true), Symbol::new(2, 1, 0, false)];
        assert_eq!(merge(symbols, |_, _| Some((0.0, 1))).len(), 3);
    }
}
