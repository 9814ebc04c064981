//! Tile registers (AMX): eight small matrices of up to 16 rows of 64 bytes, and an instruction that multiplies two of them into
//! a third.
//!
//! A product takes `A` (rows of input, up to 64 bytes each), and `B` in the panel layout: a line of 64 bytes holds sixteen
//! outputs times four bytes, or two bf16, of consecutive `k`. It adds to `C`, sixteen 32-bit sums a row. The instructions are
//! written in assembly because the stable language has no functions for them; the compiler itself never uses tiles, so what one
//! of these functions leaves in a tile is there for the next.
//!
//! Measured on Sapphire Rapids: a product takes as many cycles as the larger of `A`'s rows and `B`'s lines, not less than 9, and
//! 52 until its result is there; storing a tile takes 16 cycles, however many rows it has. So stores must be kept apart from
//! the products that they wait for.

use std::arch::asm;

use crate::Level;
use crate::level::Isa;

/// Rows of the largest tile.
pub(crate) const ROWS: usize = 16;

/// The tiles that hold sums; two for input and two for weights follow.
const SUMS: usize = 4;

/// The memory image of the instruction that shapes tiles.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Tiles shaped on this thread: sums in tiles 0 to 3, input in 4 and 5, weights in 6 and 7. Dropped, it gives the tiles back, so that
/// switches to other threads need not save them.
pub(crate) struct Tiles(());

impl Tiles {
    /// Shapes tiles for `rows` of input (1 to 16) over `lines` of weights (1 to 16), which is four times as many bytes of a row.
    ///
    /// # Panics
    /// At another level than [`Level::Amx`], or for a shape that tiles do not have.
    pub(crate) fn shape(isa: Isa, rows: usize, lines: usize) -> Self {
        assert!(isa.level() == Level::Amx, "no tiles at {}", isa.level());
        assert!((1..=ROWS).contains(&rows) && (1..=16).contains(&lines), "tiles of {rows} rows by {lines} lines");
        let mut shapes = Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let each = [(rows, 64); SUMS].into_iter().chain([(rows, lines * 4); 2]).chain([(lines, 64); 2]);
        for (i, (rows, bytes)) in each.enumerate() {
            (shapes.rows[i], shapes.row_bytes[i]) = (rows as u8, bytes as u16);
        }
        // SAFETY: an `Isa` of this level exists only after tiles were found and lent; the image is 64 bytes of a valid shape.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, preserves_flags, readonly)) };
        Tiles(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: a value of this type exists only where there are tiles.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// Reads tile `T`, its rows `stride` bytes apart.
///
/// # Safety
/// Tiles are shaped on this thread, and every row of the tile may be read.
#[inline(always)]
pub(crate) unsafe fn load<const T: u8>(at: *const u8, stride: usize) {
    // SAFETY: by contract.
    unsafe {
        asm!(
            "tileloadd tmm{t}, [{at} + {stride}*1]",
            t = const T, at = in(reg) at, stride = in(reg) stride,
            options(nostack, preserves_flags, readonly),
        );
    }
}

/// As [`load`], of what will not be read again soon: it need not stay in the first-level cache, and on Sapphire Rapids does not push out
/// what does. Input that passes by 32 KiB of weights in a cache of 48 is then multiplied a quarter faster.
///
/// # Safety
/// As [`load`].
#[inline(always)]
pub(crate) unsafe fn load_passing<const T: u8>(at: *const u8, stride: usize) {
    // SAFETY: by contract.
    unsafe {
        asm!(
            "tileloaddt1 tmm{t}, [{at} + {stride}*1]",
            t = const T, at = in(reg) at, stride = in(reg) stride,
            options(nostack, preserves_flags, readonly),
        );
    }
}

/// Writes tile `T`, its rows `stride` bytes apart.
///
/// # Safety
/// Tiles are shaped on this thread, and every row of the tile may be written.
#[inline(always)]
pub(crate) unsafe fn store<const T: u8>(at: *mut u8, stride: usize) {
    // SAFETY: by contract.
    unsafe {
        asm!(
            "tilestored [{at} + {stride}*1], tmm{t}",
            t = const T, at = in(reg) at, stride = in(reg) stride,
            options(nostack, preserves_flags),
        );
    }
}

/// Makes all of tile `T` zeros.
///
/// # Safety
/// Tiles are shaped on this thread.
#[inline(always)]
pub(crate) unsafe fn zero<const T: u8>() {
    // SAFETY: by contract.
    unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, preserves_flags, nomem)) };
}

/// Adds products of signed bytes to the i32 of tile `C`, exactly.
///
/// # Safety
/// Tiles are shaped on this thread, and are three different ones.
#[inline(always)]
pub(crate) unsafe fn dot_bytes<const C: u8, const A: u8, const B: u8>() {
    // SAFETY: by contract.
    unsafe {
        asm!("tdpbssd tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B, options(nostack, preserves_flags, nomem));
    }
}

/// Adds products of bf16 to the f32 of tile `C`: those of even and those of odd `k` are summed apart, from zero and in rising
/// order, and the two sums added to each other and then to what is there. Each operation is rounded to nearest;
/// subnormal numbers are zeros, going in and coming out.
///
/// # Safety
/// Tiles are shaped on this thread, and are three different ones.
#[inline(always)]
pub(crate) unsafe fn dot_bf16<const C: u8, const A: u8, const B: u8>() {
    // SAFETY: by contract.
    unsafe {
        asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B, options(nostack, preserves_flags, nomem));
    }
}
