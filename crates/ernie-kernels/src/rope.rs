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

/// Elements of a row that are rotated at a time: a vector of each level holds whole pairs of it.
const BLOCK: usize = 16;

kernel! {
    /// Rotates the heads of a row. `turn` is scratch for two factors an element: its cosine, and its sine signed as it is
    /// needed, so that an element becomes `x * cos + its partner * sin` and whole vectors of pairs go at once.
    fn rotate_row(row: &mut [f32], cos: &[f32], sin: &[f32], sign: f32, turn: &mut [f32]) {
        let width = 2 * cos.len();
        let (turn_cos, turn_sin) = turn.split_at_mut(width);
        for (i, (&c, &s)) in cos.iter().zip(sin).enumerate() {
            let s = sign * s;
            turn_cos[2 * i..2 * i + 2].copy_from_slice(&[c, c]);
            turn_sin[2 * i..2 * i + 2].copy_from_slice(&[-s, s]);
        }
        let ((cos, cos_rest), (sin, sin_rest)) = (turn_cos.as_chunks::<BLOCK>(), turn_sin.as_chunks::<BLOCK>());
        for head in row.chunks_exact_mut(width) {
            let (blocks, rest) = head.as_chunks_mut::<BLOCK>();
            for ((x, cos), sin) in blocks.iter_mut().zip(cos).zip(sin) {
                let partner: [f32; BLOCK] = std::array::from_fn(|l| x[l ^ 1]);
                for l in 0..BLOCK {
                    x[l] = x[l] * cos[l] + partner[l] * sin[l];
                }
            }
            let pairs = rest.as_chunks_mut::<2>().0.iter_mut();
            for ((pair, cos), sin) in pairs.zip(cos_rest.as_chunks::<2>().0).zip(sin_rest.as_chunks::<2>().0) {
                let [a, b] = *pair;
                *pair = [a * cos[0] + b * sin[0], b * cos[1] + a * sin[1]];
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
        pool::scratch(2 * table.head_dim(), |turn| {
            for (row, &position) in x.chunks_exact_mut(width).zip(&positions[at / width..]) {
                let (cos, sin) = table.at(position as usize);
                rotate_row(isa, row, cos, sin, sign, turn);
            }
        });
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
