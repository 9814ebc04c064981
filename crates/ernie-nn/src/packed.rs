//! Matrices repacked for the kernels once, while they are loaded. Never trained.

use std::ops::Range;

use ernie_kernels::packed::{Activations, Builder, Matrix, Panels, Product, multiply, products};
pub use ernie_kernels::packed::{Blocks, Float, Kind, Scales};
use ernie_kernels::{Format, Rows, fresh, gemm};

use crate::error::ensure;
use crate::{Error, Parameter, Result};

/// Numbers that are widened at a time for a gradient on its way through: 4 MiB.
const WIDENED: usize = 1 << 20;

/// How the numbers of a packed matrix are held, and so how products with it are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// Floats: products of floats, sums in f32.
    Float(Float),
    /// Small integers with scales: inputs are rounded to bytes on the fly, products are integers.
    Integer(Kind),
}

impl Form {
    /// 32-bit floats.
    pub const F32: Self = Self::Float(Float::F32);
    /// 16-bit brain floats.
    pub const BF16: Self = Self::Float(Float::Bf16);
    /// Bytes with one scale a row.
    pub const INT8: Self = Self::Integer(Kind::Int8);

    /// Four bits with a scale and a minimum every 32 weights.
    pub fn int4() -> Self {
        Self::Integer(Kind::int4(32))
    }

    /// The form that holds a storage format's numbers exactly.
    pub fn of(format: Format) -> Self {
        match (format, Kind::of(format)) {
            (_, Some(kind)) => Self::Integer(kind),
            (Format::F16, _) => Self::Float(Float::F16),
            (Format::Bf16, _) => Self::BF16,
            _ => Self::F32,
        }
    }
}

enum Numbers {
    Float(Panels),
    Integer(Matrix),
}

/// A matrix `[out, in]` in the kernels' own order.
pub struct Packed {
    numbers: Numbers,
    form: Form,
    out_features: usize,
    in_features: usize,
}

impl Packed {
    /// The numbers of a parameter `[out, in]`, in 32 bits.
    pub(crate) fn of(parameter: &Parameter) -> Result<Self> {
        let &[outs, ins] = parameter.shape() else {
            return Err(Error::shape("packed", format!("{parameter:?}")));
        };
        let mut packing = Packer::new(Form::F32, [outs, ins])?;
        parameter.read(|numbers| packing.push(numbers))??;
        packing.finish()
    }

    /// How its numbers are held.
    pub fn form(&self) -> Form {
        self.form
    }

    /// The number of rows.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// The length of a row.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Bytes it takes in memory, padding and scales included.
    pub fn memory_bytes(&self) -> u64 {
        match &self.numbers {
            Numbers::Float(panels) => panels.bytes().len() as u64,
            Numbers::Integer(matrix) => matrix.bytes() as u64,
        }
    }

    /// Writes row `index` as f32 to `out`.
    ///
    /// # Panics
    /// When there is no such row, or `out` is not as long as one.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        match &self.numbers {
            Numbers::Float(panels) => panels.widen_row(index, out),
            Numbers::Integer(matrix) => matrix.widen_row(index, out),
        }
    }

    /// `dx += dy · W`: what a gradient becomes on its way through, with the weights as they are held and no rounding of inputs. Rows are widened some at a
    /// time.
    ///
    /// # Shapes
    /// `dy: [T, out]` → `dx: [T, in]`
    pub(crate) fn add_input_gradient(&self, dy: &[f32], dx: &mut [f32]) {
        let (outs, ins) = (self.out_features, self.in_features);
        let rows = dy.len().checked_div(outs).unwrap_or(0);
        let chunk = (WIDENED / ins.max(1)).clamp(1, outs.max(1));
        let mut weights = fresh::zeros(chunk * ins);
        let mut part = fresh::zeros(rows * chunk);
        for start in (0..outs).step_by(chunk) {
            let count = chunk.min(outs - start);
            weights
                .chunks_exact_mut(ins.max(1))
                .take(count)
                .enumerate()
                .for_each(|(at, row)| self.row(start + at, row));
            for (part, line) in part.chunks_exact_mut(count).zip(dy.chunks_exact(outs)) {
                part.copy_from_slice(&line[start..start + count]);
            }
            gemm::nn(&part[..rows * count], &weights[..count * ins], dx, rows, count, ins, true);
        }
    }

    /// `y = x[rows] · Wᵀ` for several matrices: the inputs are rounded once, and integer products share one parallel region.
    ///
    /// # Shapes
    /// `x: [T, in]`; `rows` of it give `y: [rows, out]`
    pub(crate) fn multiply(x: &[f32], in_features: usize, products: Vec<Job<'_>>) {
        let activations = Activations::new(x, x.len().checked_div(in_features).unwrap_or(0), in_features);
        let mut integers = Vec::with_capacity(products.len());
        for Job { rows, w, y } in products {
            match &w.numbers {
                Numbers::Integer(w) => integers.push(Product { rows, w, y }),
                Numbers::Float(w) => w.multiply(&x[rows.start * in_features..rows.end * in_features], y),
            }
        }
        multiply(&activations, &mut integers);
    }
}

impl Packed {
    /// `x · Wᵀ` of several matrices, as [`Self::multiply`] does it.
    ///
    /// # Shapes
    /// `x: [T, in]` → `[T, out]` each
    pub(crate) fn products(x: &[f32], in_features: usize, weights: &[&Self]) -> Vec<Vec<f32>> {
        let rows = x.len().checked_div(in_features).unwrap_or(0);
        let integers: Vec<&Matrix> = weights.iter().filter_map(|w| w.integers()).collect();
        if integers.len() == weights.len() {
            return products(&Activations::new(x, rows, in_features), &integers);
        }
        let mut results: Vec<Vec<f32>> = weights.iter().map(|w| fresh::zeros(rows * w.out_features())).collect();
        let jobs = weights.iter().zip(&mut results).map(|(w, y)| Job { rows: 0..rows, w, y }).collect();
        Self::multiply(x, in_features, jobs);
        results
    }

    fn integers(&self) -> Option<&Matrix> {
        match &self.numbers {
            Numbers::Integer(matrix) => Some(matrix),
            Numbers::Float(_) => None,
        }
    }
}

/// One of the products of [`Packed::multiply`].
pub(crate) struct Job<'a> {
    pub(crate) rows: Range<usize>,
    pub(crate) w: &'a Packed,
    pub(crate) y: &'a mut [f32],
}

/// Packs a matrix from rows that come a few at a time, so that there is never a second whole copy.
pub struct Packer {
    numbers: Filling,
    form: Form,
    filled: usize,
    out_features: usize,
    in_features: usize,
}

enum Filling {
    Float(Panels),
    Integer(Builder),
}

impl Packer {
    /// An empty matrix `[out, in]` in `form`.
    ///
    /// # Errors
    /// [`Error::Shape`] if a row has no elements.
    pub fn new(form: Form, [out_features, in_features]: [usize; 2]) -> Result<Self> {
        let most = isize::MAX as usize / 8;
        let fits = out_features.checked_add(16).and_then(|rows| rows.checked_mul(in_features + 256));
        ensure(in_features > 0 && fits.is_some_and(|n| n <= most), "packed", || {
            format!("{out_features} rows of {in_features}")
        })?;
        let numbers = match form {
            Form::Float(float) => Filling::Float(Panels::zeros(float, out_features, in_features)),
            Form::Integer(kind) => Filling::Integer(Builder::new(kind, out_features, in_features)),
        };
        Ok(Self { numbers, form, filled: 0, out_features, in_features })
    }

    /// Takes the next rows, rounding them to nearest.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are no whole rows or too many, or the form is one of stored blocks.
    pub fn push(&mut self, rows: &[f32]) -> Result<()> {
        let count = self.check(rows.len() / self.in_features, rows.len().is_multiple_of(self.in_features))?;
        match &mut self.numbers {
            Filling::Float(panels) => panels.pack(self.filled, rows),
            Filling::Integer(builder) => builder.push(rows),
        }
        self.filled += count;
        Ok(())
    }

    /// Whether all blocks so far that were taken as they are stored have scales and minimums that are numbers.
    pub fn scales_are_finite(&self) -> bool {
        match &self.numbers {
            Filling::Float(_) => true,
            Filling::Integer(builder) => builder.non_finite() == 0,
        }
    }

    /// Takes the next rows as they are stored in a format whose own form this is ([`Form::of`]): no number changes.
    ///
    /// # Errors
    /// [`Error::Shape`] if the bytes are no whole rows or too many, or for another format.
    pub fn push_stored(&mut self, format: Format, bytes: &[u8], scales: Option<&[f32]>) -> Result<()> {
        let row = format.row_bytes(self.in_features).filter(|&row| row > 0);
        let row = row.ok_or_else(|| Error::shape("packed", format!("rows of {} {format:?}", self.in_features)))?;
        let own = Form::of(format) == self.form;
        let scaled = scales.map(<[f32]>::len) == (format == Format::Int8).then_some(bytes.len() / row);
        let count = self.check(bytes.len() / row, bytes.len().is_multiple_of(row) && own && scaled)?;
        match &mut self.numbers {
            Filling::Float(panels) => panels.pack_stored(self.filled, bytes),
            Filling::Integer(builder) => {
                builder.push_rows(&Rows { format, bytes, scales, out_features: count, in_features: self.in_features })
            }
        }
        self.filled += count;
        Ok(())
    }

    fn check(&self, count: usize, whole: bool) -> Result<usize> {
        ensure(whole && count <= self.out_features - self.filled, "packed", || {
            format!("{count} rows after {} of {} rows of {}", self.filled, self.out_features, self.in_features)
        })?;
        Ok(count)
    }

    /// The matrix.
    ///
    /// # Errors
    /// [`Error::Shape`] if rows are missing.
    pub fn finish(self) -> Result<Packed> {
        let Self { numbers, form, filled, out_features, in_features } = self;
        ensure(filled == out_features, "packed", || format!("{filled} of {out_features} rows"))?;
        let numbers = match numbers {
            Filling::Float(panels) => Numbers::Float(panels),
            Filling::Integer(builder) => Numbers::Integer(builder.finish()),
        };
        Ok(Packed { numbers, form, out_features, in_features })
    }
}
