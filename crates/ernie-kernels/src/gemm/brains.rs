//! Products of matrices in bf16: sides of either width and either way round, sums in f32.
//!
//! Where the processor multiplies pairs of bf16, both sides are rounded as they are packed, by the task that needs them: the
//! right one into panels, the left one into rows, a block of each that stays in the second-level cache. A sum goes on from block to
//! block of `k` in the order of the tile ([`crate::packed`]), so an output does not depend on how the result was cut. On other levels
//! both sides are rounded and multiplied as floats.

#[cfg(target_arch = "x86_64")]
use std::ops::Range;

use super::Floats;
use crate::floats::{FloatsMut, Width};
#[cfg(target_arch = "x86_64")]
use crate::{
    Level,
    floats::SharedFloats,
    gemm::pairs::{self, Side},
    level::Isa,
    packed::{float_blocks::cut, float_tile::WIDTH},
    pool::{self, Shared},
};

/// `c = a · b` in bf16 with sums in f32, added to `c` when `accumulate`; sums are rounded where `c` is in bf16.
///
/// # Shapes
/// `a: [m, k]`, `b: [k, n]` → `c: [m, n]`, row by row
///
/// # Panics
/// When a length does not fit, or a result in bf16 is to be added to.
#[allow(clippy::many_single_char_names)] // The names of the matrix product.
pub fn nn(a: Floats<'_>, b: Floats<'_>, c: FloatsMut<'_>, m: usize, k: usize, n: usize, accumulate: bool) {
    product(Turned { a: false, b: false }, a, b, c, [m, k, n], accumulate);
}

/// `c = a · bᵀ`, as [`nn`].
///
/// # Shapes
/// `a: [m, k]`, `b: [n, k]` → `c: [m, n]`, row by row
///
/// # Panics
/// As [`nn`].
#[allow(clippy::many_single_char_names)]
pub fn nt(a: Floats<'_>, b: Floats<'_>, c: FloatsMut<'_>, m: usize, k: usize, n: usize, accumulate: bool) {
    product(Turned { a: false, b: true }, a, b, c, [m, k, n], accumulate);
}

/// `c = aᵀ · b`, as [`nn`].
///
/// # Shapes
/// `a: [k, m]`, `b: [k, n]` → `c: [m, n]`, row by row
///
/// # Panics
/// As [`nn`].
#[allow(clippy::many_single_char_names)]
pub fn tn(a: Floats<'_>, b: Floats<'_>, c: FloatsMut<'_>, m: usize, k: usize, n: usize, accumulate: bool) {
    product(Turned { a: true, b: false }, a, b, c, [m, k, n], accumulate);
}

/// Which sides are given as their transpose.
#[derive(Clone, Copy)]
struct Turned {
    a: bool,
    b: bool,
}

#[allow(clippy::many_single_char_names)]
fn product(turned: Turned, a: Floats<'_>, b: Floats<'_>, c: FloatsMut<'_>, [m, k, n]: [usize; 3], add: bool) {
    let sized = |x: usize, y: usize, len: usize| x.checked_mul(y) == Some(len);
    assert!(
        sized(m, k, a.len()) && sized(k, n, b.len()) && sized(m, n, c.len()),
        "gemm: {m}x{k} by {k}x{n} with {}, {} and {} elements",
        a.len(),
        b.len(),
        c.len()
    );
    assert!(!add || matches!(c, FloatsMut::F32(_)), "gemm: sums go on in 32 bits");
    if c.is_empty() {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if let isa = Isa::current()
        && isa.level() >= Level::Avx512Bf16
        && k > 0
    {
        let left = Side { data: a, stride: if turned.a { m } else { k }, down: turned.a };
        let right = Side { data: b, stride: if turned.b { k } else { n }, down: !turned.b };
        return Product { isa, left, right, m, k, n, add }.run(c);
    }
    rounded(turned, a, b, c, [m, k, n], add);
}

/// The product of rounded floats.
#[allow(clippy::many_single_char_names)]
fn rounded(turned: Turned, a: Floats<'_>, b: Floats<'_>, c: FloatsMut<'_>, [m, k, n]: [usize; 3], add: bool) {
    let round = |x: Floats<'_>| x.to_width(Width::Bf16).view().to_vec();
    let (a, b) = (round(a), round(b));
    let multiply = |c: &mut [f32], add: bool| match (turned.a, turned.b) {
        (false, false) => super::nn(&a, &b, c, m, k, n, add),
        (false, true) => super::nt(&a, &b, c, m, k, n, add),
        (true, _) => super::tn(&a, &b, c, m, k, n, add),
    };
    match c {
        FloatsMut::F32(c) => multiply(c, add),
        c => {
            let mut wide = crate::fresh::zeros(m * n);
            multiply(&mut wide, false);
            c.set(&wide);
        }
    }
}

/// Elements of `k` that are packed at a time where sums can wait in the result.
#[cfg(target_arch = "x86_64")]
const DEPTH: usize = 512;

/// The most of `k` that is packed at once for a result that sums cannot wait in; beyond, they wait elsewhere.
#[cfg(target_arch = "x86_64")]
const DEEP: usize = 4096;

/// Bytes of packed columns that stay in the second-level cache.
#[cfg(target_arch = "x86_64")]
const RIGHT: usize = 768 << 10;

/// Bytes of packed rows beside them.
#[cfg(target_arch = "x86_64")]
const LEFT: usize = 256 << 10;

/// Words between packed rows beyond their length: rows whose distance is a power of two fight for the same sets of a cache.
#[cfg(target_arch = "x86_64")]
const APART: usize = 16;

/// Products below this many multiplications are done on the calling thread.
#[cfg(target_arch = "x86_64")]
const SERIAL: usize = 64 * 64 * 64;

#[cfg(target_arch = "x86_64")]
struct Product<'a> {
    isa: Isa,
    left: Side<'a>,
    right: Side<'a>,
    m: usize,
    k: usize,
    n: usize,
    add: bool,
}

#[cfg(target_arch = "x86_64")]
impl Product<'_> {
    fn run(&self, c: FloatsMut<'_>) {
        let (high, wide) = self.rectangles();
        let across = self.n.div_ceil(wide);
        let tasks = self.m.div_ceil(high) * across;
        let rectangle = |task: Range<usize>| {
            let (row, column) = (task.start / across * high, task.start % across * wide);
            (row..(row + high).min(self.m), column..(column + wide).min(self.n))
        };
        match c {
            FloatsMut::F32(c) => {
                let c = Shared::new(c);
                pool::ranges(tasks, 1, |task| {
                    let (rows, columns) = rectangle(task);
                    // SAFETY: each rectangle belongs to one task.
                    unsafe { self.in_place(&c, &rows, &columns) };
                });
            }
            FloatsMut::Bf16(_) if self.k > DEEP => {
                let mut wide = crate::fresh::zeros(self.m * self.n);
                self.run(FloatsMut::F32(&mut wide));
                c.set(&wide);
            }
            FloatsMut::Bf16(_) => {
                let c = SharedFloats::new(c);
                pool::ranges(tasks, 1, |task| {
                    let (rows, columns) = rectangle(task);
                    // SAFETY: as above.
                    unsafe { self.rounded(&c, &rows, &columns) };
                });
            }
        }
    }

    /// The height and width of the tasks' rectangles: few enough that little is packed twice, and enough that threads end together.
    fn rectangles(&self) -> (usize, usize) {
        let work = self.m.saturating_mul(self.n).saturating_mul(self.k);
        let threads = pool::threads();
        if threads == 1 || work <= SERIAL {
            return (self.m, self.n.next_multiple_of(WIDTH));
        }
        // More tasks than threads even out what threads are kept from; each packs anew what its neighbours pack.
        let tasks = if work > 1 << 30 { 2 * threads } else { threads };
        let panels = self.n.div_ceil(2 * WIDTH);
        // What each cut costs: packing the other side anew. Turning takes about twice as long.
        let cost = |down: usize| {
            let across = tasks / down;
            let turn = |side: bool| if side { 2.0 } else { 1.0 };
            self.n as f64 * down as f64 * turn(!self.right.down) + self.m as f64 * across as f64 * turn(self.left.down)
        };
        let down = (1..=tasks.min(self.m.div_ceil(32)))
            .filter(|down| tasks.is_multiple_of(*down) && tasks / down <= panels)
            .min_by(|&a, &b| cost(a).total_cmp(&cost(b)))
            .unwrap_or(1);
        (self.m.div_ceil(down).next_multiple_of(32), panels.div_ceil(tasks / down) * 2 * WIDTH)
    }

    /// A rectangle whose sums wait in `c` while the next of `k` is packed.
    ///
    /// # Safety
    /// No other thread touches this rectangle of `c` meanwhile.
    unsafe fn in_place(&self, c: &Shared<'_, f32>, rows: &Range<usize>, columns: &Range<usize>) {
        let depth = self.k.min(DEPTH);
        let (most, high) = sizes(depth, rows.len(), columns.len());
        let (panels, left, stride) =
            (most * depth.div_ceil(2), (high + 15) * (depth.div_ceil(2) + APART), depth.div_ceil(2) + APART);
        pool::scratch(panels + left, |scratch| {
            let (panels, left) = scratch.split_at_mut(panels);
            for columns in cut(columns, most) {
                for ks in cut(&(0..self.k), depth) {
                    self.right.panels(self.isa, &columns, &ks, panels);
                    for rows in cut(rows, high) {
                        self.left.rows(self.isa, &rows, &ks, left, stride);
                        // SAFETY: inside `c`, whose length was checked.
                        let y = unsafe { c.pointer().add(rows.start * self.n + columns.start) };
                        let add = self.add || ks.start > 0;
                        // SAFETY: both sides are packed as the block says, and this part of `c` is this task's.
                        unsafe {
                            let shape = [rows.len(), ks.len(), columns.len()];
                            pairs::multiply(self.isa, (left, stride), (panels, ks.len()), shape, (y, self.n), add);
                        }
                    }
                }
            }
        });
    }

    /// A rectangle that is rounded, for which all of `k` is packed.
    ///
    /// # Safety
    /// As [`Self::in_place`].
    unsafe fn rounded(&self, c: &SharedFloats<'_>, rows: &Range<usize>, columns: &Range<usize>) {
        let (most, high) = sizes(self.k, rows.len(), columns.len());
        let stride = self.k.div_ceil(2) + APART;
        let (panels, left) = (most * self.k.div_ceil(2), (high + 15) * stride);
        pool::scratch(panels + left + high * most, |scratch| {
            let (panels, scratch) = scratch.split_at_mut(panels);
            let (left, sums) = scratch.split_at_mut(left);
            for columns in cut(columns, most) {
                self.right.panels(self.isa, &columns, &(0..self.k), panels);
                for rows in cut(rows, high) {
                    self.left.rows(self.isa, &rows, &(0..self.k), left, stride);
                    let (y, width) = (sums.as_mut_ptr(), columns.len());
                    // SAFETY: both sides are packed as the block says, and `sums` holds the rectangle.
                    unsafe {
                        pairs::multiply(
                            self.isa,
                            (left, stride),
                            (panels, self.k),
                            [rows.len(), self.k, width],
                            (y, width),
                            false,
                        )
                    };
                    for (row, sums) in rows.zip(sums.chunks_exact(width)) {
                        let range = row * self.n + columns.start..row * self.n + columns.end;
                        // SAFETY: this part of `c` is this task's.
                        unsafe { c.write_all(self.isa, range, sums) };
                    }
                }
            }
        });
    }
}

/// Columns and rows that are packed at a time for so much of `k`.
#[cfg(target_arch = "x86_64")]
fn sizes(depth: usize, rows: usize, columns: usize) -> (usize, usize) {
    let fit = |bytes: usize| (bytes / (2 * depth) / 32 * 32).max(32);
    (fit(RIGHT).min(columns.next_multiple_of(WIDTH)), fit(LEFT).min(256).min(rows.next_multiple_of(WIDTH)))
}
