//! The number formats that weights are stored in, and how a stored row becomes floats.
//!
//! Blocks are bit for bit those of ggml (github.com/ggml-org/ggml, `ggml-common.h`): a GGUF tensor's bytes are used as they
//! lie in the file. A row of a blocked format is a whole number of blocks. Nothing here decides what to do with a row; see
//! [`crate::linear`].

mod finite;
mod k_quants;
mod simple;

pub use finite::all_finite;
pub(crate) use k_quants::scale_and_min;

/// How the elements of a weight row are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an IEEE single.
    Bf16,
    /// 32 signed bytes and an f16 scale.
    Q8_0,
    /// 32 four-bit values less 8, and an f16 scale.
    Q4_0,
    /// 32 four-bit values, an f16 scale and an f16 minimum.
    Q4_1,
    /// 32 five-bit values less 16, and an f16 scale.
    Q5_0,
    /// 32 five-bit values, an f16 scale and an f16 minimum.
    Q5_1,
    /// 256 four-bit values in 8 groups with 6-bit scales and minimums.
    Q4K,
    /// 256 five-bit values in 8 groups with 6-bit scales and minimums.
    Q5K,
    /// 256 six-bit values less 32 in 16 groups with 8-bit scales.
    Q6K,
    /// Signed bytes row by row; one scale a row is kept apart ([`crate::Rows::scales`]).
    Int8,
}

impl Format {
    /// All formats.
    pub const ALL: [Format; 12] = [
        Format::F32,
        Format::F16,
        Format::Bf16,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::Int8,
    ];

    /// The name, spelled as GGUF spells it (`Q4_K`), lower-case for none.
    pub fn name(self) -> &'static str {
        match self {
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::Bf16 => "BF16",
            Format::Q8_0 => "Q8_0",
            Format::Q4_0 => "Q4_0",
            Format::Q4_1 => "Q4_1",
            Format::Q5_0 => "Q5_0",
            Format::Q5_1 => "Q5_1",
            Format::Q4K => "Q4_K",
            Format::Q5K => "Q5_K",
            Format::Q6K => "Q6_K",
            Format::Int8 => "INT8",
        }
    }

    /// Elements in a block; a row's length is a multiple of it.
    pub const fn block_elements(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::Bf16 | Format::Int8 => 1,
            Format::Q8_0 | Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 => 32,
            Format::Q4K | Format::Q5K | Format::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::Int8 => 1,
            Format::F16 | Format::Bf16 => 2,
            Format::F32 => 4,
            Format::Q4_0 => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q5_1 => 24,
            Format::Q8_0 => 34,
            Format::Q4K => 144,
            Format::Q5K => 176,
            Format::Q6K => 210,
        }
    }

    /// Bytes of a row of `elements`; `None` when they are no whole number of blocks, or the product overflows.
    pub fn row_bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }
}

/// Writes the `out.len()` elements of one stored row as floats. [`Format::Int8`] is written unscaled.
///
/// Exact for F32, F16, BF16 and Int8; for the others each element is the float expression of ggml's own dequantiser, without
/// fusing, so that every level gives the same bits.
///
/// # Panics
/// When `bytes` is not exactly the row's size, or `out.len()` no whole number of blocks.
pub fn widen_row(format: Format, bytes: &[u8], out: &mut [f32]) {
    widen(crate::level::Isa::current(), format, bytes, out);
}

pub(crate) fn widen(isa: crate::level::Isa, format: Format, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        Some(bytes.len()),
        format.row_bytes(out.len()),
        "{} bytes given for a {} row of {} elements",
        bytes.len(),
        format.name(),
        out.len()
    );
    match format {
        Format::F32 => simple::f32_row(isa, bytes, out),
        Format::F16 => simple::f16_row(isa, bytes, out),
        Format::Bf16 => simple::bf16_row(isa, bytes, out),
        Format::Int8 => simple::int8_row(isa, bytes, out),
        Format::Q8_0 => simple::q8_0_row(isa, bytes, out),
        Format::Q4_0 => simple::q4_0_row(isa, bytes, out),
        Format::Q4_1 => simple::q4_1_row(isa, bytes, out),
        Format::Q5_0 => simple::q5_0_row(isa, bytes, out),
        Format::Q5_1 => simple::q5_1_row(isa, bytes, out),
        Format::Q4K => k_quants::q4_k_row(isa, bytes, out),
        Format::Q5K => k_quants::q5_k_row(isa, bytes, out),
        Format::Q6K => k_quants::q6_k_row(isa, bytes, out),
    }
}

/// An f16 given by its bits, as a float: exact, subnormals, infinities and NaN included, and branch-free.
#[inline(always)]
pub(crate) fn f16_bits_to_f32(bits: u16) -> f32 {
    let wide = u32::from(bits) << 16;
    let sign = wide & 0x8000_0000;
    let twice = wide.wrapping_add(wide);
    // Exponent and mantissa moved into place with the exponent pushed up by 224 and scaled back by 2^-112: rebiased by 112.
    let normal = f32::from_bits((twice >> 4).wrapping_add(0xE0 << 23)) * f32::from_bits(0x0780_0000);
    // A subnormal's mantissa set under the exponent of 0.5, and the 0.5 taken off again.
    let subnormal = f32::from_bits((twice >> 17) | (126 << 23)) - 0.5;
    let magnitude = if twice < (1 << 27) { subnormal } else { normal };
    f32::from_bits(sign | magnitude.to_bits())
}

/// The f16 at a place in a block.
///
/// Hidden from the optimiser on purpose: otherwise it vectorises over blocks, gathering and scattering single bytes, instead
/// of within a block (ten times slower where it happened).
#[inline(always)]
fn f16_at(bytes: &[u8], at: usize) -> f32 {
    std::hint::black_box(f16_bits_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_widens_as_the_half_crate_does() {
        for bits in 0..=u16::MAX {
            let ours = f16_bits_to_f32(bits);
            let theirs = half::f16::from_bits(bits).to_f32();
            assert!(
                ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()),
                "{bits:#06x}: {ours} {theirs}"
            );
        }
    }

    #[test]
    fn row_bytes_refuses_part_blocks_and_overflow() {
        assert_eq!(Format::Q4K.row_bytes(512), Some(288));
        assert_eq!(Format::Q4K.row_bytes(511), None);
        assert_eq!(Format::F32.row_bytes(usize::MAX), None);
        assert_eq!(Format::Q8_0.row_bytes(0), Some(0));
    }
}
