//! The register tiles below every float product: a few rows of input by a few panels of weights.
//!
//! A panel holds sixteen outputs, k-major: 64 bytes a step, which are one `k` in f32 and a pair of them in bf16 and f16 (the
//! two halves of a 32-bit lane, the even `k` below). Each output has one accumulator, and each `k` adds one fused product to it
//! in rising order. So the bits of an output depend on its row, its weights and `k`, and on nothing else: not on the tile it
//! fell into, nor on where `k` was cut, because an accumulator that is put down in `y` and taken up again is exact.

use std::marker::PhantomData;

use crate::lanes::Lanes;

/// Outputs in a panel.
pub(crate) const WIDTH: usize = 16;

/// Bytes of a step of a panel.
pub(crate) const STEP: usize = 64;

/// How far ahead of its use a stream of weights is fetched, in bytes: about the latency of memory at its bandwidth.
const AHEAD: usize = 1536;

/// A level's tile, and the multiply-add it is made of.
pub(crate) trait Tile {
    /// Sixteen floats on this level.
    type V: Lanes;
    /// Rows of input in a tile, as many as keep its accumulators in registers; at most 8.
    const ROWS: usize;
    /// Panels side by side in a tile: 3 or 1.
    const PANELS: usize;

    /// One step: `x` by `w`, added to `sum`.
    ///
    /// # Safety
    /// The processor has the features of this tile.
    unsafe fn add(x: Self::V, w: Self::V, sum: Self::V) -> Self::V;
}

/// The tile of a level by its vector: one (where the level has it, fused) multiply-add a step.
pub(crate) struct Fused<V>(PhantomData<V>);

macro_rules! fused {
    ($vector:ty, $rows:expr, $panels:expr) => {
        impl Tile for Fused<$vector> {
            type V = $vector;
            const ROWS: usize = $rows;
            const PANELS: usize = $panels;

            #[inline(always)]
            unsafe fn add(x: $vector, w: $vector, sum: $vector) -> $vector {
                // SAFETY: the same contract.
                unsafe { x.fma(w, sum) }
            }
        }
    };
}

fused!(crate::lanes::Plain, 2, 1);
#[cfg(target_arch = "x86_64")]
fused!(crate::lanes::x86::Pair, 6, 1);
#[cfg(target_arch = "x86_64")]
fused!(std::arch::x86_64::__m512, 8, 3);

/// How weights stand in a panel.
pub(crate) trait Stored {
    /// `k` in a step: 1 or 2.
    const DEPTH: usize;

    /// The weights of a step, `DEPTH` vectors of them (where that is 1, the second is not looked at).
    ///
    /// # Safety
    /// As [`Lanes::load`], for 64 bytes.
    unsafe fn load<V: Lanes>(at: *const u8) -> [V; 2];
}

/// 32 bits a weight (or a pair of bf16 that stays one).
pub(crate) struct Words;
/// Pairs of bf16, widened to floats.
pub(crate) struct Brains;
/// Pairs of f16, widened to floats.
pub(crate) struct Halves;

impl Stored for Words {
    const DEPTH: usize = 1;
    #[inline(always)]
    unsafe fn load<V: Lanes>(at: *const u8) -> [V; 2] {
        // SAFETY: the same contract.
        unsafe { [V::load(at.cast()), V::zero()] }
    }
}

impl Stored for Brains {
    const DEPTH: usize = 2;
    #[inline(always)]
    unsafe fn load<V: Lanes>(at: *const u8) -> [V; 2] {
        // SAFETY: the same contract.
        unsafe { V::load_bf16_pairs(at) }
    }
}

impl Stored for Halves {
    const DEPTH: usize = 2;
    #[inline(always)]
    unsafe fn load<V: Lanes>(at: *const u8) -> [V; 2] {
        // SAFETY: the same contract.
        unsafe { V::load_f16_pairs(at) }
    }
}

/// Some rows of input by some panels over some of `k`.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// The first row's first element.
    pub(crate) x: *const f32,
    /// Elements between rows; in tall blocks, between the tiles of [`Tile::ROWS`] rows that are interleaved.
    pub(crate) xs: usize,
    /// Rows of input.
    pub(crate) rows: usize,
    /// The first panel's first step.
    pub(crate) w: *const u8,
    /// Bytes between panels.
    pub(crate) ws: usize,
    /// Outputs; the last panel may be partly used.
    pub(crate) outs: usize,
    /// Elements of the inner dimension.
    pub(crate) k: usize,
    /// The first row's first output.
    pub(crate) y: *mut f32,
    /// Elements between rows of outputs.
    pub(crate) ys: usize,
    /// Whether sums start from what is in `y`, or from zero.
    pub(crate) add: bool,
}

/// All of a block. `TALL` is for input that is packed in tiles of `ROWS` rows, k-major.
///
/// # Safety
/// The processor has the features of the tile; the memory that the block describes may be read, and its outputs written.
#[inline(always)]
pub(crate) unsafe fn block<T: Tile, W: Stored, const TALL: bool>(b: &Block) {
    let full = b.outs / WIDTH;
    // Few rows wait for memory: then the panels side by side are not neighbours but as many streams, each of which walks through
    // consecutive panels, so that what is fetched ahead at the end of one panel is the start of the next.
    let few = b.rows <= 2 * T::ROWS;
    let groups = if T::PANELS == 3 { full / 3 } else { 0 };
    let (next, apart) = if few { (1, groups) } else { (3, 1) };
    // SAFETY: panels stay below those of the block.
    unsafe {
        for group in 0..groups {
            rows::<T, W, TALL, 3>(b, group * next, apart, WIDTH, few);
        }
        let mut panel = groups * 3;
        if T::PANELS == 3 && full - panel == 2 {
            rows::<T, W, TALL, 2>(b, panel, 1, WIDTH, few);
            panel = full;
        }
        while panel < full {
            rows::<T, W, TALL, 1>(b, panel, 1, WIDTH, few);
            panel += 1;
        }
        if !b.outs.is_multiple_of(WIDTH) {
            rows::<T, W, TALL, 1>(b, full, 1, b.outs % WIDTH, few);
        }
    }
}

/// All rows by `P` panels, `apart` panels from each other; `lanes` outputs of each are used, all of them where `P` is not 1.
///
/// # Safety
/// As [`block`], and the panels are the block's.
#[inline(always)]
unsafe fn rows<T: Tile, W: Stored, const TALL: bool, const P: usize>(
    b: &Block,
    panel: usize,
    apart: usize,
    lanes: usize,
    few: bool,
) {
    // Tiles of nearly equal height: a tile of one row would take as long as one of four.
    let tiles = b.rows.div_ceil(T::ROWS);
    let (height, taller) = if TALL { (T::ROWS, 0) } else { (b.rows / tiles.max(1), b.rows % tiles.max(1)) };
    let mut row = 0;
    for i in 0..tiles {
        let m = if TALL { T::ROWS.min(b.rows - row) } else { height + usize::from(i < taller) };
        // SAFETY: rows and panels are the block's.
        unsafe {
            let at = At {
                x: b.x.add(if TALL { i } else { row } * b.xs),
                xs: b.xs,
                w: b.w.add(panel * b.ws),
                ws: apart * b.ws,
                y: b.y.add(row * b.ys + panel * WIDTH),
                ys: b.ys,
                yp: apart * WIDTH,
                k: b.k,
                lanes,
                add: b.add,
                fetch: few,
            };
            match m {
                1 => tile::<T, W, TALL, 1, P>(&at),
                2 => tile::<T, W, TALL, 2, P>(&at),
                3 if T::ROWS >= 3 => tile::<T, W, TALL, 3, P>(&at),
                4 if T::ROWS >= 4 => tile::<T, W, TALL, 4, P>(&at),
                5 if T::ROWS >= 5 => tile::<T, W, TALL, 5, P>(&at),
                6 if T::ROWS >= 6 => tile::<T, W, TALL, 6, P>(&at),
                7 if T::ROWS >= 7 => tile::<T, W, TALL, 7, P>(&at),
                8 if T::ROWS >= 8 => tile::<T, W, TALL, 8, P>(&at),
                _ => unreachable!("a tile of {m} rows"),
            }
        }
        row += m;
    }
}

/// Where a tile's operands are.
struct At {
    x: *const f32,
    xs: usize,
    w: *const u8,
    ws: usize,
    y: *mut f32,
    ys: usize,
    /// Elements between the outputs of neighbouring panels.
    yp: usize,
    k: usize,
    lanes: usize,
    add: bool,
    fetch: bool,
}

/// `M` rows by `P` panels.
///
/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn tile<T: Tile, W: Stored, const TALL: bool, const M: usize, const P: usize>(at: &At) {
    let (xs, step) = if TALL { (1, T::ROWS) } else { (at.xs, 1) };
    // SAFETY: all places are inside what the contract covers; a fetch ahead may point anywhere.
    unsafe {
        let mut sums = [[T::V::zero(); P]; M];
        if at.add {
            for (m, sums) in sums.iter_mut().enumerate() {
                for (p, sum) in sums.iter_mut().enumerate() {
                    let y = at.y.add(m * at.ys + p * at.yp);
                    *sum = if at.lanes == WIDTH { T::V::load(y) } else { T::V::load_part(y, at.lanes) };
                }
            }
        }
        if at.fetch {
            steps::<T, W, M, P, true>(&mut sums, at.x, xs, step, at.w, at.ws, at.k);
        } else {
            steps::<T, W, M, P, false>(&mut sums, at.x, xs, step, at.w, at.ws, at.k);
        }
        for (m, sums) in sums.iter().enumerate() {
            for (p, sum) in sums.iter().enumerate() {
                let y = at.y.add(m * at.ys + p * at.yp);
                if at.lanes == WIDTH { sum.store(y) } else { sum.store_part(y, at.lanes) }
            }
        }
    }
}

/// The steps of a tile: input element `(m, k)` is at `m * xs + k * step`.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn steps<T: Tile, W: Stored, const M: usize, const P: usize, const FETCH: bool>(
    sums: &mut [[T::V; P]; M],
    mut x: *const f32,
    xs: usize,
    step: usize,
    mut w: *const u8,
    ws: usize,
    k: usize,
) {
    // SAFETY: the contract covers `k` elements of each row and their steps of each panel.
    unsafe {
        for _ in 0..k / W::DEPTH {
            let weights = load::<T, W, P, FETCH>(w, ws);
            for (d, weights) in weights.iter().enumerate().take(W::DEPTH) {
                one::<T, M, P>(sums, x.add(d * step), xs, weights);
            }
            x = x.add(W::DEPTH * step);
            w = w.add(STEP);
        }
        if !k.is_multiple_of(W::DEPTH) {
            one::<T, M, P>(sums, x, xs, &load::<T, W, P, FETCH>(w, ws)[0]);
        }
    }
}

/// The weights of a step of `P` panels, by their place in the step.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn load<T: Tile, W: Stored, const P: usize, const FETCH: bool>(w: *const u8, ws: usize) -> [[T::V; P]; 2] {
    // SAFETY: the contract covers a step of each panel; a fetch ahead may point anywhere.
    unsafe {
        let mut firsts = [T::V::zero(); P];
        let mut seconds = firsts;
        for (p, (first, second)) in firsts.iter_mut().zip(&mut seconds).enumerate() {
            if FETCH {
                fetch(w.wrapping_add(p * ws + AHEAD));
            }
            [*first, *second] = W::load::<T::V>(w.add(p * ws));
        }
        [firsts, seconds]
    }
}

/// One `k`: adds the products of `M` elements of input, `xs` apart, by the weights of `P` panels.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn one<T: Tile, const M: usize, const P: usize>(
    sums: &mut [[T::V; P]; M],
    x: *const f32,
    xs: usize,
    weights: &[T::V; P],
) {
    for (m, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the contract covers this element of each row.
        unsafe {
            let x = T::V::splat(*x.add(m * xs));
            for (sum, &w) in sums.iter_mut().zip(weights) {
                *sum = T::add(x, w, *sum);
            }
        }
    }
}

/// Asks for the cache line at an address, which need not be one.
#[inline(always)]
fn fetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, and SSE is part of the target.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

macro_rules! instance {
    ($name:ident, $generic:ident, $stored:ty, $tall:expr) => {
        #[inline(always)]
        unsafe fn $generic<V: Lanes>(b: &Block)
        where
            Fused<V>: Tile,
        {
            // SAFETY: the same contract.
            unsafe { block::<Fused<V>, $stored, $tall>(b) }
        }
        with_lanes! {
            /// # Safety
            /// As [`block`].
            unsafe fn $name = $generic(b: &Block)
        }
    };
}

instance!(run_words, generic_words, Words, false);
instance!(run_words_tall, generic_words_tall, Words, true);
instance!(run_brains, generic_brains, Brains, false);
instance!(run_halves, generic_halves, Halves, false);

#[cfg(target_arch = "x86_64")]
pub(crate) use pairs::run_pairs;

#[cfg(target_arch = "x86_64")]
mod pairs {
    //! Products of pairs of bf16 that stay pairs: [`Level::Avx512Bf16`]'s own definition of a bf16 product (tile registers have theirs).
    use std::arch::x86_64::*;

    use super::{Block, Tile, Words, block};
    use crate::Level;
    use crate::level::Isa;

    /// `vdpbf16ps`: each lane adds the product of the pairs' seconds, then that of their firsts (subnormals count as zeros).
    struct Dot;

    impl Tile for Dot {
        type V = __m512;
        const ROWS: usize = 8;
        const PANELS: usize = 3;

        #[inline(always)]
        unsafe fn add(x: __m512, w: __m512, sum: __m512) -> __m512 {
            // SAFETY: the features are there by contract; the casts only rename 512 bits.
            unsafe {
                _mm512_dpbf16_ps(
                    sum,
                    std::mem::transmute::<__m512, __m512bh>(x),
                    std::mem::transmute::<__m512, __m512bh>(w),
                )
            }
        }
    }

    /// A block whose `x`, `xs` and `k` count pairs.
    ///
    /// # Safety
    /// As [`block`], with pairs of bf16 for floats in `x` and in the panels.
    ///
    /// # Panics
    /// At any other level than [`Level::Avx512Bf16`].
    pub(crate) unsafe fn run_pairs(isa: Isa, b: &Block) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,bmi1,bmi2")]
        unsafe fn inside(b: &Block) {
            // SAFETY: the features are enabled here; the rest is the caller's contract.
            unsafe { block::<Dot, Words, false>(b) }
        }
        assert!(isa.level() == Level::Avx512Bf16, "pairs of bf16 are not multiplied at {}", isa.level());
        // SAFETY: an `Isa` of this level exists only after the processor was found to have all its features.
        unsafe { inside(b) }
    }
}
