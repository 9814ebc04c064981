//! Attention against its twin, over caches in every chunking, and its gradients.

mod common;

use std::ops::Range;

use common::{Random, close, each_level, same};
use ernie_kernels::attention::{self, Heads, Span};
use ernie_kernels::{reference, set_threads};

struct Case {
    heads: Heads,
    spans: Vec<Range<usize>>,
    window: Option<usize>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn case(random: &mut Random, heads: Heads, lengths: &[usize], window: Option<usize>) -> Case {
    let rows: usize = lengths.iter().sum();
    let mut start = 0;
    let spans = lengths
        .iter()
        .map(|&n| {
            start += n;
            start - n..start
        })
        .collect();
    let (d, h, g) = (heads.head_dim, heads.query_heads, heads.kv_heads);
    Case {
        heads,
        spans,
        window,
        q: random.scaled(rows * h * d, 3.0),
        k: random.scaled(rows * g * d, 3.0),
        v: random.floats(rows * g * d),
    }
}

fn cases() -> Vec<Case> {
    let mut random = Random(11);
    let heads = |query_heads, kv_heads, head_dim| Heads { query_heads, kv_heads, head_dim };
    let mut cases = vec![
        case(&mut random, heads(1, 1, 1), &[1], None),
        case(&mut random, heads(4, 2, 16), &[5, 0, 1, 70], None),
        case(&mut random, heads(3, 3, 10), &[64, 65, 63], None),
        case(&mut random, heads(8, 1, 128), &[130], None),
        case(&mut random, heads(16, 2, 64), &[40, 33], Some(7)),
        case(&mut random, heads(2, 1, 24), &[200], Some(1)),
        case(&mut random, heads(2, 2, 20), &[150], Some(64)),
    ];
    // Large scores: the softmax is nearly one-hot and must not overflow.
    let mut sharp = case(&mut random, heads(2, 1, 8), &[90], None);
    sharp.q.iter_mut().for_each(|x| *x *= 300.0);
    cases.push(sharp);
    cases
}

fn forward(c: &Case) -> (Vec<f32>, Vec<f32>) {
    let mut out = vec![f32::NAN; c.q.len()];
    let mut lse = vec![f32::NAN; c.q.len() / c.heads.head_dim];
    attention::forward(&c.q, &c.k, &c.v, &c.heads, &c.spans, c.window, &mut out, &mut lse);
    (out, lse)
}

#[test]
fn forward_matches_the_twin() {
    each_level(|level| {
        for (i, c) in cases().iter().enumerate() {
            let (out, lse) = forward(c);
            let (expected, expected_lse) = reference::attention(&c.q, &c.k, &c.v, &c.heads, &c.spans, c.window);
            // The sharp case has scores in the hundreds, whose rounding alone moves probabilities by 1e-4.
            let tolerance = if i == 7 { 2e-3 } else { 3e-6 };
            close(&out, &expected, tolerance, 1e-5, &format!("case {i} at {level}"));
            close(&lse, &expected_lse, 1e-5, 1e-5, &format!("lse, case {i} at {level}"));
        }
    });
}

#[test]
fn backward_matches_the_twin() {
    each_level(|level| {
        for (i, c) in cases().iter().enumerate().filter(|(i, _)| *i != 7) {
            let (out, lse) = forward(c);
            let d_out = Random(i as u64).floats(c.q.len());
            let (mut dq, mut dk, mut dv) =
                (vec![f32::NAN; c.q.len()], vec![f32::NAN; c.k.len()], vec![f32::NAN; c.v.len()]);
            attention::backward(
                &c.q, &c.k, &c.v, &out, &lse, &d_out, &c.heads, &c.spans, c.window, &mut dq, &mut dk, &mut dv,
            );
            let (eq, ek, ev) = reference::attention_backward(&c.q, &c.k, &c.v, &d_out, &c.heads, &c.spans, c.window);
            close(&dq, &eq, 3e-5, 3e-5, &format!("dq, case {i} at {level}"));
            close(&dk, &ek, 6e-5, 3e-5, &format!("dk, case {i} at {level}"));
            close(&dv, &ev, 6e-5, 3e-5, &format!("dv, case {i} at {level}"));
        }
    });
}

#[test]
fn whole_chunked_and_one_by_one_give_the_same_bits() {
    each_level(|level| {
        let mut random = Random(12);
        for (query_heads, kv_heads, head_dim, window) in
            [(8, 2, 32, None), (4, 4, 20, None), (16, 2, 128, None), (4, 1, 16, Some(50))]
        {
            let heads = Heads { query_heads, kv_heads, head_dim };
            let n = 150;
            let c = case(&mut random, heads, &[n], window);
            let (whole, _) = forward(&c);
            let width = query_heads * head_dim;
            for chunk in [1, 3, 64, 100] {
                let mut pieces = vec![0.0; c.q.len()];
                for start in (0..n).step_by(chunk) {
                    let end = (start + chunk).min(n);
                    // The cache holds what is past and the chunk itself, and beyond that rubbish that must not be read.
                    let mut k = c.k[..end * kv_heads * head_dim].to_vec();
                    let mut v = c.v[..end * kv_heads * head_dim].to_vec();
                    k.extend([f32::NAN; 1000]);
                    v.extend([f32::NAN; 1000]);
                    let span = Span { rows: 0..end - start, past: start, k: &k, v: &v };
                    let (q, out) = (&c.q[start * width..end * width], &mut pieces[start * width..end * width]);
                    attention::forward_cached(q, &heads, &[span], window, out, None);
                }
                same(&pieces, &whole, &format!("chunks of {chunk}, {query_heads}:{kv_heads} at {level}"));
            }
        }
    });
}

#[test]
fn company_does_not_matter() {
    let mut random = Random(13);
    let heads = Heads { query_heads: 4, kv_heads: 2, head_dim: 16 };
    let c = case(&mut random, heads, &[33, 71, 8], None);
    let (together, _) = forward(&c);
    for span in &c.spans {
        let (wide, narrow) = (64, 32);
        let (q, k, v) = (
            &c.q[span.start * wide..span.end * wide],
            &c.k[span.start * narrow..span.end * narrow],
            &c.v[span.start * narrow..span.end * narrow],
        );
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; span.len() * 4]);
        attention::forward(q, k, v, &heads, std::slice::from_ref(&(0..span.len())), None, &mut out, &mut lse);
        same(&out, &together[span.start * wide..span.end * wide], "alone");
    }
}

#[test]
#[should_panic(expected = "overlaps")]
fn overlapping_spans_are_refused() {
    let heads = Heads { query_heads: 1, kv_heads: 1, head_dim: 2 };
    let zeros = vec![0.0; 8];
    attention::forward(&zeros, &zeros, &zeros, &heads, &[0..3, 2..4], None, &mut vec![0.0; 8], &mut [0.0; 4]);
}

#[test]
fn threads_do_not_change_a_bit() {
    let c = &cases()[1];
    let run = |threads| {
        set_threads(threads);
        let (out, lse) = forward(c);
        let (mut dq, mut dk, mut dv) = (vec![0.0; c.q.len()], vec![0.0; c.k.len()], vec![0.0; c.v.len()]);
        attention::backward(
            &c.q, &c.k, &c.v, &out, &lse, &c.q, &c.heads, &c.spans, c.window, &mut dq, &mut dk, &mut dv,
        );
        [out, lse, dq, dk, dv].concat()
    };
    let one = run(1);
    same(&run(2), &one, "two threads");
    same(&run(5), &one, "five threads");
}
