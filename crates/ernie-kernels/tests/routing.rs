//! Choosing experts, moving rows to them and back.

mod common;

use common::{Random, close, each_level, same};
use ernie_kernels::experts::{self, Order};
use ernie_kernels::{reference, route, softmax};
use proptest::prelude::*;

struct Routed {
    probs: Vec<f32>,
    indices: Vec<u32>,
    weights: Vec<f32>,
}

fn routed(logits: &[f32], bias: Option<&[f32]>, experts: usize, k: usize, norm_min: f32) -> Routed {
    let rows = logits.len() / experts;
    let mut r = Routed { probs: vec![0.0; logits.len()], indices: vec![0; rows * k], weights: vec![0.0; rows * k] };
    route::top_k(logits, bias, experts, k, norm_min, &mut r.probs, &mut r.indices, &mut r.weights);
    r
}

#[test]
fn the_bias_chooses_and_the_probabilities_weigh() {
    each_level(|_| {
        let logits = [0.0_f32, 1.0, 2.0, 3.0];
        let bias = [10.0, 0.0, 0.0, 0.0];
        let r = routed(&logits, Some(&bias), 4, 2, 1e-12);
        assert_eq!(r.indices, [0, 3]);
        let p = reference::softmax(&logits, 4);
        close(&r.weights, &[p[0] / (p[0] + p[3]), p[3] / (p[0] + p[3])], 1e-6, 0.0, "weights");
    });
}

#[test]
fn ties_go_to_the_lower_index() {
    assert_eq!(routed(&[1.0; 7], None, 7, 3, 1e-12).indices, [0, 1, 2]);
    assert_eq!(routed(&[0.0, 2.0, 1.0, 2.0, 1.0], None, 5, 4, 1e-12).indices, [1, 3, 2, 4]);
}

#[test]
fn the_floor_of_the_sum_holds() {
    let r = routed(&[0.0, 100.0], Some(&[2.0, 0.0]), 2, 1, 0.5);
    assert_eq!((r.indices[0], r.weights[0]), (0, r.probs[0] / 0.5));
}

#[test]
fn a_row_of_nan_still_names_distinct_experts() {
    let r = routed(&[f32::NAN; 5], None, 5, 5, 1e-12);
    assert_eq!(r.indices, [0, 1, 2, 3, 4]);
    assert!(r.weights.iter().all(|w| w.is_nan()));
}

#[test]
fn weight_gradients_agree_with_differences() {
    let mut random = Random(41);
    let (experts, k) = (6, 3);
    let logits = random.scaled(experts, 2.0);
    let d_weights = random.floats(k);
    for norm_min in [1e-12, 5.0] {
        let r = routed(&logits, None, experts, k, norm_min);
        let mut d = vec![0.0; experts];
        route::weights_backward(&r.probs, &r.indices, &d_weights, experts, k, norm_min, &mut d);
        softmax::backward(&r.probs, &mut d, experts);
        for i in 0..experts {
            let at = |x: f32| {
                let mut moved = logits.clone();
                moved[i] = x;
                let r = routed(&moved, None, experts, k, norm_min);
                r.weights.iter().zip(&d_weights).map(|(w, d)| f64::from(w * d)).sum::<f64>()
            };
            let slope = (at(logits[i] + 1e-2) - at(logits[i] - 1e-2)) / 2e-2;
            assert!((f64::from(d[i]) - slope).abs() < 1e-3, "{i}: {} {slope}", d[i]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn choices_are_the_sorted_ones(logits in prop::collection::vec(prop_oneof![-3.0..3.0_f32, Just(0.5_f32)], 1..40), k in 1_usize..8) {
        let experts = logits.len();
        let k = k.min(experts);
        let r = routed(&logits, None, experts, k, 1e-12);
        let mut all: Vec<u32> = (0..experts as u32).collect();
        all.sort_by(|&a, &b| r.probs[b as usize].total_cmp(&r.probs[a as usize]).then(a.cmp(&b)));
        prop_assert_eq!(&r.indices[..], &all[..k]);
        prop_assert!((r.weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn sorting_is_a_stable_permutation(choices in prop::collection::vec(0_u32..9, 0..60)) {
        let k = 3;
        let choices = &choices[..choices.len() / k * k];
        let order = Order::new(choices, 9, k);
        prop_assert_eq!(order.offsets[9], choices.len());
        prop_assert_eq!(order.counts().sum::<usize>(), choices.len());
        for expert in 0..9 {
            let rows = &order.pairs[order.rows(expert)];
            prop_assert!(rows.iter().all(|&pair| choices[pair as usize] == expert as u32));
            prop_assert!(rows.windows(2).all(|w| w[0] < w[1]));
        }
        for (pair, &place) in order.places.iter().enumerate() {
            prop_assert_eq!(order.pairs[place as usize] as usize, pair);
        }
    }
}

#[test]
fn rows_go_out_and_come_back() {
    each_level(|level| {
        let mut random = Random(42);
        for (tokens, experts, k, width) in [(0, 4, 2, 8), (1, 1, 1, 1), (37, 5, 2, 19), (9, 64, 6, 128)] {
            let logits = random.floats(tokens * experts);
            let r = routed(&logits, None, experts, k, 1e-12);
            let order = Order::new(&r.indices, experts, k);
            let x = random.floats(tokens * width);
            let mut sorted = vec![f32::NAN; tokens * k * width];
            experts::gather(&x, width, &order, &mut sorted);
            // Each expert's "output" is its input, so combining gives the weighted sum of copies: the row itself.
            let mut back = vec![0.0; x.len()];
            experts::combine(&sorted, Some(&r.weights), width, &order, &mut back);
            close(&back, &x, 1e-6, 1e-6, &format!("combine at {level}"));
            let mut ones = vec![0.0; x.len()];
            experts::combine(&sorted, None, width, &order, &mut ones);
            close(&ones, &x.iter().map(|x| x * k as f32).collect::<Vec<_>>(), 1e-6, 1e-6, "gradient of gather");

            let d_out = random.floats(x.len());
            let y = random.floats(sorted.len());
            let (mut dy, mut dw) = (vec![f32::NAN; y.len()], vec![f32::NAN; tokens * k]);
            experts::combine_backward(&d_out, &y, &r.weights, width, &order, &mut dy, &mut dw);
            for (pair, &w) in r.weights.iter().enumerate() {
                let place = order.places[pair] as usize * width..(order.places[pair] as usize + 1) * width;
                let d_row = &d_out[pair / k * width..][..width];
                same(&dy[place.clone()], &d_row.iter().map(|d| d * w).collect::<Vec<_>>(), "dy");
                let dot: f64 = y[place].iter().zip(d_row).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                assert!((f64::from(dw[pair]) - dot).abs() < 1e-5);
            }
        }
    });
}
