//! Rotary positions over adjacent pairs ("interleaved"; Su et al., arXiv:2104.09864), and the inverse for gradients.

use crate::floats::{Floats, FloatsMut, SharedFloats};
use crate::lanes::Lanes;
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

with_lanes! {
    /// # Safety
    /// As [`rotate_row_in`].
    unsafe fn rotate_row = rotate_row_in(
        row: *mut f32,
        heads: usize,
        pairs: usize,
        cos: *const f32,
        sin: *const f32,
        sign: f32,
    )
}

/// Rotates the heads of a row: an element becomes `x * cos + its partner * sin`, the sine signed as it is needed.
///
/// The factors of some vectors of a head stay in registers while they go over all heads.
///
/// # Safety
/// `row: [heads, 2 pairs]` may be read and written, `cos, sin: [pairs]` read.
#[inline(always)]
unsafe fn rotate_row_in<V: Lanes>(
    row: *mut f32,
    heads: usize,
    pairs: usize,
    cos: *const f32,
    sin: *const f32,
    sign: f32,
) {
    let width = 2 * pairs;
    let mut at = 0;
    // SAFETY: what is read and written lies within a head and its pairs, which the contract covers; a part of a vector goes
    // through arrays of a whole one.
    unsafe {
        let signs: [f32; 16] = std::array::from_fn(|l| if l % 2 == 0 { -sign } else { sign });
        let signs = V::load(signs.as_ptr());
        while width - at >= 64 {
            rotate_vectors::<V, 4>(row.add(at), heads, width, cos.add(at / 2), sin.add(at / 2), signs);
            at += 64;
        }
        while width - at >= 16 {
            rotate_vectors::<V, 1>(row.add(at), heads, width, cos.add(at / 2), sin.add(at / 2), signs);
            at += 16;
        }
        if at < width {
            let rest = pairs - at / 2;
            let (mut cosines, mut sines) = ([0.0_f32; 8], [0.0_f32; 8]);
            std::ptr::copy_nonoverlapping(cos.add(at / 2), cosines.as_mut_ptr(), rest);
            std::ptr::copy_nonoverlapping(sin.add(at / 2), sines.as_mut_ptr(), rest);
            let (cos, sin) = (V::load_twice(cosines.as_ptr()), V::load_twice(sines.as_ptr()).mul(signs));
            for head in 0..heads {
                let x = row.add(head * width + at);
                let v = V::load_part(x, 2 * rest);
                v.fma(cos, v.swap_pairs().mul(sin)).store_part(x, 2 * rest);
            }
        }
    }
}

/// Rotates `N` vectors of each head, heads being `width` elements apart.
///
/// # Safety
/// The vectors may be read and written, and `8 N` cosines and sines read.
#[inline(always)]
unsafe fn rotate_vectors<V: Lanes, const N: usize>(
    row: *mut f32,
    heads: usize,
    width: usize,
    cos: *const f32,
    sin: *const f32,
    signs: V,
) {
    // SAFETY: as the contract.
    unsafe {
        let mut factors = [(V::zero(), V::zero()); N];
        for (n, factors) in factors.iter_mut().enumerate() {
            *factors = (V::load_twice(cos.add(8 * n)), V::load_twice(sin.add(8 * n)).mul(signs));
        }
        for head in 0..heads {
            for (n, &(cos, sin)) in factors.iter().enumerate() {
                let x = row.add(head * width + 16 * n);
                let v = V::load(x);
                v.fma(cos, v.swap_pairs().mul(sin)).store(x);
            }
        }
    }
}

fn rotate(x: Floats<'_>, y: FloatsMut<'_>, positions: &[u32], heads: usize, table: &Table, sign: f32) {
    let width = heads * table.head_dim();
    assert!(
        x.len() == positions.len() * width && y.len() == x.len(),
        "rope: {} elements for {} rows of {width}",
        x.len(),
        positions.len()
    );
    if x.is_empty() {
        return;
    }
    let (isa, y) = (Isa::current(), SharedFloats::new(y));
    pool::ranges(positions.len(), grain_rows(width), |rows| {
        pool::scratch(2 * width, |scratch| {
            let (wide, buffer) = scratch.split_at_mut(width);
            for row in rows {
                let range = row * width..(row + 1) * width;
                let (cos, sin) = table.at(positions[row] as usize);
                let x = x.read(isa, range.clone(), wide);
                // SAFETY: each range has rows of its own; a row has `heads` heads of twice as many elements as there are pairs.
                unsafe {
                    y.write(isa, range, buffer, |y| {
                        y.copy_from_slice(x);
                        rotate_row(isa, y.as_mut_ptr(), heads, table.pairs, cos.as_ptr(), sin.as_ptr(), sign);
                    });
                }
            }
        });
    });
}

/// Rotates each head of each row by its position.
///
/// # Shapes
/// `x, y: [T, heads, head_dim]`, `positions: [T]`
///
/// # Panics
/// When a length does not fit or a position is outside the table.
pub fn forward<'a>(
    x: impl Into<Floats<'a>>,
    y: impl Into<FloatsMut<'a>>,
    positions: &[u32],
    heads: usize,
    table: &Table,
) {
    rotate(x.into(), y.into(), positions, heads, table, 1.0);
}

/// Rotates back: `dx` from `dy`, the gradient of [`forward`].
///
/// # Panics
/// As [`forward`].
pub fn backward<'a>(
    dy: impl Into<Floats<'a>>,
    dx: impl Into<FloatsMut<'a>>,
    positions: &[u32],
    heads: usize,
    table: &Table,
) {
    rotate(dy.into(), dx.into(), positions, heads, table, -1.0);
}
