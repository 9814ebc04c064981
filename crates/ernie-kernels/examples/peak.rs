//! How fast the kernels are beside what this machine can do, measured in the same run.
//!
//! Run with: `cargo run --release -p ernie-kernels --example peak`
//!
//! Prints, for the shapes of the 0.3B model, GFLOP/s and the share of the multiply-add peak, or GB/s and the share of a
//! plain reading stream where memory is the limit. Medians; with `--best` the best runs, for a busy machine.
#![allow(clippy::print_stdout, reason = "a program that prints")]

mod limits;

use ernie_kernels::attention::{self, Heads};
use ernie_kernels::{Format, Rows, elementwise, gemm, level, linear, swiglu, threads};
use limits::{measure_peak, measure_read, median, noise};

fn main() {
    let peak = measure_peak();
    let big = noise(64 << 20);
    let read = measure_read(&big);
    println!(
        "level {}, {} threads; peak {:.0} GFLOP/s f32, read {:.1} GB/s",
        level(),
        threads(),
        peak / 1e9,
        read / 1e9
    );

    println!("\nlinear::forward and gemm::nt, f32, [rows x in x out]");
    for (rows, k, n) in [
        (512, 1024, 3072),
        (512, 3072, 1024),
        (512, 1024, 2560),
        (512, 2048, 1024),
        (2048, 1024, 3072),
        (2048, 3072, 1024),
        (2048, 512, 1024),
        (2048, 256, 256),
        (512, 256, 768),
        (1024, 512, 1536),
        (16, 1024, 3072),
        (64, 1024, 3072),
    ] {
        let (x, w) = (&big[..rows * k], &big[8 << 20..][..n * k]);
        let mut y = vec![0.0; rows * n];
        let flops = (2 * rows * k * n) as f64;
        let runs = (2e10 / flops).clamp(5.0, 100.0) as usize;
        let ours = flops / median(runs, || linear::forward(x, &Rows::from_f32(w, n, k), &mut y));
        let theirs = flops / median(runs, || gemm::nt(x, w, &mut y, rows, k, n, false));
        println!(
            "  {rows:5} x {k:4} x {n:4}   linear {:4.0} GFLOP/s ({:2.0}%)   gemm nt {:4.0} ({:2.0}%)",
            ours / 1e9,
            ours / peak * 100.0,
            theirs / 1e9,
            theirs / peak * 100.0
        );
    }

    println!("\ngradient products, [m x k x n]");
    for (m, k, n) in [(2048, 3072, 1024), (2048, 1024, 3072)] {
        let (a, b) = (&big[..m * k], &big[8 << 20..][..n * k]);
        let mut c = vec![0.0; m * n];
        let flops = (2 * m * k * n) as f64;
        let nn = flops / median(5, || gemm::nn(a, b, &mut c, m, k, n, true));
        let tn = flops / median(5, || gemm::tn(a, b, &mut c, m, k, n, true));
        println!(
            "  {m} x {k} x {n}   nn {:4.0} GFLOP/s ({:2.0}%)   tn {:4.0} ({:2.0}%)",
            nn / 1e9,
            nn / peak * 100.0,
            tn / 1e9,
            tn / peak * 100.0
        );
    }

    println!("\none row through 64 Mi weights (larger than the cache), and 512 rows by 3072 x 1024");
    // Plain formats hold ordinary numbers (subnormal ones would be slow); random blocks will do for the others.
    let singles: Vec<u8> = big.iter().flat_map(|x| x.to_le_bytes()).collect();
    let halves: Vec<u8> = big.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
    let brains: Vec<u8> = big.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
    let scales = vec![1.0_f32; big.len() / 1024];
    for format in Format::ALL {
        let bytes = match format {
            Format::F16 => &halves,
            Format::Bf16 => &brains,
            _ => &singles,
        };
        let k = 1024;
        let row_bytes = format.row_bytes(k).unwrap_or(0);
        let n = (bytes.len() / row_bytes).min(64 << 10);
        let rows = |n: usize| Rows {
            format,
            bytes: &bytes[..n * row_bytes],
            scales: (format == Format::Int8).then_some(&scales[..n]),
            out_features: n,
            in_features: k,
        };
        let mut y = vec![0.0; n];
        let rate = (n * row_bytes) as f64 / median(5, || linear::forward(&big[..k], &rows(n), &mut y));
        let mut y = vec![0.0; 512 * 3072];
        let wide = (2 * 512 * k * 3072) as f64 / median(9, || linear::forward(&big[..512 * k], &rows(3072), &mut y));
        println!(
            "  {:5} {:5.1} GB/s ({:3.0}% of read)   512 rows {:4.0} GFLOP/s ({:2.0}%)",
            format.name(),
            rate / 1e9,
            rate / read * 100.0,
            wide / 1e9,
            wide / peak * 100.0
        );
    }

    println!("\nattention, causal");
    for (heads, lengths) in [
        (Heads { query_heads: 16, kv_heads: 2, head_dim: 128 }, vec![512]),
        (Heads { query_heads: 16, kv_heads: 2, head_dim: 128 }, vec![4096]),
        (Heads { query_heads: 8, kv_heads: 2, head_dim: 64 }, vec![512; 8]),
    ] {
        let rows: usize = lengths.iter().sum();
        let (h, g, d) = (heads.query_heads, heads.kv_heads, heads.head_dim);
        let (q, k, v) = (&big[..rows * h * d], &big[..rows * g * d], &big[..rows * g * d]);
        let mut start = 0;
        let spans: Vec<_> = lengths
            .iter()
            .map(|&n| {
                start += n;
                start - n..start
            })
            .collect();
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; rows * h]);
        let flops: f64 = lengths.iter().map(|&n| (n * (n + 1) / 2 * h * d * 4) as f64).sum();
        let forward = median(5, || attention::forward(q, k, v, &heads, &spans, None, &mut out, &mut lse));
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        let backward =
            median(3, || attention::backward(q, k, v, &out, &lse, q, &heads, &spans, None, &mut dq, &mut dk, &mut dv));
        println!(
            "  {h}:{g} heads of {d}, {} x {}   forward {:7.2} ms, {:4.0} GFLOP/s ({:2.0}%)   backward {:7.2} ms, {:4.0} ({:2.0}%)",
            lengths.len(),
            lengths[0],
            forward * 1e3,
            flops / forward / 1e9,
            flops / forward / peak * 100.0,
            backward * 1e3,
            2.5 * flops / backward / 1e9,
            2.5 * flops / backward / peak * 100.0
        );
        let span = attention::Span { rows: 0..1, past: rows - 1, k, v };
        let step = median(20, || {
            attention::forward_cached(&q[..h * d], &heads, std::slice::from_ref(&span), None, &mut out[..h * d], None)
        });
        println!("    one token at context {rows}: {:.3} ms", step * 1e3);
    }

    let n = 4096 * 1536;
    let mut y = big[..n].to_vec();
    let exp = median(9, || {
        y.copy_from_slice(&big[..n]);
        elementwise::exp(&mut y)
    });
    let silu = median(9, || swiglu::forward(&big[..n], &big[n..2 * n], &mut y));
    println!("\nexp [4096 x 1536] {:.2} ms (with a copy), swiglu {:.2} ms", exp * 1e3, silu * 1e3);
}
