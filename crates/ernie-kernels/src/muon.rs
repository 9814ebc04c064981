//! The Muon step: momentum, made orthogonal by five Newton–Schulz iterations (Jordan et al., 2024, kellerjordan.github.io/posts/muon).
//!
//! The update of a matrix has singular values near 1 in every direction, where Adam's are spread over orders of magnitude. It is scaled by
//! `0.2 · sqrt(max(rows, columns))`, so that its size is about that of an Adam step and its learning rate and decay can be shared
//! (Liu et al., arXiv:2502.16982).

use crate::adamw::sum_of_squares;
use crate::floats::{Floats, FloatsMut, Width};
use crate::level::Isa;
use crate::{gemm, pool};

/// The numbers of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Muon {
    /// Learning rate, of Adam's size.
    pub lr: f64,
    /// Decay of the momentum.
    pub momentum: f64,
    /// Decoupled decay: the weight is first multiplied by `1 - lr * weight_decay`.
    pub weight_decay: f64,
    /// In what the products of the iterations are computed; sums are f32. The iterations forgive bf16.
    pub width: Width,
}

/// Coefficients of the quintic iteration, which takes singular values of 0.001 to 1 to between 0.7 and 1.2 in five rounds.
const QUINTIC: [f32; 3] = [3.4445, -4.7750, 2.0315];

/// Rounds of the iteration.
const ROUNDS: usize = 5;

kernel! {
    /// The momentum by a new gradient, and where it looks from there, as Nesterov has it.
    fn look_ahead(momentum: &mut [f32], gradient: &[f32], update: &mut [f32], keep: f32, grad_scale: f32) {
        let new = 1.0 - keep;
        for ((m, &g), u) in momentum.iter_mut().zip(gradient).zip(update) {
            let g = g * grad_scale;
            *m = keep * *m + new * g;
            *u = keep * *m + new * g;
        }
    }
}

kernel! {
    /// `y = a y + b x`.
    fn mix(y: &mut [f32], a: f32, x: &[f32], b: f32) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = a * *y + b * x;
        }
    }
}

/// One step on one matrix: momentum and weights updated in place.
///
/// Small matrices are best given to one thread each ([`crate::parallel`]): products inside a piece run in place.
///
/// # Shapes
/// `weights, gradient, momentum: [rows, columns]`, row-major
///
/// # Panics
/// When a length is not `rows * columns`.
pub fn step(
    weights: &mut [f32],
    gradient: &[f32],
    momentum: &mut [f32],
    [rows, columns]: [usize; 2],
    muon: &Muon,
    grad_scale: f32,
) {
    let elements = rows * columns;
    let lengths = [weights.len(), gradient.len(), momentum.len()];
    assert!(lengths.iter().all(|&length| length == elements), "muon: {lengths:?} numbers for [{rows}, {columns}]");
    let isa = Isa::current();
    pool::scratch(elements, |update| {
        look_ahead(isa, momentum, gradient, update, muon.momentum as f32, grad_scale);
        orthogonal(update, [rows, columns], muon.width);
        let size = 0.2 * muon.lr * (rows.max(columns) as f64).sqrt();
        mix(isa, weights, (1.0 - muon.lr * muon.weight_decay) as f32, update, -size as f32);
    });
}

/// Brings the singular values of `x` near 1 and leaves its singular vectors; a zero matrix stays zero.
///
/// # Shapes
/// `x: [rows, columns]`
pub fn orthogonal(x: &mut [f32], [rows, columns]: [usize; 2], width: Width) {
    let isa = Isa::current();
    let inverse = (1.0 / (sum_of_squares(x).sqrt() + 1e-7)) as f32;
    x.iter_mut().for_each(|x| *x *= inverse);
    // The small side's products: `X Xᵀ` of a wide matrix, `Xᵀ X` of a tall one.
    let (tall, small) = (rows > columns, rows.min(columns));
    let [a, b, c] = QUINTIC;
    pool::scratch(2 * small * small + x.len(), |scratch| {
        let (gram, scratch) = scratch.split_at_mut(small * small);
        let (square, next) = scratch.split_at_mut(small * small);
        for _ in 0..ROUNDS {
            if tall {
                product(Kind::Tn, x, x, gram, [small, rows, small], width);
            } else {
                product(Kind::Nt, x, x, gram, [small, columns, small], width);
            }
            // The Gram matrix is its own transpose.
            product(Kind::Nt, gram, gram, square, [small, small, small], width);
            mix(isa, square, c, gram, b);
            if tall {
                product(Kind::Nn, x, square, next, [rows, small, small], width);
            } else {
                product(Kind::Nn, square, x, next, [small, small, columns], width);
            }
            mix(isa, x, a, next, 1.0);
        }
    });
}

#[derive(Clone, Copy)]
enum Kind {
    Nn,
    Nt,
    Tn,
}

fn product(kind: Kind, a: &[f32], b: &[f32], c: &mut [f32], [m, k, n]: [usize; 3], width: Width) {
    match (width, kind) {
        (Width::F32, Kind::Nn) => gemm::nn(a, b, c, m, k, n, false),
        (Width::F32, Kind::Nt) => gemm::nt(a, b, c, m, k, n, false),
        (Width::F32, Kind::Tn) => gemm::tn(a, b, c, m, k, n, false),
        (Width::Bf16, kind) => {
            let run = match kind {
                Kind::Nn => gemm::brains::nn,
                Kind::Nt => gemm::brains::nt,
                Kind::Tn => gemm::brains::tn,
            };
            run(Floats::F32(a), Floats::F32(b), FloatsMut::F32(c), m, k, n, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn rows_or_columns_become_nearly_orthogonal() {
        for shape in [[8, 8], [5, 40], [40, 5], [1, 7], [7, 1], [64, 96]] {
            for width in [Width::F32, Width::Bf16] {
                let [rows, columns] = shape;
                let mut x = numbers(rows * columns, 3);
                let before = x.clone();
                orthogonal(&mut x, shape, width);
                // Squared singular values lie where the quintic leaves them, so their sum, the squared norm, does.
                let small = rows.min(columns) as f32;
                let square: f32 = x.iter().map(|x| x * x).sum();
                assert!((0.3 * small..1.5 * small).contains(&square), "{shape:?} {width:?}: {square} of {small}");
                // It still points where it did.
                let along: f32 = x.iter().zip(&before).map(|(a, b)| a * b).sum();
                assert!(along > 0.0);
            }
        }
    }

    #[test]
    fn the_singular_values_of_a_diagonal_come_near_one() {
        let mut x = vec![0.0; 9];
        (x[0], x[4], x[8]) = (3.0, 0.5, -0.05);
        orthogonal(&mut x, [3, 3], Width::F32);
        for (at, sign) in [(0, 1.0), (4, 1.0), (8, -1.0)] {
            assert!((0.6..1.3).contains(&(sign * x[at])), "{x:?}");
        }
        let mut nothing = vec![0.0; 12];
        orthogonal(&mut nothing, [3, 4], Width::F32);
        assert_eq!(nothing, vec![0.0; 12]);
    }

    #[test]
    fn a_step_goes_down_and_decays() {
        let (mut weights, mut momentum) = (vec![1.0; 6], vec![0.0; 6]);
        let gradient = numbers(6, 5);
        let muon = Muon { lr: 0.1, momentum: 0.95, weight_decay: 0.5, width: Width::F32 };
        step(&mut weights, &gradient, &mut momentum, [2, 3], &muon, 2.0);
        assert!(momentum.iter().zip(&gradient).all(|(m, g)| (m - 0.1 * g).abs() < 1e-6));
        let down: f32 = weights.iter().zip(&gradient).map(|(w, g)| (w - 0.95) * g).sum();
        assert!(down < 0.0, "{weights:?}");
    }
}
