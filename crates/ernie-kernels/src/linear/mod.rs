//! The product of activation rows with stored weight rows, whatever the weights' format.
//!
//! `y = x · Wᵀ`, each output a dot product of an input row and a weight row. The order of that sum is part of the definition:
//! blocks of [`dots::BLOCK`] elements one after the other, sixteen lanes within a block folded in a fixed tree. It depends on
//! the number of input features alone, so a row gives the same bits by itself and in a batch, at any number of threads.
//!
//! Weights are mapped bytes in their stored format. For one to three rows of input the plain formats are widened in registers;
//! otherwise a chunk of weight rows is widened into per-thread scratch and used for all input rows.

mod dots;

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

/// Rows of input from which on widened weights are kept in scratch instead of being widened in registers.
const WIDEN_FROM: usize = 4;

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
    let row_bytes = w.check();
    let (k, out) = (w.in_features, w.out_features);
    assert!(bias.is_none_or(|b| b.len() == out), "linear: one bias a row");
    let rows = if out > 0 { y.len() / out } else { 0 };
    assert!(
        y.len() == rows * out && (out == 0 || x.len() == rows * k),
        "linear: {} inputs of {k}, {} outputs of {out}",
        x.len(),
        y.len()
    );
    if y.is_empty() {
        return;
    }
    let isa = Isa::current();
    let direct = match w.format {
        Format::F32 => Some(Element::F32),
        Format::F16 => Some(Element::F16),
        Format::Bf16 => Some(Element::Bf16),
        Format::Int8 => Some(Element::I8),
        _ => None,
    }
    .filter(|element| *element == Element::F32 || rows < WIDEN_FROM);
    let chunk = chunk_rows(rows, out, k);
    let shared = pool::Shared::new(y);
    pool::ranges(out, chunk, |outputs| {
        let bytes = &w.bytes[outputs.start * row_bytes..outputs.end * row_bytes];
        let task = dots::Task { x, rows, k, out, outputs: outputs.clone() };
        // SAFETY (both calls): tasks have disjoint `outputs`, and each writes those columns of `y` only.
        if let Some(element) = direct {
            // SAFETY: as said above.
            unsafe { dots::run(isa, &task, element, bytes, &shared) };
        } else {
            pool::scratch(outputs.len() * k, |wide| {
                for (wide, row) in wide.chunks_exact_mut(k.max(1)).zip(bytes.chunks_exact(row_bytes.max(1))) {
                    formats::widen(isa, w.format, row, wide);
                }
                // SAFETY: as said above.
                unsafe { dots::run(isa, &task, Element::F32, bytemuck::cast_slice(wide), &shared) };
            });
        }
        if w.scales.is_some() || bias.is_some() {
            for row in 0..rows {
                // SAFETY: this task's own columns again, and no other part of them is alive.
                let y = unsafe { shared.part(row * out + outputs.start..row * out + outputs.end) };
                for (y, o) in y.iter_mut().zip(outputs.clone()) {
                    *y = *y * w.scales.map_or(1.0, |s| s[o]) + bias.map_or(0.0, |b| b[o]);
                }
            }
        }
    });
}

/// Weight rows in a task: enough work to be worth handing over, few enough to stay in the second-level cache when widened.
fn chunk_rows(rows: usize, out: usize, k: usize) -> usize {
    let share = out.div_ceil(4 * pool::threads());
    let worth = (32 * 1024_usize).div_ceil(k.saturating_mul(rows).max(1));
    share.max(worth).clamp(4, 64).next_multiple_of(4)
}
