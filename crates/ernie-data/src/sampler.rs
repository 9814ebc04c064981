//! Which row of a source comes next.
//!
//! A sampler sees row numbers and losses, never tokens. [`Uniform`] visits every row once an epoch, in an order that
//! the seed and the epoch alone decide; samplers that learn from losses enter beside it behind the same trait.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Which sampler a recipe asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerKind {
    /// Every row once an epoch, reshuffled each epoch.
    #[default]
    Uniform,
    /// Rows of high loss more often. Not built yet.
    Priority,
    /// Easy rows first. Not built yet.
    Curriculum,
}

/// What a sampler needs to go on as if it had not been stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerState {
    /// Passes completed.
    pub epoch: u64,
    /// Rows drawn in this pass.
    pub index: u32,
}

/// Draws rows of one source.
pub trait Sampler: Send {
    /// The next row.
    fn draw(&mut self) -> u32;

    /// Learns the mean losses that a step measured on these rows.
    fn record(&mut self, rows: &[u32], losses: &[f32]);

    /// The state to save.
    fn state(&self) -> SamplerState;

    /// Goes back to a saved state.
    ///
    /// # Errors
    /// [`Error::Resume`] if the state cannot be one of this sampler.
    fn restore(&mut self, state: &SamplerState) -> Result<()>;
}

/// A sampler of `rows` rows; `stream` tells sources with one seed apart.
///
/// # Errors
/// [`Error::Setting`] for a kind that is not built yet or a source without rows.
pub fn new(kind: SamplerKind, rows: u32, seed: u64, stream: u64) -> Result<Box<dyn Sampler>> {
    let name = match kind {
        SamplerKind::Uniform => return Ok(Box::new(Uniform::new(rows, seed, stream)?)),
        SamplerKind::Priority => "priority",
        SamplerKind::Curriculum => "curriculum",
    };
    Err(Error::Setting { key: "sampler.kind".into(), what: format!("`{name}` is not built yet; use `uniform`") })
}

/// Every row once an epoch, in a fresh order each epoch.
///
/// The order is a Fisher–Yates shuffle by ChaCha8 keyed with (seed, stream, epoch), so the state is two numbers. Memory:
/// 4 bytes a row.
pub struct Uniform {
    order: Vec<u32>,
    seed: u64,
    stream: u64,
    epoch: u64,
    index: u32,
}

impl Uniform {
    /// A sampler at the start of epoch 0.
    ///
    /// # Errors
    /// [`Error::Setting`] if there are no rows.
    pub fn new(rows: u32, seed: u64, stream: u64) -> Result<Self> {
        if rows == 0 {
            return Err(Error::Setting { key: "data".into(), what: "a source has no rows".into() });
        }
        let mut sampler = Uniform { order: (0..rows).collect(), seed, stream, epoch: 0, index: 0 };
        sampler.shuffle();
        Ok(sampler)
    }

    fn shuffle(&mut self) {
        for (i, row) in self.order.iter_mut().enumerate() {
            *row = i as u32;
        }
        let mut rng = keyed(self.seed, self.stream, self.epoch);
        for i in (1..self.order.len()).rev() {
            self.order.swap(i, below(&mut rng, i as u64 + 1) as usize);
        }
    }
}

impl Sampler for Uniform {
    fn draw(&mut self) -> u32 {
        if self.index as usize == self.order.len() {
            self.epoch += 1;
            self.index = 0;
            self.shuffle();
        }
        self.index += 1;
        self.order[self.index as usize - 1]
    }

    /// Uniform sampling learns nothing.
    fn record(&mut self, _rows: &[u32], _losses: &[f32]) {}

    fn state(&self) -> SamplerState {
        SamplerState { epoch: self.epoch, index: self.index }
    }

    fn restore(&mut self, state: &SamplerState) -> Result<()> {
        if state.index as usize > self.order.len() {
            return Err(Error::Resume(format!(
                "the sampler stood at row {} of its pass, the data has {} rows",
                state.index,
                self.order.len()
            )));
        }
        self.epoch = state.epoch;
        self.index = state.index;
        self.shuffle();
        Ok(())
    }
}

/// A generator that three numbers decide; its stream is ChaCha8's and does not change with library versions.
pub(crate) fn keyed(seed: u64, stream: u64, epoch: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&stream.to_le_bytes());
    key[16..24].copy_from_slice(&epoch.to_le_bytes());
    key[24..].copy_from_slice(b"ernie-da");
    ChaCha8Rng::from_seed(key)
}

/// A number below `bound`, each equally likely (by rejection; written out so that no library version can change it).
fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    let fair = u64::MAX - u64::MAX % bound;
    loop {
        let draw = rng.next_u64();
        if draw < fair {
            return draw % bound;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(sampler: &mut dyn Sampler, rows: u32) -> Vec<u32> {
        (0..rows).map(|_| sampler.draw()).collect()
    }

    #[test]
    fn every_row_once_an_epoch_and_another_order_in_the_next() {
        let mut sampler = Uniform::new(100, 7, 0).unwrap();
        let (first, second) = (epoch(&mut sampler, 100), epoch(&mut sampler, 100));
        assert_ne!(first, second);
        for mut rows in [first, second] {
            rows.sort_unstable();
            assert_eq!(rows, (0..100).collect::<Vec<_>>());
        }
    }

    #[test]
    fn seed_and_stream_decide_the_order() {
        let order = |seed, stream| epoch(&mut Uniform::new(50, seed, stream).unwrap(), 50);
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), order(2, 0));
        assert_ne!(order(1, 0), order(1, 1));
    }

    #[test]
    fn restored_anywhere_goes_on_alike() {
        for at in 0..25 {
            let mut whole = Uniform::new(10, 3, 1).unwrap();
            epoch(&mut whole, at);
            let mut resumed = Uniform::new(10, 3, 1).unwrap();
            resumed.restore(&whole.state()).unwrap();
            assert_eq!(epoch(&mut whole, 30), epoch(&mut resumed, 30), "stopped at {at}");
        }
    }

    #[test]
    fn orders_are_even() {
        // Three rows have six orders; each should come up about 1,000 times in 6,000 epochs (5 sigma is 145).
        let mut counts = std::collections::BTreeMap::new();
        let mut sampler = Uniform::new(3, 11, 0).unwrap();
        for _ in 0..6000 {
            *counts.entry(epoch(&mut sampler, 3)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|&n| (855..=1145).contains(&n)), "{counts:?}");
    }

    #[test]
    fn what_is_not_built_says_so() {
        for kind in [SamplerKind::Priority, SamplerKind::Curriculum] {
            let error = new(kind, 5, 0, 0).err().unwrap();
            assert!(error.is_input() && error.to_string().contains("not built yet"), "{error}");
        }
        assert!(Uniform::new(0, 0, 0).is_err());
    }
}
