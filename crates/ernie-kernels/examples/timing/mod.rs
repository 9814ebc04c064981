//! What the examples share: medians of timings, and numbers to time them on.
#![allow(dead_code, reason = "each example uses its part")]

use std::time::Instant;

/// The program's own, whose large blocks begin with a cache line.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
