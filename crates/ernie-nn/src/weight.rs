//! A matrix `[out, in]` to multiply by: an f32 parameter, or rows kept in the format they were stored in.

use std::sync::Arc;

pub use ernie_kernels::Format;
use ernie_kernels::Rows;

use crate::error::ensure;
use crate::slice::Slice;
use crate::{Error, Parameter, Result};

/// Rows in a storage format: halves, GGUF blocks, or int8 with a scale a row. Never trained.
pub struct Stored {
    format: Format,
    bytes: Box<dyn AsRef<[u8]> + Send + Sync>,
    scales: Option<Vec<f32>>,
    out_features: usize,
    in_features: usize,
}

impl Stored {
    /// A matrix of `out_features` rows of `in_features` weights in `format`.
    ///
    /// `scales` holds one factor a row for [`Format::Int8`], and is absent otherwise.
    ///
    /// # Errors
    /// [`Error::Shape`] if `bytes` or `scales` do not have the length the shape asks for.
    pub fn new(
        format: Format,
        bytes: impl AsRef<[u8]> + Send + Sync + 'static,
        scales: Option<Vec<f32>>,
        [out_features, in_features]: [usize; 2],
    ) -> Result<Self> {
        let op = "stored";
        let row = format.row_bytes(in_features).ok_or_else(|| {
            Error::shape(op, format!("{in_features} weights a row do not fill whole {format:?} blocks"))
        })?;
        let (got, want) = (bytes.as_ref().len(), row.checked_mul(out_features));
        ensure(Some(got) == want, op, || format!("{out_features} rows of {row} bytes, got {got} bytes"))?;
        let scaled = scales.as_ref().map(Vec::len);
        let wanted = (format == Format::Int8).then_some(out_features);
        ensure(scaled == wanted, op, || format!("{wanted:?} scales wanted, got {scaled:?}"))?;
        Ok(Self { format, bytes: Box::new(bytes), scales, out_features, in_features })
    }

    /// The storage format.
    pub fn format(&self) -> Format {
        self.format
    }

    fn bytes(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    fn rows(&self) -> Rows<'_> {
        Rows {
            format: self.format,
            bytes: self.bytes(),
            scales: self.scales.as_deref(),
            out_features: self.out_features,
            in_features: self.in_features,
        }
    }
}

/// A matrix `[out, in]`, shared where it is tied.
#[derive(Clone)]
pub enum Weight {
    /// f32, trainable.
    Parameter(Arc<Parameter>),
    /// As stored, for inference.
    Stored(Arc<Stored>),
}

impl Weight {
    /// The number of rows.
    pub fn out_features(&self) -> usize {
        match self {
            Self::Parameter(parameter) => parameter.shape().first().copied().unwrap_or(0),
            Self::Stored(stored) => stored.out_features,
        }
    }

    /// The length of a row.
    pub fn in_features(&self) -> usize {
        match self {
            Self::Parameter(parameter) => parameter.shape().get(1).copied().unwrap_or(0),
            Self::Stored(stored) => stored.in_features,
        }
    }

    /// Bytes the weights take in memory, scales included.
    pub fn memory_bytes(&self) -> u64 {
        match self {
            Self::Parameter(parameter) => 4 * parameter.elements() as u64,
            Self::Stored(stored) => (stored.bytes().len() + 4 * stored.scales.as_ref().map_or(0, Vec::len)) as u64,
        }
    }

    /// The parameter, where the weight is one.
    pub fn parameter(&self) -> Option<&Arc<Parameter>> {
        match self {
            Self::Parameter(parameter) => Some(parameter),
            Self::Stored(_) => None,
        }
    }

    /// `y[T, out] = x[T, in] · Wᵀ`. The order of each sum depends on `in` alone.
    pub(crate) fn multiply(&self, x: &[f32]) -> Result<Vec<f32>> {
        let (outs, ins) = (self.out_features(), self.in_features());
        ensure(ins > 0 && x.len().is_multiple_of(ins), "linear", || format!("{} inputs for rows of {ins}", x.len()))?;
        let mut y = vec![0.0; x.len() / ins * outs];
        match self {
            Self::Stored(stored) => ernie_kernels::linear::forward(x, &stored.rows(), &mut y),
            Self::Parameter(parameter) => {
                let weight = Slice::of(parameter.tensor())?;
                ernie_kernels::linear::forward(x, &Rows::from_f32(&weight, outs, ins), &mut y);
            }
        }
        Ok(y)
    }

    /// Row `index`, widened into `out`.
    pub(crate) fn row(&self, index: usize, out: &mut [f32]) -> Result<()> {
        let (outs, ins) = (self.out_features(), self.in_features());
        ensure(index < outs && out.len() == ins, "row", || format!("row {index} of {outs}"))?;
        match self {
            Self::Parameter(parameter) => {
                let weight = Slice::of(parameter.tensor())?;
                out.copy_from_slice(&weight[index * ins..(index + 1) * ins]);
            }
            Self::Stored(stored) => {
                let bytes = stored.bytes().len() / outs;
                let row = &stored.bytes()[index * bytes..(index + 1) * bytes];
                ernie_kernels::formats::widen_row(stored.format, row, out);
                if let Some(scales) = &stored.scales {
                    out.iter_mut().for_each(|weight| *weight *= scales[index]);
                }
            }
        }
        Ok(())
    }
}
