//! The plain cache: each sequence has pages of its own, in order, that nobody shares.

use ernie_nn::{Buffer, CacheFormat, Heads, Value, ops};

use super::{KvCache, PAGE, Span, writes};
use crate::{Error, ModelConfig, Result};

/// A cache in which a sequence owns a growing list of pages.
pub struct ContiguousCache {
    slots: Vec<Option<Sequence>>,
    layers: usize,
    format: CacheFormat,
}

/// Keys and values of one sequence.
#[derive(Default)]
struct Sequence {
    layers: Vec<Layer>,
}

#[derive(Default)]
struct Layer {
    pages: Vec<Buffer>,
    positions: usize,
}

impl ContiguousCache {
    /// An empty f32 cache for models of this shape.
    pub fn new(config: &ModelConfig) -> Self {
        Self::with_format(config, CacheFormat::F32)
    }

    /// As [`Self::new`], in another format.
    pub fn with_format(config: &ModelConfig, format: CacheFormat) -> Self {
        Self { slots: Vec::new(), layers: config.num_hidden_layers, format }
    }

    /// Opens a sequence and names its slot; freed slots are used again.
    pub fn add_slot(&mut self) -> usize {
        let sequence = Sequence { layers: (0..self.layers).map(|_| Layer::default()).collect() };
        match self.slots.iter().position(Option::is_none) {
            Some(slot) => {
                self.slots[slot] = Some(sequence);
                slot
            }
            None => {
                self.slots.push(Some(sequence));
                self.slots.len() - 1
            }
        }
    }

    /// Ends a sequence and gives its memory back.
    pub fn free(&mut self, slot: usize) {
        if let Some(sequence) = self.slots.get_mut(slot) {
            *sequence = None;
        }
    }

    /// The number of open sequences.
    pub fn open_slots(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// How many positions the sequence in `slot` holds; 0 for an empty or unknown slot.
    pub fn past(&self, slot: usize) -> usize {
        let sequence = self.slots.get(slot).and_then(Option::as_ref);
        sequence.and_then(|sequence| sequence.layers.last()).map_or(0, |layer| layer.positions)
    }

    /// Forgets positions from `length` on.
    pub fn truncate(&mut self, slot: usize, length: usize) {
        if let Some(sequence) = self.slots.get_mut(slot).and_then(Option::as_mut) {
            for layer in &mut sequence.layers {
                layer.positions = layer.positions.min(length);
                layer.pages.truncate(layer.positions.div_ceil(PAGE));
            }
        }
    }

    /// Bytes held by all sequences.
    pub fn bytes(&self) -> u64 {
        let pages = self.slots.iter().flatten().flat_map(|sequence| &sequence.layers).flat_map(|layer| &layer.pages);
        pages.map(|page| page.bytes().len() as u64).sum()
    }

    fn layer(&mut self, slot: usize, layer: usize) -> Result<&mut Layer> {
        let sequence = self.slots.get_mut(slot).and_then(Option::as_mut);
        let layer = sequence.and_then(|sequence| sequence.layers.get_mut(layer));
        layer.ok_or_else(|| Error::Request(format!("cache slot {slot} is not open")))
    }
}

impl KvCache for ContiguousCache {
    fn attend(&mut self, layer: usize, q: &Value, k: &Value, v: &Value, spans: &[Span], heads: Heads) -> Result<Value> {
        let (format, bytes) = (self.format, ops::page_bytes(&heads, self.format)?);
        for span in spans {
            let held = self.layer(span.slot, layer)?;
            if held.positions != span.past {
                return Err(Error::Request(format!(
                    "slot {} holds {} positions, the span continues {}",
                    span.slot, held.positions, span.past
                )));
            }
            held.positions += span.rows.len();
            held.pages.resize_with(held.positions.div_ceil(PAGE), || Buffer::zeros(bytes));
            let pages = held.pages.iter_mut().map(Buffer::bytes_mut);
            ops::write_pages(k, v, &mut writes(span, pages), heads, format)?;
        }
        let pages = |span: &Span| {
            let held = self.slots.get(span.slot)?.as_ref()?.layers.get(layer)?;
            Some(held.pages.iter().map(Buffer::bytes).collect())
        };
        let pages: Option<Vec<_>> = spans.iter().map(pages).collect();
        let pages = pages.ok_or_else(|| Error::Request("a span lies outside the cache".into()))?;
        Ok(ops::attention_over_pages(q, &pages, spans, heads, format)?)
    }
}
