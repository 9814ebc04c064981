//! A model whose answers can be computed on paper: each row's logits are a hash of the ids up to it. It checks, as it
//! runs, that the engine keeps its side of the contract, and counts the places it has given away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use ernie_serve::engine::{Batch, EachRow, Model};

pub(crate) const VOCAB: usize = 23;

/// What a test wants to know of a [`FakeModel`] while the engine owns it.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Ids in each place given away.
    pub(crate) slots: HashMap<usize, Vec<u32>>,
    pub(crate) next_slot: usize,
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
}

impl FakeModel {
    pub(crate) fn new(context: usize, eos: &[u32]) -> (Box<Self>, Arc<Mutex<Ledger>>) {
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        (Box::new(Self { ledger: ledger.clone(), context, eos: eos.to_vec() }), ledger)
    }
}

/// The logits after `ids`.
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

/// The greedy answer to `prompt`, ignoring end-of-sequence.
pub(crate) fn greedy(prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..tokens {
        let logits = logits_after(&ids);
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

    fn open_slot(&mut self) -> ernie_serve::Result<usize> {
        let mut ledger = self.ledger.lock().unwrap();
        let slot = ledger.next_slot;
        ledger.next_slot += 1;
        ledger.slots.insert(slot, Vec::new());
        Ok(slot)
    }

    fn close_slot(&mut self, slot: usize) {
        let held = self.ledger.lock().unwrap().slots.remove(&slot);
        assert!(held.is_some(), "slot {slot} was given back twice or never given away");
    }

    fn forward(&mut self, batch: &Batch, each: &mut EachRow<'_>) -> ernie_serve::Result<()> {
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
            let held = ledger.slots.get_mut(&chunk.slot).expect("the slot is open");
            assert_eq!(held.len(), chunk.past, "positions follow each other");
            for row in chunk.rows.clone() {
                held.push(batch.ids[row]);
                assert!(held.len() <= self.context, "the context is kept");
                if chunk.wanted.contains(&row) {
                    let mut logits = logits_after(held);
                    if poison == Some(batch.ids[row]) {
                        logits[3] = f32::NAN;
                    }
                    each(index, row, &mut logits);
                }
            }
        }
        assert_eq!(next, batch.ids.len());
        Ok(())
    }
}
