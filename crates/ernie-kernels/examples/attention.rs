//! How fast attention over pages is beside what this machine can do, measured in the same run.
//!
//! Run with: `cargo run --release -p ernie-kernels --example attention`
//!
//! Prints milliseconds for 18 layers (as many as the 0.3B model has), GB/s of the cache read and GFLOP/s, with their shares of
//! a reading stream and of the multiply-add peak. Every layer has its own cache, so that it comes from memory. Medians; with
//! `--best` the best runs, for a busy machine; `--level=avx512bf16` forces a level. Other arguments choose cases: those whose lines hold every one of them as a
//! word, such as `decode 16:2 4096 Bf16`, or `rows`.
#![allow(clippy::print_stdout, reason = "a program that prints")]

mod timing;

use ernie_kernels::attention::paged::{self, CacheFormat, PAGE, Span, Write};
use ernie_kernels::attention::{self, Heads};
use ernie_kernels::packed::Buffer;
use ernie_kernels::{elementwise, level, norm, parallel, rope, swiglu, threads};
use timing::{median, median_of, noise};

/// Layers that a time is printed for, and layers that are gone through for it: more, so that a cache of any format is larger
/// than the processor's.
const LAYERS: usize = 18;
const MEASURED: usize = 36;

struct Limits {
    peak: f64,
    read: f64,
}

/// Whether the arguments ask for a case of these words.
fn wanted(case: &str) -> bool {
    std::env::args().skip(1).filter(|a| !a.starts_with("--")).all(|a| case.split_whitespace().any(|word| word == a))
}

fn main() {
    if let Some(name) = std::env::args().find_map(|a| a.strip_prefix("--level=").map(str::to_owned)) {
        let level = ernie_kernels::Level::from_name(&name);
        ernie_kernels::set_level(level).expect("a level of this processor");
    }
    let measured = ernie_kernels::limits::Limits::measure(threads());
    let limits = Limits { peak: measured.f32_gflop_per_s * 1e9, read: measured.read_gb_per_s * 1e9 };
    println!(
        "level {}, {} threads; peak {:.0} GFLOP/s f32 ({:.0} bf16), read {:.1} GB/s",
        level(),
        threads(),
        limits.peak / 1e9,
        measured.bf16_gflop_per_s.unwrap_or_default(),
        limits.read / 1e9
    );
    let regions = 100_000;
    let seconds = median(5, || (0..regions).for_each(|_| parallel(threads(), |_| ())));
    println!("an empty region: {:.2} us", seconds / f64::from(regions) * 1e6);

    let heads = |query_heads, kv_heads, head_dim| Heads { query_heads, kv_heads, head_dim };
    println!("\ndecode, {LAYERS} layers");
    for (heads, streams, context) in [
        (heads(16, 2, 128), 1, 512),
        (heads(16, 2, 128), 1, 1024),
        (heads(16, 2, 128), 1, 4096),
        (heads(16, 2, 128), 1, 16384),
        (heads(16, 2, 128), 16, 512),
        (heads(9, 3, 64), 1, 4096),
        (heads(16, 4, 64), 1, 4096),
    ] {
        for format in [CacheFormat::F32, CacheFormat::Bf16, CacheFormat::Int8] {
            run(&limits, &heads, format, streams, context, 1);
        }
    }
    println!("\nprefill, {LAYERS} layers");
    for (heads, context, rows) in
        [(heads(16, 2, 128), 512, 512), (heads(16, 2, 128), 4096, 512), (heads(9, 3, 64), 512, 512)]
    {
        for format in [CacheFormat::F32, CacheFormat::Bf16, CacheFormat::Int8] {
            run(&limits, &heads, format, 1, context, rows);
        }
        contiguous(&limits, &heads, context, rows);
    }
    row_operations();
}

/// The last `rows` of `context` positions of each stream.
fn run(limits: &Limits, heads: &Heads, format: CacheFormat, streams: usize, context: usize, rows: usize) {
    let kind = if rows > 1 { "prefill" } else { "decode" };
    if !wanted(&format!(
        "{kind} {}:{} {} {streams} {rows} {context} {format:?}",
        heads.query_heads, heads.kv_heads, heads.head_dim
    )) {
        return;
    }
    let layers = if rows > 1 { 4 } else { MEASURED };
    let (width, query_width) = (heads.kv_heads * heads.head_dim, heads.query_heads * heads.head_dim);
    let kv = noise(context * width);
    let q = noise(streams * rows * query_width);
    // Pages start on a cache line, as a model's do.
    let blank = || (0..context.div_ceil(PAGE)).map(|_| Buffer::zeros(paged::page_bytes(heads, format)));
    let mut sequence: Vec<Buffer> = blank().collect();
    let write = |sequence: &mut [Buffer]| {
        let mut writes: Vec<Write<'_>> = sequence
            .iter_mut()
            .enumerate()
            .map(|(i, page)| Write { page: page.bytes_mut(), first: 0, rows: i * PAGE..((i + 1) * PAGE).min(context) })
            .collect();
        paged::write(&kv, &kv, heads, format, &mut writes);
    };
    write(&mut sequence);
    let storing = median(3, || write(&mut sequence));
    let copy = |mut page: Buffer, from: &Buffer| {
        page.bytes_mut().copy_from_slice(from.bytes());
        page
    };
    let caches: Vec<Vec<Buffer>> =
        (0..layers * streams).map(|_| blank().zip(&sequence).map(|(page, from)| copy(page, from)).collect()).collect();
    let pages: Vec<Vec<&[u8]>> = caches.iter().map(|cache| cache.iter().map(Buffer::bytes).collect()).collect();
    let mut out = vec![0.0; q.len()];
    let layers: Vec<&[Vec<&[u8]>]> = pages.chunks(streams).collect();
    let seconds = median_of(if rows > 1 { 3 } else { 7 }, layers.len(), |layer| {
        let spans: Vec<Span<'_>> = (layers[layer].iter().enumerate())
            .map(|(i, pages)| Span { rows: i * rows..(i + 1) * rows, past: context - rows, pages })
            .collect();
        paged::forward(&q, heads, format, &spans, None, &mut out);
    });
    let bytes = (streams * context.div_ceil(PAGE) * paged::page_bytes(heads, format)) as f64;
    let flops = flops(heads, streams, context, rows);
    println!(
        "  {:2}:{} of {:3}, {streams:2} x {rows:3} rows at {context:4}, {:5} {:7.2} ms, {:5.1} GB/s ({:3.0}%), {:4.0} GFLOP/s ({:2.0}%); storing {:.2} ms",
        heads.query_heads,
        heads.kv_heads,
        heads.head_dim,
        format!("{format:?}"),
        seconds * 1e3 * LAYERS as f64,
        bytes / seconds / 1e9,
        bytes / seconds / limits.read * 100.0,
        flops / seconds / 1e9,
        flops / seconds / limits.peak * 100.0,
        storing * 1e3 * LAYERS as f64,
    );
}

fn flops(heads: &Heads, streams: usize, context: usize, rows: usize) -> f64 {
    let pairs: usize = (context - rows + 1..=context).sum();
    (4 * streams * pairs * heads.query_heads * heads.head_dim) as f64
}

/// The same rows through the kernel that training uses.
fn contiguous(limits: &Limits, heads: &Heads, context: usize, rows: usize) {
    let case =
        format!("prefill {}:{} {} {rows} {context} contiguous", heads.query_heads, heads.kv_heads, heads.head_dim);
    if !wanted(&case) {
        return;
    }
    let kv = noise(context * heads.kv_heads * heads.head_dim);
    let q = noise(rows * heads.query_heads * heads.head_dim);
    let mut out = vec![0.0; q.len()];
    let span = attention::Span { rows: 0..rows, past: context - rows, k: &kv, v: &kv };
    let seconds = median(5, || attention::forward_cached(&q, heads, std::slice::from_ref(&span), None, &mut out, None));
    println!(
        "                                  contiguous {:7.2} ms, {:4.0} GFLOP/s ({:2.0}%)",
        seconds * 1e3 * LAYERS as f64,
        flops(heads, 1, context, rows) / seconds / 1e9,
        flops(heads, 1, context, rows) / seconds / limits.peak * 100.0
    );
}

/// Microseconds of what stands between the products of a layer, for one row and for 512 rows of the 0.3B model.
fn row_operations() {
    if !wanted("rows") {
        return;
    }
    println!("\nrow operations, us a call");
    let table = rope::Table::new(500_000.0, 128, 4096);
    for rows in [1, 512] {
        let (mut x, branch, weight) = (noise(rows * 1024), noise(rows * 1024), noise(1024));
        let mut y = x.clone();
        let calls = 20_000 / rows;
        let time = |f: &mut dyn FnMut()| median(7, || (0..calls).for_each(|_| f())) / calls as f64 * 1e6;
        let fused = time(&mut || norm::add_forward(&mut x, &branch, &weight, 1e-5, &mut y));
        let mut rstd = vec![0.0; rows];
        let apart = time(&mut || {
            let sum = elementwise::sum(&y, &branch);
            norm::forward(&sum, &weight, 1e-5, &mut x, &mut rstd);
        });
        let (gate, up) = (noise(rows * 3072), noise(rows * 3072));
        let mut activated = vec![0.0; rows * 3072];
        let swiglu = time(&mut || swiglu::forward(&gate, &up, &mut activated));
        let q = noise(rows * 2304);
        let positions: Vec<u32> = (0..rows as u32).collect();
        let mut turned_q = q.clone();
        let turned = time(&mut || rope::forward(&q, &mut turned_q, &positions, 18, &table));
        println!(
            "  {rows:3} rows: add + norm {fused:7.2} (apart {apart:7.2}), swiglu {swiglu:7.2}, rope of 18 heads {turned:7.2}"
        );
        let heads = Heads { query_heads: 16, kv_heads: 2, head_dim: 128 };
        let kv = noise(rows * 256);
        for format in [CacheFormat::F32, CacheFormat::Bf16, CacheFormat::Int8] {
            let mut pages = vec![vec![0_u8; paged::page_bytes(&heads, format)]; rows.div_ceil(PAGE)];
            let stored = time(&mut || {
                let mut writes: Vec<Write<'_>> = (pages.iter_mut().enumerate())
                    .map(|(i, page)| Write { page, first: 0, rows: i * PAGE..((i + 1) * PAGE).min(rows) })
                    .collect();
                paged::write(&kv, &kv, &heads, format, &mut writes);
            });
            println!("  {rows:3} rows: storing in {format:?} {stored:7.2}");
        }
    }
}
