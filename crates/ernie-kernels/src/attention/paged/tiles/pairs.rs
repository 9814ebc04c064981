//! The inside of a page of bf16 that tile registers multiply: elements in pairs along what a product sums over.
//!
//! For each head keys, then values, both filled up with zeros to [`DEPTH`] dimensions. Keys lie in panels of sixteen positions: a line
//! of 64 bytes holds dimensions `2j` and `2j + 1` of each. Values lie in panels of sixteen dimensions: a line holds positions `2j` and
//! `2j + 1` of each. So sixteen lines are a tile, which is read from where it lies.

use std::ops::Range;

use super::super::super::tile::{self, Tile};
use super::super::PAGE;
use super::super::page::to_bf16;
use super::DEPTH;
use crate::level::Isa;
use crate::pool;

/// Bytes of a line: sixteen pairs.
pub(super) const LINE: usize = 64;

/// Positions, or dimensions, of a panel.
const PANEL: usize = 16;

/// The width of a head with its filling.
pub(in super::super) fn padded(width: usize) -> usize {
    width.next_multiple_of(DEPTH)
}

/// Where the key of a position lies in this dimension, in bytes.
pub(in super::super) fn key_at(padded: usize, dimension: usize, place: usize) -> usize {
    (place / PANEL * (padded / 2) + dimension / 2) * LINE + place % PANEL * 4 + dimension % 2 * 2
}

/// Where the value of a position lies in this dimension, in bytes after the keys.
pub(in super::super) fn value_at(dimension: usize, place: usize) -> usize {
    (dimension / PANEL * (PAGE / 2) + place / 2) * LINE + dimension % PANEL * 4 + place % 2 * 2
}

/// Stores `n` rows of a head of `width` at places `first..first + n`.
pub(in super::super) fn store(
    isa: Isa,
    width: usize,
    k: Tile<'_>,
    v: Tile<'_>,
    n: usize,
    first: usize,
    head: &mut [u8],
) {
    let padded = padded(width);
    let (keys, values) = head.split_at_mut(padded * PAGE * 2);
    let key = |i: usize| &k.data[i * k.stride..][..width];
    let value = |i: usize| &v.data[i * v.stride..][..width];
    pool::scratch(PANEL * padded, |scratch| {
        let (words, turned) = scratch.split_at_mut(PANEL * padded / 2);
        let mut i = 0;
        while i < n {
            let place = first + i;
            let panel = &mut keys[place / PANEL * (padded / 2) * LINE..][..padded / 2 * LINE];
            if place.is_multiple_of(PANEL) && n - i >= PANEL {
                words.chunks_exact_mut(padded / 2).enumerate().for_each(|(j, words)| pairs(isa, key(i + j), words));
                let lines = Tile { data: words, stride: padded / 2 };
                tile::transpose(isa, lines, PANEL, padded / 2, turned, PANEL);
                panel.copy_from_slice(bytemuck::cast_slice(turned));
                i += PANEL;
            } else {
                pairs(isa, key(i), &mut words[..padded / 2]);
                for (line, word) in panel.as_chunks_mut::<LINE>().0.iter_mut().zip(&*words) {
                    line[place % PANEL * 4..][..4].copy_from_slice(&word.to_le_bytes());
                }
                i += 1;
            }
        }
    });
    let mut i = 0;
    while i < n {
        let place = first + i;
        if place.is_multiple_of(2) && i + 1 < n {
            both(isa, value(i), value(i + 1), padded, &mut values[place / 2 * LINE..]);
            i += 2;
        } else {
            one(isa, value(i), place % 2, padded, &mut values[place / 2 * LINE..]);
            i += 1;
        }
    }
}

kernel! {
    /// Rounds a row of keys to pairs, with zeros behind it, as the bits of floats.
    fn pairs(row: &[f32], words: &mut [f32]) {
        let whole = row.len() / 2;
        for (word, x) in words.iter_mut().zip(row.as_chunks::<2>().0) {
            *word = word_of(x[0], x[1]);
        }
        words[whole..].fill(0.0);
        if row.len() % 2 == 1 {
            words[whole] = word_of(row[row.len() - 1], 0.0);
        }
    }
}

/// Two bf16 in the bits of a float.
#[inline(always)]
fn word_of(first: f32, second: f32) -> f32 {
    f32::from_bits(u32::from(to_bf16(first)) | u32::from(to_bf16(second)) << 16)
}

kernel! {
    /// Stores the values of two positions, a line in each panel, with zeros behind them; `out` starts with the first.
    fn both(first: &[f32], second: &[f32], padded: usize, out: &mut [u8]) {
        for (panel, out) in (0..padded).step_by(PANEL).zip(out.chunks_mut(PAGE / 2 * LINE)) {
            let mut columns = [[0.0_f32; PANEL]; 2];
            let count = first.len().saturating_sub(panel).min(PANEL);
            for (columns, row) in columns.iter_mut().zip([first, second]) {
                columns[..count].copy_from_slice(&row[row.len().min(panel)..][..count]);
            }
            for (i, out) in out.as_chunks_mut::<4>().0[..PANEL].iter_mut().enumerate() {
                *out = word_of(columns[0][i], columns[1][i]).to_le_bytes();
            }
        }
    }
}

kernel! {
    /// Stores the values of the first or second position of a pair, as [`both`].
    fn one(row: &[f32], which: usize, padded: usize, out: &mut [u8]) {
        for (panel, out) in (0..padded).step_by(PANEL).zip(out.chunks_mut(PAGE / 2 * LINE)) {
            for (i, out) in out.as_chunks_mut::<4>().0[..PANEL].iter_mut().enumerate() {
                let x = row.get(panel + i).copied().unwrap_or_default();
                out[which * 2..][..2].copy_from_slice(&to_bf16(x).to_le_bytes());
            }
        }
    }
}

/// Copies the values of a head, with zeros for places outside `seen`, as far as products of [`DEPTH`] places read them; tells whether what
/// is left is finite everywhere but in `common`, the places that every row sees.
pub(in super::super) fn seen(
    isa: Isa,
    values: &[u8],
    seen: Range<usize>,
    common: Range<usize>,
    to: &mut [f32],
) -> bool {
    let to: &mut [u8] = bytemuck::cast_slice_mut(to);
    copy_seen(isa, values, &seen, &common, &mut to[..values.len()])
}

kernel! {
    /// As [`seen`].
    fn copy_seen(values: &[u8], seen: &Range<usize>, common: &Range<usize>, to: &mut [u8]) -> bool {
        /// The exponent of what is not finite, in both elements of a pair.
        const LAST: u32 = 0x7F80;
        let mut finite = true;
        let read = seen.start / DEPTH * DEPTH / 2..seen.end.next_multiple_of(DEPTH) / 2;
        for panel in values.chunks_exact(PAGE / 2 * LINE).zip(to.chunks_exact_mut(PAGE / 2 * LINE)) {
            let lines = panel.0.as_chunks::<LINE>().0.iter().zip(panel.1.as_chunks_mut::<LINE>().0);
            for (pair, (line, to)) in lines.enumerate().take(read.end).skip(read.start) {
                if common.contains(&(2 * pair)) && common.contains(&(2 * pair + 1)) {
                    *to = *line;
                    continue;
                }
                let of = |range: &Range<usize>| {
                    let each = |place: usize, bits: u32| if range.contains(&place) { bits } else { 0 };
                    each(2 * pair, 0xFFFF) | each(2 * pair + 1, 0xFFFF_0000)
                };
                let (keep, check) = (of(seen), of(seen) & !of(common));
                let mut worst = 0;
                for (word, to) in line.as_chunks::<4>().0.iter().zip(to.as_chunks_mut::<4>().0) {
                    let word = u32::from_le_bytes(*word) & keep;
                    let (low, high) = (word & check & LAST, (word & check) >> 16 & LAST);
                    worst = worst.max(low).max(high);
                    *to = word.to_le_bytes();
                }
                finite &= worst < LAST;
            }
        }
        finite
    }
}
