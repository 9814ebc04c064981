//! AdamW with moments in bf16: the step of its twin, roundings that are right on average, and draws that nothing else moves.

mod common;

use common::{Random, each_level};
use ernie_kernels::adamw::{AdamW, step, step_rounding};
use ernie_kernels::floats::bf16;
use ernie_kernels::{reference, set_threads};

const HYPER: AdamW = AdamW { lr: 3e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };

fn narrow(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|&x| bf16::from_f32(x)).collect()
}

fn wide(x: &[bf16]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

#[test]
fn moments_in_bf16_follow_the_twin() {
    each_level(|level| {
        let mut random = Random(41);
        let n = 40_001;
        let mut w = random.floats(n);
        let (mut m, mut v) = (vec![bf16::ZERO; n], vec![bf16::ZERO; n]);
        for number in 1..=4_u64 {
            let mut g = random.floats(n);
            g[7] = 0.0;
            let twin = reference::adamw_rounding([&w, &g, &wide(&m), &wide(&v)], &HYPER, number as i32, 0.5, number);
            step_rounding(&mut w, &g, &mut m, &mut v, &HYPER, number, 0.5, number);
            let mut apart = 0;
            for (at, [tw, tm, tv]) in twin.into_iter().enumerate() {
                assert!(
                    (w[at] - tw).abs() <= 2e-6 + 1e-6 * tw.abs(),
                    "weight {at} is {}, expected {tw} at {level}",
                    w[at]
                );
                for (kept, twin) in [(m[at].to_f32(), tm), (v[at].to_f32(), tv)] {
                    // The last bit of a float may tip a draw: then it is the other neighbour.
                    assert!(
                        (kept - twin).abs() <= twin.abs() / 64.0 + 1e-30,
                        "moment {at}: {kept}, expected {twin} at {level}"
                    );
                    apart += usize::from(kept != twin);
                }
            }
            assert!(apart < n / 500, "{apart} of {n} moments at {level}");
        }
    });
}

#[test]
fn roundings_are_right_on_average_and_leave_what_is_exact() {
    each_level(|level| {
        // Gradients of one value: the moments are one value too, of which the mean of many roundings must be near.
        let n = 1 << 18;
        for value in [0.3_f32, -1.7e-5, 1.0 / 3.0, 5.1e7] {
            let gradient = vec![value; n];
            let (mut w, mut m, mut v) = (vec![0.0; n], vec![bf16::ZERO; n], vec![bf16::ZERO; n]);
            step_rounding(&mut w, &gradient, &mut m, &mut v, &HYPER, 1, 1.0, 77);
            let value = f64::from(value);
            let expected = [(1.0 - HYPER.beta1) * value, (1.0 - HYPER.beta2) * value * value];
            for (kept, expected) in [wide(&m), wide(&v)].iter().zip(expected) {
                let values = kept.iter().map(|&x| f64::from(x));
                let mean = values.clone().sum::<f64>() / n as f64;
                let spread = values.map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
                // Five standard errors, and the rounding of f32 before it.
                let within = 5.0 * (spread / n as f64).sqrt() + 3e-7 * expected.abs();
                assert!((mean - expected).abs() <= within, "{mean} for {expected} at {level}");
                let mut neighbours = kept.clone();
                neighbours.sort_by(f32::total_cmp);
                neighbours.dedup();
                assert!(neighbours.len() <= 2, "{neighbours:?}");
            }
        }
        // Nothing to round is not rounded, and what is no number stays none.
        let (mut w, mut m, mut v) = (vec![0.0; 3], narrow(&[1.5, -2.0, 0.0]), narrow(&[4.0, 0.5, 0.0]));
        let still = AdamW { beta1: 0.0, beta2: 0.0, ..HYPER };
        step_rounding(&mut w, &[1.5, f32::NAN, f32::INFINITY], &mut m, &mut v, &still, 1, 1.0, 5);
        assert_eq!((m[0].to_f32(), v[0].to_f32()), (1.5, 2.25));
        assert!(m[1].is_nan() && v[1].is_nan() && m[2] == bf16::INFINITY && v[2] == bf16::INFINITY);
    });
}

#[test]
fn a_slow_second_moment_does_not_stand_still() {
    let slow = AdamW { beta2: 0.999, lr: 0.0, ..HYPER };
    let n = 4096;
    let (mut w, mut m, mut v) = (vec![0.0; n], vec![bf16::ZERO; n], vec![bf16::ONE; n]);
    let (mut wm, mut wv) = (vec![0.0; n], vec![1.0; n]);
    for number in 1..=1500 {
        step_rounding(&mut w, &vec![0.0; n], &mut m, &mut v, &slow, number, 1.0, number);
        step(&mut vec![0.0; n], &vec![0.0; n], &mut wm, &mut wv, &slow, number, 1.0);
    }
    // Rounded to the nearest it would be 1 for ever.
    let mean = wide(&v).iter().sum::<f32>() / n as f32;
    assert!((mean / wv[0] - 1.0).abs() < 0.01, "{mean} for {}", wv[0]);
}

#[test]
fn draws_depend_on_the_key_and_the_place_alone() {
    let n = 70_000;
    let run = |key: u64, n: usize| {
        let gradient = vec![0.3; n];
        let (mut w, mut m, mut v) = (vec![0.0; n], vec![bf16::ZERO; n], vec![bf16::ZERO; n]);
        step_rounding(&mut w, &gradient, &mut m, &mut v, &HYPER, 1, 1.0, key);
        (m, v)
    };
    let whole = run(1, n);
    set_threads(1);
    let alone = run(1, n);
    set_threads(0);
    assert!(whole == alone && whole != run(2, n));
    let short = run(1, 50_001);
    assert!(whole.0[..50_001] == short.0[..] && whole.1[..50_001] == short.1[..]);
    // Neither moment's draws are the other's, and those of one piece are not those of the next.
    let ups = |x: &[bf16]| {
        let most = x.iter().fold(f32::MIN, |most, x| most.max(x.to_f32()));
        x.iter().map(|x| x.to_f32() == most).collect::<Vec<_>>()
    };
    let (first, second) = (ups(&whole.0), ups(&whole.1));
    let share = |a: &[bool], b: &[bool]| a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64;
    let chance = |a: &[bool], b: &[bool]| {
        let p = |x: &[bool]| x.iter().filter(|x| **x).count() as f64 / x.len() as f64;
        p(a) * p(b) + (1.0 - p(a)) * (1.0 - p(b))
    };
    for (a, b) in
        [(&first[..], &second[..]), (&first[..16_384], &first[16_384..32_768]), (&first[1..], &first[..n - 1])]
    {
        assert!((share(a, b) - chance(a, b)).abs() < 0.02, "{} by chance {}", share(a, b), chance(a, b));
    }
}
