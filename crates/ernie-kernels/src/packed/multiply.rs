//! Many products in one parallel region.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::activations::{Activations, Side};
#[cfg(target_arch = "x86_64")]
use super::bytes_amx;
#[cfg(target_arch = "x86_64")]
use super::layout::Kind;
use super::layout::{Blocks, Layout, PANEL, SUPER, Scales};
use super::matrix::Matrix;
use super::tile::{self, Shape, Spread, Tile};
#[cfg(target_arch = "x86_64")]
use crate::Level;
use crate::fresh;
use crate::level::Isa;
use crate::pool::{self, Shared};

/// Rows up to which a panel is read once and used as it comes. Beyond, a slice of as many panels as a block takes stay in
/// the first-level cache for all rows, with nibbles widened to bytes and scales to floats.
const STREAMED: usize = 4;

/// Most elements along k that are worked on together: three panels of so many, with their scales, leave room for some rows in a
/// first-level cache of 48 KiB.
const SLICE: usize = 640;

/// Elements of a slice along k: whole runs, blocks and super-blocks, and slices as even as that allows, because each begins and ends
/// for every few rows.
fn slice(layout: &Layout) -> usize {
    let most = SLICE / layout.unit * layout.unit;
    let slices = layout.padded.div_ceil(most).max(1);
    layout.padded.div_ceil(slices).next_multiple_of(layout.unit).max(layout.unit)
}

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
    run(x, products.iter_mut().map(|Product { rows, w, y }| (rows.clone(), *w, Shared::new(y))));
}

/// As [`multiply`] of all rows, into new vectors, which nobody fills with zeros first: `[T, out]` for each of the weights.
///
/// # Panics
/// As there.
pub fn products(x: &Activations<'_>, weights: &[&Matrix]) -> Vec<Vec<f32>> {
    let outputs = |w: &Matrix| x.rows() * w.out_features();
    if x.k() == 0 {
        return weights.iter().map(|w| fresh::zeros(outputs(w))).collect();
    }
    let mut made: Vec<Vec<f32>> = weights.iter().map(|w| Vec::with_capacity(outputs(w))).collect();
    let jobs = made.iter_mut().zip(weights).map(|(y, w)| {
        let y = &mut y.spare_capacity_mut()[..outputs(w)];
        if cfg!(debug_assertions) {
            y.fill(MaybeUninit::new(f32::NAN));
        }
        // SAFETY: every kernel writes each output once, from sums of its own, and reads none.
        (0..x.rows(), *w, unsafe { Shared::unwritten(y) })
    });
    run(x, jobs);
    for (y, w) in made.iter_mut().zip(weights) {
        // SAFETY: so many elements have been written: a panic would not have come here.
        unsafe { y.set_len(outputs(w)) };
    }
    made
}

/// The products of some rows and weights, into the outputs beside them.
fn run<'a>(x: &'a Activations<'_>, products: impl Iterator<Item = (Range<usize>, &'a Matrix, Shared<'a, f32>)>) {
    let isa = Isa::current();
    let mut tasks = 0;
    let jobs: Vec<Job<'_>> = products
        .filter_map(|(rows, w, y)| {
            let out = w.out_features();
            assert!(
                rows.start <= rows.end && rows.end <= x.rows() && w.in_features() == x.k(),
                "multiply: rows {rows:?} of {} rows of {}, weights of {}",
                x.rows(),
                x.k(),
                w.in_features()
            );
            assert!(y.len() == rows.len() * out, "multiply: {} outputs, not {} rows of {out}", y.len(), rows.len());
            if y.len() == 0 {
                return None;
            }
            let input = Input::of(isa, x, w, rows.clone());
            let mut job = Job { w, input, rows: rows.len(), y, chunk: 1, first: tasks };
            job.chunk = job.panels_a_task();
            tasks += w.layout.panels().div_ceil(job.chunk);
            Some(job)
        })
        .collect();
    pool::ranges(tasks, 1, |range| {
        for task in range {
            let job = &jobs[jobs.partition_point(|job| job.first <= task) - 1];
            let first = (task - job.first) * job.chunk;
            let panels = first..(first + job.chunk).min(job.w.layout.panels());
            match &job.input {
                Input::Bytes(x) => Bytes { job, x }.run(isa, panels),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the panels of a task, and so the columns of `y`, are its own.
                Input::Brains(x) => unsafe { bytes_amx::run(isa, job.w, *x, &job.y, panels) },
            }
        }
    });
}

/// The rows of a product as its kernel takes them.
enum Input<'a> {
    Bytes(Quantities<'a>),
    #[cfg(target_arch = "x86_64")]
    Brains(super::brains::Rows<'a>),
}

impl<'a> Input<'a> {
    fn of(isa: Isa, x: &'a Activations<'_>, w: &Matrix, rows: Range<usize>) -> Self {
        #[cfg(target_arch = "x86_64")]
        if isa.level() == Level::Amx && w.layout.kind == Kind::Int8 {
            return Input::Brains(x.brains(isa).rows(rows));
        }
        let quantized = x.quantized(isa, w.layout.kind.run());
        let (bytes, sides) = quantized.rows(rows);
        Input::Bytes(Quantities { bytes, stride: quantized.stride, sides, side_stride: quantized.side_stride })
    }
}

/// Rows of bytes and their sides.
struct Quantities<'a> {
    bytes: &'a [u8],
    stride: usize,
    sides: &'a [Side],
    side_stride: usize,
}

/// A product and how it is cut into tasks.
struct Job<'a> {
    w: &'a Matrix,
    input: Input<'a>,
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
        let streamed = WORTH_BYTES.div_ceil(layout.panel_bytes().max(1));
        #[cfg(target_arch = "x86_64")]
        if let Input::Brains(_) = self.input {
            return bytes_amx::panels_a_task(layout.panels(), self.rows, streamed);
        }
        if self.rows <= STREAMED {
            return streamed;
        }
        WORTH.div_ceil((layout.padded * PANEL * self.rows).max(1)).min(streamed).next_multiple_of(3)
    }
}

/// A product of bytes.
struct Bytes<'a> {
    job: &'a Job<'a>,
    x: &'a Quantities<'a>,
}

impl Bytes<'_> {
    /// Computes the outputs of some panels.
    fn run(&self, isa: Isa, panels: Range<usize>) {
        let (heights, most) = tile::block_rows(isa);
        let mut panel = panels.start;
        while panel < panels.end {
            if self.job.rows <= STREAMED {
                let all = Slice::of(&self.job.w.layout, 0, self.job.w.layout.padded);
                self.rows(isa, heights, panel, 1, &all);
                panel += 1;
            } else {
                let n = if panels.end - panel >= most { most } else { 1 };
                self.slices(isa, heights, panel, n);
                panel += n;
            }
        }
    }

    /// `n` panels, slice after slice.
    fn slices(&self, isa: Isa, heights: &[usize], panel: usize, n: usize) {
        let layout = &self.job.w.layout;
        let blocks = layout.kind.blocks();
        let each = 1 + usize::from(layout.kind.has_minimum());
        let most = slice(layout);
        let scales = blocks.map_or(0, |b| most / b.elements * PANEL * each);
        let bytes = if layout.kind.nibbles() { most * PANEL } else { 0 };
        let sums = if layout.padded > most { self.job.rows * PANEL } else { 0 };
        pool::scratch(n * (sums + scales + bytes / size_of::<f32>()), |scratch| {
            let (sums, scratch) = scratch.split_at_mut(n * sums);
            let sums = Cell::from_mut(sums).as_slice_of_cells();
            let (wide_scales, wide) = scratch.split_at_mut(n * scales);
            let wide: &mut [u8] = bytemuck::cast_slice_mut(wide);
            for from in (0..layout.padded.max(1)).step_by(most) {
                let elements = most.min(layout.padded - from);
                let mut slice = Slice::of(layout, from, elements);
                slice.sums = sums;
                if layout.kind.nibbles() {
                    // To an offset of 128.
                    let by = (128 - layout.kind.offset()) as u8;
                    for (i, to) in wide.chunks_exact_mut(bytes).enumerate() {
                        let lines = elements * PANEL / 128;
                        let weights =
                            &self.job.w.panel(panel + i)[layout.scale_bytes + from * PANEL / 2..][..lines * 64];
                        // SAFETY: `isa` is supported; so many lines are there, and `to` holds a slice, which is no shorter.
                        unsafe { tile::widening(isa)(weights.as_ptr(), to.as_mut_ptr(), lines, by) };
                    }
                    slice.weights = Some(wide);
                }
                if let Some(Blocks { elements: block, .. }) = blocks {
                    for (i, to) in wide_scales.chunks_exact_mut(scales).enumerate() {
                        let (first, count) = (from / block, elements / block);
                        assert!(
                            (first + count) * block <= layout.padded && count * PANEL * each <= to.len(),
                            "multiply: scales outside their panel"
                        );
                        let spread = Spread {
                            from: self.job.w.panel(panel + i).as_ptr(),
                            subs_start: layout.subs_start(),
                            super_shift: slice.super_shift,
                            first,
                            blocks: count,
                            to: to.as_mut_ptr(),
                        };
                        // SAFETY: `isa` is supported; the blocks were just found in their panel and to fit `to`.
                        unsafe { tile::spreading(isa, slice.shape)(&spread) };
                    }
                    slice.scales = Some(wide_scales);
                }
                self.rows(isa, heights, panel, n, &slice);
            }
        });
    }

    /// All rows by a slice of `n` panels.
    fn rows(&self, isa: Isa, heights: &[usize], panel: usize, n: usize, slice: &Slice<'_>) {
        let mut row = 0;
        while row < self.job.rows {
            let left = self.job.rows - row;
            let m = heights.iter().copied().find(|&m| m <= left).unwrap_or(1);
            self.block(isa, panel, n, row, m, slice);
            row += m;
        }
    }

    /// One register block: `m` rows from `row` on by a slice of `n` panels from `panel` on.
    fn block(&self, isa: Isa, panel: usize, n: usize, row: usize, m: usize, slice: &Slice<'_>) {
        let layout = &self.job.w.layout;
        let (size, run) = (layout.panel_bytes(), layout.kind.run());
        let Slice { from, elements, mut shape, .. } = *slice;
        let (w, w_stride, w_bytes) = match slice.weights {
            Some(bytes) => {
                shape.nibbles = false;
                (bytes, bytes.len() / n, elements * PANEL)
            }
            None => {
                let each = if shape.nibbles { PANEL / 2 } else { PANEL };
                (&self.job.w.panels()[panel * size + layout.scale_bytes + from * each..], size, elements * each)
            }
        };
        let (scales, scales_stride) = match slice.scales {
            Some(scales) => {
                shape.scales = tile::WIDE;
                (scales.as_ptr().cast(), scales.len() / n * size_of::<f32>())
            }
            None => (self.job.w.panels()[panel * size..].as_ptr(), size),
        };
        let row_scales = self.job.w.row_scales();
        let outputs = panel * PANEL..((panel + n) * PANEL).min(layout.out);
        let whole = from == 0 && elements == layout.padded;
        // Everything a kernel touches, once more: the unsafe call below rests on these.
        assert!(
            m <= self.job.rows - row
                && self.x.bytes.len() >= self.job.rows * self.x.stride
                && self.x.sides.len() >= self.job.rows * self.x.side_stride
                && from + elements <= layout.padded
                && layout.padded <= self.x.stride
                && layout.padded / run <= self.x.side_stride
                && w.len() >= (n - 1) * w_stride + w_bytes
                && (whole || slice.scales.is_some() || shape.scales == tile::ROW)
                && (whole || slice.sums.len() >= self.job.rows * n * PANEL)
                && self.job.w.panels().len() >= (panel + n) * size
                && outputs.len() > (n - 1) * PANEL
                && (layout.kind.blocks().is_some() || row_scales.len() >= (panel + n) * PANEL)
                && self.job.y.len() >= self.job.rows * layout.out,
            "multiply: a block outside its operands"
        );
        let tile = Tile {
            x: self.x.bytes[row * self.x.stride + from..].as_ptr(),
            x_stride: self.x.stride,
            sides: self.x.sides[row * self.x.side_stride + from / run..].as_ptr(),
            side_stride: self.x.side_stride,
            w: w.as_ptr(),
            w_stride,
            scales,
            scales_stride,
            subs_start: layout.subs_start(),
            row_scales: if shape.scales == tile::ROW { row_scales[panel * PANEL..].as_ptr() } else { std::ptr::null() },
            y: self.job.y.pointer().wrapping_add(row * layout.out + outputs.start),
            y_stride: layout.out,
            last: outputs.len() - (n - 1) * PANEL,
            runs: elements / run,
            steps: run / 4,
            block_shift: slice.block_shift,
            super_shift: slice.super_shift,
            sums: slice.sums.as_ptr().cast::<f32>().cast_mut().wrapping_add(if whole { 0 } else { row * n * PANEL }),
            resumes: from > 0,
            ends: from + elements == layout.padded,
        };
        // SAFETY: `isa` is supported; rows, panels and outputs were just checked against what is there; the panels of a task, and
        // so the columns of `y`, are its own, as are its sums.
        unsafe { tile::kernel(isa, shape, m, n, run / 4)(&tile) };
    }
}

/// A stretch along k, with what was made of its weights beforehand.
struct Slice<'a> {
    from: usize,
    elements: usize,
    /// As the weights are stored.
    shape: Shape,
    block_shift: u32,
    super_shift: u32,
    /// Bytes, a slice of each panel.
    weights: Option<&'a [u8]>,
    /// Floats, as much of each panel.
    scales: Option<&'a [f32]>,
    /// Where sums wait for the next slice, unless this is all.
    sums: &'a [Cell<f32>],
}

impl Slice<'_> {
    fn of(layout: &Layout, from: usize, elements: usize) -> Self {
        let run = layout.kind.run();
        let (scales, block_shift, super_shift) = match layout.kind.blocks() {
            None => (tile::ROW, 0, 0),
            Some(b) => {
                let scales = if b.scales == Scales::Half { tile::HALF } else { tile::SUB };
                (scales, (b.elements / run).ilog2(), (SUPER / b.elements).ilog2())
            }
        };
        let shape = Shape { nibbles: layout.kind.nibbles(), scales, minimum: layout.kind.has_minimum() };
        Slice { from, elements, shape, block_shift, super_shift, weights: None, scales: None, sums: &[] }
    }
}
