//! A matrix `[out, in]` to multiply by: an f32 parameter, or numbers packed when they were loaded.

use std::sync::Arc;

use ernie_kernels::{Rows, fresh};

use crate::error::ensure;
use crate::slice::Slice;
use crate::{Packed, Parameter, Result};

/// A matrix `[out, in]`, shared where it is tied.
#[derive(Clone)]
pub enum Weight {
    /// f32, trainable.
    Parameter(Arc<Parameter>),
    /// In the kernels' own order, for inference.
    Packed(Arc<Packed>),
}

impl Weight {
    /// The number of rows.
    pub fn out_features(&self) -> usize {
        match self {
            Self::Parameter(parameter) => parameter.shape().first().copied().unwrap_or(0),
            Self::Packed(packed) => packed.out_features(),
        }
    }

    /// The length of a row.
    pub fn in_features(&self) -> usize {
        match self {
            Self::Parameter(parameter) => parameter.shape().get(1).copied().unwrap_or(0),
            Self::Packed(packed) => packed.in_features(),
        }
    }

    /// Bytes the weights take in memory, scales and padding included.
    pub fn memory_bytes(&self) -> u64 {
        match self {
            Self::Parameter(parameter) => 4 * parameter.elements() as u64,
            Self::Packed(packed) => packed.memory_bytes(),
        }
    }

    /// The parameter, where the weight is one.
    pub fn parameter(&self) -> Option<&Arc<Parameter>> {
        match self {
            Self::Parameter(parameter) => Some(parameter),
            Self::Packed(_) => None,
        }
    }

    /// The packed matrix, where the weight is one.
    pub(crate) fn packed(&self) -> Option<&Arc<Packed>> {
        match self {
            Self::Parameter(_) => None,
            Self::Packed(packed) => Some(packed),
        }
    }

    /// `y[T, out] = x[T, in] · Wᵀ`. The order of each sum depends on `in` alone.
    pub(crate) fn multiply(&self, x: &[f32]) -> Result<Vec<f32>> {
        let (outs, ins) = (self.out_features(), self.in_features());
        ensure(ins > 0 && x.len().is_multiple_of(ins), "linear", || format!("{} inputs for rows of {ins}", x.len()))?;
        let rows = x.len() / ins;
        match self {
            Self::Packed(w) => Ok(Packed::products(x, ins, &[w]).pop().unwrap_or_default()),
            Self::Parameter(parameter) => {
                let mut y = fresh::zeros(rows * outs);
                let weight = Slice::of(parameter.tensor())?;
                ernie_kernels::linear::forward(x, &Rows::from_f32(&weight, outs, ins), &mut y);
                Ok(y)
            }
        }
    }

    /// Row `index`, widened into `out`.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if there is no such row, or `out` is not as long as one.
    pub fn row(&self, index: usize, out: &mut [f32]) -> Result<()> {
        let (outs, ins) = (self.out_features(), self.in_features());
        ensure(index < outs && out.len() == ins, "row", || format!("row {index} of {outs}"))?;
        match self {
            Self::Parameter(parameter) => {
                let weight = Slice::of(parameter.tensor())?;
                out.copy_from_slice(&weight[index * ins..(index + 1) * ins]);
            }
            Self::Packed(packed) => packed.row(index, out),
        }
        Ok(())
    }
}
