//! Moving rows to their experts and back: a counting sort of (token, slot) by expert, gather, and the weighted combine.
//!
//! Every sum runs over a token's slots in slot order, so results do not depend on threads or on the company of a token.
//! A row of the sorted order is one (token, slot); an expert's rows are consecutive, in token order.

use std::ops::Range;

use crate::elementwise::scale_slice;
use crate::floats::{Floats, FloatsMut, SharedFloats};
use crate::level::Isa;
use crate::pool::{self, grain_rows};
use crate::simd;

/// The order of (token, slot) pairs by expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// `E + 1` borders: expert `e` owns sorted rows `offsets[e]..offsets[e + 1]`.
    pub offsets: Vec<usize>,
    /// For each sorted row, the pair `token * k + slot` that it came from.
    pub pairs: Vec<u32>,
    /// The inverse: for each pair, its sorted row.
    pub places: Vec<u32>,
    /// Slots per token.
    pub k: usize,
}

impl Order {
    /// Sorts the chosen experts `indices: [T, k]`.
    ///
    /// # Panics
    /// When an index is not below `experts`, `k` is 0, or there are more than 2^32 pairs.
    pub fn new(indices: &[u32], experts: usize, k: usize) -> Self {
        assert!(k > 0 && indices.len().is_multiple_of(k), "experts: {} indices of {k} slots", indices.len());
        assert!(u32::try_from(indices.len()).is_ok(), "experts: {} pairs", indices.len());
        let mut offsets = vec![0_usize; experts + 1];
        for &e in indices {
            offsets[e as usize + 1] += 1;
        }
        for e in 0..experts {
            offsets[e + 1] += offsets[e];
        }
        let mut next = offsets.clone();
        let mut pairs = vec![0_u32; indices.len()];
        let mut places = vec![0_u32; indices.len()];
        for (pair, &e) in indices.iter().enumerate() {
            let place = next[e as usize];
            next[e as usize] += 1;
            pairs[place] = pair as u32;
            places[pair] = place as u32;
        }
        Order { offsets, pairs, places, k }
    }

    /// The sorted rows of an expert.
    pub fn rows(&self, expert: usize) -> Range<usize> {
        self.offsets[expert]..self.offsets[expert + 1]
    }

    /// Number of rows sent to each expert.
    pub fn counts(&self) -> impl Iterator<Item = usize> + '_ {
        self.offsets.windows(2).map(|w| w[1] - w[0])
    }

    fn tokens(&self) -> usize {
        self.pairs.len() / self.k
    }
}

kernel! {
    fn add_weighted(y: &mut [f32], x: &[f32], w: f32) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = simd::fma::<FMA>(w, x, *y);
        }
    }
}

kernel! {
    fn scaled(y: &mut [f32], x: &[f32], w: f32) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = w * x;
        }
    }
}

kernel! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        simd::sum2(a, b, simd::fma::<FMA>)
    }
}

/// Copies each token's row to its places: `out[i] = x[pairs[i] / k]`.
///
/// # Shapes
/// `x: [T, width]` → `out: [T * k, width]`, sorted by expert
///
/// # Panics
/// When a length does not fit.
pub fn gather<'a>(x: impl Into<Floats<'a>>, width: usize, order: &Order, out: impl Into<FloatsMut<'a>>) {
    let (x, out) = (x.into(), out.into());
    assert!(x.len() == order.tokens() * width && out.len() == order.pairs.len() * width, "experts: lengths differ");
    if out.is_empty() {
        return;
    }
    let isa = Isa::current();
    let from = |pair: u32| pair as usize / order.k * width..(pair as usize / order.k + 1) * width;
    let out = match (x, out) {
        (Floats::Bf16(x), FloatsMut::Bf16(out)) => {
            return pool::pieces(out, width * grain_rows(width), |at, out| {
                for (out, &pair) in out.chunks_exact_mut(width).zip(&order.pairs[at / width..]) {
                    out.copy_from_slice(&x[from(pair)]);
                }
            });
        }
        (_, out) => SharedFloats::new(out),
    };
    pool::ranges(order.pairs.len(), grain_rows(width), |rows| {
        pool::scratch(width, |buffer| {
            for row in rows {
                let x = x.read(isa, from(order.pairs[row]), buffer);
                // SAFETY: each range has rows of its own.
                unsafe { out.write_all(isa, row * width..(row + 1) * width, x) };
            }
        });
    });
}

/// Adds each token's expert outputs, weighted, to its row: `out[t] += sum over slots j of weights[t, j] * y[place(t, j)]`.
///
/// `weights` of `None` are ones: that is the gradient of [`gather`].
///
/// # Shapes
/// `y: [T * k, width]` sorted by expert, `weights: [T, k]` → `out: [T, width]`
///
/// # Panics
/// When a length does not fit.
pub fn combine<'a>(y: impl Into<Floats<'a>>, weights: Option<&[f32]>, width: usize, order: &Order, out: &mut [f32]) {
    let y = y.into();
    assert!(y.len() == order.pairs.len() * width && out.len() == order.tokens() * width, "experts: lengths differ");
    assert!(weights.is_none_or(|w| w.len() == order.pairs.len()), "experts: weights length");
    if out.is_empty() {
        return;
    }
    let isa = Isa::current();
    pool::pieces(out, width * grain_rows(width * order.k), |at, out| {
        pool::scratch(width, |buffer| {
            for (i, out) in out.chunks_exact_mut(width).enumerate() {
                let token = at / width + i;
                for pair in token * order.k..(token + 1) * order.k {
                    let weight = weights.map_or(1.0, |w| w[pair]);
                    let place = order.places[pair] as usize * width;
                    add_weighted(isa, out, y.read(isa, place..place + width, buffer), weight);
                }
            }
        });
    });
}

/// What an expert's rows of [`combine`] leave behind: `d_weights[pair] = d_inner · inner`, then `d_inner` and `d_out` times the weight of the
/// pair. The first is `d_out · y` too where `y` is a product of `inner`, which then need not be kept.
///
/// # Shapes
/// `pairs: [R]` of an expert; `d_out: [R, width]`, `inner, d_inner: [R, inner width]`; `weights, d_weights: [T, k]`
///
/// # Panics
/// When a length does not fit, or a pair is outside.
pub fn weigh(
    pairs: &[u32],
    weights: &[f32],
    d_out: &mut [f32],
    inner: &[f32],
    d_inner: &mut [f32],
    d_weights: &mut [f32],
) {
    let of = |len: usize| len.checked_div(pairs.len()).unwrap_or(0);
    let (width, within) = (of(d_out.len()), of(inner.len()));
    assert!(d_inner.len() == inner.len(), "experts: lengths differ");
    let isa = Isa::current();
    let mut dots = vec![0.0; pairs.len()];
    pool::rows3((d_out, width), (d_inner, within), (&mut dots, 1), grain_rows(width), |row, d_out, d_inner, dots| {
        for (i, dot_of) in dots.iter_mut().enumerate() {
            let (d_inner, inner) = (&mut d_inner[i * within..][..within], &inner[(row + i) * within..][..within]);
            let weight = weights[pairs[row + i] as usize];
            *dot_of = dot(isa, d_inner, inner);
            scale_slice(isa, d_inner, weight);
            scale_slice(isa, &mut d_out[i * width..][..width], weight);
        }
    });
    for (&pair, dot) in pairs.iter().zip(dots) {
        d_weights[pair as usize] = dot;
    }
}

/// The gradients of [`combine`]: overwrites `d_y[i] = weight * d_out[token]` and `d_weights[t, j] = d_out[t] · y[place(t, j)]`.
///
/// # Shapes
/// `d_out: [T, width]`, `y, d_y: [T * k, width]` sorted by expert, `weights, d_weights: [T, k]`
///
/// # Panics
/// When a length does not fit.
pub fn combine_backward(
    d_out: &[f32],
    y: &[f32],
    weights: &[f32],
    width: usize,
    order: &Order,
    d_y: &mut [f32],
    d_weights: &mut [f32],
) {
    let pairs = order.pairs.len();
    assert!(
        y.len() == pairs * width && d_y.len() == y.len() && d_out.len() == order.tokens() * width,
        "experts: lengths differ"
    );
    assert!(weights.len() == pairs && d_weights.len() == pairs, "experts: weights length");
    if y.is_empty() {
        d_weights.fill(0.0);
        return;
    }
    let isa = Isa::current();
    pool::pieces(d_y, width * grain_rows(width), |at, d_y| {
        for (d_y, &pair) in d_y.chunks_exact_mut(width).zip(&order.pairs[at / width..]) {
            scaled(isa, d_y, &d_out[pair as usize / order.k * width..][..width], weights[pair as usize]);
        }
    });
    pool::pieces(d_weights, grain_rows(width), |at, d_weights| {
        for (i, d) in d_weights.iter_mut().enumerate() {
            let place = order.places[at + i] as usize;
            *d = dot(isa, &d_out[(at + i) / order.k * width..][..width], &y[place * width..][..width]);
        }
    });
}
