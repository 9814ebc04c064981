//! What this machine can do at most: the speeds that every other speed is a share of.
//!
//! Two kinds of limit, after Williams, Waterman and Patterson, "Roofline" (2009): how fast a stream can be read from
//! memory, and how many multiply-adds the widest instructions do on registers alone. Each is the best of several short
//! windows with every thread busy, because a shared machine is disturbed downwards only. A figure measured minutes later
//! belongs to another machine, so measure the limits in the run whose speeds are compared with them.
//!
//! The instructions are those the processor has, whatever [`crate::set_level`] forces.

#[cfg(target_arch = "x86_64")]
mod x86;

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

/// Windows of which the best counts.
const WINDOWS: usize = 7;
/// Bytes that all threads together read in a window: several times any cache of today.
const READ_BYTES: usize = 384 << 20;
/// Rounds over all registers in a window of arithmetic: some 10 ms.
const ROUNDS: usize = 4_000_000;

/// The limits of this machine with a number of threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Threads that were busy.
    pub threads: usize,
    /// Reading memory in streams, in 10⁹ bytes a second.
    pub read_gb_per_s: f64,
    /// Fused multiply-adds of f32, two operations each, in 10⁹ a second.
    pub f32_gflop_per_s: f64,
    /// Products of bf16 summed in f32 (in tiles, `tdpbf16ps`, or vectors, `vdpbf16ps`); `None` where there is no such instruction.
    pub bf16_gflop_per_s: Option<f64>,
    /// Products of int8 summed in i32 (in tiles, `tdpbssd`, or vectors, `vpdpbusd`); `None` where there is no such instruction.
    pub int8_gop_per_s: Option<f64>,
}

impl Limits {
    /// Measures for about a second, with `threads` threads of its own (at least one) and 384 MiB for as long.
    pub fn measure(threads: usize) -> Self {
        let threads = threads.max(1);
        let loops = Loops::of_this_machine();
        let words = READ_BYTES / threads / size_of::<u64>();
        let streams: Vec<Vec<u64>> = (0..threads).map(|thread| vec![1 + thread as u64; words]).collect();
        let arithmetic = |work: fn(usize) -> f64| window(threads, &|_| work(ROUNDS)) / 1e9;
        let (mut read, mut f32, mut bf16, mut int8) = (0.0, 0.0, None, None);
        // In turn, so that a disturbance of a moment does not meet all windows of one kind.
        for _ in 0..WINDOWS {
            for pattern in &loops.read {
                let rate = window(threads, &|thread| {
                    black_box(pattern(&streams[thread]));
                    size_of_val(&streams[thread][..]) as f64
                });
                read = f64::max(read, rate / 1e9);
            }
            f32 = f64::max(f32, arithmetic(loops.f32));
            bf16 = loops.bf16.map(|work| arithmetic(work).max(bf16.unwrap_or(0.0)));
            int8 = loops.int8.map(|work| arithmetic(work).max(int8.unwrap_or(0.0)));
        }
        Self { threads, read_gb_per_s: read, f32_gflop_per_s: f32, bf16_gflop_per_s: bf16, int8_gop_per_s: int8 }
    }
}

/// The loops that this processor can run. Arithmetic takes rounds and returns operations done; reading takes a stream
/// and returns what keeps the reads from being optimised away.
struct Loops {
    read: Vec<fn(&[u64]) -> u64>,
    f32: fn(usize) -> f64,
    bf16: Option<fn(usize) -> f64>,
    int8: Option<fn(usize) -> f64>,
}

impl Loops {
    fn of_this_machine() -> Self {
        let plain = Self { read: vec![read_plain], f32: f32_plain, bf16: None, int8: None };
        #[cfg(target_arch = "x86_64")]
        {
            x86::loops(plain)
        }
        #[cfg(not(target_arch = "x86_64"))]
        plain
    }
}

/// The rate of one window, in units a second: `work` gets its thread's number and returns units done.
fn window(threads: usize, work: &(impl Fn(usize) -> f64 + Sync)) -> f64 {
    let barrier = Barrier::new(threads);
    let run = |thread| {
        barrier.wait();
        let began = Instant::now();
        let units = work(thread);
        (began, Instant::now(), units)
    };
    let done: Vec<_> = std::thread::scope(|scope| {
        let run = &run;
        let others: Vec<_> = (1..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        let own = run(0);
        std::iter::once(own).chain(others.into_iter().filter_map(|other| other.join().ok())).collect()
    });
    let began = done.iter().map(|&(began, ..)| began).min();
    let ended = done.iter().map(|&(_, ended, _)| ended).max();
    let seconds = ended.zip(began).map_or(0.0, |(ended, began)| (ended - began).as_secs_f64());
    done.iter().map(|&(.., units)| units).sum::<f64>() / seconds.max(1e-9)
}

/// As many sums as hide the latency of any multiply-add of today, and still fit into registers.
const SUMS: usize = 12;

fn f32_plain(rounds: usize) -> f64 {
    let (factor, term) = (black_box(0.999_9_f32), black_box(1e-3_f32));
    let mut sums = [[term; 4]; SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            sum.iter_mut().for_each(|x| *x = *x * factor + term);
        }
    }
    black_box(sums);
    (rounds * SUMS * 4 * 2) as f64
}

fn read_plain(stream: &[u64]) -> u64 {
    let mut lanes = [0_u64; 32];
    for block in stream.as_chunks::<32>().0 {
        lanes.iter_mut().zip(block).for_each(|(lane, word)| *lane ^= word);
    }
    lanes.iter().fold(0, |all, lane| all ^ lane)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_reads_every_word() {
        let words = 8 * 1024;
        for pattern in Loops::of_this_machine().read.iter().chain([&(read_plain as fn(&[u64]) -> u64)]) {
            for at in [0, 1, 63, 4097, words - 1] {
                let mut stream = vec![0; words];
                stream[at] = 0xabcd;
                assert_eq!(pattern(&stream), 0xabcd, "word {at}");
            }
        }
    }

    #[test]
    fn limits_are_positive() {
        let limits = Limits::measure(1);
        assert_eq!(limits.threads, 1);
        assert!(limits.read_gb_per_s > 0.0 && limits.f32_gflop_per_s > 0.0);
        assert!([limits.bf16_gflop_per_s, limits.int8_gop_per_s].into_iter().flatten().all(|rate| rate > 0.0));
    }
}
