//! The plain cache: one growing buffer a sequence, layer and side.

use ernie_nn::ops::{CacheView, attention_over_cache};
use ernie_nn::{Heads, Value};

use super::{KvCache, Span};
use crate::{Error, ModelConfig, Result};

/// A cache of one growing f32 buffer a sequence, layer and side.
pub struct ContiguousCache {
    slots: Vec<Option<Sequence>>,
    layers: usize,
    /// Numbers a position takes in one layer, keys alone.
    width: usize,
}

/// Keys and values of one sequence, `[positions, K · D]` a layer.
struct Sequence {
    layers: Vec<(Vec<f32>, Vec<f32>)>,
}

impl ContiguousCache {
    /// An empty cache for models of this shape.
    pub fn new(config: &ModelConfig) -> Self {
        Self { slots: Vec::new(), layers: config.num_hidden_layers, width: config.key_value_size() }
    }

    /// Opens a sequence and names its slot; freed slots are used again.
    pub fn add_slot(&mut self) -> usize {
        let sequence = Sequence { layers: vec![(Vec::new(), Vec::new()); self.layers] };
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
        sequence.and_then(|sequence| sequence.layers.last()).map_or(0, |(keys, _)| keys.len() / self.width.max(1))
    }

    /// Forgets positions from `length` on.
    pub fn truncate(&mut self, slot: usize, length: usize) {
        if let Some(sequence) = self.slots.get_mut(slot).and_then(Option::as_mut) {
            for (keys, values) in &mut sequence.layers {
                keys.truncate(length * self.width);
                values.truncate(length * self.width);
            }
        }
    }

    /// Bytes held by all sequences.
    pub fn bytes(&self) -> u64 {
        let sequence = |sequence: &Sequence| {
            sequence.layers.iter().map(|(keys, values)| 4 * (keys.capacity() + values.capacity()) as u64).sum::<u64>()
        };
        self.slots.iter().flatten().map(sequence).sum()
    }
}

impl KvCache for ContiguousCache {
    fn attend(&mut self, layer: usize, q: &Value, k: &Value, v: &Value, spans: &[Span], heads: Heads) -> Result<Value> {
        let (keys, values) = (k.to_vec()?, v.to_vec()?);
        let width = self.width;
        for span in spans {
            let sequence = self.slots.get_mut(span.slot).and_then(Option::as_mut);
            let sides = sequence.and_then(|sequence| sequence.layers.get_mut(layer));
            let (held_keys, held_values) =
                sides.ok_or_else(|| Error::Request(format!("cache slot {} is not open", span.slot)))?;
            if held_keys.len() != span.past * width {
                let held = held_keys.len() / width.max(1);
                return Err(Error::Request(format!(
                    "slot {} holds {held} positions, the span continues {}",
                    span.slot, span.past
                )));
            }
            let rows = span.rows.start * width..span.rows.end * width;
            held_keys.extend_from_slice(&keys[rows.clone()]);
            held_values.extend_from_slice(&values[rows]);
        }
        let view = |span: &Span| {
            let sequence = self.slots.get(span.slot)?.as_ref()?;
            let (keys, values) = sequence.layers.get(layer)?;
            // A slot may take several runs of one pass; each sees the cache up to its own end.
            let end = (span.past + span.rows.len()) * width;
            Some(CacheView { keys: keys.get(..end)?, values: values.get(..end)? })
        };
        let views: Option<Vec<_>> = spans.iter().map(view).collect();
        let views = views.ok_or_else(|| Error::Request("a span lies outside the cache".into()))?;
        Ok(attention_over_cache(q, &views, spans, heads)?)
    }
}
