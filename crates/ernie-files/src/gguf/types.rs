//! The block kinds of ggml: every one the format has had, with its number, elements and bytes a block.
//!
//! Source: `ggml.h` and `ggml-common.h` of llama.cpp.

use std::fmt;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $number:literal, $name:literal, $elements:literal, $bytes:literal;)*) => {
        /// How a tensor's elements are stored: plain, or in blocks that share scales.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(non_camel_case_types)]
        pub enum GgmlType {
            $($(#[$doc])* $kind,)*
        }

        impl GgmlType {
            /// Every kind.
            pub const ALL: &[GgmlType] = &[$(Self::$kind,)*];

            /// The number that stands for it in a file.
            pub fn number(self) -> u32 {
                match self { $(Self::$kind => $number,)* }
            }

            /// The field's name for it, such as `Q4_K`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }

            /// Elements of one block; a row is whole blocks.
            pub fn block_elements(self) -> usize {
                match self { $(Self::$kind => $elements,)* }
            }

            /// Bytes of one block.
            pub fn block_bytes(self) -> usize {
                match self { $(Self::$kind => $bytes,)* }
            }
        }
    };
}

kinds! {
    /// IEEE single.
    F32 = 0, "F32", 1, 4;
    /// IEEE half.
    F16 = 1, "F16", 1, 2;
    /// 4 bits, one scale a block of 32.
    Q4_0 = 2, "Q4_0", 32, 18;
    /// 4 bits, scale and minimum a block of 32.
    Q4_1 = 3, "Q4_1", 32, 20;
    /// 5 bits, one scale a block of 32.
    Q5_0 = 6, "Q5_0", 32, 22;
    /// 5 bits, scale and minimum a block of 32.
    Q5_1 = 7, "Q5_1", 32, 24;
    /// 8 bits, one scale a block of 32.
    Q8_0 = 8, "Q8_0", 32, 34;
    /// 8 bits with the block's sum; an intermediate of dot products.
    Q8_1 = 9, "Q8_1", 32, 36;
    /// 2 bits, super-block of 256.
    Q2K = 10, "Q2_K", 256, 84;
    /// 3 bits, super-block of 256.
    Q3K = 11, "Q3_K", 256, 110;
    /// 4 bits, super-block of 256.
    Q4K = 12, "Q4_K", 256, 144;
    /// 5 bits, super-block of 256.
    Q5K = 13, "Q5_K", 256, 176;
    /// 6 bits, super-block of 256.
    Q6K = 14, "Q6_K", 256, 210;
    /// 8 bits, super-block of 256; an intermediate of dot products.
    Q8K = 15, "Q8_K", 256, 292;
    /// About 2.06 bits, from a codebook.
    Iq2Xxs = 16, "IQ2_XXS", 256, 66;
    /// About 2.31 bits, from a codebook.
    Iq2Xs = 17, "IQ2_XS", 256, 74;
    /// About 3.06 bits, from a codebook.
    Iq3Xxs = 18, "IQ3_XXS", 256, 98;
    /// About 1.56 bits, from a codebook.
    Iq1S = 19, "IQ1_S", 256, 50;
    /// 4 bits, values from a fixed table.
    Iq4Nl = 20, "IQ4_NL", 32, 18;
    /// About 3.44 bits, from a codebook.
    Iq3S = 21, "IQ3_S", 256, 110;
    /// About 2.5 bits, from a codebook.
    Iq2S = 22, "IQ2_S", 256, 82;
    /// 4.25 bits, values from a fixed table.
    Iq4Xs = 23, "IQ4_XS", 256, 136;
    /// 8-bit integers.
    I8 = 24, "I8", 1, 1;
    /// 16-bit integers.
    I16 = 25, "I16", 1, 2;
    /// 32-bit integers.
    I32 = 26, "I32", 1, 4;
    /// 64-bit integers.
    I64 = 27, "I64", 1, 8;
    /// IEEE double.
    F64 = 28, "F64", 1, 8;
    /// About 1.75 bits, from a codebook.
    Iq1M = 29, "IQ1_M", 256, 56;
    /// The upper half of an IEEE single.
    Bf16 = 30, "BF16", 1, 2;
    /// Ternary, 1.69 bits.
    Tq1_0 = 34, "TQ1_0", 256, 54;
    /// Ternary, 2.06 bits.
    Tq2_0 = 35, "TQ2_0", 256, 66;
    /// 4-bit float, one power-of-two scale a block of 32.
    Mxfp4 = 39, "MXFP4", 32, 17;
    /// 4-bit float, 8-bit float scales a 16 elements.
    Nvfp4 = 40, "NVFP4", 64, 36;
    /// Signs alone, one scale a block of 128.
    Q1_0 = 41, "Q1_0", 128, 18;
}

impl GgmlType {
    /// The kind with this number in a file, if it is one.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.number() == number)
    }

    /// The name of a kind that the format once had; such files must be made anew.
    pub(crate) fn removed(number: u32) -> Option<&'static str> {
        Some(match number {
            4 => "Q4_2",
            5 => "Q4_3",
            31 => "Q4_0_4_4",
            32 => "Q4_0_4_8",
            33 => "Q4_0_8_8",
            36 => "IQ4_NL_4_4",
            37 => "IQ4_NL_4_8",
            38 => "IQ4_NL_8_8",
            _ => return None,
        })
    }

    /// Bytes of one row of `elements` elements, if that is whole blocks.
    pub fn row_bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique() {
        for (i, a) in GgmlType::ALL.iter().enumerate() {
            assert_eq!(GgmlType::from_number(a.number()), Some(*a));
            assert!(GgmlType::removed(a.number()).is_none());
            for b in &GgmlType::ALL[i + 1..] {
                assert!(a.number() != b.number() && a.as_str() != b.as_str());
            }
        }
        assert_eq!(GgmlType::from_number(31), None);
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(GgmlType::Q4K.row_bytes(512), Some(288));
        assert_eq!(GgmlType::Q4K.row_bytes(500), None);
        assert_eq!(GgmlType::F32.row_bytes(3), Some(12));
        assert_eq!(GgmlType::F64.row_bytes(usize::MAX), None);
    }
}
