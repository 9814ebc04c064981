//! Kernels over bf16 compute what they compute over these numbers in 32 bits, rounded: bit for bit, at every level.

mod common;

use common::{Random, each_level};
use ernie_kernels::floats::{FloatVec, Floats, Width};
use ernie_kernels::{elementwise, experts, norm, rope, swiglu};

/// Numbers in bf16, and the same in 32 bits.
fn both(random: &mut Random, n: usize) -> (FloatVec, Vec<f32>) {
    let narrow = Floats::F32(&random.scaled(n, 3.0)).to_width(Width::Bf16);
    let wide = narrow.view().to_vec();
    (narrow, wide)
}

fn rounded(x: &[f32]) -> FloatVec {
    Floats::F32(x).to_width(Width::Bf16)
}

fn room(n: usize) -> FloatVec {
    FloatVec::zeros(Width::Bf16, n)
}

#[test]
fn widening_and_rounding() {
    each_level(|level| {
        let x = Random(40).scaled(40_001, 1e3);
        let narrow = rounded(&x);
        let expected: Vec<f32> = x.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
        assert_eq!(narrow.view().to_vec(), expected, "at {level}");
        assert_eq!((narrow.len(), narrow.view().width(), narrow.view().part(3..5).len()), (x.len(), Width::Bf16, 2));
    });
}

#[test]
fn sums_and_gates() {
    each_level(|level| {
        let mut random = Random(41);
        for n in [0, 1, 2047, 2049, 50_000] {
            let ((a, wa), (b, wb), (d, wd)) = (both(&mut random, n), both(&mut random, n), both(&mut random, n));
            let (mut c, mut sum) = (vec![f32::NAN; n], room(n));
            elementwise::add(&wa, &b, &mut c);
            assert_eq!(c, elementwise::sum(&wa, &wb), "mixed sum at {level}");
            elementwise::add(&a, &b, &mut sum);
            assert_eq!(sum, rounded(&c), "sum at {level}");

            let mut y = room(n);
            swiglu::forward(&a, &b, &mut y);
            assert_eq!(y, rounded(&swiglu::product(&wa, &wb)), "swiglu at {level}");
            let (mut dg, mut du, mut wdg, mut wdu) = (room(n), room(n), vec![0.0; n], vec![0.0; n]);
            swiglu::backward(&a, &b, &d, &mut dg, &mut du);
            swiglu::backward(&wa, &wb, &wd, &mut wdg, &mut wdu);
            assert_eq!((dg, du), (rounded(&wdg), rounded(&wdu)), "gradients of swiglu at {level}");
        }
    });
}

#[test]
fn norms_and_turns() {
    each_level(|level| {
        let mut random = Random(42);
        for (rows, heads, d) in [(0, 2, 8), (1, 1, 6), (150, 3, 16), (3, 8, 64)] {
            let width = heads * d;
            let (x, w) = (random.floats(rows * width), random.floats(width));
            let (mut y, mut r, mut wide, mut wide_r) =
                (room(x.len()), vec![0.0; rows], vec![0.0; x.len()], vec![0.0; rows]);
            norm::forward(&x, &w, 1e-5, &mut y, &mut r);
            norm::forward(&x, &w, 1e-5, &mut wide, &mut wide_r);
            assert_eq!((&y, &r), (&rounded(&wide), &wide_r), "norm at {level}");
            let (dy, wide_dy) = both(&mut random, x.len());
            let (mut dx, mut dw, mut wide_dx, mut wide_dw) =
                (vec![0.0; x.len()], vec![0.0; width], vec![0.0; x.len()], vec![0.0; width]);
            norm::backward(&x, &w, &r, &dy, &mut dx, &mut dw);
            norm::backward(&x, &w, &r, &wide_dy, &mut wide_dx, &mut wide_dw);
            assert_eq!((dx, dw), (wide_dx, wide_dw), "gradient of norm at {level}");

            let table = rope::Table::new(1e4, d, rows.max(1));
            let positions: Vec<u32> = (0..rows as u32).rev().collect();
            let (mut turned, mut wide_turned) = (room(x.len()), vec![0.0; x.len()]);
            rope::forward(&dy, &mut turned, &positions, heads, &table);
            rope::forward(&wide_dy, &mut wide_turned, &positions, heads, &table);
            assert_eq!(turned, rounded(&wide_turned), "rope at {level}");
            rope::backward(&dy, &mut turned, &positions, heads, &table);
            rope::backward(&wide_dy, &mut wide_turned, &positions, heads, &table);
            assert_eq!(turned, rounded(&wide_turned), "gradient of rope at {level}");
        }
    });
}

#[test]
fn rows_of_experts() {
    let mut random = Random(43);
    let (tokens, width, k) = (37, 24, 2);
    let indices: Vec<u32> = (0..tokens * k).map(|i| (i * 7 % 5) as u32).collect();
    let order = experts::Order::new(&indices, 5, k);
    let (x, wide) = both(&mut random, tokens * width);
    let (mut sorted, mut widened, mut wide_sorted) =
        (room(tokens * k * width), vec![0.0; tokens * k * width], vec![0.0; tokens * k * width]);
    experts::gather(&x, width, &order, &mut sorted);
    experts::gather(&x, width, &order, &mut widened);
    experts::gather(&wide, width, &order, &mut wide_sorted);
    assert_eq!((&sorted, &widened), (&rounded(&wide_sorted), &wide_sorted));
    let weights = random.floats(tokens * k);
    let (mut back, mut wide_back) = (vec![0.0; wide.len()], vec![0.0; wide.len()]);
    experts::combine(&sorted, Some(&weights), width, &order, &mut back);
    experts::combine(&wide_sorted, Some(&weights), width, &order, &mut wide_back);
    assert_eq!(back, wide_back);
}
