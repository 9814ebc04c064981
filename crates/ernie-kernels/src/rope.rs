//! Rotary positions over adjacent pairs ("interleaved"; Su et al., arXiv:2104.09864), and the inverse for gradients.

use crate::level::Isa;
use crate::pool::{self, grain_rows};

/// Cosines and sines of positions and pairs, a row each.
///
/// Frequency and angle are rounded to f32 as the published implementation rounds them (at position 100,000 an f32 angle is off by
/// thousandths, and the published weights have seen no others); the sine of that angle is taken in double precision.
#[derive(Clone, Debug)]
pub struct Table {
    cos: Vec<f32>,
    sin: Vec<f32>,
    pairs: usize,
}

impl Table {
    /// Angles `position * theta^(-2i / head_dim)` for positions `0..positions` and pairs `i` in `0..head_dim / 2`.
    ///
    /// # Panics
    /// When `head_dim` is odd.
    pub fn new(theta: f64, head_dim: usize, positions: usize) -> Self {
        assert!(head_dim.is_multiple_of(2), "rope: head width {head_dim} is odd");
        let pairs = head_dim / 2;
        let mut table = Table { cos: Vec::new(), sin: Vec::new(), pairs };
        table.grow(theta, positions);
        table
    }

    /// One row for each of `positions`, in their order: row `i` of the table then belongs to row `i` of a batch.
    ///
    /// # Panics
    /// When `head_dim` is odd.
    pub fn of_positions(theta: f64, head_dim: usize, positions: impl IntoIterator<Item = u32>) -> Self {
        let mut table = Table::new(theta, head_dim, 0);
        table.extend(theta, positions);
        table
    }

    /// Extends the table to `positions`, with the same `theta` as before; never shrinks it.
    pub fn grow(&mut self, theta: f64, positions: usize) {
        let held = self.positions();
        self.extend(theta, held as u32..positions.max(held) as u32);
    }

    fn extend(&mut self, theta: f64, positions: impl IntoIterator<Item = u32>) {
        let frequencies: Vec<f32> =
            (0..self.pairs).map(|i| theta.powf(-(i as f64) / self.pairs as f64) as f32).collect();
        for position in positions {
            for &f in &frequencies {
                let (sin, cos) = f64::from(position as f32 * f).sin_cos();
                self.cos.push(cos as f32);
                self.sin.push(sin as f32);
            }
        }
    }

    /// Number of positions that the table holds.
    pub fn positions(&self) -> usize {
        self.cos.len().checked_div(self.pairs).unwrap_or(0)
    }

    /// Width of a head: twice the number of pairs.
    pub fn head_dim(&self) -> usize {
        2 * self.pairs
    }

    /// Cosines and sines of one position, one each per pair.
    ///
    /// # Panics
    /// When the position is outside the table.
    pub fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.pairs..(position + 1) * self.pairs;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

kernel! {
    fn rotate_row(row: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        for head in row.chunks_exact_mut(2 * cos.len()) {
            for ((pair, &c), &s) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                let s = sign * s;
                let [a, b] = *pair;
                *pair = [a * c - b * s, b * c + a * s];
            }
        }
    }
}

fn rotate(x: &mut [f32], positions: &[u32], heads: usize, table: &Table, sign: f32) {
    let width = heads * table.head_dim();
    assert_eq!(x.len(), positions.len() * width, "rope: {} elements for {} rows of {width}", x.len(), positions.len());
    if x.is_empty() {
        return;
    }
    let isa = Isa::current();
    pool::pieces(x, width * grain_rows(width), |at, x| {
        for (row, &position) in x.chunks_exact_mut(width).zip(&positions[at / width..]) {
            let (cos, sin) = table.at(position as usize);
            rotate_row(isa, row, cos, sin, sign);
        }
    });
}

/// Rotates each head of each row by its position, in place.
///
/// # Shapes
/// `x: [T, heads, head_dim]`, `positions: [T]`
///
/// # Panics
/// When a length does not fit or a position is outside the table.
pub fn forward(x: &mut [f32], positions: &[u32], heads: usize, table: &Table) {
    rotate(x, positions, heads, table, 1.0);
}

/// Rotates back: the gradient of [`forward`], in place.
///
/// # Panics
/// As [`forward`].
pub fn backward(dx: &mut [f32], positions: &[u32], heads: usize, table: &Table) {
    rotate(dx, positions, heads, table, -1.0);
}
