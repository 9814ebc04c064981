//! The products inside: a few f32 rows by the elements of a page, which are widened as they are loaded.
//!
//! `C (+)= A · B` with `B` row-major at the page's format, its columns a whole number of vectors. Each element of `C` is one
//! chain of (fused) multiply-adds in the order of the inner index, whatever rows or columns share the call, and whether `B`
//! was widened before ([`widen`]) or here. While `B` is used, as many bytes of the next page are asked for, in their order.

use super::CacheFormat;
use crate::lanes::Lanes;

/// Rows up to which a product widens on its own; with more, [`widen`] once and multiply f32.
pub(super) const FEW: usize = 8;

/// An element of a page.
trait Element {
    const BYTES: usize;

    /// Widens 16.
    ///
    /// # Safety
    /// They may be read, and the processor has the features of `V`.
    unsafe fn load<V: Lanes>(at: *const u8) -> V;
}

struct F32;
struct Bf16;
struct Int8;

impl Element for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load<V: Lanes>(at: *const u8) -> V {
        // SAFETY: as the contract; `Lanes` needs no alignment.
        unsafe { V::load(at.cast()) }
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<V: Lanes>(at: *const u8) -> V {
        // SAFETY: as the contract.
        unsafe { V::load_bf16(at) }
    }
}

impl Element for Int8 {
    const BYTES: usize = 1;

    #[inline(always)]
    unsafe fn load<V: Lanes>(at: *const u8) -> V {
        // SAFETY: as the contract.
        unsafe { V::load_i8(at) }
    }
}

/// The operands: `A: [m, k]` f32, `B: [k, n]` elements, `C: [m, n]` f32, with their row strides (`ldb` in bytes).
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    pub(super) a: *const f32,
    pub(super) lda: usize,
    pub(super) b: *const u8,
    pub(super) ldb: usize,
    pub(super) c: *mut f32,
    pub(super) ldc: usize,
    pub(super) m: usize,
    pub(super) k: usize,
    /// A multiple of 16.
    pub(super) n: usize,
    /// Whether `C` is added to.
    pub(super) add: bool,
    /// Where the next `B` will be read; any address will do.
    pub(super) ahead: *const u8,
}

with_lanes! {
    /// # Safety
    /// The operands may be read, and `C` read and written by no one else.
    unsafe fn multiply = multiply_in(format: CacheFormat, o: Operands)
}

with_lanes! {
    /// Widens `n` elements, a multiple of 16.
    ///
    /// # Safety
    /// They may be read, and `n` floats written.
    unsafe fn widen = widen_in(format: CacheFormat, from: *const u8, n: usize, to: *mut f32)
}

#[inline(always)]
unsafe fn multiply_in<V: Lanes>(format: CacheFormat, o: Operands) {
    // SAFETY: as the contract.
    unsafe {
        match format {
            CacheFormat::F32 => rows::<V, F32>(o),
            CacheFormat::Bf16 => rows::<V, Bf16>(o),
            CacheFormat::Int8 => rows::<V, Int8>(o),
        }
    }
}

#[inline(always)]
unsafe fn widen_in<V: Lanes>(format: CacheFormat, from: *const u8, n: usize, to: *mut f32) {
    #[inline(always)]
    unsafe fn run<V: Lanes, E: Element>(from: *const u8, n: usize, to: *mut f32) {
        for i in (0..n).step_by(16) {
            // SAFETY: `i + 16 <= n`, as `n` is a multiple of 16.
            unsafe { E::load::<V>(from.add(i * E::BYTES)).store(to.add(i)) };
        }
    }
    // SAFETY: as the contract.
    unsafe {
        match format {
            CacheFormat::F32 => run::<V, F32>(from, n, to),
            CacheFormat::Bf16 => run::<V, Bf16>(from, n, to),
            CacheFormat::Int8 => run::<V, Int8>(from, n, to),
        }
    }
}

/// Cuts the product into blocks whose sums stay in registers.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn rows<V: Lanes, E: Element>(o: Operands) {
    // Seven or eight rows (a group of eight heads) stay together on the widest level, by two vectors instead of four.
    let together = V::OUTER_COLUMNS == 4 && o.m > V::OUTER_ROWS && o.m <= FEW;
    let (most, vectors) = if together { (FEW, 2) } else { (V::OUTER_ROWS, V::OUTER_COLUMNS) };
    let mut column = 0;
    while column < o.n {
        let wide = vectors > 1 && o.n - column >= vectors * 16;
        let mut row = 0;
        while row < o.m {
            let count = (o.m - row).min(most);
            // SAFETY: `row + count <= m`, and the block's columns end at or before `n`: inside what the contract covers.
            unsafe {
                let at = Operands {
                    a: o.a.add(row * o.lda),
                    b: o.b.add(column * E::BYTES),
                    c: o.c.add(row * o.ldc + column),
                    ahead: o.ahead.wrapping_add(column * o.k * E::BYTES),
                    ..o
                };
                match (wide, count) {
                    (true, 1) => block::<V, E, 1, 4>(at),
                    (true, 2) => block::<V, E, 2, 4>(at),
                    (true, 3) => block::<V, E, 3, 4>(at),
                    (true, 4) => block::<V, E, 4, 4>(at),
                    (true, 5) => block::<V, E, 5, 4>(at),
                    (true, 6) => block::<V, E, 6, 4>(at),
                    (true, 7) => block::<V, E, 7, 2>(at),
                    (true, _) => block::<V, E, 8, 2>(at),
                    (false, 1) => block::<V, E, 1, 1>(at),
                    (false, 2) => block::<V, E, 2, 1>(at),
                    (false, 3) => block::<V, E, 3, 1>(at),
                    (false, 4) => block::<V, E, 4, 1>(at),
                    (false, 5) => block::<V, E, 5, 1>(at),
                    (false, 6) => block::<V, E, 6, 1>(at),
                    (false, 7) => block::<V, E, 7, 1>(at),
                    (false, _) => block::<V, E, 8, 1>(at),
                }
            }
            row += count;
        }
        column += if wide { vectors * 16 } else { 16 };
    }
}

/// `M` rows by `N` vectors.
///
/// # Safety
/// As [`multiply`], for these rows and columns.
#[inline(always)]
unsafe fn block<V: Lanes, E: Element, const M: usize, const N: usize>(o: Operands) {
    // SAFETY: every address is a row below `M` (or `k`) and a column inside the block, which the contract covers; what is
    // only prefetched may be anywhere.
    unsafe {
        let mut sums = [[V::zero(); N]; M];
        if o.add {
            for (m, sums) in sums.iter_mut().enumerate() {
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = V::load(o.c.add(m * o.ldc + n * 16));
                }
            }
        }
        for l in 0..o.k {
            let mut right = [V::zero(); N];
            for (n, right) in right.iter_mut().enumerate() {
                *right = E::load::<V>(o.b.add(l * o.ldb + n * 16 * E::BYTES));
                if n * 16 * E::BYTES % 64 == 0 {
                    prefetch(o.ahead.wrapping_add((l * N + n) * 16 * E::BYTES));
                }
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let left = V::splat(*o.a.add(m * o.lda + l));
                for (sum, &right) in sums.iter_mut().zip(&right) {
                    *sum = left.fma(right, *sum);
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                sum.store(o.c.add(m * o.ldc + n * 16));
            }
        }
    }
}

/// Asks for a line to be brought into the second-level cache.
#[inline(always)]
fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing that the program could see and faults on no address; SSE is always there.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
