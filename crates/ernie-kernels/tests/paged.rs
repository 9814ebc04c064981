//! Attention over pages: against its twin in every format, against the contiguous kernel, and the same bits in any cut.

mod common;

use std::ops::Range;

use common::{Random, close, each_level, same};
use ernie_kernels::attention::paged::{self, CacheFormat, PAGE, Span, Write};
use ernie_kernels::attention::{self, Heads};
use ernie_kernels::{Level, level, reference, set_threads};
use proptest::prelude::*;

const FORMATS: [CacheFormat; 3] = [CacheFormat::F32, CacheFormat::Bf16, CacheFormat::Int8];

/// A sequence of keys and values in pages that start full of NaN, or as near as the format comes.
struct Sequence {
    heads: Heads,
    format: CacheFormat,
    pages: Vec<Vec<u8>>,
}

impl Sequence {
    fn new(heads: Heads, format: CacheFormat) -> Self {
        Sequence { heads, format, pages: Vec::new() }
    }

    fn write(&mut self, past: usize, k: &[f32], v: &[f32]) {
        let n = k.len() / (self.heads.kv_heads * self.heads.head_dim);
        let pages = (past + n).div_ceil(PAGE);
        self.pages.resize(pages, vec![0xFF; paged::page_bytes(&self.heads, self.format)]);
        let mut writes: Vec<Write<'_>> = (self.pages.iter_mut().enumerate())
            .filter(|(i, _)| (i + 1) * PAGE > past)
            .map(|(i, page)| {
                let first = (i * PAGE).max(past);
                let end = ((i + 1) * PAGE).min(past + n);
                Write { page, first: first % PAGE, rows: first - past..end.max(first) - past }
            })
            .collect();
        paged::write(k, v, &self.heads, self.format, &mut writes);
    }

    fn attend(&self, q: &[f32], past: usize, window: Option<usize>) -> Vec<f32> {
        let pages: Vec<&[u8]> = self.pages.iter().map(Vec::as_slice).collect();
        let rows = q.len() / (self.heads.query_heads * self.heads.head_dim);
        let mut out = vec![f32::NAN; q.len()];
        let span = Span { rows: 0..rows, past, pages: &pages };
        paged::forward(q, &self.heads, self.format, &[span], window, &mut out);
        out
    }
}

struct Case {
    heads: Heads,
    n: usize,
    window: Option<usize>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    fn new(
        seed: u64,
        (query_heads, kv_heads, head_dim): (usize, usize, usize),
        n: usize,
        window: Option<usize>,
    ) -> Self {
        let mut random = Random(seed);
        let heads = Heads { query_heads, kv_heads, head_dim };
        Case {
            heads,
            n,
            window,
            q: random.scaled(n * query_heads * head_dim, 3.0),
            k: random.scaled(n * kv_heads * head_dim, 3.0),
            v: random.floats(n * kv_heads * head_dim),
        }
    }

    fn q(&self, rows: Range<usize>) -> &[f32] {
        let width = self.heads.query_heads * self.heads.head_dim;
        &self.q[rows.start * width..rows.end * width]
    }

    fn kv(&self, rows: Range<usize>) -> (&[f32], &[f32]) {
        let width = self.heads.kv_heads * self.heads.head_dim;
        let range = rows.start * width..rows.end * width;
        (&self.k[range.clone()], &self.v[range])
    }

    /// Prefill in one piece.
    fn whole(&self, format: CacheFormat) -> Vec<f32> {
        let mut sequence = Sequence::new(self.heads, format);
        let (k, v) = self.kv(0..self.n);
        sequence.write(0, k, v);
        sequence.attend(&self.q, 0, self.window)
    }

    /// The same rows in chunks of these lengths, the last of them again and again.
    fn chunked(&self, format: CacheFormat, lengths: &[usize]) -> Vec<f32> {
        let mut sequence = Sequence::new(self.heads, format);
        let (mut out, mut past) = (Vec::new(), 0);
        let mut lengths = lengths.iter().chain(std::iter::repeat(lengths.last().unwrap()));
        while past < self.n {
            let end = (past + lengths.next().unwrap()).min(self.n);
            let (k, v) = self.kv(past..end);
            sequence.write(past, k, v);
            out.extend(sequence.attend(self.q(past..end), past, self.window));
            past = end;
        }
        out
    }
}

fn cases() -> Vec<Case> {
    vec![
        Case::new(1, (1, 1, 1), 1, None),
        Case::new(2, (16, 2, 128), 70, None),
        Case::new(3, (9, 3, 64), 300, None),
        Case::new(4, (3, 3, 10), 130, None),
        Case::new(5, (8, 1, 24), 600, Some(100)),
        Case::new(6, (2, 2, 20), 330, Some(1)),
        Case::new(7, (4, 1, 80), 270, Some(64)),
        Case::new(8, (7, 1, 16), 520, None),
        Case::new(9, (20, 1, 32), 140, None),
        // Blocks of seven and of eleven rows, and one head that is walked in sections of 64 dimensions.
        Case::new(10, (14, 2, 72), 200, None),
        Case::new(11, (11, 1, 130), 130, Some(70)),
    ]
}

/// Compares prefill with the twin on what the format stored. Where tile registers multiply, queries and weights are rounded to bf16: the
/// twin gets the same queries, and each output may be as far off as a rounding of every weight would put it.
fn matches_the_twin(c: &Case, got: &[f32], format: CacheFormat, absolute: f32, what: &str) {
    let [k, v] = [&c.k, &c.v].map(|x| reference::cached(x, c.heads.head_dim, format));
    let all = 0..c.n;
    let twin = |q: &[f32], v: &[f32]| reference::attention(q, &k, v, &c.heads, std::slice::from_ref(&all), c.window).0;
    if level() < Level::Amx || format != CacheFormat::Bf16 {
        return close(got, &twin(&c.q, &v), absolute, 1e-5, what);
    }
    let scale = (std::f64::consts::LOG2_E / (c.heads.head_dim as f64).sqrt()) as f32;
    let q: Vec<f32> = c.q.iter().map(|x| half::bf16::from_f32(x * scale).to_f32() / scale).collect();
    let magnitudes: Vec<f32> = v.iter().map(|x| x.abs()).collect();
    for (i, ((got, expected), size)) in got.iter().zip(twin(&q, &v)).zip(twin(&q, &magnitudes)).enumerate() {
        let bound = size * 2_f32.powi(-8) * 1.01 + 1e-5;
        assert!((got - expected).abs() <= bound, "{what}: output {i} is {got}, not {expected} within {bound}");
    }
}

#[test]
fn every_format_matches_the_twin_on_what_it_stored() {
    each_level(|level| {
        for (i, c) in cases().iter().enumerate() {
            for format in FORMATS {
                matches_the_twin(c, &c.whole(format), format, 4e-6, &format!("case {i} in {format:?} at {level}"));
            }
        }
    });
}

#[test]
fn what_is_read_back_is_what_the_twin_says() {
    let mut random = Random(20);
    let heads = Heads { query_heads: 6, kv_heads: 3, head_dim: 20 };
    let width = 60;
    let n = 100;
    let (mut k, v) = (random.scaled(n * width, 5.0), random.scaled(n * width, 1e-3));
    k[..20].fill(0.0);
    k[20] = f32::NAN;
    k[45] = f32::NEG_INFINITY;
    k[width..width + 20].fill(1e-38);
    for format in FORMATS {
        let expected = [&k, &v].map(|x| reference::cached(x, 20, format));
        each_level(|level| {
            let mut sequence = Sequence::new(heads, format);
            for (from, to) in [(0, 1), (1, 40), (40, 41), (41, 100)] {
                sequence.write(from, &k[from * width..to * width], &v[from * width..to * width]);
            }
            for at in 0..n {
                let (mut k, mut v) = (vec![0.5; width], vec![0.5; width]);
                paged::read(&sequence.pages[at / PAGE], at % PAGE, &heads, format, &mut k, &mut v);
                for (got, expected) in [&k, &v].into_iter().zip(&expected) {
                    same(got, &expected[at * width..][..width], &format!("position {at} in {format:?} at {level}"));
                }
            }
        });
    }
}

#[test]
fn f32_pages_agree_with_the_contiguous_kernel() {
    each_level(|level| {
        for (i, c) in cases().iter().enumerate() {
            let (mut out, mut lse) = (vec![0.0; c.q.len()], vec![0.0; c.n * c.heads.query_heads]);
            let all = 0..c.n;
            let span = std::slice::from_ref(&all);
            attention::forward(&c.q, &c.k, &c.v, &c.heads, span, c.window, &mut out, &mut lse);
            // Each is within 4e-6 of the twin: scores of some tens are rounded at different places.
            close(&c.whole(CacheFormat::F32), &out, 4e-6, 1e-5, &format!("case {i} at {level}"));
        }
    });
}

#[test]
fn whole_chunked_and_one_by_one_give_the_same_bits() {
    each_level(|level| {
        for (i, c) in cases().iter().enumerate() {
            for format in FORMATS {
                let whole = c.whole(format);
                for lengths in [&[1][..], &[3], &[64], &[100, 1], &[255, 2, 90]] {
                    same(&c.chunked(format, lengths), &whole, &format!("case {i}, {lengths:?}, {format:?} at {level}"));
                }
            }
        }
    });
}

#[test]
fn company_and_threads_do_not_change_a_bit() {
    let heads = (6, 2, 32);
    let c: Vec<Case> = [(31, 700), (32, 1), (33, 150), (34, 290)].map(|(s, n)| Case::new(s, heads, n, None)).into();
    for format in FORMATS {
        let alone: Vec<f32> = c.iter().flat_map(|c| c.whole(format).split_off(c.q.len() - 6 * 32)).collect();
        let sequences: Vec<Sequence> = c
            .iter()
            .map(|c| {
                let mut sequence = Sequence::new(c.heads, format);
                sequence.write(0, &c.k, &c.v);
                sequence
            })
            .collect();
        let pages: Vec<Vec<&[u8]>> = sequences.iter().map(|s| s.pages.iter().map(Vec::as_slice).collect()).collect();
        let q: Vec<f32> = c.iter().flat_map(|c| c.q(c.n - 1..c.n).to_vec()).collect();
        let spans: Vec<Span<'_>> = c
            .iter()
            .zip(&pages)
            .enumerate()
            .map(|(i, (c, pages))| Span { rows: i..i + 1, past: c.n - 1, pages })
            .collect();
        for threads in [1, 2, 5, 0] {
            set_threads(threads);
            let mut out = vec![f32::NAN; q.len()];
            paged::forward(&q, &c[0].heads, format, &spans, None, &mut out);
            same(&out, &alone, &format!("{threads} threads, {format:?}"));
        }
    }
}

#[test]
fn what_is_not_seen_does_not_leak() {
    each_level(|level| {
        for window in [None, Some(40)] {
            let mut c = Case::new(40, (4, 2, 32), 200, window);
            let sound = FORMATS.map(|format| c.whole(format));
            // From position 150 on all is NaN: rows before must not notice, rows from there on must.
            c.k[150 * 64..].fill(f32::NAN);
            c.v[150 * 64..].fill(f32::NAN);
            for (format, sound) in FORMATS.into_iter().zip(&sound) {
                let what = format!("{format:?}, window {window:?} at {level}");
                let spoilt = c.whole(format);
                same(&spoilt[..150 * 128], &sound[..150 * 128], &what);
                assert!(spoilt[150 * 128..].iter().all(|x| x.is_nan()), "{what}");
                // And a window slides past what was spoilt.
                let mut c = Case::new(40, (4, 2, 32), 200, Some(40));
                c.k[..100 * 64].fill(f32::NAN);
                c.v[..100 * 64].fill(f32::INFINITY);
                assert!(c.whole(format)[139 * 128..].iter().all(|x| x.is_finite()), "{what}");
            }
        }
    });
}

#[test]
fn sharp_scores_do_not_overflow() {
    let mut c = Case::new(50, (2, 1, 8), 290, None);
    c.q.iter_mut().for_each(|x| *x *= 300.0);
    let all = 0..c.n;
    let span = std::slice::from_ref(&all);
    let (expected, _) = reference::attention(&c.q, &c.k, &c.v, &c.heads, span, None);
    each_level(|level| close(&c.whole(CacheFormat::F32), &expected, 2e-3, 1e-5, &format!("at {level}")));
}

#[test]
#[should_panic(expected = "pages, 2 needed")]
fn a_short_table_is_a_bug() {
    let c = Case::new(60, (1, 1, 16), 65, None);
    let mut sequence = Sequence::new(c.heads, CacheFormat::Bf16);
    sequence.write(0, &c.k, &c.v);
    sequence.pages.pop();
    sequence.attend(&c.q, 0, None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_shape_in_any_cut(
        kv_heads in 1_usize..4,
        group in 1_usize..10,
        head_dim in 1_usize..40,
        n in 1_usize..600,
        window in proptest::option::of(1_usize..400),
        lengths in proptest::collection::vec(1_usize..300, 1..6),
        format in proptest::sample::select(&FORMATS[..]),
        seed in 0_u64..1000,
    ) {
        let c = Case::new(seed, (kv_heads * group, kv_heads, head_dim), n, window);
        let whole = c.whole(format);
        matches_the_twin(&c, &whole, format, 6e-6, "the twin");
        same(&c.chunked(format, &lengths), &whole, "chunks");
    }
}
