//! Attention in bf16 against attention of the same numbers in 32 bits, gradients included.

mod common;

use std::ops::Range;

use common::{Random, each_level};
use ernie_kernels::attention::{self, Heads};
use ernie_kernels::floats::{FloatVec, Floats, Width};

fn rounded(x: &[f32]) -> FloatVec {
    Floats::F32(x).to_width(Width::Bf16)
}

fn room(n: usize) -> FloatVec {
    FloatVec::zeros(Width::Bf16, n)
}

fn spans(lengths: &[usize]) -> Vec<Range<usize>> {
    let mut end = 0;
    let mut span = |&n: &usize| {
        end += n;
        end - n..end
    };
    lengths.iter().map(&mut span).collect()
}

/// The difference is small beside the whole, and nowhere large.
#[track_caller]
fn near(got: &FloatVec, expected: &[f32], what: &str) {
    let got = got.view().to_vec();
    let length = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let whole = length(&mut expected.iter().copied());
    let apart = length(&mut got.iter().zip(expected).map(|(a, b)| a - b));
    // Each number is rounded by up to 2^-9 of itself, some twice.
    assert!(apart <= 0.006 * whole + 1e-6, "{what}: {apart} of {whole}");
    let largest = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 0.02 * largest + 1e-6, "{what}[{i}]: {a} and {b}");
    }
}

#[test]
fn rounded_attention_is_near_and_alike_alone() {
    let heads = |query_heads, kv_heads, head_dim| Heads { query_heads, kv_heads, head_dim };
    let cases: [(Heads, &[usize], Option<usize>); 8] = [
        (heads(1, 1, 1), &[1], None),
        (heads(4, 2, 16), &[5, 0, 1, 70], None),
        (heads(3, 3, 10), &[64, 65, 63], None),
        (heads(8, 1, 128), &[130], None),
        (heads(8, 2, 64), &[300, 257, 40], None),
        (heads(16, 2, 64), &[40, 33], Some(7)),
        (heads(2, 1, 24), &[600], Some(1)),
        (heads(2, 2, 20), &[700], Some(300)),
    ];
    each_level(|level| {
        let mut random = Random(60);
        for (heads, lengths, window) in cases {
            let what = format!("{heads:?} over {lengths:?}, window {window:?}, at {level}");
            let (rows, spans) = (lengths.iter().sum::<usize>(), spans(lengths));
            let (wide, narrow) = (heads.query_heads * heads.head_dim, heads.kv_heads * heads.head_dim);
            let mut make = |n: usize, scale: f32| {
                let x = rounded(&random.scaled(n, scale));
                let wide = x.view().to_vec();
                (x, wide)
            };
            let ((q, wq), (k, wk), (v, wv)) =
                (make(rows * wide, 2.0), make(rows * narrow, 2.0), make(rows * narrow, 1.0));
            let (d_out, w_d_out) = make(rows * wide, 1.0);
            let (mut out, mut lse) = (room(rows * wide), vec![0.0; rows * heads.query_heads]);
            let (mut w_out, mut w_lse) = (vec![0.0; rows * wide], lse.clone());
            attention::forward(&q, &k, &v, &heads, &spans, window, &mut out, &mut lse);
            attention::forward(&wq, &wk, &wv, &heads, &spans, window, &mut w_out, &mut w_lse);
            near(&out, &w_out, &format!("out of {what}"));
            for (a, b) in lse.iter().zip(&w_lse) {
                assert!((a - b).abs() < 1e-4 * (1.0 + b.abs()), "{a} {b} log sum of {what}");
            }

            let (mut dq, mut dk, mut dv) = (room(rows * wide), room(rows * narrow), room(rows * narrow));
            let (mut wdq, mut wdk, mut wdv) =
                (vec![0.0; rows * wide], vec![0.0; rows * narrow], vec![0.0; rows * narrow]);
            attention::backward(&q, &k, &v, &out, &lse, &d_out, &heads, &spans, window, &mut dq, &mut dk, &mut dv);
            attention::backward(
                &wq, &wk, &wv, &w_out, &w_lse, &w_d_out, &heads, &spans, window, &mut wdq, &mut wdk, &mut wdv,
            );
            near(&dv, &wdv, &format!("dv of {what}"));
            // Where a row sees one position its weight is one, and these gradients are what rounding leaves of zero.
            if window != Some(1) && rows > 1 {
                near(&dq, &wdq, &format!("dq of {what}"));
                near(&dk, &wdk, &format!("dk of {what}"));
            }

            // A sequence gets its bits alone.
            for span in spans.iter().filter(|span| !span.is_empty()) {
                let at = |width: usize| span.start * width..span.end * width;
                let (mut alone, mut lse) = (room(span.len() * wide), vec![0.0; span.len() * heads.query_heads]);
                let whole = vec![0..span.len(); 1];
                attention::forward(
                    q.view().part(at(wide)),
                    k.view().part(at(narrow)),
                    v.view().part(at(narrow)),
                    &heads,
                    &whole,
                    window,
                    &mut alone,
                    &mut lse,
                );
                assert_eq!(alone.view().to_vec(), out.view().part(at(wide)).to_vec(), "alone: {what}");
            }
        }
    });
}
