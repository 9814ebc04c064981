//! Products of pairs of bf16 in tile registers: [`Level::Amx`](crate::Level::Amx)'s own definition of a bf16 product.
//!
//! A panel's sixteen steps are a tile as they lie. Each output is one f32 in a tile of sums, to which every 32 `k` add what one
//! product of tiles gives ([`amx::dot_bf16`]); where `k` is cut follows from `k` alone. So the bits of an output do not depend
//! on the rows beside it, nor on the tile it fell into, nor on where `k` was blocked, because a tile that is put down in `y` and
//! taken up again is exact.

use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

use super::float_tile::{Block, STEP, WIDTH};
use crate::amx::{self, Tiles};
use crate::level::Isa;

/// Steps of a panel in a tile: 32 `k`.
const STEPS: usize = 16;

/// How far ahead of its use a stream of weights is fetched, in bytes.
const AHEAD: usize = 4096;

/// Rows of memory to be fetched into the second-level cache during a product. It need not be there.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    /// The first row.
    pub(crate) at: *const u8,
    /// Bytes of a row, and from a row to the next.
    pub(crate) bytes: usize,
    pub(crate) stride: usize,
    pub(crate) rows: usize,
}

impl Ahead {
    pub(crate) const NOTHING: Ahead = Ahead { at: std::ptr::null(), bytes: 0, stride: 0, rows: 0 };
}

/// A block whose `x`, `xs` and `k` count pairs.
///
/// # Safety
/// The memory that the block describes may be read, where it has more than sixteen rows also fifteen rows of input after the last,
/// and its outputs written.
///
/// # Panics
/// At another level than [`Level::Amx`](crate::Level::Amx).
pub(crate) unsafe fn run_tiles(isa: Isa, b: &Block) {
    // SAFETY: by contract.
    unsafe { run_tiles_before(isa, b, &Ahead::NOTHING) };
}

/// [`run_tiles`], which fetches meanwhile what is asked for next.
///
/// # Safety
/// As [`run_tiles`].
///
/// # Panics
/// As [`run_tiles`].
pub(crate) unsafe fn run_tiles_before(isa: Isa, b: &Block, next: &Ahead) {
    let height = b.rows.min(amx::ROWS);
    if b.rows == 0 {
        return;
    }
    let whole = b.k / STEPS;
    // SAFETY: by contract; both parts of `k` are the block's.
    unsafe {
        if whole > 0 || b.k == 0 {
            let _tiles = Tiles::shape(isa, height, STEPS);
            let pairs = b.rows / (2 * amx::ROWS) * (b.outs / (2 * WIDTH));
            let mut next = Fetch::new(next, pairs * whole);
            panels(&Part { b, height, x: b.x, w: b.w, tiles: whole, add: b.add }, &mut next);
        }
        let rest = b.k % STEPS;
        if rest > 0 {
            let _tiles = Tiles::shape(isa, height, rest);
            let (x, w) = (b.x.add(whole * STEPS), b.w.add(whole * STEPS * STEP));
            panels(&Part { b, height, x, w, tiles: 1, add: b.add || whole > 0 }, &mut Fetch::new(&Ahead::NOTHING, 0));
        }
    }
}

/// A block over some of `k`, with tiles of one shape.
struct Part<'a> {
    b: &'a Block,
    height: usize,
    x: *const f32,
    w: *const u8,
    /// Tiles along `k`.
    tiles: usize,
    add: bool,
}

/// What is left of an [`Ahead`] to be fetched, some lines at a time.
struct Fetch {
    line: *const u8,
    /// Lines before the row ends, and rows after it.
    lines: usize,
    rows: usize,
    /// Lines of a row, and bytes from its end to the next.
    whole: usize,
    gap: usize,
    /// Lines at a time.
    each: usize,
}

impl Fetch {
    /// Spread over so many times.
    fn new(next: &Ahead, times: usize) -> Self {
        let whole = next.bytes / STEP;
        let some = whole > 0 && next.rows > 0;
        Fetch {
            line: next.at,
            lines: if some { whole } else { 0 },
            rows: next.rows.saturating_sub(1),
            whole,
            gap: next.stride.saturating_sub(whole * STEP),
            each: if some { (whole * next.rows).div_ceil(times.max(1)) } else { 0 },
        }
    }

    #[inline(always)]
    fn some(&mut self) {
        for _ in 0..self.each {
            if self.lines == 0 {
                if self.rows == 0 {
                    self.each = 0;
                    return;
                }
                self.rows -= 1;
                self.lines = self.whole;
                self.line = self.line.wrapping_add(self.gap);
            }
            self.lines -= 1;
            // SAFETY: a fetch ahead may point anywhere.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(self.line.cast()) };
            self.line = self.line.wrapping_add(STEP);
        }
    }
}

/// All panels: two by two rows of tiles, or four by one where there is but one row of them.
///
/// # Safety
/// As [`run_tiles`]; tiles are shaped for the part.
unsafe fn panels(part: &Part<'_>, next: &mut Fetch) {
    let all = part.b.outs.div_ceil(WIDTH);
    let few = part.b.rows <= amx::ROWS;
    let together = if few { 4 } else { 2 };
    let groups = all / together;
    // A few rows wait for memory: then the panels are not neighbours but as many streams, each of which walks through consecutive
    // panels, so that what is fetched ahead at the end of one panel is the start of the next.
    let (step, apart) = if few { (1, groups) } else { (together, 1) };
    // SAFETY: panels are those of the block.
    unsafe {
        for group in 0..groups {
            if few {
                tile::<1, 4>(part, 0, group * step, apart, next);
            } else {
                rows::<2>(part, group * step, next);
            }
        }
        for panel in groups * together..all {
            rows::<1>(part, panel, next);
        }
    }
}

/// All rows by `P` panels.
///
/// # Safety
/// As [`panels`], and the panels are the block's.
unsafe fn rows<const P: usize>(part: &Part<'_>, panel: usize, next: &mut Fetch) {
    let pairs = part.b.rows / (2 * amx::ROWS);
    // SAFETY: rows are those of the block.
    unsafe {
        for pair in 0..pairs {
            tile::<2, P>(part, pair * 2 * amx::ROWS, panel, 1, next);
        }
        for row in (pairs * 2 * amx::ROWS..part.b.rows).step_by(amx::ROWS) {
            tile::<1, P>(part, row, panel, 1, next);
        }
    }
}

/// `R` rows of tiles from row `row` on (one or two) by `P` panels, `apart` from each other (one, two, or four to one row of tiles).
///
/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn tile<const R: usize, const P: usize>(
    part: &Part<'_>,
    row: usize,
    panel: usize,
    apart: usize,
    fetch: &mut Fetch,
) {
    let b = part.b;
    let stride = b.xs * size_of::<f32>();
    // SAFETY: by contract; a fetch ahead may point anywhere.
    unsafe {
        let mut x = part.x.add(row * b.xs).cast::<u8>();
        let below = amx::ROWS * stride;
        let mut w = part.w.add(panel * b.ws);
        let next = apart * b.ws;
        sums::<R, P, true>(part, row, panel, apart);
        for _ in 0..part.tiles {
            if R == 1 {
                for p in 0..P {
                    for step in 0..STEPS {
                        _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(p * next + AHEAD + step * STEP).cast());
                    }
                }
            }
            if R == 2 {
                amx::load_passing::<4>(x, stride);
            } else {
                amx::load::<4>(x, stride);
            }
            amx::load::<6>(w, STEP);
            amx::dot_bf16::<0, 4, 6>();
            if R == 2 {
                amx::load_passing::<5>(x.add(below), stride);
                amx::dot_bf16::<2, 5, 6>();
            }
            if P >= 2 {
                amx::load::<7>(w.add(next), STEP);
                amx::dot_bf16::<1, 4, 7>();
                if R == 2 {
                    amx::dot_bf16::<3, 5, 7>();
                }
            }
            if P == 4 {
                amx::load::<6>(w.add(2 * next), STEP);
                amx::dot_bf16::<2, 4, 6>();
                amx::load::<7>(w.add(3 * next), STEP);
                amx::dot_bf16::<3, 4, 7>();
            }
            if R == 2 {
                fetch.some();
            }
            x = x.add(STEP);
            w = w.add(STEPS * STEP);
        }
        sums::<R, P, false>(part, row, panel, apart);
    }
}

/// Takes the sums of a tile up, or puts them down.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn sums<const R: usize, const P: usize, const UP: bool>(
    part: &Part<'_>,
    row: usize,
    panel: usize,
    apart: usize,
) {
    // SAFETY: by contract.
    unsafe {
        one::<0, UP>(part, row, panel);
        if P >= 2 {
            one::<1, UP>(part, row, panel + apart);
        }
        if R == 2 {
            one::<2, UP>(part, row + amx::ROWS, panel);
            if P >= 2 {
                one::<3, UP>(part, row + amx::ROWS, panel + apart);
            }
        }
        if P == 4 {
            one::<2, UP>(part, row, panel + 2 * apart);
            one::<3, UP>(part, row, panel + 3 * apart);
        }
    }
}

/// Takes the sums of tile `C` up, or puts them down: those that exist of a panel from row `row` on.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn one<const C: u8, const UP: bool>(part: &Part<'_>, row: usize, panel: usize) {
    let b = part.b;
    let (count, lanes) = (part.height.min(b.rows - row), WIDTH.min(b.outs - panel * WIDTH));
    // SAFETY: so many rows and outputs are the block's.
    unsafe {
        let y = b.y.add(row * b.ys + panel * WIDTH);
        if UP && !part.add {
            amx::zero::<C>();
        } else if count == part.height && lanes == WIDTH {
            let stride = b.ys * size_of::<f32>();
            if UP { amx::load_passing::<C>(y.cast(), stride) } else { amx::store::<C>(y.cast(), stride) }
        } else {
            at_an_edge::<C, UP>(y, b.ys, count, lanes);
        }
    }
}

/// As [`one`], by way of a whole tile in memory.
///
/// # Safety
/// `count` rows of `lanes` outputs, `ys` apart, may be read and written.
#[cold]
#[inline(never)]
unsafe fn at_an_edge<const C: u8, const UP: bool>(y: *mut f32, ys: usize, count: usize, lanes: usize) {
    let mut all = [[0.0_f32; WIDTH]; amx::ROWS];
    let memory = all.as_mut_ptr();
    // SAFETY: the memory is a whole tile; the contract covers what is copied.
    unsafe {
        if !UP {
            amx::store::<C>(memory.cast(), STEP);
        }
        for m in 0..count {
            let (y, all) = (y.add(m * ys), memory.add(m).cast::<f32>());
            if UP { y.copy_to_nonoverlapping(all, lanes) } else { all.copy_to_nonoverlapping(y, lanes) }
        }
        if UP {
            amx::load::<C>(memory.cast(), STEP);
        }
    }
}
