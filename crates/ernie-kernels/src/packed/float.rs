//! Float weights in panels, packed once and multiplied often, in f32, f16 or bf16.
//!
//! `y = x · Wᵀ` for one row of `x` as for thousands, from the same panels and with the same bits: each output is one accumulator
//! to which every `k` adds one (fused, where the level can) product, in rising order. Weights of 16 bits are widened, exactly,
//! in registers or a block at a time; `x` stays f32. From [`Level::Avx512Bf16`] on bf16 products are defined otherwise: `x` is
//! rounded to bf16 (nearest, ties to even), and `vdpbf16ps` adds pairs of `k` in rising order, or at [`Level::Amx`] `tdpbf16ps`
//! adds 32 `k` at a time: their even and their odd products, each summed in rising order, and the two sums added to each other first.
//! In both subnormal numbers count as zeros. That aside, an output is within `(k + 1) 2^-24 Σ|x w|` of the exact sum over the rounded `x`, or
//! at [`Level::Amx`] within `(k / 32 + 18) 2^-24 Σ|x w|`.
//!
//! # Layout
//! Panel after panel of sixteen outputs, the last one filled up with zeros. A panel is k-major, 64 bytes a step: sixteen f32 of
//! one `k`, or sixteen pairs of 16 bits of two (the even `k` first; a missing last one is zero).

use std::ops::Range;
use std::sync::OnceLock;

use super::buffer::{Buffer, Scratch};
use super::float_blocks::{self, Left, Shape, cut};
use super::float_pack;
use super::float_tile::{Block, STEP, WIDTH, run_brains, run_halves, run_words};
use crate::Level;
use crate::level::Isa;
use crate::pool::{self, Shared};

/// Up to so many rows, weights of 16 bits are widened in registers; beyond, a block of them is widened once for all rows.
const WIDEN_FROM: usize = 17;

/// Rows of memory after rounded input, so that a tile of sixteen rows that begins in the input may end behind it.
const SPARE: usize = 15;

/// Rows of input, elements of the inner dimension, and outputs that are gone through together: input and weights share the
/// second-level cache.
const BLOCK: (usize, usize, usize) = (256, 512, 192);

/// How float weights are stored in panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an IEEE single.
    Bf16,
}

impl Float {
    /// Steps of a panel of `k`.
    fn steps(self, k: usize) -> usize {
        if self == Float::F32 { k } else { k.div_ceil(2) }
    }

    /// Bytes of a panel of `k`.
    ///
    /// # Panics
    /// On overflow.
    pub(crate) fn panel_bytes(self, k: usize) -> usize {
        self.steps(k).checked_mul(STEP).expect("a panel is addressable")
    }

    /// Bytes of all panels of `outs` outputs of `k` inputs; `None` on overflow.
    pub fn bytes(self, outs: usize, k: usize) -> Option<usize> {
        self.steps(k).checked_mul(STEP)?.checked_mul(outs.div_ceil(WIDTH))
    }
}

/// Checks panels against their shape and gives the bytes of one.
fn check(float: Float, panels: &[u8], outs: usize, k: usize) -> usize {
    assert_eq!(Some(panels.len()), float.bytes(outs, k), "panels of {outs} outputs of {k} in {float:?}: bytes");
    float.panel_bytes(k)
}

/// Packs rows `first..` of a matrix `[outs, k]`, rounded to the stored type (nearest, ties to even). Chunks may come in any
/// order and cut anywhere; padding stays as it was, so `panels` should have been zeros before the first chunk.
///
/// # Panics
/// When a length does not fit, or `panels` is not aligned to 4 bytes.
pub(crate) fn pack(float: Float, panels: &mut [u8], outs: usize, k: usize, first: usize, rows: &[f32]) {
    let steps = float.steps(k);
    let isa = Isa::current();
    chunk(float, panels, outs, k, first, rows.len(), |range, words| match float {
        Float::F32 => words.copy_from_slice(bytemuck::cast_slice(&rows[range.start * k..range.end * k])),
        Float::F16 | Float::Bf16 => {
            for (row, pairs) in rows[range.start * k..].chunks_exact(k).zip(words.chunks_exact_mut(steps)) {
                if float == Float::Bf16 {
                    float_pack::round_bf16(isa, row, pairs);
                } else {
                    float_pack::round_f16(row, pairs);
                }
            }
        }
    });
}

/// As [`pack`], of rows that are already stored as `float`, in little-endian bytes at any alignment. Every bit is kept.
///
/// # Panics
/// When a length does not fit, or `panels` is not aligned to 4 bytes.
pub(crate) fn pack_stored(float: Float, panels: &mut [u8], outs: usize, k: usize, first: usize, rows: &[u8]) {
    let size = if float == Float::F32 { 4 } else { 2 };
    assert!(rows.len().is_multiple_of(size), "panels: {} bytes of {float:?}", rows.len());
    let steps = float.steps(k);
    chunk(float, panels, outs, k, first, rows.len() / size, |range, words| {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
        let rows = rows[range.start * k * size..].chunks_exact(k * size);
        for (row, to) in rows.zip(bytes.chunks_exact_mut(steps * 4)) {
            to[..row.len()].copy_from_slice(row);
            to[row.len()..].fill(0);
        }
    });
}

/// Packs `elements / k` rows from row `first` on; `take(range, words)` writes some of them (counted from 0) as words in order.
fn chunk(
    float: Float,
    panels: &mut [u8],
    outs: usize,
    k: usize,
    first: usize,
    elements: usize,
    take: impl Fn(Range<usize>, &mut [u32]) + Sync + Send,
) {
    let panel_bytes = check(float, panels, outs, k);
    if k == 0 || elements == 0 {
        return;
    }
    let (end, steps) = (first + elements / k, float.steps(k));
    assert!(
        elements.is_multiple_of(k) && end <= outs,
        "panels: {elements} elements from row {first} on of {outs} rows of {k}"
    );
    let isa = Isa::current();
    let touched = first / WIDTH..end.div_ceil(WIDTH);
    let bytes = &mut panels[touched.start * panel_bytes..touched.end * panel_bytes];
    pool::pieces(bytes, panel_bytes, |at, panel| {
        let start = (touched.start + at / panel_bytes) * WIDTH;
        let rows = start.max(first)..(start + WIDTH).min(end);
        let panel: &mut [f32] = bytemuck::cast_slice_mut(panel);
        pool::scratch(rows.len() * steps, |words| {
            let words: &mut [u32] = bytemuck::cast_slice_mut(words);
            take(rows.start - first..rows.end - first, words);
            if rows.start == start && rows.end == (start + WIDTH).min(outs) {
                float_pack::rows(isa, bytemuck::cast_slice(words), steps, rows.len(), steps, panel);
            } else {
                let panel: &mut [u32] = bytemuck::cast_slice_mut(panel);
                for (row, words) in rows.zip(words.chunks_exact(steps)) {
                    for (step, &word) in panel.chunks_exact_mut(WIDTH).zip(words) {
                        step[row % WIDTH] = word;
                    }
                }
            }
        });
    });
}

/// Writes the `k = out.len()` weights of one output, exactly.
///
/// # Panics
/// When the output is not in `panels`, or they are not aligned to 4 bytes.
pub(crate) fn widen_row(float: Float, panels: &[u8], output: usize, out: &mut [f32]) {
    let bytes = float.panel_bytes(out.len());
    let panel: &[[u32; WIDTH]] = bytemuck::cast_slice(&panels[output / WIDTH * bytes..][..bytes]);
    let lane = output % WIDTH;
    if float == Float::F32 {
        for (out, step) in out.iter_mut().zip(panel) {
            *out = f32::from_bits(step[lane]);
        }
    } else {
        for (out, step) in out.chunks_mut(2).zip(panel) {
            for (i, out) in out.iter_mut().enumerate() {
                *out = float_pack::wide((step[lane] >> (16 * i)) as u16, float == Float::F16);
            }
        }
    }
}

/// Rows of input, with what some levels make of them, once, when the first product asks for it.
pub(crate) struct Input<'a> {
    x: &'a [f32],
    rows: usize,
    k: usize,
    pairs: OnceLock<Scratch>,
}

impl<'a> Input<'a> {
    /// `x: [rows, k]`.
    ///
    /// # Panics
    /// When the length does not fit.
    pub(crate) fn new(x: &'a [f32], rows: usize, k: usize) -> Self {
        assert_eq!(Some(x.len()), rows.checked_mul(k), "input of {rows} rows of {k}");
        Input { x, rows, k, pairs: OnceLock::new() }
    }

    /// Readies what products by `float` weights need, with all threads; else the first product does it on one.
    pub(crate) fn prepare(&self, isa: Isa, float: Float) {
        if float == Float::Bf16 && isa.level() >= Level::Avx512Bf16 {
            self.pairs(isa);
        }
    }

    /// Words from a row of pairs to the next: whole cache lines and one more, because rows whose distance is a power of two would
    /// fight for the same places of a cache.
    fn stride(&self) -> usize {
        self.k.div_ceil(2).next_multiple_of(WIDTH) + WIDTH
    }

    /// The rows rounded to bf16, `ceil(k / 2)` pairs each, [`Self::stride`] apart; then [`SPARE`] rows of anything.
    fn pairs(&self, isa: Isa) -> &[u32] {
        let pairs = self.pairs.get_or_init(|| {
            let (width, stride) = (self.k.div_ceil(2), self.stride());
            let mut pairs = Scratch::new((self.rows + SPARE) * stride * size_of::<u32>());
            if width > 0 {
                let words: &mut [u32] = bytemuck::cast_slice_mut(pairs.bytes_mut());
                pool::pieces(&mut words[..self.rows * stride], stride * pool::grain_rows(width), |at, pairs| {
                    let rows = self.x[at / stride * self.k..].chunks_exact(self.k);
                    for (row, pairs) in rows.zip(pairs.chunks_exact_mut(stride)) {
                        float_pack::round_bf16(isa, row, &mut pairs[..width]);
                    }
                });
            }
            pairs
        });
        bytemuck::cast_slice(pairs.bytes())
    }
}

/// Writes columns `outputs` of `y: [rows, outs]` on the calling thread. `outputs` begins with a panel.
///
/// # Safety
/// No other thread touches these columns of `y` meanwhile.
///
/// # Panics
/// When a length does not fit, or `outputs` begins inside a panel.
pub(crate) unsafe fn run(
    isa: Isa,
    float: Float,
    input: &Input<'_>,
    panels: &[u8],
    outs: usize,
    outputs: Range<usize>,
    y: &Shared<'_, f32>,
) {
    let &Input { x, rows, k, .. } = input;
    let panel_bytes = check(float, panels, outs, k);
    assert!(
        outputs.end <= outs && outputs.start.is_multiple_of(WIDTH) && Some(y.len()) == rows.checked_mul(outs),
        "float product: outputs {outputs:?} of {outs}, {} elements of {rows} rows",
        y.len()
    );
    if rows == 0 || outputs.is_empty() {
        return;
    }
    let pairs = float == Float::Bf16 && isa.level() >= Level::Avx512Bf16;
    // The kernel, its input and the distance of its rows, and the length of the inner dimension in steps of the input.
    let (x, xs, k) =
        if pairs { (input.pairs(isa).as_ptr().cast(), input.stride(), k.div_ceil(2)) } else { (x.as_ptr(), k, k) };
    let kernel = match float {
        Float::F32 => run_words,
        Float::F16 => run_halves,
        #[cfg(target_arch = "x86_64")]
        Float::Bf16 if isa.level() == Level::Amx => super::float_amx::run_tiles,
        #[cfg(target_arch = "x86_64")]
        Float::Bf16 if pairs => super::float_tile::run_pairs,
        Float::Bf16 => run_brains,
    };
    let in_steps = float == Float::F32 || pairs;
    if !in_steps && rows >= WIDEN_FROM && k > 0 {
        let half = float == Float::F16;
        let pack = |ks: Range<usize>, columns: Range<usize>, panel: &mut [f32]| {
            let from = &panels[columns.start / WIDTH * panel_bytes + ks.start / 2 * STEP..];
            float_pack::widen(isa, &from[..ks.len().div_ceil(2) * STEP], half, ks.len(), panel);
        };
        let shape = Shape { m: rows, k, n: outs };
        // SAFETY: these columns are this caller's.
        unsafe { float_blocks::rectangle(isa, Left::Rows(input.x), shape, &pack, y, &(0..rows), &outputs, false) };
        return;
    }
    // Few rows go through each panel from end to end.
    let (high, deep, wide) = if rows < WIDEN_FROM { (rows, k.max(1), outs) } else { BLOCK };
    for outputs in cut(&outputs, wide) {
        for ks in cut(&(0..k.max(1)), deep) {
            let ks = ks.start..ks.end.min(k);
            for some in cut(&(0..rows), high) {
                // SAFETY: `x` holds `rows` of `k`, the panels were checked to hold `outs` of `k`, `y` `rows` of `outs`; all offsets
                // are inside. These columns are this caller's.
                unsafe {
                    let block = Block {
                        x: x.add(some.start * xs + ks.start),
                        xs,
                        rows: some.len(),
                        w: panels.as_ptr().add(outputs.start / WIDTH * panel_bytes + ks.start * STEP),
                        ws: panel_bytes,
                        outs: outputs.len(),
                        k: ks.len(),
                        y: y.pointer().add(some.start * outs + outputs.start),
                        ys: outs,
                        add: ks.start > 0,
                    };
                    kernel(isa, &block);
                }
            }
        }
    }
}

/// `y = x · Wᵀ` on all threads.
///
/// # Panics
/// When a length does not fit.
pub(crate) fn multiply(float: Float, input: &Input<'_>, panels: &[u8], outs: usize, y: &mut [f32]) {
    let isa = Isa::current();
    input.prepare(isa, float);
    let y = Shared::new(y);
    let count = outs.div_ceil(WIDTH);
    let work = input.rows.saturating_mul(input.k).saturating_mul(outs);
    let share = count.div_ceil(4 * pool::threads());
    let worth = count.saturating_mul(1 << 15).checked_div(work).unwrap_or(count);
    pool::ranges(count, share.max(worth), |some| {
        let outputs = some.start * WIDTH..(some.end * WIDTH).min(outs);
        // SAFETY: tasks have disjoint columns.
        unsafe { run(isa, float, input, panels, outs, outputs, &y) };
    });
}

/// A matrix `[outs, k]` of float weights in panels.
pub struct Panels {
    float: Float,
    outs: usize,
    k: usize,
    buffer: Buffer,
}

impl Panels {
    /// Zeros, to be filled by [`Self::pack`].
    ///
    /// # Panics
    /// When the matrix is not addressable.
    pub fn zeros(float: Float, outs: usize, k: usize) -> Self {
        let bytes = float.bytes(outs, k).expect("panels are addressable");
        Panels { float, outs, k, buffer: Buffer::zeros(bytes) }
    }

    /// Packs whole rows from row `first` on, rounded to the stored type (nearest, ties to even).
    ///
    /// # Panics
    /// When they are no whole rows, or too many.
    pub fn pack(&mut self, first: usize, rows: &[f32]) {
        pack(self.float, self.buffer.bytes_mut(), self.outs, self.k, first, rows);
    }

    /// As [`Self::pack`], of rows that are already stored as this type, in little-endian bytes.
    ///
    /// # Panics
    /// When they are no whole rows, or too many.
    pub fn pack_stored(&mut self, first: usize, rows: &[u8]) {
        pack_stored(self.float, self.buffer.bytes_mut(), self.outs, self.k, first, rows);
    }

    /// The weights of one output.
    ///
    /// # Panics
    /// When there is no such output, or `out` is not as long as a row.
    pub fn widen_row(&self, output: usize, out: &mut [f32]) {
        assert!(output < self.outs && out.len() == self.k, "panels: row {output} of {} into {}", self.outs, out.len());
        widen_row(self.float, self.bytes(), output, out);
    }

    /// The panels.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.bytes()
    }

    /// `y = x · Wᵀ`.
    ///
    /// # Shapes
    /// `x: [T, k]` → `y: [T, outs]`
    ///
    /// # Panics
    /// When a length does not fit.
    pub fn multiply(&self, x: &[f32], y: &mut [f32]) {
        let rows = y.len().checked_div(self.outs).or(x.len().checked_div(self.k)).unwrap_or(0);
        multiply(self.float, &Input::new(x, rows, self.k), self.bytes(), self.outs, y);
    }
}
