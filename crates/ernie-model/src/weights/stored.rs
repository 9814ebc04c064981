//! A tensor in its final form: a piece of the map as it is, or bytes of its own.

use std::ops::Deref;

use ernie_files::Bytes;

use super::Format;

/// The bytes of a taken tensor.
#[derive(Clone)]
pub enum TensorBytes {
    /// A view into a read-only map; keeps the map alive.
    Mapped(Bytes),
    /// Converted while loading.
    Owned(Vec<u8>),
    /// Widened or drawn as f32.
    Floats(Vec<f32>),
}

impl TensorBytes {
    /// The values of bytes that are little-endian f32; without a copy where they were made as such.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            TensorBytes::Floats(values) => values,
            other => other.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect(),
        }
    }
}

impl AsRef<[u8]> for TensorBytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            TensorBytes::Mapped(bytes) => bytes,
            TensorBytes::Owned(bytes) => bytes,
            TensorBytes::Floats(values) => bytemuck::cast_slice(values),
        }
    }
}

impl Deref for TensorBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_ref()
    }
}

/// A matrix in the format it is computed in, rows (outputs) first.
#[derive(Clone)]
pub struct Stored {
    /// Number format of [`Self::bytes`].
    pub format: Format,
    /// Row after row, each of whole blocks.
    pub bytes: TensorBytes,
    /// One factor per row; for [`Format::Int8`] only.
    pub scales: Option<Vec<f32>>,
    /// Rows first.
    pub shape: Vec<usize>,
}

impl Stored {
    /// Bytes in memory or in the map, scales included.
    pub fn memory_bytes(&self) -> u64 {
        self.bytes.len() as u64 + self.scales.as_ref().map_or(0, |scales| 4 * scales.len() as u64)
    }
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?}", self.format, self.shape)
    }
}
