//! Which source the next row comes from.
//!
//! Sources have weights; after any number of rows each source has had its share to within a few rows, rather than on
//! average only: the next row goes to the source that is furthest behind `weight · rows drawn`. Where each source
//! starts in that race comes from the seed. The state is a count of rows for each source: no floating-point number is
//! saved, so a restored mixture goes on exactly.

use rand_chacha::rand_core::Rng;

use crate::sampler::keyed;
use crate::{Error, Result};

/// A seeded, evenly interleaving choice among weighted sources.
#[derive(Debug, Clone)]
pub struct Mixture {
    /// Normalised to sum 1.
    weights: Vec<f64>,
    /// A head start in `[0, 1)` rows.
    phases: Vec<f64>,
    counts: Vec<u64>,
}

impl Mixture {
    /// A mixture of sources with these weights, of any sum.
    ///
    /// # Errors
    /// [`Error::Setting`] if there is no source, or a weight is not finite and above 0.
    pub fn new(weights: &[f64], seed: u64) -> Result<Self> {
        let sum: f64 = weights.iter().sum();
        if weights.is_empty() || !sum.is_finite() || weights.iter().any(|&w| w <= 0.0 || !w.is_finite()) {
            return Err(Error::Setting {
                key: "data.sources".into(),
                what: format!("weights {weights:?} must be finite and above 0, at least one"),
            });
        }
        let mut rng = keyed(seed, u64::MAX, 0);
        Ok(Mixture {
            weights: weights.iter().map(|w| w / sum).collect(),
            phases: weights.iter().map(|_| (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64).collect(),
            counts: vec![0; weights.len()],
        })
    }

    /// The source of the next row.
    pub fn draw(&mut self) -> usize {
        let drawn = self.counts.iter().sum::<u64>() + 1;
        let behind = |i: usize| self.weights[i] * drawn as f64 + self.phases[i] - self.counts[i] as f64;
        let mut best = 0;
        for i in 1..self.weights.len() {
            if behind(i) > behind(best) {
                best = i;
            }
        }
        self.counts[best] += 1;
        best
    }

    /// Rows drawn from each source: the whole state.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Goes back to saved counts.
    ///
    /// # Errors
    /// [`Error::Resume`] if there were another number of sources.
    pub fn restore(&mut self, counts: &[u64]) -> Result<()> {
        if counts.len() != self.counts.len() || counts.iter().any(|&n| n > 1 << 53) {
            return Err(Error::Resume(format!(
                "the checkpoint has a mixture of {} sources, the recipe one of {}",
                counts.len(),
                self.counts.len()
            )));
        }
        self.counts.copy_from_slice(counts);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_kept_at_every_length() {
        let weights = [5.0, 3.0, 1.5, 0.5];
        let mut mixture = Mixture::new(&weights, 42).unwrap();
        for drawn in 1..5000u64 {
            mixture.draw();
            for (i, &count) in mixture.counts().iter().enumerate() {
                let due = weights[i] / 10.0 * drawn as f64;
                assert!((count as f64 - due).abs() < weights.len() as f64, "{drawn} rows: source {i} has {count}");
            }
        }
    }

    #[test]
    fn restored_anywhere_goes_on_alike() {
        let draws = |mixture: &mut Mixture| (0..50).map(|_| mixture.draw()).collect::<Vec<_>>();
        for at in 0..40 {
            let mut whole = Mixture::new(&[0.7, 0.2, 0.1], 9).unwrap();
            for _ in 0..at {
                whole.draw();
            }
            let mut resumed = Mixture::new(&[0.7, 0.2, 0.1], 9).unwrap();
            resumed.restore(whole.counts()).unwrap();
            assert_eq!(draws(&mut whole), draws(&mut resumed));
        }
    }

    #[test]
    fn bad_weights_are_refused() {
        for weights in [&[][..], &[0.0], &[-1.0, 2.0], &[f64::NAN], &[f64::INFINITY], &[f64::MAX, f64::MAX]] {
            assert!(Mixture::new(weights, 0).is_err_and(|e| e.is_input()), "{weights:?}");
        }
        assert!(Mixture::new(&[1.0], 0).unwrap().restore(&[1, 2]).is_err());
    }
}
