//! The product of activation rows with stored weight rows, whatever the weights' format.
//!
//! `y = x · Wᵀ`, each output a dot product of an input row and a weight row. The order of that sum is part of the definition:
//! one accumulator, to which each `k` adds one (fused, where the level can) product, in rising order. So a row gives the same
//! bits by itself and in a batch, at any number of threads.
//!
//! Weights are mapped bytes in their stored format, which are widened and packed into panels while they are multiplied. That
//! suits weights that change from call to call, as in training; those that stay are better packed once ([`crate::packed`]).

use std::ops::Range;

use crate::formats::{self, Format};
use crate::level::Isa;
use crate::packed::float_blocks::{DEPTH, Left, Shape, product};
use crate::packed::float_pack;
use crate::pool;

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
    let (k, n) = (w.in_features, w.out_features);
    assert!(bias.is_none_or(|b| b.len() == n), "linear: one bias a row");
    let m = y.len().checked_div(n).unwrap_or(0);
    assert!(
        y.len() == m * n && (n == 0 || x.len() == m * k),
        "linear: {} inputs of {k}, {} outputs of {n}",
        x.len(),
        y.len()
    );
    if y.is_empty() {
        return;
    }
    let isa = Isa::current();
    let pack = |ks: Range<usize>, outs: Range<usize>, panel: &mut [f32]| {
        // `DEPTH` is a multiple of every block, so a cut in `k` is a cut between blocks.
        let at = w.format.row_bytes(ks.start).unwrap_or(0);
        if w.format == Format::F32 {
            return float_pack::rows(isa, &w.bytes[outs.start * row_bytes + at..], k, outs.len(), ks.len(), panel);
        }
        let bytes = w.format.row_bytes(ks.len()).unwrap_or(0);
        pool::scratch(float_pack::WIDTH * DEPTH, |wide| {
            for (row, wide) in outs.clone().zip(wide.chunks_exact_mut(ks.len())) {
                formats::widen(isa, w.format, &w.bytes[row * row_bytes + at..][..bytes], wide);
            }
            float_pack::rows(isa, bytemuck::cast_slice(wide), ks.len(), outs.len(), ks.len(), panel);
        });
    };
    product(isa, Left::Rows(x), Shape { m, k, n }, pack, y, false, |rows, outs, y| finish(w, bias, rows, outs, y));
}

/// Scales and biases a rectangle of outputs.
fn finish(w: &Rows<'_>, bias: Option<&[f32]>, rows: Range<usize>, outputs: Range<usize>, y: &pool::Shared<'_, f32>) {
    if w.scales.is_none() && bias.is_none() {
        return;
    }
    for row in rows {
        // SAFETY: called by the one task that has this rectangle, when no other part of it is alive.
        let y = unsafe { y.part(row * w.out_features + outputs.start..row * w.out_features + outputs.end) };
        for (y, o) in y.iter_mut().zip(outputs.clone()) {
            *y = *y * w.scales.map_or(1.0, |s| s[o]) + bias.map_or(0.0, |b| b[o]);
        }
    }
}
