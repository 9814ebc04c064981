//! The door between candle's storage and kernels: a contiguous f32 tensor read as a slice.

use std::ops::Deref;

use candle_core::{CpuStorage, Device, Storage, Tensor};

use crate::{Error, Result};

/// A contiguous f32 CPU tensor, borrowed as a slice for as long as this guard lives.
pub(crate) struct Slice<'a> {
    /// candle's read lock; which lock that is, is candle's own affair.
    storage: Box<dyn Deref<Target = Storage> + 'a>,
    start: usize,
    end: usize,
}

impl<'a> Slice<'a> {
    /// Borrows `tensor`.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is not f32, not contiguous or not on the CPU.
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(Error::shape("slice", format!("{:?} is not contiguous", layout.shape())));
        };
        match &*storage {
            Storage::Cpu(CpuStorage::F32(_)) => {}
            _ => return Err(Error::shape("slice", "expected an f32 tensor on the CPU")),
        }
        Ok(Self { storage: Box::new(storage), start, end })
    }
}

impl Deref for Slice<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &**self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.start..self.end],
            // `of` has looked; the guard keeps the storage from changing its kind.
            _ => &[],
        }
    }
}

/// `a + b`, of one shape.
///
/// Not candle's `+`: its own thread pool spins between ops and takes the cores from ours.
pub(crate) fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    tensor(ernie_kernels::elementwise::sum(&Slice::of(a)?, &Slice::of(b)?), a.dims())
}

/// A new CPU tensor that owns `data`.
pub(crate) fn tensor(data: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}
