//! The paged cache: pages of [`PAGE`] positions, reached through block tables.
//!
//! It stores and attends; which page belongs to whom is decided by its owner (the engine's block pool), pass by pass.
//! A page is written only by the one sequence that ends in it: [`PagedCache::begin`] refuses a pass in which a page that
//! is written stands in a second table. Paging: Kwon et al., arXiv:2309.06180.

use std::collections::HashMap;
use std::ops::Range;

use ernie_nn::ops::{self, Write};
use ernie_nn::{Buffer, CacheFormat, Heads, Value};

use super::{KvCache, PAGE, Span};
use crate::{Error, ModelConfig, Result};

/// Keys and values in pages. The slot of a span is the index of its block table.
pub struct PagedCache {
    layers: usize,
    heads: Heads,
    format: CacheFormat,
    /// Bytes of one layer's page.
    page_bytes: usize,
    /// By block number: the pages of all layers, there once it was written.
    blocks: Vec<Option<Buffer>>,
    /// The block tables of the pass.
    tables: Vec<Vec<u32>>,
}

impl PagedCache {
    /// An empty cache for models of this shape, holding keys and values in `format`.
    ///
    /// # Errors
    /// [`Error::Nn`] if the heads do not divide, which a checked config excludes.
    pub fn new(config: &ModelConfig, format: CacheFormat) -> Result<Self> {
        let heads = Heads {
            query_heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        };
        let page_bytes = ops::page_bytes(&heads, format)?;
        let layers = config.num_hidden_layers;
        Ok(Self { layers, heads, format, page_bytes, blocks: Vec::new(), tables: Vec::new() })
    }

    /// How keys and values are stored.
    pub fn format(&self) -> CacheFormat {
        self.format
    }

    /// Bytes of one block: [`PAGE`] positions, all layers, keys and values.
    pub fn block_bytes(&self) -> u64 {
        (self.layers * self.page_bytes) as u64
    }

    /// Bytes held by all pages that were ever written; they are used again, not given back.
    pub fn bytes(&self) -> u64 {
        self.blocks.iter().flatten().count() as u64 * self.block_bytes()
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
        let most = self.blocks.len() + tables.iter().map(Vec::len).sum::<usize>();
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
                if at < held && self.block(block).is_none() {
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
        if block >= self.blocks.len() {
            self.blocks.resize_with(block + 1, || None);
        }
        if self.blocks[block].is_none() {
            let bytes = self.layers * self.page_bytes;
            let buffer = Buffer::try_zeros(bytes)
                .ok_or_else(|| Error::Internal(format!("no memory for a cache block of {bytes} bytes")))?;
            self.blocks[block] = Some(buffer);
        }
        Ok(())
    }

    fn block(&self, block: u32) -> Option<&Buffer> {
        self.blocks.get(block as usize)?.as_ref()
    }

    /// Where the page of a layer lies in a block.
    fn page(&self, layer: usize) -> Range<usize> {
        layer * self.page_bytes..(layer + 1) * self.page_bytes
    }

    /// Puts the rows of all spans into their pages.
    fn write(&mut self, layer: usize, k: &Value, v: &Value, spans: &[Span]) -> Result<()> {
        // Who goes where, by block; `begin` saw to it that no block is written twice.
        let mut places: Vec<(u32, usize, Range<usize>)> = Vec::new();
        for span in spans {
            let end = span.past + span.rows.len();
            for index in written(span) {
                let block = self.tables.get(span.slot).and_then(|table| table.get(index));
                let &block = block.ok_or_else(|| bad(span, "was not announced to the cache"))?;
                let (from, to) = (span.past.max(index * PAGE), end.min((index + 1) * PAGE));
                let row = |position: usize| span.rows.start + position - span.past;
                places.push((block, from % PAGE, row(from)..row(to)));
            }
        }
        places.sort_unstable_by_key(|place| place.0);
        let (page, mut writes, mut wanted) = (self.page(layer), Vec::new(), places.into_iter().peekable());
        for (index, block) in self.blocks.iter_mut().enumerate() {
            let Some((_, first, rows)) = wanted.next_if(|place| place.0 as usize == index) else { continue };
            let block = block.as_mut().ok_or_else(|| Error::Request(format!("cache block {index} is not open")))?;
            writes.push(Write { page: &mut block.bytes_mut()[page.clone()], first, rows });
        }
        if wanted.next().is_some() {
            return Err(Error::Request("a block is written twice, or not open".into()));
        }
        writes.sort_unstable_by_key(|write| write.rows.start);
        Ok(ops::write_pages(k, v, &mut writes, self.heads, self.format)?)
    }

    /// The pages of a span's whole sequence.
    fn read(&self, layer: usize, span: &Span) -> Result<Vec<&[u8]>> {
        let count = (span.past + span.rows.len()).div_ceil(PAGE);
        let page = self.page(layer);
        let table = self.tables.get(span.slot).filter(|table| table.len() >= count);
        let table = table.ok_or_else(|| bad(span, "was not announced to the cache"))?;
        let pages = table[..count].iter().map(|&block| Some(&self.block(block)?.bytes()[page.clone()]));
        pages.collect::<Option<_>>().ok_or_else(|| bad(span, "reads a block that holds nothing"))
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
        let (rows, width) = (q.dim(0), self.heads.kv_heads * self.heads.head_dim);
        if heads != self.heads || k.shape() != [rows, width] || v.shape() != [rows, width] || layer >= self.layers {
            let shapes = format!("keys {:?} and values {:?}, expected [{rows}, {width}]", k.shape(), v.shape());
            return Err(Error::Request(format!("layer {layer} of {}: {shapes}", self.layers)));
        }
        if let Some(span) = spans.iter().find(|span| span.rows.start > span.rows.end || span.rows.end > rows) {
            return Err(bad(span, &format!("lies outside the pass of {rows} rows")));
        }
        self.write(layer, k, v, spans)?;
        let pages = spans.iter().map(|span| self.read(layer, span)).collect::<Result<Vec<_>>>()?;
        Ok(ops::attention_over_pages(q, &pages, spans, heads, self.format)?)
    }
}
