//! The register block: a few rows of input times one or three panels.
//!
//! For a run of elements that share all scales the dot product is an exact i32; then
//! `sum = fma(float(dot) * weight_scale, input_scale, sum)`, run after run along k, and with minimums
//! `sum = fma(minimum, input_sum, sum)` after it. Where a row has one scale the inner product is absent and the scale multiplies
//! the sum at the end. It is the same for every block size, so that results do not depend on the rows in a call.

#[cfg(target_arch = "x86_64")]
use super::activations::GROUP;
use super::activations::Side;
use super::vectors::{Plain, Vectors};
#[cfg(target_arch = "x86_64")]
use crate::Level;
use crate::level::Isa;

/// How a kernel finds weight scales: [`ROW`], [`HALF`], [`SUB`] or [`WIDE`].
pub(super) const ROW: u8 = 0;
/// An f16 a block.
pub(super) const HALF: u8 = 1;
/// A byte a block, an f16 a super-block.
pub(super) const SUB: u8 = 2;
/// As [`HALF`], but floats: what [`Spread`] makes of the two above.
pub(super) const WIDE: u8 = 3;

/// Bytes ahead of the reads that weights are asked for: enough to cover the memory's latency, few enough to stay in cache.
const AHEAD: usize = 2048;

/// One call's operands. Pointers and strides are in elements of their type.
pub(super) struct Tile {
    /// The first row's bytes.
    pub(super) x: *const u8,
    pub(super) x_stride: usize,
    /// The first row's sides.
    pub(super) sides: *const Side,
    pub(super) side_stride: usize,
    /// The first panel's weights.
    pub(super) w: *const u8,
    pub(super) w_stride: usize,
    /// The first panel's scales.
    pub(super) scales: *const u8,
    pub(super) scales_stride: usize,
    /// Where sub-scales start after `scales`.
    pub(super) subs_start: usize,
    /// One scale an output, for [`ROW`].
    pub(super) row_scales: *const f32,
    /// The first output of the first row.
    pub(super) y: *mut f32,
    pub(super) y_stride: usize,
    /// Outputs of the last panel that exist, 1 to 16.
    pub(super) last: usize,
    /// Runs in a row, and steps of four elements in a run.
    pub(super) runs: usize,
    pub(super) steps: usize,
    /// Runs in a block, and blocks in a super-block, as powers of two.
    pub(super) block_shift: u32,
    pub(super) super_shift: u32,
    /// Sums of a call that does not see a whole row, 16 of each panel of each row.
    pub(super) sums: *mut f32,
    /// Whether it goes on from `sums`, and whether it ends a row: then it writes `y` and otherwise `sums`.
    pub(super) resumes: bool,
    pub(super) ends: bool,
}

/// A panel's scales and minimums, `SCALES` being [`HALF`], [`SUB`] or [`WIDE`].
///
/// # Safety
/// The processor has the features of `V`, and `at` points to the scales of a panel with that block.
#[inline(always)]
unsafe fn scales<V: Vectors, const SCALES: u8, const MINIMUM: bool>(
    at: *const u8,
    subs_start: usize,
    super_shift: u32,
    block: usize,
) -> [V::Floats; 2] {
    let each = 1 + MINIMUM as usize;
    // SAFETY: by contract.
    unsafe {
        match SCALES {
            HALF => {
                let at = at.add(block * 32 * each);
                [V::halves(at), if MINIMUM { V::halves(at.add(32)) } else { V::splat(0.0) }]
            }
            SUB => {
                let upper = at.add((block >> super_shift) * 32 * each);
                let sub = at.add(subs_start + block * 16 * each);
                // No closure for the two: compilers left it a function without the level's instructions.
                let scale = V::mul(V::halves(upper), V::bytes(sub));
                let minimum =
                    if MINIMUM { V::mul(V::halves(upper.add(32)), V::bytes(sub.add(16))) } else { V::splat(0.0) };
                [scale, minimum]
            }
            WIDE => {
                let at = at.cast::<f32>().add(block * 16 * each);
                [V::load(at), if MINIMUM { V::load(at.add(16)) } else { V::splat(0.0) }]
            }
            _ => [V::splat(0.0); 2],
        }
    }
}

/// # Safety
/// The processor has the features of `V`; every pointer of `t` may be followed for `M` rows and `N` panels of the sizes given,
/// and no other thread touches these parts of `y`.
#[inline(always)]
unsafe fn tile<
    V: Vectors,
    const M: usize,
    const N: usize,
    const NIBBLES: bool,
    const SCALES: u8,
    const MINIMUM: bool,
    const STEPS: usize,
>(
    t: &Tile,
) {
    // SAFETY: by contract; steps, runs and panels stay below the counts that the sizes were made from.
    unsafe {
        let steps = if STEPS > 0 { STEPS } else { t.steps };
        let mut sums: [[V::Floats; N]; M] = [[V::splat(0.0); N]; M];
        if t.resumes {
            for (i, sum) in sums.as_flattened_mut().iter_mut().enumerate() {
                *sum = V::load(t.sums.add(i * 16));
            }
        }
        let (mut x, mut w) = (t.x, t.w);
        for run in 0..t.runs {
            let sides = t.sides.add(run);
            let mut dots: [[V::Ints; N]; M] = std::array::from_fn(|m| {
                let side = sides.add(m * t.side_stride);
                [V::ints(match (NIBBLES, MINIMUM) {
                    (false, _) => (*side).start128,
                    (true, false) => (*side).start8,
                    (true, true) => 0,
                }); N]
            });
            if NIBBLES {
                for _ in 0..steps / 2 {
                    let both: [[V::Weights; 2]; N] = std::array::from_fn(|n| V::nibbles(w.add(n * t.w_stride)));
                    if N == 1 {
                        V::prefetch(w.wrapping_add(AHEAD));
                    }
                    for (m, dots) in dots.iter_mut().enumerate() {
                        let (low, high) = (V::input(x.add(m * t.x_stride)), V::input(x.add(m * t.x_stride + 4)));
                        for (dot, &[w_low, w_high]) in dots.iter_mut().zip(&both) {
                            *dot = V::dot(V::dot(*dot, w_low, low), w_high, high);
                        }
                    }
                    x = x.add(8);
                    w = w.add(64);
                }
            } else {
                for _ in 0..steps {
                    let four: [V::Weights; N] = std::array::from_fn(|n| V::weights(w.add(n * t.w_stride)));
                    if N == 1 {
                        V::prefetch(w.wrapping_add(AHEAD));
                    }
                    for (m, dots) in dots.iter_mut().enumerate() {
                        let input = V::input(x.add(m * t.x_stride));
                        for (dot, &w) in dots.iter_mut().zip(&four) {
                            *dot = V::dot(*dot, w, input);
                        }
                    }
                    x = x.add(4);
                    w = w.add(64);
                }
            }
            let block = run >> t.block_shift;
            let scales: [[V::Floats; 2]; N] = std::array::from_fn(|n| {
                scales::<V, SCALES, MINIMUM>(t.scales.add(n * t.scales_stride), t.subs_start, t.super_shift, block)
            });
            for (m, (sums, dots)) in sums.iter_mut().zip(&dots).enumerate() {
                let side = sides.add(m * t.side_stride);
                for ((sum, &dot), &[scale, minimum]) in sums.iter_mut().zip(dots).zip(&scales) {
                    let mut dot = V::floats(dot);
                    if SCALES != ROW {
                        dot = V::mul(dot, scale);
                    }
                    *sum = V::fma(dot, V::splat((*side).scale), *sum);
                    if MINIMUM {
                        *sum = V::fma(minimum, V::splat((*side).sum), *sum);
                    }
                }
            }
        }
        if !t.ends {
            for (i, &sum) in sums.as_flattened().iter().enumerate() {
                V::store(sum, t.sums.add(i * 16), 16);
            }
            return;
        }
        for (m, sums) in sums.iter().enumerate() {
            for (n, &sum) in sums.iter().enumerate() {
                let sum = if SCALES == ROW { V::mul(sum, V::load(t.row_scales.add(n * 16))) } else { sum };
                V::store(sum, t.y.add(m * t.y_stride + n * 16), if n + 1 == N { t.last } else { 16 });
            }
        }
    }
}

/// Widens a panel's nibbles into a panel of bytes with an offset of 128.
///
/// # Safety
/// The processor has the features of `V`; `lines * 64` bytes are readable at `from` and twice as many writable at `to`.
#[inline(always)]
unsafe fn widen<V: Vectors>(from: *const u8, to: *mut u8, lines: usize, by: u8) {
    for line in 0..lines {
        // SAFETY: by contract.
        unsafe {
            let [low, high] = V::nibbles(from.add(line * 64));
            V::prefetch(from.wrapping_add(line * 64 + AHEAD));
            V::put(low, by, to.add(line * 128));
            V::put(high, by, to.add(line * 128 + 64));
        }
    }
}

/// The scales of some blocks of a panel as floats: what [`WIDE`] reads.
pub(super) struct Spread {
    pub(super) from: *const u8,
    pub(super) subs_start: usize,
    pub(super) super_shift: u32,
    pub(super) first: usize,
    pub(super) blocks: usize,
    pub(super) to: *mut f32,
}

/// # Safety
/// The processor has the features of `V`; the scales of the blocks are readable, and 16 floats a block (twice as many with minimums)
/// writable.
#[inline(always)]
unsafe fn spread<V: Vectors, const SCALES: u8, const MINIMUM: bool>(s: &Spread) {
    for i in 0..s.blocks {
        // SAFETY: by contract.
        unsafe {
            let [scale, minimum] = scales::<V, SCALES, MINIMUM>(s.from, s.subs_start, s.super_shift, s.first + i);
            let to = s.to.add(i * if MINIMUM { 32 } else { 16 });
            V::store(scale, to, 16);
            if MINIMUM {
                V::store(minimum, to.add(16), 16);
            }
        }
    }
}

/// A spreading of scales: its contract is [`spread`]'s.
pub(super) type Spreader = unsafe fn(&Spread);

/// A kernel: its contract is [`tile`]'s.
pub(super) type Kernel = unsafe fn(&Tile);

/// A widening of nibbles: its contract is [`widen`]'s.
pub(super) type Widen = unsafe fn(*const u8, *mut u8, usize, u8);

/// A kind of panel as the kernels see it.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) nibbles: bool,
    pub(super) scales: u8,
    pub(super) minimum: bool,
}

/// Steps of the run that most kinds have.
#[cfg(target_arch = "x86_64")]
const USUAL: usize = GROUP / 4;

/// Chooses among the kernels of a level.
macro_rules! kernels {
    ($shape:ident, $m:ident, $n:ident, $steps:ident, $rows:ident, $three:ident) => {{
        let Shape { nibbles, scales, minimum } = $shape;
        match ($n, nibbles, scales, minimum) {
            (3, false, ROW, _) => $three::<ROW, false>($m, $steps),
            (3, false, WIDE, false) => $three::<WIDE, false>($m, $steps),
            (3, false, WIDE, true) => $three::<WIDE, true>($m, $steps),
            (1, false, ROW, _) => $rows::<false, ROW, false>($m),
            (1, false, HALF, false) => $rows::<false, HALF, false>($m),
            (1, false, HALF, true) => $rows::<false, HALF, true>($m),
            (1, false, SUB, false) => $rows::<false, SUB, false>($m),
            (1, false, SUB, true) => $rows::<false, SUB, true>($m),
            (1, false, WIDE, false) => $rows::<false, WIDE, false>($m),
            (1, false, WIDE, true) => $rows::<false, WIDE, true>($m),
            (1, true, HALF, false) => $rows::<true, HALF, false>($m),
            (1, true, HALF, true) => $rows::<true, HALF, true>($m),
            (1, true, SUB, false) => $rows::<true, SUB, false>($m),
            (1, true, SUB, true) => $rows::<true, SUB, true>($m),
            _ => unreachable!("no kernel of {} rows by {} panels, {scales}", $m, $n),
        }
    }};
}

/// Chooses among the spreadings of a level.
macro_rules! spreaders {
    ($shape:ident, $floats:ident) => {
        match ($shape.scales, $shape.minimum) {
            (HALF, false) => $floats::<HALF, false>,
            (HALF, true) => $floats::<HALF, true>,
            (_, false) => $floats::<SUB, false>,
            (_, true) => $floats::<SUB, true>,
        }
    };
}

/// Defines the instances of one level: `$tile` and `$widen` are the generic functions compiled for it.
#[cfg(target_arch = "x86_64")]
macro_rules! instances {
    ($name:ident, $features:literal, $vectors:ty, $wide:tt) => {
        mod $name {
            use super::*;

            /// # Safety
            /// See [`super::tile`].
            #[target_feature(enable = $features)]
            unsafe fn block<
                const M: usize,
                const N: usize,
                const NIBBLES: bool,
                const SCALES: u8,
                const MINIMUM: bool,
                const STEPS: usize,
            >(
                t: &Tile,
            ) {
                // SAFETY: the features are enabled here; the rest is the caller's contract.
                unsafe { tile::<$vectors, M, N, NIBBLES, SCALES, MINIMUM, STEPS>(t) }
            }

            /// # Safety
            /// See [`super::spread`].
            #[target_feature(enable = $features)]
            unsafe fn floats<const SCALES: u8, const MINIMUM: bool>(s: &Spread) {
                // SAFETY: the features are enabled here; the rest is the caller's contract.
                unsafe { super::spread::<$vectors, SCALES, MINIMUM>(s) }
            }

            pub(super) fn spread(shape: Shape) -> Spreader {
                spreaders!(shape, floats)
            }

            /// # Safety
            /// See [`super::widen`].
            #[target_feature(enable = $features)]
            unsafe fn wide(from: *const u8, to: *mut u8, lines: usize, by: u8) {
                // SAFETY: the features are enabled here; the rest is the caller's contract.
                unsafe { super::widen::<$vectors>(from, to, lines, by) }
            }

            pub(super) fn widen() -> Widen {
                wide
            }

            fn rows<const NIBBLES: bool, const SCALES: u8, const MINIMUM: bool>(m: usize) -> Kernel {
                instances!(@rows $wide, m, NIBBLES, SCALES, MINIMUM)
            }

            fn three<const SCALES: u8, const MINIMUM: bool>(m: usize, steps: usize) -> Kernel {
                instances!(@three $wide, m, steps, SCALES, MINIMUM)
            }

            pub(super) fn kernel(shape: Shape, m: usize, n: usize, steps: usize) -> Kernel {
                kernels!(shape, m, n, steps, rows, three)
            }
        }
    };
    (@rows true, $m:ident, $nibbles:ident, $scales:ident, $minimum:ident) => {
        match $m {
            1 => block::<1, 1, $nibbles, $scales, $minimum, 0>,
            2 => block::<2, 1, $nibbles, $scales, $minimum, 0>,
            4 => block::<4, 1, $nibbles, $scales, $minimum, 0>,
            _ => unreachable!("no kernel of {} rows by a panel", $m),
        }
    };
    (@rows false, $m:ident, $nibbles:ident, $scales:ident, $minimum:ident) => {
        match $m {
            1 => block::<1, 1, $nibbles, $scales, $minimum, 0>,
            4 => block::<4, 1, $nibbles, $scales, $minimum, 0>,
            _ => unreachable!("no kernel of {} rows by a panel", $m),
        }
    };
    // The block that most work is done in knows how many steps the ordinary run has: unrolled, it is a fifth faster.
    (@three true, $m:ident, $steps:ident, $scales:ident, $minimum:ident) => {
        match ($m, $steps) {
            (1, _) => block::<1, 3, false, $scales, $minimum, 0>,
            (2, _) => block::<2, 3, false, $scales, $minimum, 0>,
            (4, USUAL) => block::<4, 3, false, $scales, $minimum, USUAL>,
            (4, _) => block::<4, 3, false, $scales, $minimum, 0>,
            _ => unreachable!("no kernel of {} rows by three panels", $m),
        }
    };
    (@three false, $m:ident, $steps:ident, $scales:ident, $minimum:ident) => {
        unreachable!("no kernel of {} rows by three panels, {} steps", $m, $steps)
    };
}

#[cfg(target_arch = "x86_64")]
instances!(
    vnni,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,bmi1,bmi2",
    super::super::vectors::x86::Wide<true>,
    true
);
#[cfg(target_arch = "x86_64")]
instances!(
    wide,
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2",
    super::super::vectors::x86::Wide<false>,
    false
);
#[cfg(target_arch = "x86_64")]
instances!(pair, "avx2,fma,f16c,bmi1,bmi2", super::super::vectors::x86::Pair, false);

/// As an instance of the levels above, without features.
mod plain {
    use super::*;

    pub(super) fn widen() -> Widen {
        super::widen::<Plain>
    }

    /// # Safety
    /// See [`super::spread`].
    unsafe fn floats<const SCALES: u8, const MINIMUM: bool>(s: &Spread) {
        // SAFETY: the caller's contract.
        unsafe { super::spread::<Plain, SCALES, MINIMUM>(s) }
    }

    pub(super) fn spread(shape: Shape) -> Spreader {
        spreaders!(shape, floats)
    }

    fn rows<const NIBBLES: bool, const SCALES: u8, const MINIMUM: bool>(m: usize) -> Kernel {
        match m {
            1 => tile::<Plain, 1, 1, NIBBLES, SCALES, MINIMUM, 0>,
            _ => unreachable!("no kernel of {m} rows by a panel"),
        }
    }

    fn three<const SCALES: u8, const MINIMUM: bool>(m: usize, steps: usize) -> Kernel {
        unreachable!("no kernel of {m} rows by three panels, {steps} steps")
    }

    pub(super) fn kernel(shape: Shape, m: usize, n: usize, steps: usize) -> Kernel {
        kernels!(shape, m, n, steps, rows, three)
    }
}

/// The rows that blocks of a level hold, the largest first, and the most panels.
pub(super) fn block_rows(isa: Isa) -> (&'static [usize], usize) {
    match isa.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni | Level::Avx512Bf16 | Level::Amx => (&[4, 2, 1], 3),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx2 => (&[4, 1], 1),
        _ => (&[1], 1),
    }
}

/// The kernel of a level for `m` rows, one of [`block_rows`], by `n` panels, one or the most, for runs of `steps`.
pub(super) fn kernel(isa: Isa, shape: Shape, m: usize, n: usize, steps: usize) -> Kernel {
    match isa.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni | Level::Avx512Bf16 | Level::Amx => vnni::kernel(shape, m, n, steps),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => wide::kernel(shape, m, n, steps),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => pair::kernel(shape, m, n, steps),
        _ => plain::kernel(shape, m, n, steps),
    }
}

/// The spreading of scales of a level, for a shape with [`HALF`] or [`SUB`].
pub(super) fn spreading(isa: Isa, shape: Shape) -> Spreader {
    match isa.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni | Level::Avx512Bf16 | Level::Amx => vnni::spread(shape),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => wide::spread(shape),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => pair::spread(shape),
        _ => plain::spread(shape),
    }
}

/// The widening of nibbles of a level.
pub(super) fn widening(isa: Isa) -> Widen {
    match isa.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni | Level::Avx512Bf16 | Level::Amx => vnni::widen(),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => wide::widen(),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => pair::widen(),
        _ => plain::widen(),
    }
}
