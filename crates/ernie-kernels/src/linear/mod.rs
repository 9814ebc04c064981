//! The product of activation rows with stored weight rows, whatever the weights' format.
//!
//! `y = x · Wᵀ`, each output a dot product of an input row and a weight row. The order of that sum is part of the definition:
//! blocks of 1024 elements one after the other, sixteen lanes within a block folded in a fixed tree. It depends on
//! the number of input features alone, so a row gives the same bits by itself and in a batch, at any number of threads.
//!
//! Weights are mapped bytes in their stored format. For a few rows of input they are read where they lie (plain formats widen
//! in registers); for more, input and weights are packed into panels that stay in cache, weights being widened on the way.

mod dots;
mod panels;

use std::ops::Range;

use crate::formats::{self, Format};
use crate::level::Isa;
use crate::pool;
use dots::Element;

/// A weight matrix as it is stored: `[out_features, in_features]`, row by row.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// How its elements are stored.
    pub format: Format,
    /// The rows' bytes, without gaps. Need no alignment.
    pub bytes: &'a [u8],
    /// One factor a row, which multiplies the row's dot products; [`Format::Int8`] needs it to mean anything.
    pub scales: Option<&'a [f32]>,
    /// Number of rows.
    pub out_features: usize,
    /// Elements in a row, a whole number of the format's blocks.
    pub in_features: usize,
}

impl<'a> Rows<'a> {
    /// Dense f32 rows.
    pub fn from_f32(weights: &'a [f32], out_features: usize, in_features: usize) -> Self {
        Rows { format: Format::F32, bytes: bytemuck::cast_slice(weights), scales: None, out_features, in_features }
    }

    /// Rows of signed bytes with one scale each.
    pub fn from_int8(weights: &'a [i8], scales: &'a [f32], out_features: usize, in_features: usize) -> Self {
        Rows {
            format: Format::Int8,
            bytes: bytemuck::cast_slice(weights),
            scales: Some(scales),
            out_features,
            in_features,
        }
    }

    /// Some of its rows.
    ///
    /// # Panics
    /// When the range is outside.
    pub fn slice(&self, rows: Range<usize>) -> Rows<'a> {
        let row_bytes = self.check();
        Rows {
            bytes: &self.bytes[rows.start * row_bytes..rows.end * row_bytes],
            scales: self.scales.map(|s| &s[rows.clone()]),
            out_features: rows.len(),
            ..*self
        }
    }

    /// Checks the lengths against each other and gives the bytes of a row.
    pub(crate) fn check(&self) -> usize {
        let row_bytes = self.format.row_bytes(self.in_features);
        let all = row_bytes.and_then(|b| b.checked_mul(self.out_features));
        assert_eq!(
            Some(self.bytes.len()),
            all,
            "linear: {} bytes for {} rows of {} {} elements",
            self.bytes.len(),
            self.out_features,
            self.in_features,
            self.format.name()
        );
        assert!(self.scales.is_none_or(|s| s.len() == self.out_features), "linear: one scale a row");
        row_bytes.unwrap_or(0)
    }
}

/// Rows of input from which on weights are widened into panels instead of being read where they lie.
const PANELS_FROM: usize = 8;

/// Most rows of input that are packed at a time: their panels and those of a task's weights share the second-level cache.
const SLAB: usize = 252;

/// `y = x · Wᵀ`, scaled row by row where `w` has scales.
///
/// # Shapes
/// `x: [T, in_features]` → `y: [T, out_features]`
///
/// # Panics
/// When a length does not fit.
pub fn forward(x: &[f32], w: &Rows<'_>, y: &mut [f32]) {
    forward_with_bias(x, w, None, y);
}

/// As [`forward`], and adds `bias: [out_features]` to each row.
///
/// # Panics
/// When a length does not fit.
pub fn forward_with_bias(x: &[f32], w: &Rows<'_>, bias: Option<&[f32]>, y: &mut [f32]) {
    w.check();
    let (k, out) = (w.in_features, w.out_features);
    assert!(bias.is_none_or(|b| b.len() == out), "linear: one bias a row");
    let rows = y.len().checked_div(out).unwrap_or(0);
    assert!(
        y.len() == rows * out && (out == 0 || x.len() == rows * k),
        "linear: {} inputs of {k}, {} outputs of {out}",
        x.len(),
        y.len()
    );
    if y.is_empty() {
        return;
    }
    if k == 0 {
        y.fill(0.0);
        finish(w, bias, 0..out, &pool::Shared::new(y), rows);
        return;
    }
    let isa = Isa::current();
    if rows < PANELS_FROM {
        few_rows(isa, x, w, bias, y, rows);
        return;
    }
    // Slabs of nearly equal length, each a whole number of register blocks but for the last.
    let slab = rows.div_ceil(rows.div_ceil(SLAB)).next_multiple_of(6);
    for (x, y) in x.chunks(slab * k).zip(y.chunks_mut(slab * out)) {
        slab_of_rows(isa, x, w, bias, y, x.len() / k);
    }
}

/// One to seven rows: weights are read once, where they lie if they are plain, so that memory is all that limits.
fn few_rows(isa: Isa, x: &[f32], w: &Rows<'_>, bias: Option<&[f32]>, y: &mut [f32], rows: usize) {
    let (k, out, row_bytes) = (w.in_features, w.out_features, w.bytes.len() / w.out_features);
    let direct = match w.format {
        Format::F32 => Some(Element::F32),
        Format::F16 => Some(Element::F16),
        Format::Bf16 => Some(Element::Bf16),
        Format::Int8 => Some(Element::I8),
        _ => None,
    };
    let y = pool::Shared::new(y);
    pool::ranges(out, chunk_rows(rows, out, k), |outputs| {
        let bytes = &w.bytes[outputs.start * row_bytes..outputs.end * row_bytes];
        let task = dots::Task { x, rows, k, out, outputs: outputs.clone() };
        if let Some(element) = direct {
            // SAFETY: tasks have disjoint `outputs`, and each writes those columns of `y` only.
            unsafe { dots::run(isa, &task, element, bytes, &y) };
        } else {
            // Four rows at a time, so that what is widened is still in the first-level cache when it is used.
            for (first, bytes) in outputs.clone().step_by(4).zip(bytes.chunks(4 * row_bytes)) {
                let four = first..first + bytes.len() / row_bytes;
                pool::scratch(four.len() * k, |wide| {
                    for (wide, row) in wide.chunks_exact_mut(k).zip(bytes.chunks_exact(row_bytes)) {
                        formats::widen(isa, w.format, row, wide);
                    }
                    let task = dots::Task { outputs: four, ..task };
                    // SAFETY: these are some of this task's own columns.
                    unsafe { dots::run(isa, &task, Element::F32, bytemuck::cast_slice(wide), &y) };
                });
            }
        }
        finish(w, bias, outputs, &y, rows);
    });
}

/// Many rows: the input is packed into panels once, each task packs its weights, and both stay in cache.
fn slab_of_rows(isa: Isa, x: &[f32], w: &Rows<'_>, bias: Option<&[f32]>, y: &mut [f32], rows: usize) {
    let (k, out, row_bytes) = (w.in_features, w.out_features, w.bytes.len() / w.out_features);
    let panel = panels::Shape::new(isa, k);
    pool::scratch(panel.elements(rows), |packed| {
        pool::pieces(packed, panel.left_rows * panel.padded, |at, packed| {
            let first = at / panel.padded;
            let some = packed.len() / panel.padded;
            for (i, row) in x[first * k..(first + some) * k].chunks_exact(k).enumerate() {
                panels::pack_row(isa, row, packed, i, some);
            }
        });
        let packed = &*packed;
        let y = pool::Shared::new(y);
        pool::ranges(out, chunk_rows(rows, out, k), |outputs| {
            pool::scratch(panel.elements(outputs.len()) + k, |scratch| {
                let (weights, wide) = scratch.split_at_mut(panel.elements(outputs.len()));
                let bytes = &w.bytes[outputs.start * row_bytes..outputs.end * row_bytes];
                for (i, row) in bytes.chunks_exact(row_bytes).enumerate() {
                    let (weights, place, of) = panel.right_panel(weights, i, outputs.len());
                    if let (Format::F32, Ok(row)) = (w.format, bytemuck::try_cast_slice(row)) {
                        panels::pack_row(isa, row, weights, place, of);
                    } else {
                        formats::widen(isa, w.format, row, wide);
                        panels::pack_row(isa, wide, weights, place, of);
                    }
                }
                // SAFETY: tasks have disjoint `outputs`, and each writes those columns of `y` only.
                unsafe { panels::run(isa, &panel, packed, rows, weights, &outputs, &y, out) };
            });
            finish(w, bias, outputs, &y, rows);
        });
    });
}

/// Scales and biases a task's columns.
fn finish(w: &Rows<'_>, bias: Option<&[f32]>, outputs: Range<usize>, y: &pool::Shared<'_, f32>, rows: usize) {
    if w.scales.is_none() && bias.is_none() {
        return;
    }
    for row in 0..rows {
        // SAFETY: called by the one task that has these columns, when no other part of them is alive.
        let y = unsafe { y.part(row * w.out_features + outputs.start..row * w.out_features + outputs.end) };
        for (y, o) in y.iter_mut().zip(outputs.clone()) {
            *y = *y * w.scales.map_or(1.0, |s| s[o]) + bias.map_or(0.0, |b| b[o]);
        }
    }
}

/// Weight rows in a task: enough work to be worth handing over, few enough to stay in the second-level cache when widened.
fn chunk_rows(rows: usize, out: usize, k: usize) -> usize {
    let share = out.div_ceil(4 * pool::threads());
    let worth = (32 * 1024_usize).div_ceil(k.saturating_mul(rows).max(1));
    share.max(worth).clamp(4, 64).next_multiple_of(4)
}
