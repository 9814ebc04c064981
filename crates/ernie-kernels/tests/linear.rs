//! Products against their twins, and the promise that a row does not notice its company.

mod common;

use common::{Random, close, each_level, same};
use ernie_kernels::{Format, Rows, gemm, linear, quantize, reference, set_threads};
use half::{bf16, f16};

fn bytes_of(format: Format, w: &[f32]) -> Vec<u8> {
    match format {
        Format::F32 => w.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Format::F16 => w.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Format::Bf16 => w.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        _ => unreachable!("plain formats only"),
    }
}

fn read_back(format: Format, w: &[f32]) -> Vec<f32> {
    w.iter()
        .map(|&x| match format {
            Format::F16 => f16::from_f32(x).to_f32(),
            Format::Bf16 => bf16::from_f32(x).to_f32(),
            _ => x,
        })
        .collect()
}

#[test]
fn products_match_the_twin_in_odd_shapes() {
    each_level(|level| {
        let mut random = Random(1);
        for _ in 0..60 {
            let (rows, k, out) = (random.between(0, 14), random.between(0, 70), random.between(0, 37));
            let (x, w) = (random.floats(rows * k), random.floats(out * k));
            for format in [Format::F32, Format::F16, Format::Bf16] {
                let bytes = bytes_of(format, &w);
                let w = read_back(format, &w);
                let rows_of = Rows { format, bytes: &bytes, scales: None, out_features: out, in_features: k };
                let bias = random.floats(out);
                let mut y = vec![f32::NAN; rows * out];
                linear::forward_with_bias(&x, &rows_of, Some(&bias), &mut y);
                let expected = reference::product(rows, k, out, |t, l| x[t * k + l], |l, o| w[o * k + l]);
                let expected: Vec<f32> = expected.iter().enumerate().map(|(i, y)| y + bias[i % out]).collect();
                close(&y, &expected, 1e-5, 1e-5, &format!("{} {rows}x{k}x{out} at {level}", format.name()));
            }
        }
    });
}

#[test]
fn long_sums_match_the_twin() {
    let mut random = Random(2);
    for k in [1023, 1024, 1025, 2048, 3072, 3100] {
        let (x, w) = (random.floats(7 * k), random.floats(9 * k));
        each_level(|level| {
            let mut y = vec![0.0; 63];
            linear::forward(&x, &Rows::from_f32(&w, 9, k), &mut y);
            close(&y, &reference::linear(&x, &w, k, 9), 2e-4, 1e-5, &format!("{k} at {level}"));
        });
    }
}

#[test]
fn a_row_alone_gives_the_bits_it_gives_in_a_batch() {
    each_level(|level| {
        let mut random = Random(3);
        for (k, out) in [(64, 8), (100, 33), (1500, 70), (3072, 130)] {
            let rows = 23;
            let (x, w) = (random.floats(rows * k), random.floats(out * k));
            let mut int8 = vec![0; out * k];
            let mut scales = vec![0.0; out];
            quantize::int8_rows(&w, k, &mut int8, &mut scales);
            let (half, brain) = (bytes_of(Format::F16, &w), bytes_of(Format::Bf16, &w));
            let stored = |format, bytes| Rows { format, bytes, scales: None, out_features: out, in_features: k };
            let kinds = [
                Rows::from_f32(&w, out, k),
                stored(Format::F16, half.as_slice()),
                stored(Format::Bf16, brain.as_slice()),
                Rows::from_int8(&int8, &scales, out, k),
            ];
            for kind in kinds {
                let mut together = vec![0.0; rows * out];
                linear::forward(&x, &kind, &mut together);
                for (start, len) in [(0, 1), (22, 1), (5, 2), (7, 3), (2, 4), (9, 11)] {
                    let mut apart = vec![0.0; len * out];
                    linear::forward(&x[start * k..(start + len) * k], &kind, &mut apart);
                    let what = format!("{} {k}x{out} rows {start}+{len} at {level}", kind.format.name());
                    same(&apart, &together[start * out..(start + len) * out], &what);
                }
                // A slice of the outputs is the same too: where a weight row stands does not matter.
                let mut part = vec![0.0; rows * 5];
                linear::forward(&x, &kind.slice(3..8), &mut part);
                for row in 0..rows {
                    same(&part[row * 5..][..5], &together[row * out + 3..][..5], "output slice");
                }
            }
        }
    });
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut random = Random(4);
    let (rows, k, out) = (19, 700, 260);
    let (x, w) = (random.floats(rows * k), random.floats(out * k));
    let run = |threads| {
        set_threads(threads);
        let mut y = vec![0.0; rows * out];
        linear::forward(&x, &Rows::from_f32(&w, out, k), &mut y);
        y
    };
    let one = run(1);
    for threads in [2, 3, 7] {
        same(&run(threads), &one, "threads");
    }
}

#[test]
fn vector_levels_agree_to_the_bit() {
    let mut random = Random(6);
    let (rows, k, out) = (7, 1100, 21);
    let (x, w) = (random.floats(rows * k), random.floats(out * k));
    let mut results = Vec::new();
    each_level(|level| {
        let mut y = vec![0.0; rows * out];
        linear::forward(&x, &Rows::from_f32(&w, out, k), &mut y);
        results.push((level, y));
    });
    let vectors: Vec<_> = results.iter().filter(|(level, _)| *level != ernie_kernels::Level::Scalar).collect();
    for pair in vectors.windows(2) {
        same(&pair[0].1, &pair[1].1, "levels");
    }
}

#[test]
fn extreme_values_pass_through() {
    each_level(|level| {
        let k = 40;
        for (value, expected) in [(f32::INFINITY, f32::INFINITY), (f32::NAN, f32::NAN), (1e-44, 1e-44), (3e38, 3e38)] {
            let mut x = vec![0.0; k];
            let mut w = vec![0.0; 5 * k];
            x[39] = 1.0;
            w[39] = value;
            let mut y = vec![0.0; 5];
            linear::forward(&x, &Rows::from_f32(&w, 5, k), &mut y);
            same(&y, &[expected, 0.0, 0.0, 0.0, 0.0], &format!("{value:e} at {level}"));
        }
    });
}

#[test]
fn int8_products_match_their_floats() {
    each_level(|level| {
        let mut random = Random(7);
        for (rows, k, out) in [(1, 64, 9), (3, 33, 6), (9, 129, 20)] {
            let (x, w) = (random.floats(rows * k), random.floats(out * k));
            let (mut q, mut scales) = (vec![0; out * k], vec![0.0; out]);
            assert_eq!(quantize::int8_rows(&w, k, &mut q, &mut scales), 0);
            let mut y = vec![0.0; rows * out];
            linear::forward(&x, &Rows::from_int8(&q, &scales, out, k), &mut y);
            let wide = |l: usize, o: usize| f32::from(q[o * k + l]) * scales[o];
            close(
                &y,
                &reference::product(rows, k, out, |t, l| x[t * k + l], wide),
                2e-5,
                1e-5,
                &format!("int8 at {level}"),
            );
        }
    });
}

#[test]
fn gradient_products_match_the_twin() {
    each_level(|level| {
        let mut random = Random(8);
        for case in 0..60 {
            let big = if case % 8 == 0 { 90 } else { 20 };
            let shape = (random.between(0, big), random.between(0, big), random.between(0, big));
            let (m, k, n) = if case == 59 { (310, 530, 420) } else { shape };
            let (a, b) = (random.floats(m * k), random.floats(k * n));
            let start = random.floats(m * n);
            for accumulate in [false, true] {
                let check = |c: &[f32], expected: Vec<f32>, name: &str| {
                    let expected: Vec<f32> =
                        expected.iter().zip(&start).map(|(e, s)| if accumulate { e + s } else { *e }).collect();
                    close(c, &expected, 5e-5, 1e-5, &format!("{name} {m}x{k}x{n} at {level}"));
                };
                let fresh = || if accumulate { start.clone() } else { vec![f32::NAN; m * n] };
                let mut c = fresh();
                gemm::nn(&a, &b, &mut c, m, k, n, accumulate);
                check(&c, reference::product(m, k, n, |i, l| a[i * k + l], |l, j| b[l * n + j]), "nn");
                let mut c = fresh();
                gemm::nt(&a, &b, &mut c, m, k, n, accumulate);
                check(&c, reference::product(m, k, n, |i, l| a[i * k + l], |l, j| b[j * k + l]), "nt");
                let mut c = fresh();
                gemm::tn(&a, &b, &mut c, m, k, n, accumulate);
                check(&c, reference::product(m, k, n, |i, l| a[l * m + i], |l, j| b[l * n + j]), "tn");
            }
        }
    });
}

#[test]
fn gradient_products_have_one_order_of_sums_at_any_number_of_threads() {
    let transpose = |a: &[f32], columns: usize| -> Vec<f32> {
        (0..a.len()).map(|i| a[i % (a.len() / columns) * columns + i / (a.len() / columns)]).collect()
    };
    each_level(|level| {
        let mut random = Random(9);
        let (m, k, n) = (203, 600, 330);
        let (a, b) = (random.floats(m * k), random.floats(k * n));
        let (at, bt) = (transpose(&a, k), transpose(&b, n));
        let mut expected = vec![0.0; m * n];
        linear::forward(&a, &Rows::from_f32(&bt, n, k), &mut expected);
        for threads in [1, 2, 5] {
            ernie_kernels::set_threads(threads);
            let mut c = vec![0.0; 3 * m * n];
            let (nn, rest) = c.split_at_mut(m * n);
            let (nt, tn) = rest.split_at_mut(m * n);
            gemm::nn(&a, &b, nn, m, k, n, false);
            gemm::nt(&a, &bt, nt, m, k, n, false);
            gemm::tn(&at, &b, tn, m, k, n, false);
            for (name, c) in ["nn", "nt", "tn"].iter().zip(c.chunks_exact(m * n)) {
                same(c, &expected, &format!("{name} at {level} on {threads}"));
            }
        }
    });
}
