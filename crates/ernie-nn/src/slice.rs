//! The door between candle's storage and kernels: a contiguous tensor read as a slice.

use std::ops::Deref;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use ernie_kernels::floats::{FloatVec, Floats, Width};

use crate::{Error, Result};

/// A contiguous CPU tensor of f32 or bf16, borrowed for as long as this guard lives.
pub(crate) struct View<'a> {
    /// candle's read lock; which lock that is, is candle's own affair.
    storage: Box<dyn Deref<Target = Storage> + 'a>,
    start: usize,
    end: usize,
}

impl<'a> View<'a> {
    /// Borrows `tensor`.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is of other numbers, not contiguous or not on the CPU.
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(Error::shape("view", format!("{:?} is not contiguous", layout.shape())));
        };
        match &*storage {
            Storage::Cpu(CpuStorage::F32(_) | CpuStorage::BF16(_)) => {}
            _ => return Err(Error::shape("view", "expected a tensor of floats on the CPU")),
        }
        Ok(Self { storage: Box::new(storage), start, end })
    }

    /// The numbers.
    pub(crate) fn floats(&self) -> Floats<'_> {
        match &**self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => Floats::F32(&data[self.start..self.end]),
            Storage::Cpu(CpuStorage::BF16(data)) => Floats::Bf16(&data[self.start..self.end]),
            // `of` has looked; the guard keeps the storage from changing its kind.
            _ => Floats::F32(&[]),
        }
    }
}

/// A contiguous f32 CPU tensor, borrowed as a slice for as long as this guard lives.
pub(crate) struct Slice<'a>(View<'a>);

impl<'a> Slice<'a> {
    /// Borrows `tensor`.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is not f32, not contiguous or not on the CPU.
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let view = View::of(tensor)?;
        match view.floats().width() {
            Width::F32 => Ok(Self(view)),
            Width::Bf16 => Err(Error::shape("slice", "expected an f32 tensor on the CPU")),
        }
    }
}

impl Deref for Slice<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self.0.floats() {
            Floats::F32(data) => data,
            // `of` has looked.
            Floats::Bf16(_) => &[],
        }
    }
}

/// The width of a tensor's numbers.
pub(crate) fn width(tensor: &Tensor) -> Width {
    match tensor.dtype() {
        DType::BF16 => Width::Bf16,
        _ => Width::F32,
    }
}

/// `a + b`, of one shape; in 32 bits where one of them is.
///
/// Not candle's `+`: its own thread pool spins between ops and takes the cores from ours.
pub(crate) fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if let (Width::F32, Width::F32) = (width(a), width(b)) {
        return tensor(ernie_kernels::elementwise::sum(&Slice::of(a)?, &Slice::of(b)?), a.dims());
    }
    let wider = if width(a) == width(b) { width(a) } else { Width::F32 };
    let mut sum = FloatVec::zeros(wider, a.elem_count());
    ernie_kernels::elementwise::add(View::of(a)?.floats(), View::of(b)?.floats(), &mut sum);
    from_floats(sum, a.dims())
}

/// The same numbers in 32 bits.
pub(crate) fn wide(x: &Tensor) -> Result<Tensor> {
    match width(x) {
        Width::F32 => Ok(x.clone()),
        Width::Bf16 => tensor(View::of(x)?.floats().to_vec(), x.dims()),
    }
}

/// A new CPU tensor that owns `data`.
pub(crate) fn tensor(data: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}

/// As [`tensor`], of either width.
pub(crate) fn from_floats(data: FloatVec, shape: &[usize]) -> Result<Tensor> {
    match data {
        FloatVec::F32(data) => tensor(data, shape),
        FloatVec::Bf16(data) => Ok(Tensor::from_vec(data, shape, &Device::Cpu)?),
    }
}
