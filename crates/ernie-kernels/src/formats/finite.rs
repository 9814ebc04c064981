//! Whether stored numbers are numbers: a look over a tensor before anything is computed with it.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Format;
use crate::pool;

/// Bytes that a thread looks at before it looks whether another has found something.
const PIECE: usize = 1 << 20;

const F16_EXPONENT: u16 = 0x7c00;
const BF16_EXPONENT: u16 = 0x7f80;
const F32_EXPONENT: u32 = 0x7f80_0000;

/// Whether every stored value is finite. Of blocked formats the block scales and minimums are looked at, which are the only
/// floats there. Bytes after the last whole block are not looked at.
pub fn all_finite(format: Format, bytes: &[u8]) -> bool {
    let size = format.block_bytes();
    let found = AtomicBool::new(false);
    pool::ranges(bytes.len() / size, (PIECE / size).max(1), |Range { start, end }| {
        if !found.load(Ordering::Relaxed) && !piece(format, &bytes[start * size..end * size]) {
            found.store(true, Ordering::Relaxed);
        }
    });
    !found.into_inner()
}

fn piece(format: Format, bytes: &[u8]) -> bool {
    match format {
        Format::F32 => words(bytes),
        Format::F16 => shorts(bytes, F16_EXPONENT),
        Format::Bf16 => shorts(bytes, BF16_EXPONENT),
        Format::Q8_0 | Format::Q4_0 | Format::Q5_0 => halves(format, bytes, &[0]),
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => halves(format, bytes, &[0, 2]),
        Format::Q6K => halves(format, bytes, &[208]),
        Format::Int8 => true,
    }
}

// Whole runs are folded before they are judged, which the compiler turns into wide compares.

fn words(bytes: &[u8]) -> bool {
    let bad = |word: &[u8; 4]| u32::from_le_bytes(*word) & F32_EXPONENT == F32_EXPONENT;
    bytes.chunks(4096).all(|run| !run.as_chunks::<4>().0.iter().fold(false, |any, word| any | bad(word)))
}

fn shorts(bytes: &[u8], exponent: u16) -> bool {
    let bad = |half: &[u8; 2]| u16::from_le_bytes(*half) & exponent == exponent;
    bytes.chunks(4096).all(|run| !run.as_chunks::<2>().0.iter().fold(false, |any, half| any | bad(half)))
}

fn halves(format: Format, bytes: &[u8], places: &[usize]) -> bool {
    let good = |block: &[u8], at: usize| u16::from_le_bytes([block[at], block[at + 1]]) & F16_EXPONENT != F16_EXPONENT;
    bytes.chunks_exact(format.block_bytes()).all(|block| places.iter().all(|&at| good(block, at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_no_numbers_are_seen_in_every_format() {
        let f32s = |x: f32| bytemuck::cast_slice::<f32, u8>(&[0.0, x, 1.0]).to_vec();
        assert!(all_finite(Format::F32, &f32s(-1e38)));
        assert!(!all_finite(Format::F32, &f32s(f32::NAN)));
        assert!(!all_finite(Format::F32, &f32s(f32::NEG_INFINITY)));
        let narrow = |bits: u16| [0, 0, bits.to_le_bytes()[0], bits.to_le_bytes()[1]];
        assert!(!all_finite(Format::F16, &narrow(0x7c00)));
        assert!(!all_finite(Format::Bf16, &narrow(0xff80)));
        assert!(all_finite(Format::F16, &narrow(0x7bff)));
        for (format, at) in [(Format::Q8_0, 0), (Format::Q4_1, 2), (Format::Q4K, 2), (Format::Q6K, 208)] {
            let mut block = vec![0_u8; 2 * format.block_bytes()];
            assert!(all_finite(format, &block));
            block[format.block_bytes() + at + 1] = 0x7c;
            assert!(!all_finite(format, &block), "{format:?}");
        }
    }

    #[test]
    fn the_last_of_many_pieces_is_looked_at() {
        let mut bytes = vec![0_u8; 3 * PIECE + 4];
        assert!(all_finite(Format::F32, &bytes));
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(!all_finite(Format::F32, &bytes));
    }
}
