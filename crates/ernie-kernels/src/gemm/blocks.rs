//! Products of pairs of bf16, block by block.
//!
//! The result is cut into rectangles, one a task. A task packs the right side of some of its columns into panels, which stay in its
//! second-level cache while it goes through its rows. The left side it takes as it lies, and fetches the rows that come next meanwhile; or it packs
//! some rows at a time. A sum goes on from piece to piece of `k` in the order of the tile ([`crate::packed`]), so an output does not depend on
//! how the result was cut.

use std::ops::Range;

use super::pairs::{self, Side};
use crate::floats::{FloatsMut, SharedFloats};
use crate::level::Isa;
use crate::packed::float_amx::Ahead;
use crate::packed::float_blocks::cut;
use crate::packed::float_tile::WIDTH;
use crate::pool::{self, Shared};

/// Elements of `k` that are gone through at a time where sums can wait in the result.
const DEPTH: usize = 512;

/// The most of `k` that is gone through at once for a result that sums cannot wait in; beyond, they wait elsewhere.
const DEEP: usize = 4096;

/// Bytes of packed columns that stay in the second-level cache.
const RIGHT: usize = 768 << 10;

/// Bytes of rows beside them.
const LEFT: usize = 256 << 10;

/// Words between packed rows beyond their length: rows whose distance is a power of two fight for the same sets of a cache.
const APART: usize = 16;

/// Products below this many multiplications are done on the calling thread.
const SERIAL: usize = 64 * 64 * 64;

/// A product `[m, k]` by `[k, n]`, added to what is there where `add`.
pub(super) struct Product<'a> {
    pub(super) isa: Isa,
    pub(super) left: Side<'a>,
    pub(super) right: Side<'a>,
    pub(super) m: usize,
    pub(super) k: usize,
    pub(super) n: usize,
    pub(super) add: bool,
}

/// Where the sums of a block are: its first one, and floats from a row to the next.
type Sums = (*mut f32, usize);

impl Product<'_> {
    /// Into `c`, whose length was checked.
    pub(super) fn run(&self, c: FloatsMut<'_>) {
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
        // What each cut costs: packing the other side anew. Turning takes about twice as long, and what lies as it should nothing.
        let right = if self.right.down { 1.0 } else { 2.0 };
        let left = if self.left.lying().is_some() {
            0.2
        } else if self.left.down {
            2.0
        } else {
            1.0
        };
        let cost = |down: usize| {
            let across = tasks / down;
            self.n as f64 * down as f64 * right + self.m as f64 * across as f64 * left
        };
        let down = (1..=tasks.min(self.m.div_ceil(32)))
            .filter(|down| tasks.is_multiple_of(*down) && tasks / down <= panels)
            .min_by(|&a, &b| cost(a).total_cmp(&cost(b)))
            .unwrap_or(1);
        (self.m.div_ceil(down).next_multiple_of(32), panels.div_ceil(tasks / down) * 2 * WIDTH)
    }

    /// A rectangle whose sums wait in `c` between pieces of `k`.
    ///
    /// # Safety
    /// No other thread touches this rectangle of `c` meanwhile.
    unsafe fn in_place(&self, c: &Shared<'_, f32>, rows: &Range<usize>, columns: &Range<usize>) {
        assert!(
            rows.end <= self.m && columns.end <= self.n && c.len() == self.m * self.n,
            "gemm: {rows:?} by {columns:?}"
        );
        let depth = self.k.min(DEPTH);
        let (most, high) = sizes(depth, rows.len(), columns.len());
        pool::scratch(most * depth.div_ceil(2) + memory(depth, high), |scratch| {
            let (panels, left) = scratch.split_at_mut(most * depth.div_ceil(2));
            for columns in cut(columns, most) {
                for ks in cut(&(0..self.k), depth) {
                    self.right.panels(self.isa, &columns, &ks, panels);
                    for some in cut(rows, high) {
                        // SAFETY: inside `c`, as was checked, and this task's; the panels are packed.
                        unsafe {
                            let sums = (c.pointer().add(some.start * self.n + columns.start), self.n);
                            let add = self.add || ks.start > 0;
                            self.block(&some, rows.end, (panels, columns.len()), &ks, left, sums, add);
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
        let (packed, left) = (most * self.k.div_ceil(2), memory(self.k, high));
        pool::scratch(packed + left + high * most, |scratch| {
            let (panels, scratch) = scratch.split_at_mut(packed);
            let (left, sums) = scratch.split_at_mut(left);
            for columns in cut(columns, most) {
                self.right.panels(self.isa, &columns, &(0..self.k), panels);
                for some in cut(rows, high) {
                    let width = columns.len();
                    // SAFETY: `sums` holds `high` rows of so many columns; the panels are packed.
                    unsafe {
                        let to = (sums.as_mut_ptr(), width);
                        self.block(&some, rows.end, (panels, width), &(0..self.k), left, to, false);
                    }
                    for (row, sums) in some.zip(sums.chunks_exact(width)) {
                        let range = row * self.n + columns.start..row * self.n + columns.end;
                        // SAFETY: this part of `c` is this task's.
                        unsafe { c.write_all(self.isa, range, sums) };
                    }
                }
            }
        });
    }

    /// Some rows, before others up to `end`, by the packed panels of so many columns over `ks`.
    ///
    /// # Safety
    /// The panels are packed for `ks`, and `sums` has all of these rows and columns to itself.
    #[allow(clippy::too_many_arguments)] // Places and counts.
    unsafe fn block(
        &self,
        rows: &Range<usize>,
        end: usize,
        (panels, width): (&[f32], usize),
        ks: &Range<usize>,
        memory: &mut [f32],
        sums: Sums,
        add: bool,
    ) {
        let shape = [rows.len(), ks.len(), width];
        let panels = (panels.as_ptr(), ks.len());
        // A tile of rows that ends behind the last one reads on.
        let inside = rows.len().is_multiple_of(WIDTH) || rows.end + WIDTH <= self.m;
        if let Some((bytes, stride)) = self.left.lying()
            && inside
        {
            let at = |row: usize| bytes[row * stride + ks.start * 2..].as_ptr();
            let next = match (end - rows.end).min(rows.len()) {
                0 => Ahead::NOTHING,
                rest => Ahead { at: at(rows.end), bytes: ks.len() * 2, stride, rows: rest },
            };
            let left = (at(rows.start).cast(), stride / size_of::<f32>());
            // SAFETY: the rows are inside the matrix; the rest by contract.
            unsafe { pairs::multiply(self.isa, left, panels, shape, sums, add, next) };
            return;
        }
        let stride = ks.len().div_ceil(2) + APART;
        self.left.rows(self.isa, rows, ks, memory, stride);
        // SAFETY: the rows were packed, before memory for fifteen more; the rest by contract.
        unsafe { pairs::multiply(self.isa, (memory.as_ptr(), stride), panels, shape, sums, add, Ahead::NOTHING) };
    }
}

/// Columns and rows of `depth` elements that are gone through at a time.
fn sizes(depth: usize, rows: usize, columns: usize) -> (usize, usize) {
    let fit = |bytes: usize| (bytes / (2 * depth) / 32 * 32).max(32);
    (fit(RIGHT).min(columns.next_multiple_of(WIDTH)), fit(LEFT).min(256).min(rows.next_multiple_of(WIDTH)))
}

/// Floats that packed rows of `depth` elements take, with those that a last tile reads.
fn memory(depth: usize, rows: usize) -> usize {
    (rows + WIDTH - 1) * (depth.div_ceil(2) + APART)
}
