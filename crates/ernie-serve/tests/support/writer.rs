//! A model that says anything, within what its watcher allows.
#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::OnceLock;

use ernie_data::tokenizer::{Tokenizer, TrainOptions, train_bpe};
use ernie_serve::engine::{Batch, Model, Row, TakeRows, Verdict, Watcher};
use ernie_serve::session::GrammarVocab;

pub(crate) const EOS: u32 = 2;

pub(crate) fn tokenizer() -> Tokenizer {
    static TRAINED: OnceLock<Tokenizer> = OnceLock::new();
    let train = || {
        let texts = [
            r#"{"name": "get_weather", "arguments": {"city": "Paris", "unit": 1.5}} [true, false, null] [{"a": -1}, "x"]"#,
            "the quick brown fox: {\"id\": 1,\n  \"kind\": \"cat\", \"tags\": [\"a\", \"b\"]} <tool_call>\n</tool_call>",
        ];
        train_bpe(texts.iter().cycle().take(20), &TrainOptions::ernie(400)).unwrap()
    };
    TRAINED.get_or_init(train).clone()
}

pub(crate) fn vocab() -> GrammarVocab {
    static MADE: OnceLock<GrammarVocab> = OnceLock::new();
    let make = || {
        let tokenizer = tokenizer();
        // Some rows of a model stand for nothing.
        GrammarVocab::new(&tokenizer, tokenizer.vocab_size() + 7, &[EOS], &[]).unwrap()
    };
    MADE.get_or_init(make).clone()
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The watcher said so.
    Stop,
    /// An end id was picked.
    Eos,
    /// No more tokens.
    Length,
    /// No id was allowed.
    Stuck,
}

/// Random numbers from 0 to 1, keyed by `seed`.
pub(crate) fn random(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def0;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// An answer under a watcher: any token that is allowed, closing ones more often as the answer grows.
pub(crate) fn answer_of(
    tokenizer: &Tokenizer,
    vocab_size: usize,
    mut watcher: Box<dyn Watcher>,
    seed: u64,
    most: usize,
) -> (Vec<u32>, End) {
    let mut random = random(seed);
    let mut ids = Vec::new();
    while ids.len() < most {
        let mut logits: Vec<f32> = (0..vocab_size).map(|_| random()).collect();
        let closing = (ids.len() as f32 / 30.0).min(2.0) * random();
        for (id, logit) in logits.iter_mut().enumerate() {
            let bytes = tokenizer.token_bytes(id as u32).unwrap_or_default();
            if bytes.iter().any(|byte| b"\"}]".contains(byte)) || id as u32 == EOS {
                *logit += closing;
            }
        }
        watcher.mask(&mut logits);
        let best = (0..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best });
        if logits[best] == f32::NEG_INFINITY {
            return (ids, End::Stuck);
        }
        if best as u32 == EOS {
            return (ids, End::Eos);
        }
        ids.push(best as u32);
        if watcher.accept(best as u32) == Verdict::Stop {
            return (ids, End::Stop);
        }
    }
    (ids, End::Length)
}

/// The same with the tokenizer of the tests, as text.
pub(crate) fn answer(watcher: Box<dyn Watcher>, seed: u64, most: usize) -> (String, Vec<u32>, End) {
    let tokenizer = tokenizer();
    let (ids, end) = answer_of(&tokenizer, tokenizer.vocab_size() + 7, watcher, seed, most);
    (tokenizer.decode_continuation(&ids), ids, end)
}

/// A model whose logits depend on the last id alone, so that it needs no cache and repeats itself.
pub(crate) struct Chain {
    pub(crate) vocab_size: usize,
}

impl Model for Chain {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn context_length(&self) -> usize {
        2000
    }

    fn eos_ids(&self) -> &[u32] {
        &[EOS]
    }

    fn row_cost(&self, _rows: usize) -> Option<f64> {
        Some(0.05)
    }

    fn forward(&mut self, batch: &Batch, take: &mut TakeRows<'_>) -> ernie_serve::Result<()> {
        for (index, chunk) in batch.chunks.iter().enumerate() {
            for row in chunk.wanted.clone() {
                let mut random = random(u64::from(batch.ids[row]) + 1);
                let mut logits: Vec<f32> = (0..self.vocab_size).map(|_| 4.0 * random()).collect();
                take(vec![Row { chunk: index, row, numbers: &mut logits }]);
            }
        }
        Ok(())
    }
}
