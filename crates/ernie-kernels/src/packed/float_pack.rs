//! Moving matrices into panels (sixteen outputs side by side, k-major) and tiles of input (a few rows, k-major), and back.

use half::{bf16, f16};

use super::float_tile::STEP;
pub(crate) use super::float_tile::WIDTH;
use crate::lanes::Lanes;
use crate::level::Isa;

/// Writes the panel of up to sixteen rows of 32-bit elements (floats, or pairs of 16 bits); rows that are not there are zeros.
///
/// # Panics
/// When a length does not fit.
pub(crate) fn rows(isa: Isa, source: &[u8], stride: usize, count: usize, k: usize, panel: &mut [f32]) {
    assert!(
        count <= WIDTH && panel.len() == k * WIDTH && (count == 0 || ((count - 1) * stride + k) * 4 <= source.len()),
        "panel of {count} rows of {k}, {stride} apart, in {} bytes",
        source.len()
    );
    // SAFETY: the rows lie in the source and the panel holds them, as was just checked.
    unsafe { run_rows(isa, source.as_ptr().cast(), stride, count, k, panel.as_mut_ptr()) };
}

with_lanes! {
    /// # Safety
    /// As [`generic_rows`].
    unsafe fn run_rows = generic_rows(source: *const f32, stride: usize, count: usize, k: usize, panel: *mut f32)
}

/// # Safety
/// `count <= 16` rows of `k` elements, `stride` apart, may be read (at any alignment), and `16 * k` elements written.
#[inline(always)]
unsafe fn generic_rows<V: Lanes>(source: *const f32, stride: usize, count: usize, k: usize, panel: *mut f32) {
    let whole = if count == WIDTH { k / 16 * 16 } else { 0 };
    // SAFETY: inside the contract's rows and panel; words are moved as integers, which keeps every bit.
    unsafe {
        for i in (0..whole).step_by(16) {
            V::transpose(source.add(i), stride, panel.add(i * WIDTH), WIDTH);
        }
        for i in whole..k {
            for o in 0..WIDTH {
                let word = if o < count { source.add(o * stride + i).cast::<u32>().read_unaligned() } else { 0 };
                panel.add(i * WIDTH + o).cast::<u32>().write_unaligned(word);
            }
        }
    }
}

kernel! {
    /// Writes the panel of up to sixteen columns of a matrix whose rows (one a `k`) start `stride` apart.
    fn columns(source: &[f32], stride: usize, count: usize, k: usize, panel: &mut [f32]) {
        for (i, to) in panel.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate().take(k) {
            let from = &source[i * stride..];
            if let Some(from) = from.first_chunk::<WIDTH>().filter(|_| count == WIDTH) {
                *to = *from;
            } else {
                *to = [0.0; WIDTH];
                to[..count].copy_from_slice(&from[..count]);
            }
        }
    }
}

kernel! {
    /// Writes the tiles (of `height` rows each, k-major, the last one's missing rows left as they are) of `count` rows of input
    /// that stand as columns of a matrix whose rows start `stride` apart.
    fn tall(source: &[f32], stride: usize, count: usize, k: usize, height: usize, tiles: &mut [f32]) {
        let size = height * k;
        for i in 0..k {
            let from = &source[i * stride..][..count];
            if height == 8 {
                let (whole, rest) = from.as_chunks::<8>();
                for (t, from) in whole.iter().enumerate() {
                    tiles[t * size + i * 8..][..8].copy_from_slice(from);
                }
                if !rest.is_empty() {
                    tiles[whole.len() * size + i * 8..][..rest.len()].copy_from_slice(rest);
                }
            } else {
                for (t, from) in from.chunks(height).enumerate() {
                    tiles[t * size + i * height..][..from.len()].copy_from_slice(from);
                }
            }
        }
    }
}

/// Widens steps of pairs of 16 bits to a panel of floats, `k` of them; `half` tells f16 from bf16.
///
/// # Panics
/// When a length does not fit.
pub(crate) fn widen(isa: Isa, pairs: &[u8], half: bool, k: usize, panel: &mut [f32]) {
    assert!(pairs.len() == k.div_ceil(2) * STEP && panel.len() == k * WIDTH, "panel of {k} pairs: lengths");
    // SAFETY: lengths were just checked.
    unsafe { run_widen(isa, pairs.as_ptr(), half, k, panel.as_mut_ptr()) };
}

with_lanes! {
    /// # Safety
    /// As [`generic_widen`].
    unsafe fn run_widen = generic_widen(pairs: *const u8, half: bool, k: usize, panel: *mut f32)
}

/// # Safety
/// `ceil(k / 2)` steps may be read, and `16 * k` elements written.
#[inline(always)]
unsafe fn generic_widen<V: Lanes>(pairs: *const u8, half: bool, k: usize, panel: *mut f32) {
    // SAFETY: inside what the contract covers.
    unsafe {
        for step in 0..k.div_ceil(2) {
            let at = pairs.add(step * STEP);
            let [first, second] = if half { V::load_f16_pairs(at) } else { V::load_bf16_pairs(at) };
            first.store(panel.add(step * 2 * WIDTH));
            if step * 2 + 1 < k {
                second.store(panel.add((step * 2 + 1) * WIDTH));
            }
        }
    }
}

/// The bits of a float rounded to bf16: to nearest, ties to even; NaN stays NaN, infinities and signs stay.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16) as u16;
    let nan = (bits >> 16) as u16 | 0x40;
    if bits & 0x7FFF_FFFF > 0x7F80_0000 { nan } else { rounded }
}

kernel! {
    /// Rounds a row to bf16, pair by pair; a last pair's missing second is zero.
    fn round_bf16(row: &[f32], pairs: &mut [u32]) {
        let (whole, rest) = row.as_chunks::<2>();
        for (to, &[a, b]) in pairs.iter_mut().zip(whole) {
            *to = u32::from(bf16_bits(a)) | u32::from(bf16_bits(b)) << 16;
        }
        if let (Some(to), &[a]) = (pairs.get_mut(whole.len()), rest) {
            *to = u32::from(bf16_bits(a));
        }
    }
}

/// Rounds a row to f16, pair by pair; a last pair's missing second is zero.
pub(crate) fn round_f16(row: &[f32], pairs: &mut [u32]) {
    for (to, pair) in pairs.iter_mut().zip(row.chunks(2)) {
        let bits = |i: usize| pair.get(i).map_or(0, |&x| u32::from(f16::from_f32(x).to_bits()));
        *to = bits(0) | bits(1) << 16;
    }
}

/// The float that a stored 16-bit value stands for.
pub(crate) fn wide(bits: u16, half: bool) -> f32 {
    if half { f16::from_bits(bits).to_f32() } else { bf16::from_bits(bits).to_f32() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_as_the_half_crate_does() {
        let special =
            [0.0, -0.0, 1e-44, -1e-40, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN];
        let mut bits = 1_u32;
        let random = (0..100_000).map(|_| {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits(bits)
        });
        for x in special.into_iter().chain((0..=u16::MAX).map(|b| f32::from_bits(u32::from(b) << 8))).chain(random) {
            assert_eq!(bf16_bits(x), bf16::from_f32(x).to_bits(), "{x:e} ({:#x})", x.to_bits());
        }
    }
}
