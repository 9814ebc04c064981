//! A model whose logits depend on the last id and its position alone, and that fails, panics or dawdles when told to. What goes
//! through an adapter is answered as if it stood further on.

use std::sync::OnceLock;
use std::time::Duration;

use ernie_data::tokenizer::{Tokenizer, TrainOptions, train_bpe};
use ernie_serve::engine::{Batch, Model, Row, TakeRows};

/// Reading this id makes the model panic.
pub(crate) const PANIC_ID: u32 = 395;
/// Reading this id makes the model fail.
pub(crate) const FAIL_ID: u32 = 396;
/// After this id the model says that it is done.
pub(crate) const END_ID: u32 = 397;
/// The end of a text.
pub(crate) const EOS: u32 = 2;

/// Rows of the vocabulary: more than the tokenizer has ids, as in published models.
pub(crate) const VOCAB: usize = 400;

pub(crate) const CONTEXT: usize = 2048;

/// How much further on an adapter and the next are.
pub(crate) const APART: usize = 10_000;

pub(crate) fn tokenizer() -> Tokenizer {
    static TRAINED: OnceLock<Tokenizer> = OnceLock::new();
    let train = || {
        let texts = ["the quick brown fox says: abc abab ba, ENDING the END of a line. User: Assistant: "];
        train_bpe(texts.iter().cycle().take(20), &TrainOptions::ernie(350)).expect("a tokenizer")
    };
    TRAINED.get_or_init(train).clone()
}

/// See the module.
pub(crate) struct Told {
    step: Duration,
    /// What it says after any prompt, one request at a time; noise without it.
    script: Option<Vec<u32>>,
    /// Where the script began, and the position that goes on with it.
    begun: usize,
    next: usize,
}

impl Told {
    /// A model whose steps take so long.
    pub(crate) fn new(step: Duration, script: Option<Vec<u32>>) -> Self {
        Self { step, script, begun: 1, next: 0 }
    }

    /// Puts the script's next id in front.
    fn say(&mut self, position: usize, logits: &mut [f32]) {
        let Some(script) = &self.script else { return };
        // Guesses that were wrong are read again at the same positions, so going back is no new prompt.
        if !(self.begun..=self.next).contains(&position) {
            self.begun = position;
        }
        self.next = position + 1;
        let id = script.get(position - self.begun).copied().unwrap_or(EOS);
        logits[id as usize] = 80.0;
    }
}

/// The logits after `id` at `position`: noise over ordinary ids, none for those that mean something here.
pub(crate) fn logits_after(id: u32, position: usize) -> Vec<f32> {
    let mut state = (u64::from(id) << 32 | position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def0;
    let mut logits: Vec<f32> = (0..VOCAB)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 * 8.0 - 4.0
        })
        .collect();
    logits[..5].fill(-50.0);
    logits[350..].fill(-50.0);
    if id == END_ID {
        logits[EOS as usize] = 50.0;
    }
    logits
}

impl Model for Told {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn context_length(&self) -> usize {
        CONTEXT
    }

    fn eos_ids(&self) -> &[u32] {
        &[EOS]
    }

    fn adapters(&self) -> usize {
        2
    }

    fn block_tokens(&self) -> usize {
        16
    }

    fn block_bytes(&self) -> u64 {
        1 << 10
    }

    fn row_cost(&self, _rows: usize) -> Option<f64> {
        Some(1.0)
    }

    fn forward(&mut self, batch: &Batch, take: &mut TakeRows<'_>) -> ernie_serve::Result<()> {
        std::thread::sleep(self.step);
        if batch.ids.contains(&PANIC_ID) {
            // On whichever thread of the pool takes that piece.
            ernie_nn::parallel(64, |piece| assert!(piece < 32, "the model was told to panic"));
        }
        if batch.ids.contains(&FAIL_ID) {
            return Err(ernie_serve::Error::Internal("the model was told to fail".into()));
        }
        for (index, chunk) in batch.chunks.iter().enumerate() {
            for row in chunk.wanted.clone() {
                let further = chunk.adapter.map_or(0, |adapter| APART * (adapter + 1));
                let (id, position) = (batch.ids[row], chunk.past + row - chunk.rows.start + further);
                let mut out = match chunk.hidden {
                    true => vec![id as f32, position as f32, 1.0],
                    false => logits_after(id, position),
                };
                if !chunk.hidden {
                    self.say(position, &mut out);
                }
                take(vec![Row { chunk: index, row, numbers: &mut out }]);
            }
        }
        Ok(())
    }
}
