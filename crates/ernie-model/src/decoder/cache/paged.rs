//! The paged cache: pages of [`PAGE`] positions, reached through block tables.
//!
//! It stores and attends; which page belongs to whom is decided by its owner (the engine's block pool), pass by pass.
//! A page is written only by the one sequence that ends in it: [`PagedCache::begin`] refuses a pass in which a page that
//! is written stands in a second table. Paging: Kwon et al., arXiv:2309.06180.

use std::collections::HashMap;
use std::ops::Range;

use ernie_nn::ops::{CacheView, attention_over_cache};
use ernie_nn::{Heads, Value};

use super::{KvCache, Span};
use crate::{Error, ModelConfig, Result};

/// Positions of a page.
pub const PAGE: usize = 32;

/// Keys and values in pages, f32. The slot of a span is the index of its block table.
pub struct PagedCache {
    layers: usize,
    /// Numbers a position takes in one layer, keys alone.
    width: usize,
    /// By block number: `[layers, 2 (keys, values), PAGE, K · D]`, there once it was written.
    pages: Vec<Option<Box<[f32]>>>,
    /// The block tables of the pass.
    tables: Vec<Vec<u32>>,
    gathered: Vec<[Vec<f32>; 2]>,
}

impl PagedCache {
    /// An empty cache for models of this shape.
    pub fn new(config: &ModelConfig) -> Self {
        let (layers, width) = (config.num_hidden_layers, config.key_value_size());
        Self { layers, width, pages: Vec::new(), tables: Vec::new(), gathered: Vec::new() }
    }

    /// Bytes of one block: [`PAGE`] positions, all layers, keys and values.
    pub fn block_bytes(&self) -> u64 {
        4 * self.page_numbers() as u64
    }

    /// Bytes held by all pages that were ever written; they are used again, not given back.
    pub fn bytes(&self) -> u64 {
        self.pages.iter().flatten().count() as u64 * self.block_bytes()
    }

    /// Takes the block tables of the next pass, one for each span, in which slots are their indices.
    ///
    /// Block numbers are dense: a new one may be at most as large as all tables are long together.
    ///
    /// # Errors
    /// [`Error::Request`] if a table is too short for its span, names a block that holds nothing yet, or holds one that
    /// another span writes; [`Error::Internal`] when memory is short. Nothing is written then.
    pub fn begin<'a>(&mut self, tables: impl IntoIterator<Item = &'a [u32]>, spans: &[Span]) -> Result<()> {
        let tables: Vec<Vec<u32>> = tables.into_iter().map(<[u32]>::to_vec).collect();
        let most = self.pages.len() + tables.iter().map(Vec::len).sum::<usize>();
        let mut holders: HashMap<u32, usize> = HashMap::new();
        for &block in tables.iter().flatten() {
            *holders.entry(block).or_default() += 1;
        }
        for span in spans {
            let table = tables.get(span.slot).ok_or_else(|| bad(span, "has no block table"))?;
            let written = written(span);
            if written.end > table.len() {
                return Err(bad(span, &format!("needs {} blocks, its table has {}", written.end, table.len())));
            }
            // The first block is written in part: what stands before the span must be there.
            let held = written.start + usize::from(!span.past.is_multiple_of(PAGE));
            for (at, &block) in table.iter().enumerate().take(written.end) {
                if at < held && self.page(block).is_none() {
                    return Err(bad(span, &format!("reads block {block}, which holds nothing")));
                }
                if written.contains(&at) && (holders[&block] > 1 || block as usize >= most) {
                    return Err(bad(span, &format!("may not write block {block}: it is shared or out of range")));
                }
            }
        }
        for span in spans {
            for &block in &tables[span.slot][written(span)] {
                self.open(block as usize)?;
            }
        }
        self.tables = tables;
        Ok(())
    }

    fn open(&mut self, block: usize) -> Result<()> {
        if block >= self.pages.len() {
            self.pages.resize_with(block + 1, || None);
        }
        if self.pages[block].is_none() {
            let numbers = self.page_numbers();
            let mut page = Vec::new();
            page.try_reserve_exact(numbers)
                .map_err(|_| Error::Internal(format!("no memory for a cache page of {} bytes", 4 * numbers)))?;
            page.resize(numbers, 0.0);
            self.pages[block] = Some(page.into());
        }
        Ok(())
    }

    fn page_numbers(&self) -> usize {
        self.layers * 2 * PAGE * self.width
    }

    fn page(&self, block: u32) -> Option<&[f32]> {
        self.pages.get(block as usize)?.as_deref()
    }

    /// Where positions `at` (within a page) of one layer and side lie in a page.
    fn range(&self, layer: usize, side: usize, at: Range<usize>) -> Range<usize> {
        let base = (layer * 2 + side) * PAGE;
        (base + at.start) * self.width..(base + at.end) * self.width
    }

    /// Puts the rows of a span into its pages.
    fn write(&mut self, layer: usize, side: usize, span: &Span, rows: &[f32]) -> Result<()> {
        let end = span.past + span.rows.len();
        let mut position = span.past;
        while position < end {
            let at = position % PAGE..(position % PAGE + end - position).min(PAGE);
            let from = (span.rows.start + position - span.past) * self.width;
            let range = self.range(layer, side, at.clone());
            let block = self.tables.get(span.slot).and_then(|table| table.get(position / PAGE).copied());
            let page = block.and_then(|block| self.pages.get_mut(block as usize)?.as_mut());
            let page = page.ok_or_else(|| bad(span, "was not announced to the cache"))?;
            let length = range.len();
            page[range].copy_from_slice(&rows[from..from + length]);
            position += at.len();
        }
        Ok(())
    }

    /// Copies one side of a span's whole sequence into one buffer.
    fn gather(&self, layer: usize, side: usize, span: &Span, into: &mut Vec<f32>) -> Result<()> {
        let end = span.past + span.rows.len();
        into.clear();
        for (index, &block) in self.tables[span.slot].iter().enumerate().take(end.div_ceil(PAGE)) {
            let page = self.page(block).ok_or_else(|| bad(span, "reads a block that holds nothing"))?;
            into.extend_from_slice(&page[self.range(layer, side, 0..(end - index * PAGE).min(PAGE))]);
        }
        Ok(())
    }
}

/// Indices of the blocks that a span writes.
fn written(span: &Span) -> Range<usize> {
    span.past / PAGE..(span.past + span.rows.len()).div_ceil(PAGE)
}

fn bad(span: &Span, what: &str) -> Error {
    Error::Request(format!("the span of rows {:?} after {} positions {what}", span.rows, span.past))
}

impl KvCache for PagedCache {
    fn attend(&mut self, layer: usize, q: &Value, k: &Value, v: &Value, spans: &[Span], heads: Heads) -> Result<Value> {
        let (rows, width) = (q.dim(0), self.width);
        if k.shape() != [rows, width] || v.shape() != [rows, width] || layer >= self.layers {
            let shapes = format!("keys {:?} and values {:?}, expected [{rows}, {width}]", k.shape(), v.shape());
            return Err(Error::Request(format!("layer {layer} of {}: {shapes}", self.layers)));
        }
        if let Some(span) = spans.iter().find(|span| span.rows.start > span.rows.end || span.rows.end > rows) {
            return Err(bad(span, &format!("lies outside the pass of {rows} rows")));
        }
        for (side, rows) in [k.to_vec()?, v.to_vec()?].into_iter().enumerate() {
            for span in spans {
                self.write(layer, side, span, &rows)?;
            }
        }
        let mut gathered = std::mem::take(&mut self.gathered);
        gathered.resize_with(spans.len(), Default::default);
        for (span, sides) in spans.iter().zip(&mut gathered) {
            for (side, into) in sides.iter_mut().enumerate() {
                self.gather(layer, side, span, into)?;
            }
        }
        let views: Vec<_> = gathered.iter().map(|[keys, values]| CacheView { keys, values }).collect();
        let out = attention_over_cache(q, &views, spans, heads)?;
        self.gathered = gathered;
        Ok(out)
    }
}
