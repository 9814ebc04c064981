//! A model whose answers can be computed on paper: each row's logits are a hash of the ids up to it, as the blocks of
//! its cache hold them. So a block that was shared wrongly, freed early or not rolled back gives wrong answers. It
//! checks, as it runs, that the engine keeps its side of the contract. An adapter reads each id as another one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use ernie_serve::engine::{Batch, Model, Row, TakeRows};

pub(crate) const VOCAB: usize = 23;
pub(crate) const BLOCK: usize = 4;
pub(crate) const ADAPTERS: usize = 2;

/// What a test wants to know of a [`FakeModel`] while the engine owns it.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Ids in each block that was ever written, as they were read.
    pub(crate) blocks: HashMap<u32, [Option<u32>; BLOCK]>,
    /// Rows of each forward pass.
    pub(crate) rows: Vec<usize>,
    /// The next forward pass fails.
    pub(crate) fail: bool,
    /// Logits at rows that read this id are not numbers.
    pub(crate) poison: Option<u32>,
}

pub(crate) struct FakeModel {
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    pub(crate) context: usize,
    pub(crate) eos: Vec<u32>,
    /// How many ids back the logits depend on. A short memory makes answers repeat themselves.
    pub(crate) memory: usize,
}

impl FakeModel {
    pub(crate) fn new(context: usize, eos: &[u32]) -> (Box<Self>, Arc<Mutex<Ledger>>) {
        Self::with_memory(context, eos, usize::MAX)
    }

    pub(crate) fn with_memory(context: usize, eos: &[u32], memory: usize) -> (Box<Self>, Arc<Mutex<Ledger>>) {
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        (Box::new(Self { ledger: ledger.clone(), context, eos: eos.to_vec(), memory }), ledger)
    }
}

/// What an adapter reads in place of `ids`.
pub(crate) fn read_through(adapter: Option<usize>, ids: &[u32]) -> Vec<u32> {
    let other = adapter.map_or(0, |adapter| VOCAB * (adapter + 1)) as u32;
    ids.iter().map(|id| id + other).collect()
}

/// The logits after `ids`, as they were read.
pub(crate) fn logits_after(ids: &[u32]) -> Vec<f32> {
    let mut state = ids.iter().fold(0x1234_5678_9abc_def0u64, |hash, &id| {
        (hash ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    });
    (0..VOCAB)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 * 8.0 - 4.0
        })
        .collect()
}

/// The greedy answer to `prompt`, through an adapter, of a model that sees `memory` ids back, ignoring end-of-sequence.
pub(crate) fn greedy_of(adapter: Option<usize>, prompt: &[u32], tokens: usize, memory: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..tokens {
        let logits = logits_after(&read_through(adapter, &ids[ids.len().saturating_sub(memory)..]));
        let best = (0..VOCAB).fold(0, |best, id| if logits[id] > logits[best] { id } else { best });
        ids.push(best as u32);
    }
    ids.split_off(prompt.len())
}

impl Model for FakeModel {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    fn adapters(&self) -> usize {
        ADAPTERS
    }

    fn block_tokens(&self) -> usize {
        BLOCK
    }

    fn block_bytes(&self) -> u64 {
        1
    }

    fn row_cost(&self, _rows: usize) -> Option<f64> {
        Some(0.1)
    }

    fn forward(&mut self, batch: &Batch, take: &mut TakeRows<'_>) -> ernie_serve::Result<()> {
        let mut ledger = self.ledger.lock().unwrap();
        assert!(!batch.ids.is_empty(), "an empty pass costs time for nothing");
        ledger.rows.push(batch.ids.len());
        if std::mem::take(&mut ledger.fail) {
            return Err(ernie_serve::Error::Internal("the model was told to fail".into()));
        }
        let mut next = 0;
        for (index, chunk) in batch.chunks.iter().enumerate() {
            assert_eq!(chunk.rows.start, next, "chunks lie side by side");
            assert!(chunk.rows.start < chunk.rows.end);
            assert!(chunk.wanted.start >= chunk.rows.start && chunk.wanted.end <= chunk.rows.end);
            next = chunk.rows.end;
            let poison = ledger.poison;
            let end = chunk.past + chunk.rows.len();
            assert!(end <= self.context, "the context is kept");
            assert_eq!(chunk.blocks.len(), end.div_ceil(BLOCK), "as many blocks as rows need");
            for block in &chunk.blocks[chunk.past / BLOCK..] {
                let held = batch.chunks.iter().flat_map(|other| &other.blocks).filter(|&other| other == block);
                assert_eq!(held.count(), 1, "block {block} is written and shared");
            }
            let read = |position: usize| {
                let block = ledger.blocks.get(&chunk.blocks[position / BLOCK]).expect("the block was written");
                block[position % BLOCK].expect("the position was written")
            };
            let mut held: Vec<u32> = (0..chunk.past).map(read).collect();
            for row in chunk.rows.clone() {
                let block = ledger.blocks.entry(chunk.blocks[held.len() / BLOCK]).or_default();
                let id = read_through(chunk.adapter, &batch.ids[row..row + 1])[0];
                block[held.len() % BLOCK] = Some(id);
                held.push(id);
                if chunk.wanted.contains(&row) {
                    let mut logits = logits_after(&held[held.len().saturating_sub(self.memory)..]);
                    if poison == Some(batch.ids[row]) {
                        logits[3] = f32::NAN;
                    }
                    take(vec![Row { chunk: index, row, numbers: &mut logits }]);
                }
            }
        }
        assert_eq!(next, batch.ids.len());
        Ok(())
    }
}
