//! Attention over a cache in pages: what inference runs on, prompts and single tokens alike.
//!
//! A page holds [`PAGE`] positions of one layer, the keys and values of all key/value heads, as f32, bf16 or int8
//! ([`CacheFormat`]). Pages lie anywhere: a sequence is a list of them (Kwon et al., arXiv:2309.06180). [`write()`] puts rows
//! there after RoPE, [`forward`] attends over them, and the layout inside is this module's own (`page.rs`).
//!
//! A page is read from where it lies and widened in registers, for a block of the query rows that share the walk: the heads of
//! a group, and many positions of a prompt. While it is multiplied, what the walk reads next is asked for, line by line: a
//! long context is bound by how many lines a core can await at a time. A cached number counts with all the bits it is stored with.
//! Products are f32 multiply-adds, but for pages of bf16 at [`Level::Amx`](crate::Level::Amx): there queries and the weights of the
//! softmax are rounded to bf16 and multiplied in tile registers, into sums of f32.
//!
//! The softmax is online over pages within a chunk of `CHUNK` absolute positions, and the chunks' sums are then merged in
//! order. So a long context is shared among threads however few heads there are, and yet a row's bits depend on its own query
//! and on the positions that it sees only: never on the other rows, on chunking, or on threads. Positions that a row does not
//! see are left out by selection, so whatever is stored there, NaN included, does not reach it.
//!
//! The contiguous twin is [`super::forward_cached`]; both agree within rounding, as the latter does not cut at chunks.

mod page;
mod product;
mod softmax;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod walk;

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use self::page::Layout;
pub use self::page::{Write, page_bytes, read, write};
use self::walk::{Call, Tile};
use super::{Heads, KEYS, check_spans, first_visible};
use crate::level::Isa;
use crate::pool;

/// Positions in a page.
pub const PAGE: usize = KEYS;

/// Positions whose sums are taken before they are merged with the rest: part of the result's definition.
pub(crate) const CHUNK: usize = 256;

/// Query rows (positions times heads of a group) that share one walk over the pages.
const TILE_ROWS: usize = 96;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheFormat {
    /// As they are.
    F32,
    /// Rounded to nearest, ties to even.
    Bf16,
    /// Integers in `-127..=127` with an f32 scale for each position, head and side.
    Int8,
}

impl CacheFormat {
    /// Bytes of so many elements.
    fn bytes(self, elements: usize) -> usize {
        match self {
            CacheFormat::F32 => 4 * elements,
            CacheFormat::Bf16 => 2 * elements,
            CacheFormat::Int8 => elements,
        }
    }
}

/// Rows of one sequence in a call, and the pages that hold its keys and values.
#[derive(Clone, Debug)]
pub struct Span<'a> {
    /// Its rows in the flat queries.
    pub rows: Range<usize>,
    /// Positions before the first of those rows.
    pub past: usize,
    /// Page `i` holds positions `i * PAGE..(i + 1) * PAGE`; positions `0..past + rows.len()` are written.
    pub pages: &'a [&'a [u8]],
}

/// Causal attention of each span's rows over its pages, which already hold those rows' keys and values.
///
/// Query head `h` reads key/value head `h / (H / G)`; scores are scaled by `1 / sqrt(D)`. With a window of `w`, a row sees
/// itself and the `w - 1` positions before. Rows of `out` outside all spans are left alone. Pages must have been written at the
/// level that is used now.
///
/// # Shapes
/// `q, out: [T, H, D]`; pages of [`page_bytes`] bytes, written by [`write()`] at this `format` and these key/value heads
///
/// # Panics
/// When a length does not fit, pages are missing, spans overlap or are outside, or the window is 0.
pub fn forward(
    q: &[f32],
    heads: &Heads,
    format: CacheFormat,
    spans: &[Span<'_>],
    window: Option<usize>,
    out: &mut [f32],
) {
    let layout = Layout::new(heads, format);
    let rows = q.len() / heads.query_width();
    assert!(
        q.len() == rows * heads.query_width() && out.len() == q.len(),
        "attention: {} queries, {} outputs",
        q.len(),
        out.len()
    );
    assert!(window != Some(0), "attention: a window of 0 sees nothing");
    check_spans(spans.iter().map(|s| s.rows.clone()), rows);
    for span in spans {
        let needed = (span.past + span.rows.len()).div_ceil(PAGE);
        assert!(span.pages.len() >= needed, "attention: {} pages, {needed} needed", span.pages.len());
        // Pages that slid out of a window are not read, and need not be there.
        let first = first_visible(span.past, window) / PAGE;
        for page in &span.pages[first.min(needed)..needed] {
            assert!(page.len() == layout.page_bytes(), "attention: a page of {} bytes", page.len());
        }
    }
    let (tiles, total) = tiles(heads, spans, window);
    let call = Call { isa: Isa::current(), q, heads, layout, window, out: pool::Shared::new(out) };
    // A tile that alone is much of the work is cut into runs of chunks: few, as each begins with a page that nothing asked for
    // ahead of time.
    let mut units = Vec::new();
    let mut stored = 0;
    for (i, tile) in tiles.iter().enumerate() {
        let runs = (tile.cost() * 4 * pool::threads()).div_ceil(total.max(1)).min(tile.chunks.len());
        if runs > 1 {
            let size = call.part_len(tile);
            let length = tile.chunks.len().div_ceil(runs);
            for first in tile.chunks.clone().step_by(length) {
                let run = first..(first + length).min(tile.chunks.end);
                let cost = tile.cost() / tile.chunks.len() * run.len();
                units.push(Unit { tile: i, cost, part: Some((run.clone(), stored)) });
                stored += size * run.len();
            }
        } else {
            units.push(Unit { tile: i, cost: tile.cost(), part: None });
        }
    }
    units.sort_by_key(|unit| Reverse(unit.cost));
    let done: Vec<AtomicUsize> = tiles.iter().map(|_| AtomicUsize::new(0)).collect();
    pool::scratch(stored, |partials| {
        let partials = pool::Shared::new(partials);
        pool::parallel(units.len(), |i| {
            let unit = &units[i];
            let tile = &tiles[unit.tile];
            let Some((run, at)) = unit.part.clone() else {
                return call.whole(tile);
            };
            let size = call.part_len(tile);
            // SAFETY: each run of each tile has places of its own.
            call.run(tile, run.clone(), unsafe { partials.part(at..at + run.len() * size) });
            // The last one to finish merges all: the others' writes are released and acquired here.
            if done[unit.tile].fetch_add(run.len(), Ordering::AcqRel) + run.len() == tile.chunks.len() {
                let first = at - (run.start - tile.chunks.start) * size;
                // SAFETY: all units of this tile have finished with their places.
                call.merge_all(tile, unsafe { partials.part(first..first + size * tile.chunks.len()) });
            }
        });
    });
}

/// What one thread does at a time: a tile, or a run of its chunks whose sums go to places among the partial ones.
struct Unit {
    tile: usize,
    cost: usize,
    part: Option<(Range<usize>, usize)>,
}

/// All tiles, and what they cost together.
fn tiles<'a>(heads: &Heads, spans: &'a [Span<'a>], window: Option<usize>) -> (Vec<Tile<'a>>, usize) {
    let positions = TILE_ROWS.div_ceil(heads.group()).max(1);
    let mut tiles = Vec::new();
    for span in spans {
        for first in (0..span.rows.len()).step_by(positions) {
            let count = positions.min(span.rows.len() - first);
            let start = span.past + first;
            let chunks = first_visible(start, window) / CHUNK..(start + count).div_ceil(CHUNK);
            for kv_head in 0..heads.kv_heads {
                tiles.push(Tile { span, kv_head, first, count, chunks: chunks.clone() });
            }
        }
    }
    let total = tiles.iter().map(Tile::cost).sum();
    (tiles, total)
}
