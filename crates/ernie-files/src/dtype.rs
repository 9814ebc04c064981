//! Element types of safetensors, and the description of one tensor.

use std::fmt;
use std::str::FromStr;

/// Type of a tensor's elements, as safetensors has them. All are little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// One byte, 0 or 1.
    Bool,
    /// 8-bit unsigned.
    U8,
    /// 8-bit signed.
    I8,
    /// 16-bit signed.
    I16,
    /// 16-bit unsigned.
    U16,
    /// IEEE half.
    F16,
    /// The upper half of an IEEE single.
    Bf16,
    /// 32-bit signed.
    I32,
    /// 32-bit unsigned.
    U32,
    /// IEEE single.
    F32,
    /// IEEE double.
    F64,
    /// 64-bit signed.
    I64,
    /// 64-bit unsigned.
    U64,
    /// 8-bit float, 4 bits of exponent and 3 of mantissa.
    F8E4M3,
    /// 8-bit float, 5 bits of exponent and 2 of mantissa.
    F8E5M2,
}

impl Dtype {
    /// Every type, with its published spelling.
    pub const ALL: [(Dtype, &'static str); 15] = [
        (Self::Bool, "BOOL"),
        (Self::U8, "U8"),
        (Self::I8, "I8"),
        (Self::I16, "I16"),
        (Self::U16, "U16"),
        (Self::F16, "F16"),
        (Self::Bf16, "BF16"),
        (Self::I32, "I32"),
        (Self::U32, "U32"),
        (Self::F32, "F32"),
        (Self::F64, "F64"),
        (Self::I64, "I64"),
        (Self::U64, "U64"),
        (Self::F8E4M3, "F8_E4M3"),
        (Self::F8E5M2, "F8_E5M2"),
    ];

    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E4M3 | Self::F8E5M2 => 1,
            Self::I16 | Self::U16 | Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }

    /// The published spelling, such as `BF16`.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(dtype, _)| *dtype == self).map_or("?", |(_, name)| name)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not the spelling of a [`Dtype`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown dtype")]
pub struct UnknownDtype;

impl FromStr for Dtype {
    type Err = UnknownDtype;

    fn from_str(text: &str) -> Result<Self, UnknownDtype> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(dtype, _)| *dtype).ok_or(UnknownDtype)
    }
}

/// Name, type and shape of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TensorInfo {
    /// The name in the checkpoint, such as `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Extents, outermost first; empty for a scalar. A tensor with an extent of 0 has no bytes.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// A description made by hand, for writing.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into() }
    }

    /// Number of elements; saturates, which no tensor read from a file can reach.
    pub fn elements(&self) -> usize {
        self.checked_elements().unwrap_or(usize::MAX)
    }

    /// Number of bytes; saturates like [`TensorInfo::elements`].
    pub fn bytes(&self) -> usize {
        self.checked_bytes().unwrap_or(usize::MAX)
    }

    pub(crate) fn checked_elements(&self) -> Option<usize> {
        // An extent of 0 makes the product 0 whatever the others are.
        if self.shape.contains(&0) {
            return Some(0);
        }
        self.shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent))
    }

    pub(crate) fn checked_bytes(&self) -> Option<usize> {
        self.checked_elements()?.checked_mul(self.dtype.size_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_round_trip() {
        for (dtype, name) in Dtype::ALL {
            assert_eq!(name.parse(), Ok(dtype));
            assert_eq!(dtype.to_string(), name);
        }
        assert_eq!("f32".parse::<Dtype>(), Err(UnknownDtype));
    }

    #[test]
    fn sizes_are_checked() {
        let bytes = |shape: &[usize]| TensorInfo::new("x", Dtype::F32, shape).checked_bytes();
        assert_eq!(bytes(&[]), Some(4));
        assert_eq!(bytes(&[2, 3]), Some(24));
        assert_eq!(bytes(&[usize::MAX, 0, usize::MAX]), Some(0));
        assert_eq!(bytes(&[usize::MAX, 2]), None);
        assert_eq!(bytes(&[usize::MAX / 2]), None);
    }
}
