//! Products in bf16, of every orientation and width of their sides, at every level.

mod common;

use common::{Random, each_level};
use ernie_kernels::floats::{FloatVec, Floats, FloatsMut, Width, bf16};
use ernie_kernels::gemm::brains;
use proptest::prelude::*;

type Product = fn(Floats<'_>, Floats<'_>, FloatsMut<'_>, usize, usize, usize, bool);

fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect()
}

fn transposed(x: &[f32], rows: usize) -> Vec<f32> {
    let columns = x.len() / rows.max(1);
    (0..columns).flat_map(|j| (0..rows).map(move |i| x[i * columns + j])).collect()
}

/// The product of rounded numbers, and what rounding of sums may change of it.
fn exact(a: &[f32], b: &[f32], m: usize, k: usize, n: usize) -> Vec<(f64, f64)> {
    let (a, b) = (rounded(a), rounded(b));
    let mut out = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            let terms = (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j]));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
            out.push((sum, size * (k as f64 + 3.0) * 2.0_f64.powi(-24)));
        }
    }
    out
}

fn within(got: &[f32], expected: &[(f64, f64)], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (&got, &(sum, slack))) in got.iter().zip(expected).enumerate() {
        assert!((f64::from(got) - sum).abs() <= slack + 1e-30, "{what}[{i}]: {got}, expected {sum} within {slack}");
    }
}

fn sizes() -> impl Strategy<Value = (usize, usize, usize)> {
    let size = prop_oneof![1_usize..20, 20_usize..90, Just(256), Just(300)];
    (size.clone(), prop_oneof![size.clone(), 500_usize..1100], size)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn products_are_those_of_rounded_numbers((m, k, n) in sizes(), seed in any::<u64>()) {
        let mut random = Random(seed);
        let (a, b, before) = (random.floats(m * k), random.floats(k * n), random.floats(m * n));
        let expected = exact(&a, &b, m, k, n);
        let (at, bt) = (transposed(&a, m), transposed(&b, k));
        let ways: [(&str, Product, &[f32], &[f32]); 3] =
            [("nn", brains::nn, &a, &b), ("nt", brains::nt, &a, &bt), ("tn", brains::tn, &at, &b)];
        each_level(|level| {
            for (name, product, a, b) in ways {
                let what = format!("{name} {m}x{k}x{n} at {level}");
                let (narrow_a, narrow_b) = (Floats::F32(a).to_width(Width::Bf16), Floats::F32(b).to_width(Width::Bf16));
                let mut whole = vec![f32::NAN; m * n];
                product(Floats::F32(a), Floats::F32(b), FloatsMut::F32(&mut whole), m, k, n, false);
                within(&whole, &expected, &what);

                // Sides that were rounded before give the same bits.
                for (a, b) in [(Floats::F32(a), narrow_b.view()), (narrow_a.view(), Floats::F32(b)), (narrow_a.view(), narrow_b.view())] {
                    let mut c = vec![f32::NAN; m * n];
                    product(a, b, FloatsMut::F32(&mut c), m, k, n, false);
                    assert_eq!(c, whole, "{what} from bf16");
                }
                // A rounded result is the result, rounded.
                let mut narrow = FloatVec::zeros(Width::Bf16, m * n);
                product(Floats::F32(a), Floats::F32(b), narrow.view_mut(), m, k, n, false);
                assert_eq!(narrow.view().to_vec(), rounded(&whole), "{what} to bf16");

                let mut added = before.clone();
                product(Floats::F32(a), Floats::F32(b), FloatsMut::F32(&mut added), m, k, n, true);
                let expected: Vec<_> = expected.iter().zip(&before)
                    .map(|(&(sum, slack), &b)| (sum + f64::from(b), slack * 2.0 + 1e-6 * f64::from(b.abs())))
                    .collect();
                within(&added, &expected, &format!("{what} added"));
            }
            // A row has its bits alone.
            let row = seed as usize % m;
            let mut whole = vec![0.0; m * n];
            brains::nt(Floats::F32(&a), Floats::F32(&bt), FloatsMut::F32(&mut whole), m, k, n, false);
            let mut alone = vec![0.0; n];
            let one = Floats::F32(&a[row * k..][..k]);
            brains::nt(one, Floats::F32(&bt), FloatsMut::F32(&mut alone), 1, k, n, false);
            assert_eq!(alone, whole[row * n..][..n], "row {row} of {m}x{k}x{n} at {level}");
        });
    }
}

#[test]
fn nothing_to_sum_is_zero_and_nothing_to_write_is_fine() {
    each_level(|_| {
        let mut c = vec![f32::NAN; 6];
        brains::nn(Floats::F32(&[]), Floats::F32(&[]), FloatsMut::F32(&mut c), 2, 0, 3, false);
        assert_eq!(c, [0.0; 6]);
        brains::nn(Floats::F32(&[1.0; 4]), Floats::F32(&[]), FloatsMut::F32(&mut []), 2, 2, 0, false);
    });
}

/// A copy of `x` that begins with a cache line, or two bytes behind one.
fn placed<'a>(x: &[f32], aside: bool, memory: &'a mut Vec<bf16>) -> &'a [bf16] {
    memory.clear();
    memory.resize(x.len() + 64, bf16::ZERO);
    let start = (0..32).find(|&i| memory[i..].as_ptr().align_offset(64) == 0).unwrap() + usize::from(aside);
    for (to, &x) in memory[start..].iter_mut().zip(x) {
        *to = bf16::from_f32(x);
    }
    &memory[start..start + x.len()]
}

#[test]
fn rows_that_are_multiplied_as_they_lie_give_the_bits_of_packed_ones() {
    let mut random = Random(7);
    // Whole lines and half ones, rows 4 KiB apart, rows that end within a tile, more rows and more of `k` than go through at a time.
    for [m, k, n] in
        [[16, 32, 16], [15, 64, 20], [77, 96, 50], [40, 80, 33], [300, 1056, 40], [530, 512, 70], [35, 2048, 18]]
    {
        let (a, b) = (random.floats(m * k), random.floats(n * k));
        let (mut near, mut far) = (Vec::new(), Vec::new());
        let (lying, aside) = (placed(&a, false, &mut near), placed(&a, true, &mut far));
        each_level(|level| {
            let results = [lying, aside].map(|a| {
                let (mut wide, mut narrow) = (vec![f32::NAN; m * n], FloatVec::zeros(Width::Bf16, m * n));
                brains::nt(Floats::Bf16(a), Floats::F32(&b), FloatsMut::F32(&mut wide), m, k, n, false);
                brains::nt(Floats::Bf16(a), Floats::F32(&b), narrow.view_mut(), m, k, n, false);
                (wide, narrow.view().to_vec())
            });
            assert_eq!(results[0], results[1], "{m}x{k}x{n} at {level}");
            assert_eq!(results[0].1, rounded(&results[0].0), "{m}x{k}x{n} to bf16 at {level}");
        });
    }
}
