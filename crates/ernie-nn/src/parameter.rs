//! A named tensor that training changes: the leaf of every graph.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
use ernie_kernels::{elementwise, fresh};

use crate::slice::{Slice, tensor, wide};
use crate::{Error, Result, Value, Width};

/// An f32 weight under its published name, with the gradient that [`Value::backward`] adds to.
pub struct Parameter {
    name: String,
    tensor: Tensor,
    gradient: Mutex<Option<Tensor>>,
    trainable: AtomicBool,
    products: Width,
}

impl Parameter {
    /// A trainable parameter that owns `tensor` (f32, contiguous).
    pub fn new(name: impl Into<String>, tensor: Tensor) -> Arc<Self> {
        Arc::new(Self::over(name.into(), tensor, Width::F32))
    }

    /// A trainable parameter over `data`, row-major.
    ///
    /// # Errors
    /// [`Error::Candle`] if `data` does not fill `shape`.
    pub fn from_vec(name: impl Into<String>, data: Vec<f32>, shape: &[usize]) -> Result<Arc<Self>> {
        Self::multiplied_in(Width::F32, name, data, shape)
    }

    /// As [`Self::from_vec`], for products in `width`: with [`Width::Bf16`] both sides of a product by this weight are rounded, and what it gives
    /// is in bf16. The weight itself, its gradient and all sums stay in 32 bits.
    ///
    /// # Errors
    /// As there.
    pub fn multiplied_in(width: Width, name: impl Into<String>, data: Vec<f32>, shape: &[usize]) -> Result<Arc<Self>> {
        Ok(Arc::new(Self::over(name.into(), tensor(data, shape)?, width)))
    }

    fn over(name: String, tensor: Tensor, products: Width) -> Self {
        Self { name, tensor, gradient: Mutex::new(None), trainable: AtomicBool::new(true), products }
    }

    /// The width of products by this weight.
    pub fn products(&self) -> Width {
        self.products
    }

    /// The published name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        self.tensor.dims()
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.tensor.elem_count()
    }

    /// The weight as a value: recorded while the parameter is trainable.
    pub fn value(self: &Arc<Self>) -> Value {
        Value::leaf(self)
    }

    /// The weight as a plain tensor. It changes when the optimiser steps.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// A copy of the weight, row-major.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        Ok(Slice::of(&self.tensor)?.to_vec())
    }

    /// Reads the weight where it lies.
    pub fn read<T>(&self, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
        Ok(f(&Slice::of(&self.tensor)?))
    }

    /// Whether gradients are wanted; frozen parameters are constants.
    pub fn is_trainable(&self) -> bool {
        self.trainable.load(Ordering::Relaxed)
    }

    /// Freezes or thaws the parameter for graphs recorded from now on.
    pub fn set_trainable(&self, trainable: bool) {
        self.trainable.store(trainable, Ordering::Relaxed);
    }

    /// The gradient summed since [`Self::zero_grad`]; `None` if none arrived.
    pub fn grad(&self) -> Option<Tensor> {
        self.slot().clone()
    }

    /// The gradient as numbers; zeros if none arrived.
    pub fn grad_vec(&self) -> Result<Vec<f32>> {
        match self.grad() {
            Some(gradient) => Ok(Slice::of(&gradient)?.to_vec()),
            None => Ok(vec![0.0; self.elements()]),
        }
    }

    /// Reads the gradient where it lies; an empty slice if none arrived.
    pub fn read_grad<T>(&self, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
        match self.grad() {
            Some(gradient) => Ok(f(&Slice::of(&gradient)?)),
            None => Ok(f(&[])),
        }
    }

    /// Forgets the gradient.
    pub fn zero_grad(&self) {
        *self.slot() = None;
    }

    /// Changes the weight in place. The closure gets the weight and the gradient (empty if none arrived).
    pub fn update(&self, f: impl FnOnce(&mut [f32], &[f32])) -> Result<()> {
        let gradient = self.grad();
        let gradient = gradient.as_ref().map(Slice::of).transpose()?;
        change(&self.tensor, |weight| f(weight, gradient.as_deref().unwrap_or(&[])))
    }

    /// Replaces the weight.
    ///
    /// # Errors
    /// [`Error::Shape`] if `data` has another length.
    pub fn set(&self, data: &[f32]) -> Result<()> {
        if data.len() != self.elements() {
            let what = format!("{} has {} elements, got {}", self.name, self.elements(), data.len());
            return Err(Error::shape("set", what));
        }
        change(&self.tensor, |weight| weight.copy_from_slice(data))
    }

    /// Adds to the gradient.
    pub fn accumulate(&self, gradient: Tensor) -> Result<()> {
        if gradient.dims() != self.shape() {
            let what = format!("{} is {:?}, gradient {:?}", self.name, self.shape(), gradient.dims());
            return Err(Error::shape("accumulate", what));
        }
        let gradient = wide(&gradient)?;
        let mut slot = self.slot();
        match &*slot {
            Some(sum) => {
                let gradient = Slice::of(&gradient)?;
                change(sum, |sum| elementwise::add_scaled(sum, &gradient, 1.0))
            }
            None => {
                *slot = Some(gradient);
                Ok(())
            }
        }
    }

    /// Lets `f` add to the gradient where it lies; zeros if none arrived.
    pub(crate) fn accumulate_with(&self, f: impl FnOnce(&mut [f32])) -> Result<()> {
        let mut slot = self.slot();
        if slot.is_none() {
            *slot = Some(tensor(fresh::zeros(self.elements()), self.shape())?);
        }
        match &*slot {
            Some(sum) => change(sum, f),
            None => Ok(()),
        }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Tensor>> {
        // A panic while adding leaves either the old sum or the new one: both are whole.
        self.gradient.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Parameter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parameter({}, {:?})", self.name, self.shape())
    }
}

/// Changes a tensor of f32 where it lies.
fn change(tensor: &Tensor, f: impl FnOnce(&mut [f32])) -> Result<()> {
    Ok(tensor.inplace_op1(&Change(Mutex::new(Some(f))))?)
}

/// candle's way to change a storage in place, with the change as a closure.
struct Change<F>(Mutex<Option<F>>);

impl<F: FnOnce(&mut [f32])> InplaceOp1 for Change<F> {
    fn name(&self) -> &'static str {
        "parameter-change"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(data) = storage else {
            candle_core::bail!("parameters are f32");
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("parameters are contiguous");
        };
        if let Some(change) = self.0.lock().ok().and_then(|mut slot| slot.take()) {
            change(&mut data[start..end]);
        }
        Ok(())
    }
}
