//! Products by packed float weights: against the twin, and the promise that a row does not notice its company.

mod common;

use common::{Random, close, each_level, same};
use ernie_kernels::packed::float::{Float, Panels};
use ernie_kernels::{Level, reference, with_level};
use half::{bf16, f16};

const KINDS: [Float; 3] = [Float::F32, Float::F16, Float::Bf16];

fn stored(float: Float, x: f32) -> f32 {
    match float {
        Float::F32 => x,
        Float::F16 => f16::from_f32(x).to_f32(),
        Float::Bf16 => bf16::from_f32(x).to_f32(),
    }
}

fn bytes_of(float: Float, w: &[f32]) -> Vec<u8> {
    match float {
        Float::F32 => w.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Float::F16 => w.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Float::Bf16 => w.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

fn packed(float: Float, w: &[f32], outs: usize, k: usize) -> Panels {
    let mut panels = Panels::zeros(float, outs, k);
    panels.pack(0, w);
    panels
}

/// The input as a level's products by these weights see it.
fn seen(float: Float, level: Level, x: &[f32]) -> Vec<f32> {
    let rounds = float == Float::Bf16 && level >= Level::Avx512Bf16;
    x.iter().map(|&x| if rounds { bf16::from_f32(x).to_f32() } else { x }).collect()
}

#[test]
fn products_match_the_twin_in_odd_shapes() {
    each_level(|level| {
        let mut random = Random(1);
        for case in 0..80 {
            let most = if case % 8 == 0 { (70, 700, 130) } else { (20, 70, 70) };
            let (rows, k, outs) = (random.between(0, most.0), random.between(0, most.1), random.between(0, most.2));
            let (x, w) = (random.floats(rows * k), random.floats(outs * k));
            for float in KINDS {
                let mut y = vec![f32::NAN; rows * outs];
                packed(float, &w, outs, k).multiply(&x, &mut y);
                let x = seen(float, level, &x);
                let expected =
                    reference::product(rows, k, outs, |t, l| x[t * k + l], |l, o| stored(float, w[o * k + l]));
                close(&y, &expected, 6e-5, 1e-5, &format!("{float:?} {rows}x{k}x{outs} at {level}"));
            }
        }
    });
}

#[test]
fn a_row_alone_gives_the_bits_it_gives_in_a_batch() {
    each_level(|level| {
        let mut random = Random(2);
        for (k, outs) in [(64, 8), (101, 33), (1500, 70), (3072, 130), (600, 420)] {
            let rows = 300;
            let (x, w) = (random.floats(rows * k), random.floats(outs * k));
            for float in KINDS {
                let panels = packed(float, &w, outs, k);
                let mut together = vec![0.0; rows * outs];
                panels.multiply(&x, &mut together);
                for (start, len) in [(0, 1), (299, 1), (5, 2), (7, 3), (2, 9), (9, 16), (30, 17), (40, 33), (100, 150)]
                {
                    let mut apart = vec![0.0; len * outs];
                    panels.multiply(&x[start * k..(start + len) * k], &mut apart);
                    let what = format!("{float:?} {k}x{outs} rows {start}+{len} at {level}");
                    same(&apart, &together[start * outs..(start + len) * outs], &what);
                }
            }
        }
    });
}

#[test]
fn the_sum_is_one_chain_in_the_order_of_k() {
    each_level(|level| {
        let mut random = Random(3);
        let (rows, k, outs) = (19, 1111, 37);
        let (x, w) = (random.floats(rows * k), random.floats(outs * k));
        for float in KINDS {
            if float == Float::Bf16 && level >= Level::Avx512Bf16 {
                continue;
            }
            let mut y = vec![0.0; rows * outs];
            packed(float, &w, outs, k).multiply(&x, &mut y);
            let chain = |t: usize, o: usize| {
                (0..k).fold(0.0_f32, |sum, l| {
                    let (x, w) = (x[t * k + l], stored(float, w[o * k + l]));
                    if level == Level::Scalar { sum + x * w } else { x.mul_add(w, sum) }
                })
            };
            let expected: Vec<f32> = (0..rows * outs).map(|i| chain(i / outs, i % outs)).collect();
            same(&y, &expected, &format!("{float:?} at {level}"));
        }
    });
}

#[test]
fn products_in_tiles_sum_even_and_odd_k_of_32() {
    let run = || {
        let mut random = Random(6);
        for (rows, k, outs) in [(1, 32, 16), (3, 1, 1), (16, 64, 70), (17, 95, 16), (33, 1111, 37), (70, 1600, 33)] {
            let (x, w) = (random.floats(rows * k), random.floats(outs * k));
            let mut y = vec![f32::NAN; rows * outs];
            packed(Float::Bf16, &w, outs, k).multiply(&x, &mut y);
            let (x, w) =
                (seen(Float::Bf16, Level::Amx, &x), w.iter().map(|&w| stored(Float::Bf16, w)).collect::<Vec<_>>());
            let output = |t: usize, o: usize| {
                (0..k).step_by(32).fold(0.0_f32, |sum, first| {
                    let mut halves = [0.0_f32; 2];
                    for l in first..(first + 32).min(k) {
                        halves[l % 2] += x[t * k + l] * w[o * k + l];
                    }
                    sum + (halves[0] + halves[1])
                })
            };
            let expected: Vec<f32> = (0..rows * outs).map(|i| output(i / outs, i % outs)).collect();
            same(&y, &expected, &format!("{rows}x{k}x{outs}"));
        }
    };
    // Where there are no tiles, there is nothing to see.
    let _ = with_level(Level::Amx, run);
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut random = Random(4);
    let (k, outs) = (700, 1060);
    let w = random.floats(outs * k);
    for rows in [1, 3, 40, 400] {
        let x = random.floats(rows * k);
        for float in KINDS {
            let panels = packed(float, &w, outs, k);
            let run = |threads| {
                ernie_kernels::set_threads(threads);
                let mut y = vec![0.0; rows * outs];
                panels.multiply(&x, &mut y);
                y
            };
            let one = run(1);
            for threads in [2, 3, 7] {
                same(&run(threads), &one, "threads");
            }
        }
    }
}

#[test]
fn chunks_of_rows_pack_to_the_same_panels_and_rows_come_back() {
    each_level(|level| {
        let mut random = Random(5);
        for (outs, k) in [(1, 1), (16, 32), (37, 51), (50, 64), (130, 7)] {
            let w = random.floats(outs * k);
            for float in KINDS {
                let whole = packed(float, &w, outs, k);
                let bytes = bytes_of(float, &w);
                let size = bytes.len() / w.len();
                let (mut pieces, mut raw) = (Panels::zeros(float, outs, k), Panels::zeros(float, outs, k));
                let mut first = 0;
                while first < outs {
                    let end = (first + random.between(1, 40)).min(outs);
                    pieces.pack(first, &w[first * k..end * k]);
                    // At an odd address.
                    let mut shifted = vec![0_u8];
                    shifted.extend_from_slice(&bytes[first * k * size..end * k * size]);
                    raw.pack_stored(first, &shifted[1..]);
                    first = end;
                }
                let what = format!("{float:?} {outs}x{k} at {level}");
                assert_eq!(pieces.bytes(), whole.bytes(), "{what}");
                assert_eq!(raw.bytes(), whole.bytes(), "{what}");
                let mut row = vec![0.0; k];
                for o in 0..outs {
                    whole.widen_row(o, &mut row);
                    let expected: Vec<f32> = w[o * k..(o + 1) * k].iter().map(|&x| stored(float, x)).collect();
                    same(&row, &expected, &what);
                }
            }
        }
    });
}

#[test]
fn extreme_values_pass_through() {
    each_level(|level| {
        let k = 41;
        for (value, expected) in [(f32::INFINITY, f32::INFINITY), (f32::NAN, f32::NAN), (3e38, 3e38), (-0.0, 0.0)] {
            for rows in [1, 5, 30] {
                let mut x = vec![0.0; rows * k];
                let mut w = vec![0.0; 5 * k];
                for row in x.chunks_exact_mut(k) {
                    row[40] = 1.0;
                }
                w[40] = value;
                for float in KINDS {
                    if float == Float::F16 && value == 3e38 {
                        continue;
                    }
                    let mut y = vec![0.0; rows * 5];
                    packed(float, &w, 5, k).multiply(&x, &mut y);
                    for y in y.chunks_exact(5) {
                        same(
                            y,
                            &[stored(float, expected), 0.0, 0.0, 0.0, 0.0],
                            &format!("{value:e} {float:?} at {level}"),
                        );
                    }
                }
            }
        }
        // The smallest numbers are numbers too; pairs of bf16 alone may take them for zeros.
        let mut y = [0.0];
        packed(Float::F32, &[1e-44], 1, 1).multiply(&[1.0], &mut y);
        same(&y, &[1e-44], &format!("subnormal at {level}"));
    });
}
