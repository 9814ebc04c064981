//! How fast float products are beside what this machine can do, measured in the same run.
//!
//! Run with: `cargo run --release -p ernie-kernels --example floats`
//!
//! Prints GFLOP/s and the share of the f32 multiply-add peak for the shapes of the 0.3B model and of training, then GB/s of one
//! row by weights larger than the last-level cache, beside a reader that prefetches, the two in turns. Medians; with `--best`
//! the best runs, for a busy machine.
#![allow(clippy::print_stdout, reason = "a program that prints")]

use std::hint::black_box;
use std::time::Instant;

use ernie_kernels::packed::float::{Float, Panels};
use ernie_kernels::{Rows, gemm, level, linear};

fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

fn middle(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    if std::env::args().any(|a| a == "--best") { seconds[0] } else { seconds[seconds.len() / 2] }
}

/// Median seconds of `runs` calls after one that warms up.
fn median(runs: usize, mut f: impl FnMut()) -> f64 {
    f();
    middle((0..runs).map(|_| seconds(&mut f)).collect())
}

fn noise(n: usize) -> Vec<f32> {
    let mut state = 1_u32;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// What the processor can do at most, as wide as it goes.
mod limit {
    /// Steps of twelve independent multiply-adds.
    const STEPS: usize = 400_000;

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn wide(seed: f32) -> f32 {
        use std::arch::x86_64::*;
        let (a, b) = (_mm512_set1_ps(0.999_9), _mm512_set1_ps(seed));
        let mut sums = [b; 12];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        sums.iter().map(|&s| _mm512_reduce_add_ps(s)).sum()
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn half_wide(seed: f32) -> f32 {
        use std::arch::x86_64::*;
        let (a, b) = (_mm256_set1_ps(0.999_9), _mm256_set1_ps(seed));
        let mut sums = [b; 12];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        sums.iter().map(|&s| _mm256_cvtss_f32(s)).sum()
    }

    /// Multiply-adds on registers only; gives their sum and the floating-point operations done.
    pub(crate) fn multiply(seed: f32) -> (f32, f64) {
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx512f") {
                // SAFETY: the feature was just found.
                return (unsafe { wide(seed) }, (STEPS * 12 * 16 * 2) as f64);
            }
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                // SAFETY: the features were just found.
                return (unsafe { half_wide(seed) }, (STEPS * 12 * 8 * 2) as f64);
            }
        }
        let mut sums = [seed; 32];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = *sum * 0.999_9 + seed;
            }
        }
        (sums.iter().sum(), (STEPS * 32 * 2) as f64)
    }

    /// Reads a stretch once, asking for each line some way ahead.
    pub(crate) fn read(data: &[f32]) -> f32 {
        let mut lanes = [0.0_f32; 64];
        for block in data.as_chunks::<64>().0 {
            #[cfg(target_arch = "x86_64")]
            for line in 0..4 {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                // SAFETY: a prefetch never faults.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().cast::<i8>().wrapping_add(4096 + line * 64)) };
            }
            for l in 0..64 {
                lanes[l] += block[l];
            }
        }
        lanes.iter().sum()
    }
}

/// Floating-point operations a second with every thread busy.
fn peak() -> f64 {
    let mut flops = 0.0;
    let seconds = median(50, || {
        flops = std::thread::scope(|scope| {
            let all: Vec<_> = (0..threads()).map(|i| scope.spawn(move || limit::multiply(i as f32 * 1e-6))).collect();
            all.into_iter()
                .map(|t| t.join().map_or(0.0, |(sum, flops)| flops + f64::from(black_box(sum)) * 1e-30))
                .sum()
        });
    });
    flops / seconds
}

/// Reads all of `data` with every thread.
fn read(data: &[f32]) {
    std::thread::scope(|scope| {
        for part in data.chunks(data.len().div_ceil(threads())) {
            scope.spawn(move || black_box(limit::read(part)));
        }
    });
}

fn packed(float: Float, weights: &[f32], outs: usize, k: usize) -> Panels {
    let mut panels = Panels::zeros(float, outs, k);
    panels.pack(0, &weights[..outs * k]);
    panels
}

fn main() {
    let peak = peak();
    let big = noise(48 << 20);
    println!("level {}, {} threads, multiply-add peak {:.0} GFLOP/s", level(), threads(), peak / 1e9);
    let share =
        |flops: f64, seconds: f64| format!("{:4.0} ({:2.0}%)", flops / seconds / 1e9, flops / seconds / peak * 100.0);

    println!("\npacked weights, GFLOP/s (share of f32 peak)   [rows x in x out]      f32          bf16         f16");
    for (k, n) in [(1024, 2560), (2048, 1024), (1024, 6144), (3072, 1024)] {
        let kinds = [Float::F32, Float::Bf16, Float::F16].map(|float| packed(float, &big, n, k));
        for rows in [512, 16, 4] {
            let (x, mut y) = (&big[..rows * k], vec![0.0; rows * n]);
            let flops = (2 * rows * k * n) as f64;
            let runs = (1e10 / flops).clamp(5.0, 50.0) as usize;
            let line = kinds.each_ref().map(|w| share(flops, median(runs, || w.multiply(x, &mut y))));
            println!("  {:38} {rows:4} x {k} x {n}   {}", "", line.join("   "));
        }
    }

    println!("\ntraining, GFLOP/s (share of peak)   [rows x in x out]   forward      input gradient   weight gradient");
    for (rows, k, n) in [
        (4096, 512, 512),
        (4096, 512, 1536),
        (4096, 1536, 512),
        (1024, 512, 8192),
        (2048, 256, 256),
        (512, 256, 768),
        (512, 768, 256),
        (64, 256, 256),
        (512, 1024, 2560),
        (2048, 1024, 3072),
    ] {
        let (x, w, dy) = (&big[..rows * k], &big[8 << 20..][..n * k], &big[16 << 20..][..rows * n]);
        let (mut y, mut dx, mut dw) = (vec![0.0; rows * n], vec![0.0; rows * k], vec![0.0; n * k]);
        let flops = (2 * rows * k * n) as f64;
        let runs = (1e10 / flops).clamp(5.0, 100.0) as usize;
        let forward = share(flops, median(runs, || linear::forward(x, &Rows::from_f32(w, n, k), &mut y)));
        let input = share(flops, median(runs, || gemm::nn(dy, w, &mut dx, rows, n, k, false)));
        let weight = share(flops, median(runs, || gemm::tn(dy, x, &mut dw, n, rows, k, false)));
        println!("  {:32} {rows:4} x {k:4} x {n:4}   {forward}   {input}       {weight}", "");
    }

    println!("\none row by weights beyond the cache, GB/s, in turns with a reader   [in x out]");
    for float in [Float::F32, Float::Bf16, Float::F16] {
        let (k, n) = (1024, if float == Float::F32 { 48 << 10 } else { 96 << 10 });
        let mut panels = Panels::zeros(float, n, k);
        let half = n.min(48 << 10);
        for first in (0..n).step_by(half) {
            panels.pack(first, &big[..half * k]);
        }
        let (x, mut y) = (&big[..k], vec![0.0; n]);
        let bytes = panels.bytes().len() as f64;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..21 {
            theirs.push(seconds(|| read(bytemuck::cast_slice(panels.bytes()))));
            ours.push(seconds(|| panels.multiply(x, &mut y)));
        }
        let (ours, theirs) = (bytes / middle(ours), bytes / middle(theirs));
        println!(
            "  {k} x {n} {float:?}   {:5.1}   reader {:5.1}   {:3.0}%",
            ours / 1e9,
            theirs / 1e9,
            ours / theirs * 100.0
        );
    }
    println!("\none row by f32 rows as they lie in memory (packed while multiplied)");
    let (k, n) = (1024, 48 << 10);
    let mut y = vec![0.0; n];
    let rate =
        (k * n * 4) as f64 / median(7, || linear::forward(&big[..k], &Rows::from_f32(&big[..k * n], n, k), &mut y));
    println!("  {k} x {n}   {:5.1}", rate / 1e9);
}
