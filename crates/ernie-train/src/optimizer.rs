//! AdamW or Muon over the model's parameters, and the global norm of their gradients.
//!
//! With AdamW one fused pass over memory a parameter: clipping is a factor on the gradient as it is read. Decay falls on matrices only unless the
//! recipe says `all`; routers may learn at a share of the learning rate. Muon is for the matrices between embedding and head; what else there is
//! keeps AdamW, as its authors have it.
//!
//! A step is made of all parameters at once ([`Optimizer::step`]), or of one after the other on the way back ([`Optimizer::update`]), which leaves no
//! two gradients to hold and cannot clip.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ernie_nn::{Floats, FloatsMut, Parameter, Width, adamw, bf16, muon, parallel};

use crate::error::Result;
use crate::recipe::{self, Decay, Float, OptimizerKind};

/// Elements up to which a matrix's products of a Muon step keep one thread busy, but not two.
const SMALL: usize = 1 << 18;

/// What an update rule remembers of a parameter: its moments.
enum Memory {
    /// The momentum of Muon, which has no second moment.
    Momentum(Vec<f32>),
    Adamw([Vec<f32>; 2]),
    /// Those of AdamW in bf16.
    Narrow([Vec<bf16>; 2]),
}

/// One parameter, and how it is treated.
struct Slot {
    parameter: Arc<Parameter>,
    memory: Memory,
    decays: bool,
    lr_share: f64,
    /// The sum of squares of its gradient, where it was updated in a step that is still being made.
    squares: Option<f64>,
}

/// AdamW (arXiv:1711.05101, algorithm 2, with the decay scaled by the learning rate as PyTorch does), or Muon beside it.
pub struct Optimizer {
    slots: Vec<Slot>,
    /// The place of each parameter among the slots, by its name.
    places: HashMap<String, usize>,
    rules: Rules,
    step: u64,
    /// Whether a gradient of the step that is being made was not finite.
    spoiled: bool,
}

/// What is the same for all parameters.
struct Rules {
    settings: recipe::Optimizer,
    /// In what Muon's products are computed.
    width: Width,
    /// Seeds the roundings of moments in bf16.
    seed: u64,
}

/// The moments of one parameter.
pub struct Moments<'a> {
    /// The parameter's name.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// Running mean of the gradient.
    pub first: Floats<'a>,
    /// Running mean of its square; empty where the rule has none.
    pub second: Floats<'a>,
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
            let elements = parameter.elements();
            let memory = match (settings.kind, settings.moments) {
                (OptimizerKind::Muon, _) if is_hidden(parameter) => Memory::Momentum(vec![0.0; elements]),
                (_, Float::F32) => Memory::Adamw([vec![0.0; elements], vec![0.0; elements]]),
                (_, Float::Bf16) => Memory::Narrow([vec![bf16::ZERO; elements], vec![bf16::ZERO; elements]]),
            };
            Slot { parameter: parameter.clone(), memory, decays, lr_share, squares: None }
        });
        let slots: Vec<Slot> = slots.collect();
        let places = slots.iter().enumerate().map(|(at, slot)| (slot.parameter.name().to_owned(), at)).collect();
        Self {
            slots,
            places,
            rules: Rules { settings: *settings, width: Width::F32, seed: 0 },
            step: 0,
            spoiled: false,
        }
    }

    /// Sets in what the products of Muon's iterations are computed.
    #[must_use]
    pub fn in_width(mut self, width: Width) -> Self {
        self.rules.width = width;
        self
    }

    /// Seeds the roundings of moments in bf16.
    #[must_use]
    pub fn seeded(mut self, seed: u64) -> Self {
        self.rules.seed = seed;
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
        let clip = self.rules.settings.clip;
        if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 }
    }

    /// One update of every parameter; gradients are read multiplied by `grad_scale`, and stay.
    pub fn step(&mut self, lr: f64, grad_scale: f64) -> Result<()> {
        self.step += 1;
        let (rules, number) = (&self.rules, self.step);
        // What is small goes a thread each: its own products are too short to share.
        let (small, large): (Vec<_>, Vec<_>) = self.slots.iter_mut().partition(|slot| slot.is_small_product());
        let small: Vec<_> = small.into_iter().map(|slot| Mutex::new((slot, Ok(())))).collect();
        parallel(small.len(), |i| {
            let (slot, result) = &mut *small[i].lock().unwrap_or_else(PoisonError::into_inner);
            *result = slot.update(rules, number, lr, grad_scale);
        });
        small.into_iter().try_for_each(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner).1)?;
        large.into_iter().try_for_each(|slot| Ok(slot.update(rules, number, lr, grad_scale)?))
    }

    /// The share of one parameter in the step that is being made: an update by its gradient as it is, which is then forgotten. For
    /// [`Value::backward_telling`](ernie_nn::Value::backward_telling); [`Self::finish`] makes the rest. From the first gradient on that is not finite none is used.
    pub fn update(&mut self, parameter: &Arc<Parameter>, lr: f64) -> ernie_nn::Result<()> {
        match self.places.get(parameter.name()) {
            Some(&at) => self.update_at(at, lr),
            None => Ok(()),
        }
    }

    fn update_at(&mut self, at: usize, lr: f64) -> ernie_nn::Result<()> {
        let Some(slot) = self.slots.get_mut(at) else { return Ok(()) };
        let squares = slot.parameter.read_grad(adamw::sum_of_squares)?;
        slot.squares = Some(squares);
        self.spoiled |= !squares.is_finite();
        if !self.spoiled {
            slot.update(&self.rules, self.step + 1, lr, 1.0)?;
        }
        slot.parameter.zero_grad();
        Ok(())
    }

    /// Ends a step of [`Self::update`]: updates the parameters that had none, and gives the global norm of the gradients. Where that is not finite the step
    /// does not count, and what had been updated by then has been.
    pub fn finish(&mut self, lr: f64) -> Result<f64> {
        for at in 0..self.slots.len() {
            if self.slots[at].squares.is_none() {
                self.update_at(at, lr)?;
            }
        }
        let norm = self.slots.iter_mut().filter_map(|slot| slot.squares.take()).sum::<f64>().sqrt();
        if !std::mem::take(&mut self.spoiled) {
            self.step += 1;
        }
        Ok(norm)
    }

    /// The moments, in the order of the parameters.
    pub fn moments(&self) -> impl Iterator<Item = Moments<'_>> {
        self.slots.iter().map(|slot| {
            let (first, second) = match &slot.memory {
                Memory::Momentum(first) => (Floats::F32(first), Floats::F32(&[])),
                Memory::Adamw([first, second]) => (Floats::F32(first), Floats::F32(second)),
                Memory::Narrow([first, second]) => (Floats::Bf16(first), Floats::Bf16(second)),
            };
            Moments { name: slot.parameter.name(), shape: slot.parameter.shape(), first, second }
        })
    }

    /// Takes back what [`Self::moments`] and [`Self::steps`] gave; `read` fills the two moments of a name and shape.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn restore(
        &mut self,
        step: u64,
        mut read: impl FnMut(&str, &[usize], FloatsMut<'_>, FloatsMut<'_>) -> Result<()>,
    ) -> Result<()> {
        for slot in &mut self.slots {
            let (first, second) = match &mut slot.memory {
                Memory::Momentum(first) => (FloatsMut::F32(first), FloatsMut::F32(&mut [])),
                Memory::Adamw([first, second]) => (FloatsMut::F32(first), FloatsMut::F32(second)),
                Memory::Narrow([first, second]) => (FloatsMut::Bf16(first), FloatsMut::Bf16(second)),
            };
            read(slot.parameter.name(), slot.parameter.shape(), first, second)?;
            slot.squares = None;
        }
        (self.step, self.spoiled) = (step, false);
        Ok(())
    }
}

impl Slot {
    /// Whether its update is a chain of products of a small matrix.
    fn is_small_product(&self) -> bool {
        matches!(self.memory, Memory::Momentum(_)) && self.parameter.elements() <= SMALL
    }

    /// Step `number` of this parameter.
    fn update(&mut self, rules: &Rules, number: u64, lr: f64, grad_scale: f64) -> ernie_nn::Result<()> {
        let (settings, lr, grad_scale) = (&rules.settings, lr * self.lr_share, grad_scale as f32);
        let weight_decay = if self.decays { settings.weight_decay } else { 0.0 };
        let [beta1, beta2] = settings.betas;
        let adam = adamw::AdamW { lr, beta1, beta2, eps: settings.eps, weight_decay };
        let (parameter, memory) = (&self.parameter, &mut self.memory);
        parameter.update(|weights, gradient| {
            // An expert that no token reached has a gradient of zero, whether or not anyone wrote the zeros down.
            let zeros = if gradient.is_empty() { vec![0.0; weights.len()] } else { Vec::new() };
            let gradient = if gradient.is_empty() { &zeros } else { gradient };
            match memory {
                Memory::Momentum(momentum) => {
                    let numbers = muon::Muon { lr, momentum: settings.momentum, weight_decay, width: rules.width };
                    let rows = parameter.shape().first().copied().unwrap_or(1).max(1);
                    let shape = [rows, weights.len() / rows];
                    muon::step(weights, gradient, momentum, shape, &numbers, grad_scale);
                }
                Memory::Adamw([first, second]) => {
                    adamw::step(weights, gradient, first, second, &adam, number, grad_scale);
                }
                Memory::Narrow([first, second]) => {
                    let key = key(rules.seed, number, parameter.name());
                    adamw::step_rounding(weights, gradient, first, second, &adam, number, grad_scale, key);
                }
            }
        })
    }
}

/// What keys the roundings of a parameter's moments in one step: FNV-1a over all that they may depend on.
fn key(seed: u64, step: u64, name: &str) -> u64 {
    let numbers = [seed.to_le_bytes(), step.to_le_bytes()];
    let bytes = numbers.iter().flatten().chain(name.as_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
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
        for moments in [Float::F32, Float::Bf16] {
            restored(&recipe::Optimizer { moments, ..settings(0.1) });
        }
    }

    fn restored(settings: &recipe::Optimizer) {
        let run = |stop: Option<usize>| {
            let w = Parameter::from_vec("w", vec![0.5, -0.25, 2.0], &[3]).unwrap();
            let mut adam = Optimizer::new(std::slice::from_ref(&w), settings);
            for step in 0..6 {
                if stop == Some(step) {
                    let kept: Vec<_> =
                        adam.moments().map(|m| (m.first.bytes().into_owned(), m.second.bytes().into_owned())).collect();
                    let steps = adam.steps();
                    adam = Optimizer::new(std::slice::from_ref(&w), settings);
                    let read = |_: &str, _: &[usize], first: FloatsMut<'_>, second: FloatsMut<'_>| {
                        first.set_bytes(&kept[0].0);
                        second.set_bytes(&kept[0].1);
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

    /// Large enough that a matrix by itself would share its products out.
    #[test]
    fn matrices_side_by_side_end_as_one_after_the_other() {
        let trained = |width: Width, together: bool| -> Vec<u32> {
            let shapes = [("up", [96, 160]), ("down", [160, 96]), ("gate", [128, 128]), ("q", [64, 192])];
            let parameters = shapes.map(|(name, [rows, columns])| {
                let weights = (0..rows * columns).map(|i| (i % 13) as f32 - 6.0).collect();
                Parameter::from_vec(format!("{name}_proj.weight"), weights, &[rows, columns]).unwrap()
            });
            let settings = recipe::Optimizer { kind: OptimizerKind::Muon, clip: 0.0, ..settings(0.1) };
            let mut optimizer = Optimizer::new(&parameters, &settings).in_width(width);
            for step in 0..2 {
                for parameter in &parameters {
                    let gradient = (0..parameter.elements()).map(|i| ((i * 31 + step) % 97) as f32 - 48.0);
                    give_gradient(parameter, gradient.collect());
                }
                if together {
                    optimizer.step(0.02, 1.0).unwrap();
                } else {
                    optimizer.finish(0.02).unwrap();
                }
            }
            parameters.iter().flat_map(|parameter| parameter.to_vec().unwrap()).map(f32::to_bits).collect()
        };
        for width in [Width::F32, Width::Bf16] {
            assert!(trained(width, true) == trained(width, false), "{width:?}");
        }
    }

    /// A matrix, a vector and one that no gradient comes to, over a few steps; what `make` makes of a step's gradients.
    fn trained(settings: &recipe::Optimizer, make: impl Fn(&mut Optimizer, &[Arc<Parameter>]) -> f64) -> Vec<u32> {
        let shapes: [(&str, &[usize]); 3] =
            [("a.up_proj.weight", &[3, 4]), ("norm.weight", &[4]), ("b.up_proj.weight", &[4, 3])];
        let parameters: Vec<Arc<Parameter>> = shapes
            .iter()
            .map(|(name, shape)| Parameter::from_vec(*name, vec![0.5; shape.iter().product()], shape).unwrap())
            .collect();
        let mut optimizer = Optimizer::new(&parameters, settings).seeded(3);
        let mut bits = Vec::new();
        for step in 0..5_usize {
            for (at, parameter) in parameters.iter().enumerate().take(2) {
                let gradient = (0..parameter.elements()).map(|i| ((i * 7 + step * 5 + at) % 11) as f32 - 4.0);
                give_gradient(parameter, gradient.collect());
            }
            let norm = make(&mut optimizer, &parameters) as f32;
            bits.push(norm.to_bits());
        }
        assert_eq!(optimizer.steps(), 5);
        bits.extend(parameters.iter().flat_map(|parameter| parameter.to_vec().unwrap()).map(f32::to_bits));
        bits
    }

    #[test]
    fn one_by_one_is_all_at_once() {
        for kind in [OptimizerKind::Adamw, OptimizerKind::Muon] {
            for moments in [Float::F32, Float::Bf16] {
                let settings = recipe::Optimizer { kind, moments, clip: 0.0, ..settings(0.1) };
                let whole = trained(&settings, |optimizer, _| {
                    let norm = optimizer.grad_norm().unwrap();
                    optimizer.step(0.01, optimizer.clip_factor(norm)).unwrap();
                    optimizer.zero_grad();
                    norm
                });
                let parts = trained(&settings, |optimizer, parameters| {
                    // The last first, as on the way back, and one of three left out.
                    for parameter in parameters[..2].iter().rev() {
                        optimizer.update(parameter, 0.01).unwrap();
                        assert!(parameter.grad().is_none());
                    }
                    optimizer.finish(0.01).unwrap()
                });
                assert_eq!(whole, parts, "{kind:?} {moments:?}");
            }
        }
    }

    #[test]
    fn from_a_gradient_that_is_no_number_on_nothing_moves() {
        let parameters: Vec<_> =
            ["a", "b", "c"].map(|name| Parameter::from_vec(name, vec![1.0; 2], &[2]).unwrap()).to_vec();
        let mut adam = Optimizer::new(&parameters, &settings(0.0));
        for (parameter, gradient) in parameters.iter().zip([1.0, f32::NAN, 1.0]) {
            give_gradient(parameter, vec![gradient, 1.0]);
            adam.update(parameter, 0.1).unwrap();
        }
        assert!(adam.finish(0.1).unwrap().is_nan() && adam.steps() == 0);
        let moved = parameters.iter().map(|parameter| parameter.to_vec().unwrap() != [1.0; 2]);
        assert_eq!(moved.collect::<Vec<_>>(), [true, false, false]);
        // And the next step is a step like any other.
        give_gradient(&parameters[2], vec![1.0, 1.0]);
        adam.update(&parameters[2], 0.1).unwrap();
        assert!(adam.finish(0.1).unwrap().is_finite() && adam.steps() == 1);
    }
}
