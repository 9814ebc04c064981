//! What this machine can do, for the examples that compare themselves with it.
#![allow(dead_code, reason = "each example uses its part")]

use std::hint::black_box;
use std::time::Instant;

use ernie_kernels::{parallel, threads};

/// Median seconds of `runs` calls after one that warms up; the best with `--best`, for a machine that is busy meanwhile.
pub(crate) fn median(runs: usize, mut f: impl FnMut()) -> f64 {
    median_of(runs, 1, |_| f())
}

/// As [`median`], over each of the `calls` that a run is made of, which are told their number.
pub(crate) fn median_of(runs: usize, calls: usize, mut f: impl FnMut(usize)) -> f64 {
    (0..calls).for_each(&mut f);
    let mut seconds: Vec<f64> = (0..runs * calls)
        .map(|i| {
            let start = Instant::now();
            f(i % calls);
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    if std::env::args().any(|a| a == "--best") { seconds[0] } else { seconds[seconds.len() / 2] }
}

/// Numbers in `-1..1`.
pub(crate) fn noise(n: usize) -> Vec<f32> {
    let mut state = 1_u32;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Multiply-adds on registers only, as wide as this build's processor allows: the peak.
mod peak {
    const STEPS: usize = 2_000_000;

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

    /// Runs on this thread and gives the floating-point operations done.
    pub(crate) fn run(seed: f32) -> (f32, f64) {
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
}

/// Floating-point operations a second with every thread busy.
pub(crate) fn measure_peak() -> f64 {
    let flops = threads() as f64 * black_box(peak::run(0.5)).1;
    let seconds = median(5, || {
        parallel(threads(), |i| {
            black_box(peak::run(i as f32 * 1e-6));
        });
    });
    flops / seconds
}

/// Asks for the memory a few lines further on, as a reader that is bound by memory does.
fn ahead(block: &[f32; 64]) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..4 {
        let at = block.as_ptr().wrapping_add(1024 + 16 * line);
        // SAFETY: a prefetch faults on no address; SSE is always there.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = block;
}

/// Bytes per second of summing a large array with every thread.
pub(crate) fn measure_read(data: &[f32]) -> f64 {
    let parts: Vec<&[f32]> = data.chunks(data.len().div_ceil(threads() * 4)).collect();
    let seconds = median(5, || {
        parallel(parts.len(), |i| {
            let mut lanes = [0.0_f32; 64];
            for block in parts[i].as_chunks::<64>().0 {
                ahead(block);
                for l in 0..64 {
                    lanes[l] += block[l];
                }
            }
            black_box(lanes.iter().sum::<f32>());
        });
    });
    size_of_val(data) as f64 / seconds
}
