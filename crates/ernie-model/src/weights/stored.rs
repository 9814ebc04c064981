//! A matrix where it lies: bytes of the map, or a stream of random numbers; and the form it is to take.

use ernie_files::Bytes;
use ernie_nn::{Form, Packed, Packer};

use super::convert::{self, Kind, NOT_FINITE, Reader};
use super::{Format, random};
use crate::{Error, Result};

/// Values that are widened at a time; keeps the buffer small against the matrix.
const CHUNK: usize = 1 << 18;

/// A matrix that was found. Nothing is looked at or converted before it is asked for, and then a few rows at a time.
#[derive(Clone)]
pub struct Stored {
    /// Where it is, and its name there.
    pub(super) at: [String; 2],
    pub(super) values: Values,
    pub(super) shape: [usize; 2],
    pub(super) form: Form,
}

/// Where the numbers of a [`Stored`] are.
#[derive(Clone)]
pub(super) enum Values {
    /// In a read-only map, with a factor a row for 8-bit rows.
    Mapped { kind: Kind, bytes: Bytes, scales: Option<Vec<f32>> },
    /// Blocks that were put together from a checkpoint's 4-bit integers, scales and zeros.
    Blocks { format: Format, bytes: Vec<u8> },
    /// Brought into order already.
    Floats(Vec<f32>),
    /// Drawn when they are read.
    Random { seed: u64, name: String, std: f64 },
}

impl Stored {
    /// The form that [`Self::pack`] gives.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Rows (outputs) and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// All values as f32, row by row.
    ///
    /// # Errors
    /// [`Error::Tensor`] for values that are not finite.
    pub fn into_f32(self) -> Result<Vec<f32>> {
        if let Values::Floats(values) = self.values {
            return Ok(values);
        }
        let mut all = Vec::with_capacity(self.shape[0] * self.shape[1]);
        self.each_chunk(|rows| {
            all.extend_from_slice(rows);
            Ok(())
        })?;
        Ok(all)
    }

    fn not_finite(&self) -> Error {
        let [place, name] = &self.at;
        Error::tensor(place, name, NOT_FINITE)
    }

    /// Hands out the rows as f32, a few at a time.
    ///
    /// # Errors
    /// [`Error::Tensor`] for values that are not finite, before any is handed out; those of `sink`.
    pub fn each_chunk(&self, mut sink: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let [rows, columns] = self.shape;
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        let at_once = (CHUNK / columns).clamp(1, rows);
        match &self.values {
            Values::Floats(values) => sink(values),
            Values::Mapped { .. } | Values::Blocks { .. } => {
                let Some(reader) = self.reader() else { return Ok(()) };
                if !convert::all_finite(reader.kind, reader.bytes) {
                    return Err(self.not_finite());
                }
                let mut chunk = vec![0.0; at_once * columns];
                for first in (0..rows).step_by(at_once) {
                    let chunk = &mut chunk[..at_once.min(rows - first) * columns];
                    for (offset, out) in chunk.chunks_exact_mut(columns).enumerate() {
                        reader.row(first + offset, out);
                    }
                    sink(chunk)?;
                }
                Ok(())
            }
            Values::Random { seed, name, std } => {
                // Streams begin anew at fixed places of the tensor, which need not be whole rows.
                let (mut next, mut carry) = (0, Vec::new());
                while next < rows * columns {
                    let count = CHUNK.min(rows * columns - next);
                    carry.extend(random::values_from(*seed, name, next, count, *std));
                    next += count;
                    let whole = carry.len() / columns * columns;
                    sink(&carry[..whole])?;
                    carry.drain(..whole);
                }
                Ok(())
            }
        }
    }

    /// What is stored, where it lies as such.
    fn reader(&self) -> Option<Reader<'_>> {
        let columns = self.shape[1];
        match &self.values {
            Values::Mapped { kind, bytes, scales } => {
                Some(Reader { kind: *kind, bytes, scales: scales.as_deref(), columns })
            }
            Values::Blocks { format, bytes } => {
                Some(Reader { kind: Kind::Format(*format), bytes, scales: None, columns })
            }
            Values::Floats(_) | Values::Random { .. } => None,
        }
    }

    /// The matrix in its final form.
    ///
    /// # Errors
    /// [`Error::Tensor`] for values that are not finite; [`Error::Nn`] for a shape that cannot be packed.
    pub fn pack(self) -> Result<Packed> {
        let mut packer = Packer::new(self.form, self.shape)?;
        match self.reader() {
            Some(Reader { kind: Kind::Format(format), bytes, scales, .. }) if Form::of(format) == self.form => {
                // Blocks are looked at where they are packed: they come from memory once, not twice.
                if matches!(self.form, Form::Float(_)) && !convert::all_finite(Kind::Format(format), bytes) {
                    return Err(self.not_finite());
                }
                packer.push_stored(format, bytes, scales)?;
                if !packer.scales_are_finite() {
                    return Err(self.not_finite());
                }
            }
            _ => self.each_chunk(|rows| Ok(packer.push(rows)?))?,
        }
        Ok(packer.finish()?)
    }

    /// Bytes of the numbers in the form asked for, scales included and padding not.
    pub fn memory_bytes(&self) -> u64 {
        let [rows, columns] = self.shape.map(|n| n as u64);
        match (self.reader(), self.form) {
            (Some(Reader { kind: Kind::Format(format), bytes, scales, .. }), form) if Form::of(format) == form => {
                bytes.len() as u64 + scales.map_or(0, |scales| 4 * scales.len() as u64)
            }
            (_, form) if form == Form::F32 => 4 * rows * columns,
            (_, form) if form == Form::INT8 => rows * (columns + 4),
            (_, form) if form == Form::int4() => rows * (columns.div_ceil(2) + 4 * columns.div_ceil(32)),
            _ => 2 * rows * columns,
        }
    }
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?}", self.form, self.shape)
    }
}

impl Kind {
    /// The form in which no number changes; 64-bit floats are narrowed.
    pub(super) fn form(self) -> Form {
        match self {
            Kind::Format(format) => Form::of(format),
            Kind::F64 => Form::F32,
        }
    }

    /// The storage format of rows of f32.
    pub(super) const F32: Self = Kind::Format(Format::F32);
}
