//! The products inside: f32 rows by what a page holds, widened in registers as it is read.
//!
//! `C (+)= A · B`, where `B` lies in panels of [`COLUMNS`] columns: a panel is its rows one after the other, a row a line of
//! elements (see `page.rs`). So a panel is one forward stream, and a line of bf16 widens to two vectors by a shift and a mask.
//! Each element of `C` is one chain of (fused) multiply-adds in the order of the inner index, whatever rows or columns share
//! the call. While `B` is used, as many bytes are asked for of what will be read next, in their order.

use super::{CacheFormat, PAGE};
use crate::lanes::Lanes;

/// Columns of a panel.
pub(super) const COLUMNS: usize = 32;

/// A line of a panel.
trait Line {
    const BYTES: usize;

    /// Widens one half: its first 16 columns, or the other 16.
    ///
    /// # Safety
    /// The line may be read, and the processor has the features of `V`.
    unsafe fn half<V: Lanes>(at: *const u8, half: usize) -> V;

    /// Widens both.
    ///
    /// # Safety
    /// As [`Self::half`].
    #[inline(always)]
    unsafe fn both<V: Lanes>(at: *const u8) -> [V; 2] {
        // SAFETY: as the contract.
        unsafe { [Self::half(at, 0), Self::half(at, 1)] }
    }
}

struct F32;
struct Bf16;
struct Int8;

impl Line for F32 {
    const BYTES: usize = 4 * COLUMNS;

    #[inline(always)]
    unsafe fn half<V: Lanes>(at: *const u8, half: usize) -> V {
        // SAFETY: as the contract; `Lanes` needs no alignment.
        unsafe { V::load(at.add(half * 64).cast()) }
    }
}

impl Line for Bf16 {
    const BYTES: usize = 2 * COLUMNS;

    #[inline(always)]
    unsafe fn half<V: Lanes>(at: *const u8, half: usize) -> V {
        // SAFETY: as the contract.
        unsafe { V::load_bf16_pairs(at)[half] }
    }

    #[inline(always)]
    unsafe fn both<V: Lanes>(at: *const u8) -> [V; 2] {
        // SAFETY: as the contract.
        unsafe { V::load_bf16_pairs(at) }
    }
}

impl Line for Int8 {
    const BYTES: usize = COLUMNS;

    #[inline(always)]
    unsafe fn half<V: Lanes>(at: *const u8, half: usize) -> V {
        // SAFETY: as the contract.
        unsafe { V::load_i8(at.add(half * 16)) }
    }
}

/// The operands: `A: [m, k]` f32, `B: [k, n]` in panels, `C: [m, n]` f32.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    /// Rows are [`PAGE`] elements apart.
    pub(super) a: *const f32,
    pub(super) b: *const u8,
    /// Bytes from a panel to the next.
    pub(super) panel: usize,
    pub(super) c: *mut f32,
    pub(super) ldc: usize,
    pub(super) m: usize,
    pub(super) k: usize,
    /// A multiple of [`COLUMNS`].
    pub(super) n: usize,
    /// Whether `C` is added to.
    pub(super) add: bool,
    /// What will be read next, panels as far apart; any address will do.
    pub(super) ahead: *const u8,
}

with_lanes! {
    /// # Safety
    /// The operands may be read, and `C` read and written by no one else.
    unsafe fn multiply = multiply_in(format: CacheFormat, o: Operands)
}

#[inline(always)]
unsafe fn multiply_in<V: Lanes>(format: CacheFormat, o: Operands) {
    // SAFETY: as the contract.
    unsafe {
        match format {
            CacheFormat::F32 => panels::<V, F32>(o),
            CacheFormat::Bf16 => panels::<V, Bf16>(o),
            CacheFormat::Int8 => panels::<V, Int8>(o),
        }
    }
}

/// Rows of the next block where `left` are left. A block is one or two vectors wide, its sums stay in registers, and what is
/// widened for it is paid for by its rows.
#[inline(always)]
fn block_rows(wide: bool, left: usize) -> usize {
    if !wide {
        left.min(6)
    } else if left >= 12 {
        12
    } else {
        left.min(8)
    }
}

/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn panels<V: Lanes, L: Line>(o: Operands) {
    // Where there are 32 registers a block is both halves of a line wide.
    let wide = V::OUTER_COLUMNS == 4;
    for panel in 0..o.n / COLUMNS {
        let mut row = 0;
        while row < o.m {
            let rows = block_rows(wide, o.m - row);
            // SAFETY: `row + rows <= m`, and the panel's columns end at or before `n`: inside what the contract covers.
            unsafe {
                let at = Operands {
                    a: o.a.add(row * PAGE),
                    b: o.b.add(panel * o.panel),
                    c: o.c.add(row * o.ldc + panel * COLUMNS),
                    ahead: o.ahead.wrapping_add(panel * o.panel),
                    ..o
                };
                match rows {
                    1 => block::<V, L, 1>(wide, at),
                    2 => block::<V, L, 2>(wide, at),
                    3 => block::<V, L, 3>(wide, at),
                    4 => block::<V, L, 4>(wide, at),
                    5 => block::<V, L, 5>(wide, at),
                    6 => block::<V, L, 6>(wide, at),
                    7 if wide => whole_lines::<V, L, 7>(at),
                    8 if wide => whole_lines::<V, L, 8>(at),
                    _ if wide => whole_lines::<V, L, 12>(at),
                    _ => {}
                }
            }
            row += rows;
        }
    }
}

/// # Safety
/// As [`multiply`], for `M` rows and the columns of a panel.
#[inline(always)]
unsafe fn block<V: Lanes, L: Line, const M: usize>(wide: bool, o: Operands) {
    // SAFETY: as the contract.
    unsafe {
        if wide {
            whole_lines::<V, L, M>(o);
        } else {
            half_lines::<V, L, M>(o, 0);
            half_lines::<V, L, M>(o, 1);
        }
    }
}

/// # Safety
/// As [`multiply`], for `M` rows and the columns of a panel.
#[inline(always)]
unsafe fn whole_lines<V: Lanes, L: Line, const M: usize>(o: Operands) {
    // SAFETY: every address is a row below `M` (or `k`) and a column of the panel, which the contract covers; what is only
    // prefetched may be anywhere.
    unsafe {
        let mut sums = [[V::zero(); 2]; M];
        if o.add {
            for (m, sums) in sums.iter_mut().enumerate() {
                *sums = [V::load(o.c.add(m * o.ldc)), V::load(o.c.add(m * o.ldc + 16))];
            }
        }
        for l in 0..o.k {
            let right = L::both::<V>(o.b.add(l * L::BYTES));
            prefetch::<L>(o.ahead, l);
            for (m, sums) in sums.iter_mut().enumerate() {
                let left = V::splat(*o.a.add(m * PAGE + l));
                *sums = [left.fma(right[0], sums[0]), left.fma(right[1], sums[1])];
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            sums[0].store(o.c.add(m * o.ldc));
            sums[1].store(o.c.add(m * o.ldc + 16));
        }
    }
}

/// As [`whole_lines`], for the first or second 16 columns.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn half_lines<V: Lanes, L: Line, const M: usize>(o: Operands, half: usize) {
    // SAFETY: as in `whole_lines`.
    unsafe {
        let c = o.c.add(half * 16);
        let mut sums = [V::zero(); M];
        if o.add {
            for (m, sum) in sums.iter_mut().enumerate() {
                *sum = V::load(c.add(m * o.ldc));
            }
        }
        for l in 0..o.k {
            let right = L::half::<V>(o.b.add(l * L::BYTES), half);
            if half == 0 {
                prefetch::<L>(o.ahead, l);
            }
            for (m, sum) in sums.iter_mut().enumerate() {
                *sum = V::splat(*o.a.add(m * PAGE + l)).fma(right, *sum);
            }
        }
        for (m, sum) in sums.iter().enumerate() {
            sum.store(c.add(m * o.ldc));
        }
    }
}

/// Asks for line `l` of a panel to be brought into the second-level cache.
#[inline(always)]
fn prefetch<L: Line>(panel: *const u8, l: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..L::BYTES).step_by(64) {
        let at = panel.wrapping_add(l * L::BYTES + at);
        // SAFETY: a prefetch reads nothing that the program could see and faults on no address; SSE is always there.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (panel, l);
}
