//! AdamW or Muon over the model's parameters, and the global norm of their gradients.
//!
//! With AdamW one fused pass over memory a parameter: clipping is a factor on the gradient as it is read. Decay falls on matrices only unless the
//! recipe says `all`; routers may learn at a share of the learning rate. Muon is for the matrices between embedding and head; what else there is
//! keeps AdamW, as its authors have it.

use std::sync::Arc;

use ernie_nn::{Parameter, Width, adamw, muon};

use crate::error::Result;
use crate::recipe::{self, Decay, OptimizerKind};

/// The moments of one parameter, and how it is treated.
struct Slot {
    parameter: Arc<Parameter>,
    rule: OptimizerKind,
    first: Vec<f32>,
    /// Empty with Muon, which has none.
    second: Vec<f32>,
    decays: bool,
    lr_share: f64,
}

/// AdamW (arXiv:1711.05101, algorithm 2, with the decay scaled by the learning rate as PyTorch does), or Muon beside it.
pub struct Optimizer {
    slots: Vec<Slot>,
    settings: recipe::Optimizer,
    /// In what Muon's products are computed.
    width: Width,
    step: u64,
}

/// The moments of one parameter.
pub struct Moments<'a> {
    /// The parameter's name.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// Running mean of the gradient.
    pub first: &'a [f32],
    /// Running mean of its square; empty where the rule has none.
    pub second: &'a [f32],
}

impl Optimizer {
    /// An optimiser with zero moments over those of `parameters` that are trainable.
    pub fn new(parameters: &[Arc<Parameter>], settings: &recipe::Optimizer) -> Self {
        let slots = parameters.iter().filter(|parameter| parameter.is_trainable()).map(|parameter| {
            let decays = match settings.decay {
                Decay::All => true,
                Decay::Matrices => parameter.shape().len() >= 2,
            };
            let lr_share = if is_router(parameter.name()) { settings.gate_lr_ratio } else { 1.0 };
            let rule = if is_hidden(parameter) { settings.kind } else { OptimizerKind::Adamw };
            let first = vec![0.0; parameter.elements()];
            let second = if rule == OptimizerKind::Muon { Vec::new() } else { first.clone() };
            Slot { parameter: parameter.clone(), rule, first, second, decays, lr_share }
        });
        Self { slots: slots.collect(), settings: *settings, width: Width::F32, step: 0 }
    }

    /// Sets in what the products of Muon's iterations are computed.
    #[must_use]
    pub fn in_width(mut self, width: Width) -> Self {
        self.width = width;
        self
    }

    /// Multiplies the learning rate of each parameter by what `share` says of its name.
    #[must_use]
    pub fn with_lr_share(mut self, share: impl Fn(&str) -> f64) -> Self {
        self.slots.iter_mut().for_each(|slot| slot.lr_share *= share(slot.parameter.name()));
        self
    }

    /// Steps made.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Forgets all gradients.
    pub fn zero_grad(&self) {
        self.slots.iter().for_each(|slot| slot.parameter.zero_grad());
    }

    /// Global norm of the gradients, accumulated in f64. A parameter without gradient counts as zero.
    pub fn grad_norm(&self) -> Result<f64> {
        let mut sum = 0.0;
        for slot in &self.slots {
            sum += slot.parameter.read_grad(adamw::sum_of_squares)?;
        }
        Ok(sum.sqrt())
    }

    /// The factor that brings a gradient of norm `norm` within the recipe's bound.
    pub fn clip_factor(&self, norm: f64) -> f64 {
        // The small term is PyTorch's; with it a norm at the bound is scaled by a hair, as there.
        if self.settings.clip > 0.0 { (self.settings.clip / (norm + 1e-6)).min(1.0) } else { 1.0 }
    }

    /// One update of every parameter; gradients are read multiplied by `grad_scale`, and stay.
    pub fn step(&mut self, lr: f64, grad_scale: f64) -> Result<()> {
        self.step += 1;
        for slot in &mut self.slots {
            let lr = lr * slot.lr_share;
            let weight_decay = if slot.decays { self.settings.weight_decay } else { 0.0 };
            let (first, second, step, width) = (&mut slot.first, &mut slot.second, self.step, self.width);
            let shape = slot.parameter.shape().to_vec();
            slot.parameter.update(|weights, gradient| {
                // An expert that no token reached has a gradient of zero, whether or not anyone wrote the zeros down.
                let zeros = if gradient.is_empty() { vec![0.0; weights.len()] } else { Vec::new() };
                let gradient = if gradient.is_empty() { &zeros } else { gradient };
                match (slot.rule, &shape[..]) {
                    (OptimizerKind::Muon, &[rows, columns]) => {
                        let numbers = muon::Muon { lr, momentum: self.settings.momentum, weight_decay, width };
                        muon::step(weights, gradient, first, [rows, columns], &numbers, grad_scale as f32);
                    }
                    _ => {
                        let [beta1, beta2] = self.settings.betas;
                        let numbers = adamw::AdamW { lr, beta1, beta2, eps: self.settings.eps, weight_decay };
                        adamw::step(weights, gradient, first, second, &numbers, step, grad_scale as f32);
                    }
                }
            })?;
        }
        Ok(())
    }

    /// The moments, in the order of the parameters.
    pub fn moments(&self) -> impl Iterator<Item = Moments<'_>> {
        self.slots.iter().map(|slot| Moments {
            name: slot.parameter.name(),
            shape: slot.parameter.shape(),
            first: &slot.first,
            second: &slot.second,
        })
    }

    /// Takes back what [`Self::moments`] and [`Self::steps`] gave; `read` fills the two moments of a name and shape.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn restore(
        &mut self,
        step: u64,
        mut read: impl FnMut(&str, &[usize], &mut [f32], &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        for slot in &mut self.slots {
            read(slot.parameter.name(), slot.parameter.shape(), &mut slot.first, &mut slot.second)?;
        }
        self.step = step;
        Ok(())
    }
}

/// Whether this is a matrix between embedding and head, by its published name.
fn is_hidden(parameter: &Parameter) -> bool {
    parameter.shape().len() == 2 && parameter.name().ends_with("_proj.weight")
}

/// Whether this is the weight of a router, by its published name.
fn is_router(name: &str) -> bool {
    name.ends_with(".mlp.gate.weight")
}

#[cfg(test)]
mod tests {
    use ernie_nn::Value;

    use super::*;

    /// Leaves the gradient `g` on `parameter`: that of Σ g·w.
    fn give_gradient(parameter: &Arc<Parameter>, gradient: Vec<f32>) {
        parameter.zero_grad();
        let tensor = Value::from_vec(gradient, parameter.shape()).unwrap();
        parameter.accumulate(tensor.tensor().clone()).unwrap();
    }

    fn settings(weight_decay: f64) -> recipe::Optimizer {
        recipe::Optimizer { weight_decay, ..recipe::Optimizer::default() }
    }

    #[test]
    fn first_step_moves_by_the_learning_rate_and_decay_spares_vectors() {
        let matrix = Parameter::from_vec("a.weight", vec![1.0, -1.0], &[1, 2]).unwrap();
        let norm = Parameter::from_vec("n.weight", vec![1.0, -1.0], &[2]).unwrap();
        let mut adam = Optimizer::new(&[matrix.clone(), norm.clone()], &settings(0.5));
        for parameter in [&matrix, &norm] {
            give_gradient(parameter, vec![0.3, -7.0]);
        }
        adam.step(0.1, 1.0).unwrap();
        let close = |parameter: &Parameter, expected: [f32; 2]| {
            let got = parameter.to_vec().unwrap();
            assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{got:?}");
        };
        close(&norm, [0.9, -0.9]);
        close(&matrix, [0.85, -0.85]);
    }

    #[test]
    fn routers_learn_at_their_share_and_no_gradient_is_a_zero_gradient() {
        let gate = Parameter::from_vec("model.layers.1.mlp.gate.weight", vec![0.0; 2], &[1, 2]).unwrap();
        let idle = Parameter::from_vec("model.layers.1.mlp.experts.3.up_proj.weight", vec![1.0; 2], &[1, 2]).unwrap();
        let mut adam =
            Optimizer::new(&[gate.clone(), idle.clone()], &recipe::Optimizer { gate_lr_ratio: 0.01, ..settings(0.1) });
        give_gradient(&gate, vec![1.0, -1.0]);
        adam.step(1.0, 1.0).unwrap();
        assert!((gate.to_vec().unwrap()[0] + 0.01).abs() < 1e-6);
        let zero = Parameter::from_vec("zero", vec![1.0; 2], &[1, 2]).unwrap();
        give_gradient(&zero, vec![0.0; 2]);
        Optimizer::new(std::slice::from_ref(&zero), &settings(0.1)).step(1.0, 1.0).unwrap();
        assert_eq!(idle.to_vec().unwrap(), zero.to_vec().unwrap());
    }

    #[test]
    fn norm_and_clip() {
        let a = Parameter::from_vec("a", vec![0.0; 2], &[2]).unwrap();
        let b = Parameter::from_vec("b", vec![0.0; 1], &[1]).unwrap();
        let adam = Optimizer::new(&[a.clone(), b], &settings(0.0));
        give_gradient(&a, vec![3.0, 4.0]);
        assert_eq!(adam.grad_norm().unwrap(), 5.0);
        assert!((adam.clip_factor(5.0) - 0.2).abs() < 1e-6);
        assert_eq!(adam.clip_factor(0.5), 1.0);
        let free = Optimizer::new(&[a], &recipe::Optimizer { clip: 0.0, ..settings(0.0) });
        assert_eq!(free.clip_factor(1e9), 1.0);
    }

    #[test]
    fn restored_state_goes_on_alike() {
        let run = |stop: Option<usize>| {
            let w = Parameter::from_vec("w", vec![0.5, -0.25, 2.0], &[3]).unwrap();
            let mut adam = Optimizer::new(std::slice::from_ref(&w), &settings(0.1));
            for step in 0..6 {
                if stop == Some(step) {
                    let kept: Vec<_> = adam.moments().map(|m| (m.first.to_vec(), m.second.to_vec())).collect();
                    let steps = adam.steps();
                    adam = Optimizer::new(std::slice::from_ref(&w), &settings(0.1));
                    let read = |_: &str, _: &[usize], first: &mut [f32], second: &mut [f32]| {
                        first.copy_from_slice(&kept[0].0);
                        second.copy_from_slice(&kept[0].1);
                        Ok(())
                    };
                    adam.restore(steps, read).unwrap();
                }
                give_gradient(&w, vec![0.1 * step as f32, -0.2, 0.7]);
                adam.step(1e-2, 0.5).unwrap();
            }
            w.to_vec().unwrap()
        };
        let whole = run(None);
        assert!((0..6).all(|stop| run(Some(stop)) == whole));
    }

    #[test]
    fn muon_is_for_hidden_matrices_and_adam_for_the_rest() {
        let hidden = Parameter::from_vec("model.layers.0.mlp.up_proj.weight", vec![0.0; 12], &[3, 4]).unwrap();
        let embedding = Parameter::from_vec("model.embed_tokens.weight", vec![0.0; 12], &[3, 4]).unwrap();
        let settings = recipe::Optimizer { kind: OptimizerKind::Muon, ..settings(0.0) };
        let mut optimizer = Optimizer::new(&[hidden.clone(), embedding.clone()], &settings);
        assert_eq!(optimizer.moments().map(|m| m.second.len()).collect::<Vec<_>>(), [0, 12]);
        for parameter in [&hidden, &embedding] {
            give_gradient(parameter, (0..12).map(|i| (i as f32 - 5.5).powi(3)).collect());
        }
        optimizer.step(0.1, 1.0).unwrap();
        // Adam's first step moves every number by the learning rate; Muon's has a norm of 0.2 lr sqrt(4) times about the root of 3.
        assert!(embedding.to_vec().unwrap().iter().all(|w| (w.abs() - 0.1).abs() < 1e-4));
        let norm = hidden.to_vec().unwrap().iter().map(|w| w * w).sum::<f32>().sqrt();
        assert!((0.02..0.1).contains(&norm), "{norm}");
    }
}
