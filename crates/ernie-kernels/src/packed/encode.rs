//! Rows on their way into panels: floats are rounded, stored integers are moved as they are.

use super::float_pack;
use super::layout::{Blocks, Kind, PANEL, Row, SUPER, Scales};
use crate::formats::{self, Format};
use crate::level::Isa;
use crate::packed::ROUND;
use crate::quantize;

/// Rounds a row of floats into its place; its scale, where rows have one, goes to `row_scale`.
///
/// A NaN counts as 0 and an infinity as the end of the grid of the finite weights, as in [`quantize::int8_rows`].
pub(super) fn floats(isa: Isa, row: &mut Row<'_>, x: &[f32], row_scale: &mut f32, stored: &mut Vec<u8>) {
    stored.clear();
    match row.layout.kind {
        Kind::Int8 => {
            *row_scale = quantize::f16_scale(quantize::absmax_finite(isa, x));
            stored.resize(x.len(), 0);
            if *row_scale != 0.0 {
                quantize::round_row(isa, x, 1.0 / *row_scale, bytemuck::cast_slice_mut(stored));
            }
            stored.iter_mut().for_each(|b| *b ^= 0x80);
            row.values(0, stored);
        }
        Kind::Blocks4(Blocks { elements, minimum: true, scales: Scales::Half }) => {
            stored.resize(elements, 0);
            for (block, x) in x.chunks(elements).enumerate() {
                let stored = &mut stored[..x.len()];
                let (scale, minimum) = int4(isa, x, stored);
                row.half(block, scale, minimum);
                row.values(block * elements, stored);
            }
        }
        // Blocks of ggml are its own numbers; nothing is rounded to them here.
        kind => panic!("packed: floats are rounded to Int8 or int4, not to {kind:?}"),
    }
}

kernel! {
    /// Rounds a group to `0..=15` times a scale plus a minimum, whose f16 bits it gives.
    fn int4(x: &[f32], stored: &mut [u8]) -> (u16, u16) {
        const MOST: f32 = 65504.0;
        let (mut least, mut largest) = ([f32::INFINITY; 16], [f32::NEG_INFINITY; 16]);
        for x in x.chunks(16) {
            for (l, &x) in x.iter().enumerate() {
                // Comparisons pass over NaN, the bounds over the infinities.
                least[l] = if x < least[l] && x >= f32::MIN { x } else { least[l] };
                largest[l] = if x > largest[l] && x <= f32::MAX { x } else { largest[l] };
            }
        }
        let least = least.into_iter().fold(f32::INFINITY, f32::min).clamp(-MOST, MOST);
        let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max).clamp(-MOST, MOST);
        if least > largest {
            stored.fill(0);
            return (0, 0);
        }
        let minimum = half::f16::from_f32(least);
        let scale = half::f16::from_f32((largest - minimum.to_f32()) / 15.0);
        let (from, wide) = (minimum.to_f32(), scale.to_f32());
        let inverse = if wide > 0.0 { 1.0 / wide } else { 0.0 };
        for (stored, &x) in stored.iter_mut().zip(x) {
            let steps = (x - from) * inverse;
            // NaN goes to 0 as what is below the grid does.
            let steps = if steps > 0.0 { steps } else { 0.0 };
            let steps = if steps < 15.0 { steps } else { 15.0 };
            *stored = (steps + ROUND).to_bits() as u8 & 15;
        }
        (scale.to_bits(), minimum.to_bits())
    }
}

/// Moves a stored row into its place, in the kind that [`Kind::of`] gives for the format.
pub(super) fn stored(row: &mut Row<'_>, format: Format, bytes: &[u8]) {
    if format == Format::Int8 {
        let (words, tail) = bytes.as_chunks::<4>();
        row.words(0, words.iter().map(|&word| flipped(u32::from_le_bytes(word))));
        if !tail.is_empty() {
            let mut last = [0; 4];
            last[..tail.len()].copy_from_slice(tail);
            last[..tail.len()].iter_mut().for_each(|b| *b ^= 0x80);
            row.words(bytes.len() - tail.len(), std::iter::once(u32::from_le_bytes(last)));
        }
        return;
    }
    // The formats that most files are in.
    match format {
        Format::Q8_0 => return simple::<34, 2, 8>(row, bytes, eights),
        Format::Q4_0 => return simple::<18, 2, 4>(row, bytes, nibbles),
        Format::Q4_1 => return simple::<20, 4, 4>(row, bytes, nibbles),
        _ => (),
    }
    for (i, b) in bytes.chunks_exact(format.block_bytes()).enumerate() {
        let half = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        match format {
            Format::Q5_0 => {
                row.half(i, half(0), 0);
                // Less 16, plus the offset of 128.
                row.values(i * 32, &fives(&b[2..], 128 - 16));
            }
            Format::Q5_1 => {
                row.half(i, half(0), half(2));
                row.values(i * 32, &fives(&b[4..], 128));
            }
            Format::Q4K | Format::Q5K => k_four_or_five(row, i, b, format == Format::Q5K),
            Format::Q6K => k_six(row, i, b),
            Format::F32 | Format::F16 | Format::Bf16 | Format::Int8 => unreachable!("no blocks"),
            Format::Q8_0 | Format::Q4_0 | Format::Q4_1 => unreachable!("moved above"),
        }
    }
}

/// Puts the words of `count` outputs from `first` on, `lines` each, on the lines of a panel, which has zeros for outputs to come.
pub(super) fn lines(isa: Isa, words: &[u32], lines: usize, first: usize, count: usize, panel: &mut [u8]) {
    if first == 0 {
        return float_pack::rows(
            isa,
            bytemuck::cast_slice(words),
            lines,
            count,
            lines,
            bytemuck::cast_slice_mut(panel),
        );
    }
    let (panel, words) = (panel.as_chunks_mut::<{ 4 * PANEL }>().0, words.chunks_exact(lines.max(1)));
    for (output, words) in (first..first + count).zip(words) {
        for (line, word) in panel.iter_mut().zip(words) {
            line[4 * output..][..4].copy_from_slice(&word.to_ne_bytes());
        }
    }
}

/// Blocks of `BYTES` bytes that are `HEAD` bytes of an f16 scale, maybe an f16 minimum, and what makes `WORDS` words.
#[inline(always)]
fn simple<const BYTES: usize, const HEAD: usize, const WORDS: usize>(
    row: &mut Row<'_>,
    bytes: &[u8],
    write: impl Fn(&[u8], &mut [u32; WORDS]),
) {
    let at = row.output % PANEL * 2;
    let scales = row.scales.chunks_exact_mut(HEAD * PANEL);
    let places = row.words.as_chunks_mut::<WORDS>().0.iter_mut().zip(scales);
    // Loops over arrays, here and below, rather than arrays from functions: of those compilers made a call for each element.
    for (block, (to, scales)) in bytes.as_chunks::<BYTES>().0.iter().zip(places) {
        scales[at..at + 2].copy_from_slice(&block[..2]);
        if HEAD == 4 {
            scales[at + 2 * PANEL..at + 2 * PANEL + 2].copy_from_slice(&block[2..4]);
        }
        write(&block[HEAD..], to);
    }
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Four signed bytes with an offset of 128.
fn flipped(word: u32) -> u32 {
    word ^ 0x8080_8080
}

/// 32 signed bytes as the words of a panel of bytes.
#[inline(always)]
fn eights(bytes: &[u8], to: &mut [u32; 8]) {
    for (to, &four) in to.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *to = flipped(u32::from_le_bytes(four)).to_le();
    }
}

/// The 32 values of 16 bytes, low nibbles first, as the words of a panel of nibbles.
#[inline(always)]
fn nibbles(bytes: &[u8], to: &mut [u32; 4]) {
    const LOW: u32 = 0x0f0f_0f0f;
    let (a, b, c, d) = (word(bytes, 0), word(bytes, 4), word(bytes, 8), word(bytes, 12));
    to[0] = (a & LOW | (b & LOW) << 4).to_le();
    to[1] = (c & LOW | (d & LOW) << 4).to_le();
    to[2] = (a >> 4 & LOW | b & !LOW).to_le();
    to[3] = (c >> 4 & LOW | d & !LOW).to_le();
}

/// The 32 values of 4 bytes of fifth bits and 16 of nibbles, low ones first, increased by `by`.
fn fives(b: &[u8], by: u8) -> [u8; 32] {
    let (fifths, nibbles) = (word(b, 0), &b[4..20]);
    let mut values = [0; 32];
    for (j, &both) in nibbles.iter().enumerate() {
        values[j] = (both & 15) + (fifths >> j & 1) as u8 * 16 + by;
        values[j + 16] = (both >> 4) + (fifths >> (j + 16) & 1) as u8 * 16 + by;
    }
    values
}

/// A block of Q4_K or Q5_K, as in [`mod@crate::formats`].
fn k_four_or_five(row: &mut Row<'_>, i: usize, b: &[u8], five: bool) {
    let half = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
    // The minimum is taken off, so it is stored negated.
    row.upper(i, half(0), half(2) ^ 0x8000);
    for group in 0..8 {
        let (scale, minimum) = formats::scale_and_min(&b[4..16], group);
        row.sub(i * 8 + group, scale as i8, minimum as i8);
    }
    let (fifths, quarters) = if five { (&b[16..48], &b[48..]) } else { (&[0; 32][..], &b[16..]) };
    for (quarter, both) in quarters.as_chunks::<32>().0.iter().enumerate().take(4) {
        let mut values = [[0; 32]; 2];
        for (j, (&both, &fifth)) in both.iter().zip(fifths).enumerate() {
            values[0][j] = both & 15;
            values[1][j] = both >> 4;
            if five {
                let fifth = fifth >> (2 * quarter);
                values[0][j] += (fifth & 1) * 16 + 128;
                values[1][j] += (fifth >> 1 & 1) * 16 + 128;
            }
        }
        row.values(i * SUPER + quarter * 64, values.as_flattened());
    }
}

/// A block of Q6_K, as in [`mod@crate::formats`].
fn k_six(row: &mut Row<'_>, i: usize, b: &[u8]) {
    row.upper(i, u16::from_le_bytes([b[208], b[209]]), 0);
    for group in 0..16 {
        row.sub(i * 16 + group, b[192 + group] as i8, 0);
    }
    for half in 0..2 {
        let low = &b[64 * half..][..64];
        let high = &b[128 + 32 * half..][..32];
        let mut values = [[0; 32]; 4];
        for j in 0..32 {
            // Less 32, plus the offset of 128.
            let value = |nibble: u8, quarter: usize| (nibble | (high[j] >> (2 * quarter) & 3) << 4) + 96;
            values[0][j] = value(low[j] & 15, 0);
            values[1][j] = value(low[j + 32] & 15, 1);
            values[2][j] = value(low[j] >> 4, 2);
            values[3][j] = value(low[j + 32] >> 4, 3);
        }
        row.values(i * SUPER + half * 128, values.as_flattened());
    }
}
