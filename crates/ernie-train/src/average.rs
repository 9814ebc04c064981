//! A running average of the weights, which often predicts better than the weights themselves (Polyak averaging; arXiv:1803.05407).
//!
//! `a ← d a + (1 − d) w` after every step, with `d = min(decay, (1 + t) / (10 + t))` so that the first steps are soon forgotten. What is evaluated and
//! published is the average; what is trained on, and saved as masters, are the weights.

use std::sync::Arc;

use ernie_nn::Parameter;

use crate::error::Result;

/// The average of each trained parameter.
pub struct Average {
    decay: f64,
    slots: Vec<(Arc<Parameter>, Vec<f32>)>,
}

impl Average {
    /// Begins at the weights of those of `parameters` that are trainable.
    pub(crate) fn new(parameters: &[Arc<Parameter>], decay: f64) -> Result<Self> {
        let trained = parameters.iter().filter(|parameter| parameter.is_trainable());
        let slots = trained.map(|parameter| Ok((parameter.clone(), parameter.to_vec()?))).collect::<Result<_>>()?;
        Ok(Self { decay, slots })
    }

    /// Takes in the weights after step `step`, counted from 1.
    pub(crate) fn update(&mut self, step: u64) -> Result<()> {
        let decay = self.decay.min((1.0 + step as f64) / (10.0 + step as f64));
        let share = (1.0 - decay) as f32;
        for (parameter, average) in &mut self.slots {
            parameter.read(|weights| {
                average.iter_mut().zip(weights).for_each(|(average, weight)| *average += share * (weight - *average));
            })?;
        }
        Ok(())
    }

    /// Runs `f` with the average in the place of the weights.
    pub(crate) fn instead<T>(&mut self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        self.swap()?;
        let outcome = f();
        self.swap()?;
        outcome
    }

    fn swap(&mut self) -> Result<()> {
        let mut slots = self.slots.iter_mut();
        slots.try_for_each(|(parameter, average)| Ok(parameter.update(|weights, _| weights.swap_with_slice(average))?))
    }

    /// The averages with the parameters they are of.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (&Parameter, &[f32])> {
        self.slots.iter().map(|(parameter, average)| (&**parameter, &average[..]))
    }

    /// Takes back what [`Self::slots`] gave; `read` fills the average of a name and shape.
    pub(crate) fn restore(&mut self, mut read: impl FnMut(&str, &[usize], &mut [f32]) -> Result<()>) -> Result<()> {
        self.slots.iter_mut().try_for_each(|(parameter, average)| read(parameter.name(), parameter.shape(), average))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_weights_and_stands_in_for_them() {
        let weight = Parameter::from_vec("w", vec![1.0, 2.0], &[2]).unwrap();
        let mut average = Average::new(std::slice::from_ref(&weight), 0.5).unwrap();
        weight.set(&[3.0, 6.0]).unwrap();
        // The first step forgets more than a half: (1 + 1) / (10 + 1).
        average.update(1).unwrap();
        let seen = average.instead(|| Ok(weight.to_vec()?)).unwrap();
        assert!((seen[0] - (3.0 - 2.0 * 2.0 / 11.0)).abs() < 1e-6, "{seen:?}");
        assert_eq!(weight.to_vec().unwrap(), [3.0, 6.0]);
        for step in 100..140 {
            average.update(step).unwrap();
        }
        let seen = average.instead(|| Ok(weight.to_vec()?)).unwrap();
        assert!((seen[1] - 6.0).abs() < 1e-5, "{seen:?}");
    }
}
