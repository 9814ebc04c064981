//! The walk over pages with tile registers: sixteen query rows at a time go through a page, scores, softmax and values, before the next
//! sixteen do, so that all they need stays in the first-level cache.

use std::ops::Range;

use super::super::PAGE;
use super::super::page::Layout;
use super::super::softmax::Page;
use super::super::walk::{Call, Part, Tile};
use super::{DEPTH, pairs, product, softmax};
use crate::amx::{ROWS, Tiles};
use crate::pool;

impl Call<'_> {
    /// As [`Call::prepared`]: queries are bf16, `[rows, padded]` and what is left of sixteen rows, and so is there room for scores.
    pub(in super::super) fn tiled(&self, tile: &Tile<'_>, scale: f32, f: impl FnOnce(&[f32], &mut [[f32; PAGE]])) {
        let Layout { width, padded, .. } = self.layout;
        let rows = tile.rows(self.heads);
        let memory = rows.next_multiple_of(ROWS);
        let _tiles = Tiles::shape(self.isa, ROWS, ROWS);
        pool::scratch(memory * (PAGE + padded / 2), |scratch| {
            let (scores, queries) = scratch.split_at_mut(memory * PAGE);
            for (i, to) in queries.chunks_exact_mut(padded / 2).take(rows).enumerate() {
                let query = &self.q[self.head_at(tile, i) * width..][..width];
                // SAFETY: the level has all that is needed, as `Tiles` just found; a row takes `padded` elements of two bytes.
                unsafe { product::round(query, scale, padded, to.as_mut_ptr().cast()) };
            }
            f(queries, scores.as_chunks_mut().0);
        });
    }

    /// Adds a page to the sums of a tile's rows: its keys, its values, and what is read after them.
    pub(in super::super) fn page_in_tiles(
        &self,
        tile: &Tile<'_>,
        first: usize,
        [keys, values, next]: [&[u8]; 3],
        queries: &[f32],
        scores: &mut [[f32; PAGE]],
        part: &mut Part<'_>,
    ) {
        let rows = tile.rows(self.heads);
        let mut page = Page {
            key_scales: None,
            value_scales: None,
            start: tile.start(),
            group: self.heads.group(),
            row: 0,
            first,
            window: self.window,
        };
        // Later rows begin and end later. Where some see what others do not, it must be a number, to be multiplied by zero.
        let (early, late) = (page.visible(0), page.visible(rows - 1));
        let whole = page.is_seen_whole(rows);
        pool::scratch(if whole { 0 } else { self.layout.value_bytes() / size_of::<f32>() }, |copy| {
            let numbers = whole || pairs::seen(self.isa, values, early.first..late.end, late.first..early.end, copy);
            let multiplied = if whole { values } else { bytemuck::cast_slice(&*copy) };
            // A batch's values wait until the next batch's scores are on their way: what the one multiplies is then written, and the
            // other's powers are taken meanwhile.
            let mut waiting = None;
            let (batches, _) = scores.as_chunks_mut::<ROWS>();
            for batch in 0..batches.len() {
                page.row = batch * ROWS;
                let seen = self.scores_in_tiles(&page, rows, [keys, values], queries, &mut batches[batch]);
                if let Some((batch, seen)) = waiting.take() {
                    self.weigh_in_tiles(&batches[batch], [multiplied, next], seen, batch == 0, part.batch(batch).sums);
                }
                if !seen.is_empty() {
                    let count = ROWS.min(rows - page.row);
                    // SAFETY: tiles were shaped when the queries were made, so the level is one that has all that is needed.
                    unsafe { softmax::weights(&page, count, &mut batches[batch], &mut part.batch(batch)) };
                    waiting = numbers.then_some((batch, seen));
                }
            }
            if let Some((batch, seen)) = waiting {
                self.weigh_in_tiles(&batches[batch], [multiplied, next], seen, batch == 0, part.batch(batch).sums);
            }
            if !numbers {
                self.weigh_apart(&mut page, rows, [values, next], batches, part, copy);
            }
        });
    }

    /// The scores of a batch of rows in a page, and the halves of it that the rows see anything of.
    fn scores_in_tiles(
        &self,
        page: &Page<'_>,
        rows: usize,
        [keys, values]: [&[u8]; 2],
        queries: &[f32],
        scores: &mut [[f32; PAGE]; ROWS],
    ) -> Range<usize> {
        let padded = self.layout.padded;
        let (early, late) = (page.visible(0), page.visible(ROWS.min(rows - page.row) - 1));
        let panels = late.end.div_ceil(ROWS);
        if panels == 0 {
            return 0..0;
        }
        let queries = &queries[page.row * padded / 2..][..ROWS * padded / 2];
        assert!(keys.len() >= panels * ROWS * padded * 2, "attention: {panels} panels of keys outside their page");
        let ahead = (page.row == 0).then_some(values.as_ptr());
        let (queries, scores) = (queries.as_ptr().cast(), scores.as_flattened_mut().as_mut_ptr());
        // SAFETY: the lengths were just checked, and tiles were shaped when the queries were made.
        unsafe { product::scores(queries, padded, keys.as_ptr(), panels, scores, ahead) };
        early.first / DEPTH..late.end.div_ceil(DEPTH)
    }

    /// Adds the weighted values of a batch's rows.
    fn weigh_in_tiles(
        &self,
        weights: &[[f32; PAGE]; ROWS],
        [values, next]: [&[u8]; 2],
        halves: Range<usize>,
        ask: bool,
        sums: &mut [f32],
    ) {
        let padded = self.layout.padded;
        assert!(
            sums.len() == ROWS * padded && values.len() >= PAGE * padded * 2 && halves.end <= 2,
            "attention: a page's values outside their slices"
        );
        // SAFETY: the lengths were just checked, and tiles were shaped when the queries were made.
        unsafe {
            let ahead = ask.then_some(next.as_ptr());
            product::weigh(weights.as_flattened().as_ptr(), values.as_ptr(), padded, halves, sums.as_mut_ptr(), ahead);
        }
    }

    /// As above for all rows, where a value is no number that some see and others do not: each row has a copy without it.
    #[cold]
    fn weigh_apart(
        &self,
        page: &mut Page<'_>,
        rows: usize,
        [values, next]: [&[u8]; 2],
        weights: &[[[f32; PAGE]; ROWS]],
        part: &mut Part<'_>,
        copy: &mut [f32],
    ) {
        let padded = self.layout.padded;
        pool::scratch(ROWS * padded, |sums| {
            for row in 0..rows {
                page.row = row;
                let seen = page.visible(0);
                pairs::seen(self.isa, values, seen.first..seen.end, 0..0, copy);
                let (batch, at) = (row / ROWS, row % ROWS * padded..(row % ROWS + 1) * padded);
                let own = part.batch(batch).sums;
                sums.copy_from_slice(own);
                let halves = seen.first / DEPTH..seen.end.div_ceil(DEPTH);
                self.weigh_in_tiles(&weights[batch], [bytemuck::cast_slice(copy), next], halves, false, sums);
                own[at.clone()].copy_from_slice(&sums[at]);
            }
        });
    }
}
