//! Norms, activations, positions, loss, optimiser and rounding against their twins and their definitions.

mod common;

use common::{Random, close, each_level, same};
use ernie_kernels::adamw::{self, AdamW};
use ernie_kernels::{Rows, cross_entropy, elementwise, embedding, norm, quantize, reference, rope, softmax, swiglu};
use half::bf16;

/// Derivative of `f` by element `i` of `x`, by central difference in double precision over an f32 function.
fn slope(x: &[f32], i: usize, f: impl Fn(&[f32]) -> f64) -> f64 {
    let step = 1e-2_f32;
    let mut moved = x.to_vec();
    moved[i] = x[i] + step;
    let up = (f(&moved), moved[i]);
    moved[i] = x[i] - step;
    let down = (f(&moved), moved[i]);
    (up.0 - down.0) / f64::from(up.1 - down.1)
}

fn weighted(y: &[f32], weights: &[f32]) -> f64 {
    y.iter().zip(weights).map(|(&y, &w)| f64::from(y) * f64::from(w)).sum()
}

#[test]
fn exp_is_within_two_units_in_the_last_place() {
    let mut x: Vec<f32> = (-110_000..=95_000).map(|i| i as f32 * 1e-3).collect();
    x.extend([0.0, -0.0, 1e-30, -1e-30, 88.722_83, 88.722_84, 88.8, 200.0, 3e38, f32::INFINITY]);
    x.extend([-87.33, -87.34, -88.0, -103.0, -103.97, -104.0, -200.0, -3e38, f32::NEG_INFINITY]);
    each_level(|level| {
        let mut y = x.clone();
        elementwise::exp(&mut y);
        for (&x, &y) in x.iter().zip(&y) {
            let exact = f64::from(x).exp();
            if exact > f64::from(f32::MAX) * 1.000_000_1 {
                assert_eq!(y, f32::INFINITY, "exp({x}) at {level}");
                continue;
            }
            // A unit in the last place, not below the smallest subnormal.
            let unit = (2.0_f64.powi(exact.log2().floor().max(-126.0) as i32 - 23)).max(2.0_f64.powi(-149));
            assert!((f64::from(y) - exact).abs() <= 2.0 * unit, "exp({x}) is {y:e}, expected {exact:e} at {level}");
        }
        let mut nan = [f32::NAN; 3];
        elementwise::exp(&mut nan);
        assert!(nan.iter().all(|x| x.is_nan()));
    });
}

#[test]
fn rounding_to_bf16_is_the_half_crates() {
    let mut random = Random(21);
    let mut x: Vec<f32> = (0..100_000).map(|_| f32::from_bits(random.next() as u32)).collect();
    x.extend([
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MAX,
        f32::MIN_POSITIVE,
        1.003_906_2,
        1.011_718_8,
    ]);
    x.push(f32::from_bits(0x7FFF_FFFF));
    let expected: Vec<f32> = x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    each_level(|_| {
        same(&elementwise::rounded_to_bf16(&x), &expected, "bf16");
    });
}

#[test]
fn adding_and_scaling() {
    let mut random = Random(22);
    for n in [0, 1, 17, 40_000] {
        let (a, b) = (random.floats(n), random.floats(n));
        each_level(|_| {
            same(&elementwise::sum(&a, &b), &a.iter().zip(&b).map(|(a, b)| a + b).collect::<Vec<_>>(), "sum");
            let mut y = a.clone();
            elementwise::add_scaled(&mut y, &b, 0.5);
            same(&y, &a.iter().zip(&b).map(|(a, b)| a + 0.5 * b).collect::<Vec<_>>(), "add_scaled");
            elementwise::scale(&mut y, 0.0);
            assert!(y.iter().all(|&y| y == 0.0));
        });
    }
}

#[test]
fn norm_and_its_gradients() {
    each_level(|level| {
        let mut random = Random(23);
        for (rows, width) in [(0, 8), (1, 1), (3, 17), (150, 64), (2, 1024)] {
            let (mut x, w) = (random.floats(rows * width), random.floats(width));
            if rows > 1 {
                x[width..2 * width].fill(0.0);
            }
            let (mut y, mut rstd) = (vec![f32::NAN; x.len()], vec![f32::NAN; rows]);
            norm::forward(&x, &w, 1e-5, &mut y, &mut rstd);
            close(&y, &reference::rms_norm(&x, &w, 1e-5), 1e-6, 2e-6, &format!("norm {rows}x{width} at {level}"));
            let dy = random.floats(x.len());
            let (mut dx, mut dw) = (vec![f32::NAN; x.len()], vec![0.5; width]);
            norm::backward(&x, &w, &rstd, &dy, &mut dx, &mut dw);
            // The gradients by their formulas in f64.
            let mut expected_dw = vec![0.5_f64; width];
            for row in 0..rows {
                let at = row * width..(row + 1) * width;
                let (x, dy, dx) = (&x[at.clone()], &dy[at.clone()], &dx[at]);
                let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / width as f64;
                let r = 1.0 / (mean + 1e-5).sqrt();
                let dot: f64 = (0..width).map(|i| f64::from(x[i]) * f64::from(dy[i]) * f64::from(w[i])).sum();
                for i in 0..width {
                    let (xi, g) = (f64::from(x[i]), f64::from(dy[i]) * f64::from(w[i]));
                    let expected = r * (g - xi * r * r * dot / width as f64);
                    assert!(
                        (f64::from(dx[i]) - expected).abs() <= 1e-5 * (r + 1.0),
                        "dx {} {expected} at {level}",
                        dx[i]
                    );
                    expected_dw[i] += f64::from(dy[i]) * xi * r;
                }
            }
            close(&dw, &expected_dw.iter().map(|&d| d as f32).collect::<Vec<_>>(), 2e-5, 1e-5, "dw");
        }
    });
}

#[test]
fn swiglu_and_its_gradients() {
    each_level(|level| {
        let mut random = Random(24);
        let mut gate = random.scaled(40_003, 12.0);
        let up = random.floats(gate.len());
        gate[..6].copy_from_slice(&[0.0, -0.0, 90.0, -90.0, 1e30, -1e30]);
        let mut y = vec![f32::NAN; gate.len()];
        swiglu::forward(&gate, &up, &mut y);
        close(&y, &reference::swiglu(&gate, &up), 1e-30, 6e-7, &format!("swiglu at {level}"));
        same(&swiglu::product(&gate, &up), &y, &format!("swiglu into a new vector at {level}"));
        let dy = random.floats(gate.len());
        let (mut dg, mut du) = (vec![f32::NAN; gate.len()], vec![f32::NAN; gate.len()]);
        swiglu::backward(&gate, &up, &dy, &mut dg, &mut du);
        for i in 6..gate.len() {
            let (g, u, d) = (f64::from(gate[i]), f64::from(up[i]), f64::from(dy[i]));
            let s = 1.0 / (1.0 + (-g).exp());
            let (eg, eu) = (d * u * (s + g * s * (1.0 - s)), d * g * s);
            assert!((f64::from(dg[i]) - eg).abs() < 2e-6 && (f64::from(du[i]) - eu).abs() < 2e-5, "{g} {u} at {level}");
        }
        assert!(dg.iter().chain(&du).all(|x| x.is_finite()));
    });
}

#[test]
fn adding_and_normalising_in_one_pass_gives_the_same() {
    each_level(|level| {
        let mut random = Random(34);
        for (rows, width) in [(0, 8), (1, 1), (3, 17), (1, 1024), (150, 320)] {
            let (x, branch, w) = (random.floats(rows * width), random.floats(rows * width), random.floats(width));
            let (apart, mut fused) = (elementwise::sum(&x, &branch), x);
            let (mut y, mut fused_y, mut rstd) =
                (vec![f32::NAN; apart.len()], vec![f32::NAN; apart.len()], vec![f32::NAN; rows]);
            norm::forward(&apart, &w, 1e-5, &mut y, &mut rstd);
            norm::add_forward(&mut fused, &branch, &w, 1e-5, &mut fused_y);
            same(&fused, &apart, &format!("sum {rows}x{width} at {level}"));
            same(&fused_y, &y, &format!("norm {rows}x{width} at {level}"));
        }
    });
}

#[test]
fn softmax_and_its_gradient() {
    each_level(|level| {
        let mut random = Random(25);
        for (rows, width) in [(0, 5), (4, 1), (9, 33), (600, 64)] {
            let x = random.scaled(rows * width, 20.0);
            let mut p = x.clone();
            softmax::forward(&mut p, width);
            close(&p, &reference::softmax(&x, width), 1e-7, 3e-6, &format!("softmax at {level}"));
            let dp = random.floats(p.len());
            let mut dx = dp.clone();
            softmax::backward(&p, &mut dx, width);
            for row in 0..rows {
                let at = row * width..(row + 1) * width;
                let mean: f64 = weighted(&p[at.clone()], &dp[at.clone()]);
                for i in at {
                    let expected = f64::from(p[i]) * (f64::from(dp[i]) - mean);
                    assert!((f64::from(dx[i]) - expected).abs() < 1e-6);
                }
            }
        }
    });
}

#[test]
fn rotation_matches_its_formula_and_turns_back() {
    each_level(|level| {
        for (heads, d) in [(3, 10), (2, 64), (1, 2), (18, 36)] {
            let theta = 500_000.0_f64;
            let table = rope::Table::new(theta, d, 9000);
            let positions = [0_u32, 1, 5, 8999, 17];
            let x = Random(26).floats(positions.len() * heads * d);
            let mut y = vec![f32::NAN; x.len()];
            rope::forward(&x, &mut y, &positions, heads, &table);
            for (t, &position) in positions.iter().enumerate() {
                for head in 0..heads {
                    for i in 0..d / 2 {
                        let at = (t * heads + head) * d + 2 * i;
                        let angle = f64::from(position) * theta.powf(-2.0 * i as f64 / d as f64);
                        let (a, b) = (f64::from(x[at]), f64::from(x[at + 1]));
                        let expected = [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()];
                        // The frequency is rounded to f32, so the angle may be off by position * 6e-8.
                        close(
                            &y[at..at + 2],
                            &expected.map(|x| x as f32),
                            1e-6 + position as f32 * 7e-8,
                            0.0,
                            &format!("rope at {level}"),
                        );
                    }
                }
            }
            let turned = std::mem::replace(&mut y, vec![f32::NAN; x.len()]);
            rope::backward(&turned, &mut y, &positions, heads, &table);
            close(&y, &x, 1e-6, 0.0, "turned back");
            let mut grown = rope::Table::new(theta, d, 10);
            grown.grow(theta, 9000);
            assert_eq!((grown.positions(), grown.at(8999)), (9000, table.at(8999)));
        }
    });
}

#[test]
fn cross_entropy_and_its_gradient() {
    each_level(|level| {
        let mut random = Random(27);
        for (rows, vocab) in [(0, 7), (1, 1), (5, 33), (40, 3000)] {
            let logits = random.scaled(rows * vocab, 30.0);
            let targets: Vec<i64> = (0..rows)
                .map(|i| if i % 4 == 3 { cross_entropy::IGNORE } else { random.between(0, vocab - 1) as i64 })
                .collect();
            let (mut loss, mut sums) = (vec![f32::NAN; rows], vec![f32::NAN; rows]);
            cross_entropy::forward(&logits, &targets, vocab, &mut loss, &mut sums);
            let (mut d, mut again) = (logits.clone(), vec![f32::NAN; rows]);
            cross_entropy::forward_backward(&mut d, &targets, vocab, 0.25, &mut again);
            same(&again, &loss, "losses of both");
            for row in 0..rows {
                let x = &logits[row * vocab..][..vocab];
                let d = &d[row * vocab..][..vocab];
                let Ok(target) = usize::try_from(targets[row]) else {
                    assert!(loss[row] == 0.0 && d.iter().all(|&d| d == 0.0));
                    continue;
                };
                let expected = reference::cross_entropy(x, target);
                assert!(
                    (f64::from(loss[row]) - expected).abs() < 1e-5 + 1e-6 * expected,
                    "{} {expected} at {level}",
                    loss[row]
                );
                let p = reference::softmax(x, vocab);
                let expected: Vec<f32> =
                    p.iter().enumerate().map(|(i, p)| 0.25 * (p - if i == target { 1.0 } else { 0.0 })).collect();
                close(d, &expected, 1e-6, 1e-5, "gradient");
            }
        }
    });
}

#[test]
fn cross_entropy_stands_large_logits() {
    let mut loss = [0.0; 3];
    let mut sums = [0.0; 3];
    let logits = [3e38, -3e38, 0.0, 0.0, f32::NEG_INFINITY, 1.0, f32::NAN, f32::NAN, f32::NAN];
    cross_entropy::forward(&logits, &[0, 2, 1], 3, &mut loss, &mut sums);
    assert_eq!(loss[0], 0.0);
    assert!((loss[1] - 0.313_261_7).abs() < 1e-6);
    assert!(loss[2].is_nan());
}

#[test]
#[should_panic(expected = "outside the vocabulary")]
fn a_wrong_target_is_a_bug() {
    cross_entropy::forward(&[0.0; 4], &[4], 4, &mut [0.0], &mut [0.0]);
}

#[test]
fn gradients_agree_with_differences() {
    // One check from outside the formulas: the kernels' own forwards, differenced.
    let mut random = Random(28);
    let (x, w, c) = (random.floats(24), random.floats(12), random.floats(24));
    let run = |x: &[f32]| {
        let (mut y, mut rstd) = (vec![0.0; 24], vec![0.0; 2]);
        norm::forward(x, &w, 1e-5, &mut y, &mut rstd);
        weighted(&y, &c)
    };
    let (mut y, mut rstd) = (vec![0.0; 24], vec![0.0; 2]);
    norm::forward(&x, &w, 1e-5, &mut y, &mut rstd);
    let (mut dx, mut dw) = (vec![0.0; 24], vec![0.0; 12]);
    norm::backward(&x, &w, &rstd, &c, &mut dx, &mut dw);
    for (i, &dx) in dx.iter().enumerate() {
        assert!((f64::from(dx) - slope(&x, i, run)).abs() < 2e-3, "{i}");
    }
}

#[test]
fn adamw_follows_torch() {
    // Decoupled decay first, then moments, bias correction, eps outside the root, in f64.
    let hyper = AdamW { lr: 3e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    each_level(|level| {
        let mut random = Random(29);
        let n = 20_001;
        let mut w = random.floats(n);
        let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
        let mut twin: Vec<[f64; 3]> = w.iter().map(|&w| [f64::from(w), 0.0, 0.0]).collect();
        for step in 1..=5_u64 {
            let mut g = random.floats(n);
            g[7] = 0.0;
            adamw::step(&mut w, &g, &mut m, &mut v, &hyper, step, 0.5);
            for ([w, m, v], &g) in twin.iter_mut().zip(&g) {
                let g = 0.5 * f64::from(g);
                *w *= 1.0 - hyper.lr * hyper.weight_decay;
                *m = hyper.beta1 * *m + (1.0 - hyper.beta1) * g;
                *v = hyper.beta2 * *v + (1.0 - hyper.beta2) * g * g;
                let (c1, c2) = (1.0 - hyper.beta1.powi(step as i32), 1.0 - hyper.beta2.powi(step as i32));
                *w -= hyper.lr / c1 * *m / ((*v / c2).sqrt() + hyper.eps);
            }
        }
        let expected: Vec<f32> = twin.iter().map(|t| t[0] as f32).collect();
        close(&w, &expected, 2e-6, 1e-6, &format!("adamw at {level}"));
    });
}

#[test]
fn sums_of_squares_are_exact_enough_and_pass_nan_on() {
    let x = Random(30).floats(100_003);
    let expected: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
    let mut results = Vec::new();
    each_level(|_| {
        let sum = adamw::sum_of_squares(&x);
        assert!((sum - expected).abs() < 1e-9 * expected);
        results.push(sum.to_bits());
    });
    assert!(results.windows(2).all(|w| w[0] == w[1]));
    assert!(adamw::sum_of_squares(&[1.0, f32::NAN]).is_nan());
    assert_eq!(adamw::sum_of_squares(&[]), 0.0);
}

#[test]
fn int8_rounding_is_to_nearest_with_f16_scales() {
    each_level(|level| {
        let mut random = Random(31);
        let (rows, k) = (40, 37);
        let mut w = random.floats(rows * k);
        w[..k].fill(0.0);
        w[k] = 1e9;
        w[2 * k..3 * k].iter_mut().for_each(|x| *x *= 1e-9);
        let (mut q, mut scales) = (vec![0; rows * k], vec![f32::NAN; rows]);
        assert_eq!(quantize::int8_rows(&w, k, &mut q, &mut scales), 0);
        assert!(scales[0] == 0.0 && q[..k].iter().all(|&q| q == 0), "a zero row");
        assert!(scales[1] == 65504.0 && q[k] == 127, "beyond f16");
        for (row, &scale) in scales.iter().enumerate() {
            assert_eq!(half::f16::from_f32(scale).to_f32(), scale, "scales are f16 numbers");
            for i in 0..k {
                let (w, q) = (w[row * k + i], q[row * k + i]);
                assert!(q != -128);
                if q.abs() < 127 {
                    assert!(
                        (f32::from(q) * scale - w).abs() <= 0.500_01 * scale,
                        "{w} became {q} x {scale} at {level}"
                    );
                }
            }
        }
        // What is not finite is counted and does not spoil its neighbours.
        let w = [1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.5];
        let (mut q, mut scales) = ([0; 5], [0.0]);
        assert_eq!(quantize::int8_rows(&w, 5, &mut q, &mut scales), 3);
        assert_eq!(q, [127, 0, 127, -127, -64], "at {level}");
    });
}

#[test]
fn embedding_gradients_add_up_in_row_order() {
    let mut random = Random(32);
    let (vocab, width) = (11, 130);
    let ids: Vec<u32> = (0..50).map(|_| random.between(0, vocab - 1) as u32).collect();
    let d = random.floats(50 * width);
    let start = random.floats(vocab * width);
    let mut table = start.clone();
    embedding::scatter_add(&d, &ids, width, &mut table);
    let mut expected = start;
    for (row, &id) in d.chunks(width).zip(&ids) {
        for (e, d) in expected[id as usize * width..].iter_mut().zip(row) {
            *e += d;
        }
    }
    same(&table, &expected, "scatter");
    let mut out = vec![0.0; 50 * width];
    embedding::gather(&Rows::from_f32(&table, vocab, width), &ids, &mut out);
    for (row, &id) in out.chunks(width).zip(&ids) {
        same(row, &table[id as usize * width..][..width], "gather");
    }
}
