//! Many products in one parallel region.

use std::ops::Range;

use super::activations::{Activations, Side};
use super::layout::{Blocks, PANEL, SUPER, Scales};
use super::matrix::Matrix;
use super::tile::{self, Shape, Tile};
use crate::level::Isa;
use crate::pool::{self, Shared};

/// Rows up to which a panel is read by one block after another while it is in the first-level cache. Beyond, three panels at a
/// time stay in the second-level cache for all rows.
const FEW: usize = 16;

/// Rows up to which nibbles are widened in registers. Beyond, a panel is widened to bytes once.
const NIBBLE_ROWS: usize = 4;

/// Bytes of weights that make a task for few rows worth handing over (some 5 microseconds from memory).
const WORTH_BYTES: usize = 64 * 1024;

/// Products of a weight and an activation that make a task for many rows worth handing over.
const WORTH: usize = 1024 * 1024;

/// `y = x[rows] · Wᵀ`, one of the products of [`multiply`].
pub struct Product<'a> {
    /// The rows of input that take part.
    pub rows: Range<usize>,
    /// The weights, `[out, k]`.
    pub w: &'a Matrix,
    /// Where the result goes, `[rows, out]`.
    pub y: &'a mut [f32],
}

/// Computes some products of the same input, in one parallel region.
///
/// See the module's definition: results do not depend on what else is in the call.
///
/// # Panics
/// When a length or a range does not fit.
pub fn multiply(x: &Activations<'_>, products: &mut [Product<'_>]) {
    let isa = Isa::current();
    let mut tasks = 0;
    let jobs: Vec<Job<'_>> = products
        .iter_mut()
        .filter_map(|product| {
            let Product { rows, w, y } = product;
            let out = w.out_features();
            assert!(
                rows.start <= rows.end && rows.end <= x.rows() && w.in_features() == x.k(),
                "multiply: rows {rows:?} of {} rows of {}, weights of {}",
                x.rows(),
                x.k(),
                w.in_features()
            );
            assert!(y.len() == rows.len() * out, "multiply: {} outputs, not {} rows of {out}", y.len(), rows.len());
            if y.is_empty() {
                return None;
            }
            let quantized = x.quantized(isa, w.layout.kind.run());
            let (bytes, sides) = quantized.rows(rows.clone());
            let (stride, side_stride) = (quantized.stride, quantized.side_stride);
            let mut job = Job {
                w,
                bytes,
                stride,
                sides,
                side_stride,
                rows: rows.len(),
                y: Shared::new(y),
                chunk: 1,
                first: tasks,
            };
            job.chunk = job.panels_a_task();
            tasks += w.layout.panels().div_ceil(job.chunk);
            Some(job)
        })
        .collect();
    pool::ranges(tasks, 1, |range| {
        for task in range {
            let job = &jobs[jobs.partition_point(|job| job.first <= task) - 1];
            let first = (task - job.first) * job.chunk;
            job.run(isa, first..(first + job.chunk).min(job.w.layout.panels()));
        }
    });
}

/// A product and how it is cut into tasks.
struct Job<'a> {
    w: &'a Matrix,
    bytes: &'a [u8],
    stride: usize,
    sides: &'a [Side],
    side_stride: usize,
    rows: usize,
    y: Shared<'a, f32>,
    /// Panels of a task.
    chunk: usize,
    /// The number of its first task.
    first: usize,
}

impl Job<'_> {
    /// Enough work to be worth a task, few enough tasks to go round.
    fn panels_a_task(&self) -> usize {
        let layout = &self.w.layout;
        if self.rows <= FEW {
            return WORTH_BYTES.div_ceil(layout.panel_bytes().max(1));
        }
        WORTH.div_ceil((layout.padded * PANEL * self.rows).max(1)).next_multiple_of(3)
    }

    /// Computes the outputs of some panels.
    fn run(&self, isa: Isa, panels: Range<usize>) {
        let (blocks, three) = tile::block_rows(isa);
        let kind = self.w.layout.kind;
        let widened = kind.nibbles() && self.rows > NIBBLE_ROWS;
        let together = if self.rows > FEW && three.is_some() { 3 } else { 1 };
        let mut panel = panels.start;
        while panel < panels.end {
            let n = if panels.end - panel >= together { together } else { 1 };
            if widened {
                let bytes = self.w.layout.padded * PANEL;
                pool::scratch(n * bytes / size_of::<f32>(), |scratch| {
                    let scratch: &mut [u8] = bytemuck::cast_slice_mut(scratch);
                    // To an offset of 128.
                    let by = (128 - kind.offset()) as u8;
                    for (i, to) in scratch.chunks_exact_mut(bytes.max(1)).enumerate() {
                        let from = &self.w.panel(panel + i)[self.w.layout.scale_bytes..];
                        assert!(2 * from.len() == to.len(), "multiply: nibbles of another length");
                        // SAFETY: `isa` is supported, and the lengths were just compared.
                        unsafe { tile::widening(isa)(from.as_ptr(), to.as_mut_ptr(), from.len() / 64, by) };
                    }
                    self.panels(isa, blocks, three, panel, n, Some(scratch));
                });
            } else {
                self.panels(isa, blocks, three, panel, n, None);
            }
            panel += n;
        }
    }

    /// All rows of `n` panels, whose weights are `widened` if given.
    fn panels(&self, isa: Isa, blocks: &[usize], three: Option<usize>, panel: usize, n: usize, widened: Option<&[u8]>) {
        let mut row = 0;
        while row < self.rows {
            let left = self.rows - row;
            let (m, together) = match three {
                Some(m) if n == 3 && left >= m => (m, 3),
                _ => (blocks.iter().copied().find(|&m| m <= left).unwrap_or(1), 1),
            };
            for at in (0..n).step_by(together) {
                self.block(isa, panel, at, together, row, m, widened);
            }
            row += m;
        }
    }

    /// One register block: `m` rows from `row` on by `n` panels from `panel + at` on.
    #[allow(clippy::too_many_arguments)] // Where a block lies takes that many numbers.
    fn block(&self, isa: Isa, panel: usize, at: usize, n: usize, row: usize, m: usize, widened: Option<&[u8]>) {
        let layout = &self.w.layout;
        let (size, run) = (layout.panel_bytes(), layout.kind.run());
        let first = panel + at;
        let (w, w_stride, w_bytes) = match widened {
            Some(bytes) => (&bytes[at * layout.padded * PANEL..], layout.padded * PANEL, layout.padded * PANEL),
            None => (&self.w.panels()[first * size + layout.scale_bytes..], size, layout.weight_bytes),
        };
        let row_scales = self.w.row_scales();
        let outputs = first * PANEL..((first + n) * PANEL).min(layout.out);
        // Everything a kernel touches, once more: the unsafe call below rests on these.
        assert!(
            m <= self.rows - row
                && self.bytes.len() >= self.rows * self.stride
                && self.sides.len() >= self.rows * self.side_stride
                && layout.padded <= self.stride
                && layout.padded / run <= self.side_stride
                && w.len() >= (n - 1) * w_stride + w_bytes
                && self.w.panels().len() >= (first + n) * size
                && outputs.len() > (n - 1) * PANEL
                && (layout.kind.blocks().is_some() || row_scales.len() >= (first + n) * PANEL)
                && self.y.len() >= self.rows * layout.out,
            "multiply: a block outside its operands"
        );
        let shift = |elements: usize| (elements / run).ilog2();
        let (scales, block_shift, super_shift) = match layout.kind.blocks() {
            None => (tile::ROW, 0, 0),
            Some(Blocks { scales: Scales::Half, elements, .. }) => (tile::HALF, shift(elements), 0),
            Some(Blocks { scales: Scales::Sub, elements, .. }) => (tile::SUB, shift(elements), shift(SUPER)),
        };
        let shape =
            Shape { nibbles: layout.kind.nibbles() && widened.is_none(), scales, minimum: layout.kind.has_minimum() };
        let tile = Tile {
            x: self.bytes[row * self.stride..].as_ptr(),
            x_stride: self.stride,
            sides: self.sides[row * self.side_stride..].as_ptr(),
            side_stride: self.side_stride,
            w: w.as_ptr(),
            w_stride,
            scales: self.w.panels()[first * size..].as_ptr(),
            scales_stride: size,
            subs_start: layout.subs_start(),
            row_scales: if scales == tile::ROW { row_scales[first * PANEL..].as_ptr() } else { std::ptr::null() },
            y: self.y.pointer().wrapping_add(row * layout.out + outputs.start),
            y_stride: layout.out,
            last: outputs.len() - (n - 1) * PANEL,
            runs: layout.padded / run,
            steps: run / 4,
            block_shift,
            super_shift,
        };
        // SAFETY: `isa` is supported; rows, panels and outputs were just checked against what is there; the panels of a task, and
        // so the columns of `y`, are its own.
        unsafe { tile::kernel(isa, shape, m, n)(&tile) };
    }
}
