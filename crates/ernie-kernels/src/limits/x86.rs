//! The loops of [`super::Limits`] in the widest instructions of an x86-64 processor.

use super::{Loops, SUMS};
use crate::Level;
use crate::amx::{self, Tiles};
use crate::level::Isa;
use std::arch::is_x86_feature_detected as has;
use std::arch::x86_64::*;
use std::hint::black_box;

/// The best loops that this processor has, on top of the plain ones.
pub(super) fn loops(plain: Loops) -> Loops {
    let mut loops = plain;
    if has!("avx2") && has!("fma") {
        // SAFETY: the features were just found.
        loops.f32 = |rounds| unsafe { f32_256(rounds) };
    }
    if has!("avx512f") {
        // SAFETY: the feature was just found.
        loops.f32 = |rounds| unsafe { f32_512(rounds) };
        loops.read = vec![
            // SAFETY: the feature was just found.
            |stream| unsafe { read_one(stream) },
            // SAFETY: the feature was just found.
            |stream| unsafe { read_four(stream) },
        ];
        if has!("avx512bf16") {
            // SAFETY: the features were just found.
            loops.bf16 = Some(|rounds| unsafe { bf16_512(rounds) });
        }
        if has!("avx512vnni") {
            // SAFETY: the features were just found.
            loops.int8 = Some(|rounds| unsafe { int8_512(rounds) });
        }
    }
    if Isa::best().level() == Level::Amx {
        loops.bf16 = Some(bf16_tiles);
        loops.int8 = Some(int8_tiles);
    }
    loops
}

/// Runs a step on twelve sums again and again. Each is a variable of its own: an array of them has been seen to stay in memory.
macro_rules! on_sums {
    ($rounds:expr, $start:expr, |$sum:ident| $step:expr) => {
        on_sums!(@named $rounds, $start, $sum, $step, a b c d e f g h i j k l)
    };
    (@named $rounds:expr, $start:expr, $sum:ident, $step:expr, $($name:ident)*) => {{
        $(let mut $name = $start;)*
        for _ in 0..$rounds {
            $($name = { let $sum = $name; $step };)*
        }
        black_box([$($name),*]);
    }};
}

#[target_feature(enable = "avx2,fma")]
fn f32_256(rounds: usize) -> f64 {
    let (factor, term) = (_mm256_set1_ps(black_box(0.999_9)), _mm256_set1_ps(black_box(1e-3)));
    on_sums!(rounds, term, |sum| _mm256_fmadd_ps(sum, factor, term));
    (rounds * SUMS * 8 * 2) as f64
}

#[target_feature(enable = "avx512f")]
fn f32_512(rounds: usize) -> f64 {
    let (factor, term) = (_mm512_set1_ps(black_box(0.999_9)), _mm512_set1_ps(black_box(1e-3)));
    on_sums!(rounds, term, |sum| _mm512_fmadd_ps(sum, factor, term));
    (rounds * SUMS * 16 * 2) as f64
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn bf16_512(rounds: usize) -> f64 {
    let ones = _mm512_set1_ps(black_box(1.0));
    let (a, b) = (_mm512_cvtne2ps_pbh(ones, ones), _mm512_cvtne2ps_pbh(ones, ones));
    on_sums!(rounds, _mm512_setzero_ps(), |sum| _mm512_dpbf16_ps(sum, a, b));
    (rounds * SUMS * 32 * 2) as f64
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn int8_512(rounds: usize) -> f64 {
    let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(-1)));
    on_sums!(rounds, _mm512_setzero_si512(), |sum| _mm512_dpbusd_epi32(sum, a, b));
    (rounds * SUMS * 64 * 2) as f64
}

/// A tile of numbers whose bits differ as those of weights do, as bf16 between 1 and 2 of either sign: zeros are multiplied about a fifth
/// faster, presumably because they take less power.
fn tile_of_numbers() -> [u16; 32 * amx::ROWS] {
    let mut state = 1_u32;
    std::array::from_fn(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as u16 & 0x807f | 0x3f80
    })
}

/// Runs products of whole tiles, into four of sums: a quarter as many as there are `rounds`, because one takes some sixteen cycles.
macro_rules! on_tiles {
    ($rounds:expr, $dot:ident, $bytes:expr) => {{
        let products = $rounds / 16 * 4;
        let _tiles = Tiles::shape(Isa::best(), amx::ROWS, 16);
        // SAFETY: tiles were just shaped, and all of them are given a value before they are used.
        unsafe {
            let numbers = tile_of_numbers();
            let numbers = numbers.as_ptr().cast();
            amx::load::<4>(numbers, 64);
            amx::load::<5>(numbers, 64);
            amx::load::<6>(numbers, 64);
            amx::load::<7>(numbers, 64);
            amx::zero::<0>();
            amx::zero::<1>();
            amx::zero::<2>();
            amx::zero::<3>();
            for _ in 0..products / 4 {
                amx::$dot::<0, 4, 6>();
                amx::$dot::<1, 4, 7>();
                amx::$dot::<2, 5, 6>();
                amx::$dot::<3, 5, 7>();
            }
        }
        (products * amx::ROWS * 16 * (64 / $bytes) * 2) as f64
    }};
}

fn bf16_tiles(rounds: usize) -> f64 {
    on_tiles!(rounds, dot_bf16, 2)
}

fn int8_tiles(rounds: usize) -> f64 {
    on_tiles!(rounds, dot_bytes, 1)
}

/// Words of a block: four cache lines.
const BLOCK: usize = 32;
/// How far ahead is asked for, in words: two KiB.
const AHEAD: usize = 256;

/// One stream, front to back.
#[target_feature(enable = "avx512f")]
fn read_one(stream: &[u64]) -> u64 {
    read_streams([stream])
}

/// Four streams at once, as a product with panels of a matrix reads them.
#[target_feature(enable = "avx512f")]
fn read_four(stream: &[u64]) -> u64 {
    let quarter = stream.len() / 4 / BLOCK * BLOCK;
    let (a, rest) = stream.split_at(quarter);
    let (b, rest) = rest.split_at(quarter);
    let (c, d) = rest.split_at(quarter);
    let (d, tail) = d.split_at(quarter);
    read_streams([a, b, c, d]) ^ read_streams([tail])
}

/// The exclusive or of all words of whole blocks of streams of one length.
#[inline]
#[target_feature(enable = "avx512f")]
fn read_streams<const N: usize>(streams: [&[u64]; N]) -> u64 {
    let mut lanes = [[_mm512_setzero_si512(); 4]; N];
    let blocks = streams.map(|stream| stream.as_chunks::<BLOCK>().0);
    for at in 0..blocks.iter().map(|blocks| blocks.len()).min().unwrap_or(0) {
        for (lanes, blocks) in lanes.iter_mut().zip(&blocks) {
            let block = blocks[at].as_ptr();
            for (line, lane) in lanes.iter_mut().enumerate() {
                // SAFETY: the load is of the eight words `line * 8..` of a block of 32; a prefetch may name any address,
                // and `wrapping_add` makes it without claiming that it is inside.
                let words = unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(AHEAD + line * 8).cast());
                    _mm512_loadu_si512(block.add(line * 8).cast())
                };
                *lane = _mm512_xor_si512(*lane, words);
            }
        }
    }
    let all = lanes.iter().flatten().fold(_mm512_setzero_si512(), |all, &lane| _mm512_xor_si512(all, lane));
    let mut words = [0_u64; 8];
    // SAFETY: `words` is the 64 bytes that are written.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), all) };
    words.iter().fold(0, |all, word| all ^ word)
}
