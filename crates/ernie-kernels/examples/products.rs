//! How fast the packed integer products are beside what this machine can do, measured in the same run.
//!
//! Run with: `cargo run --release -p ernie-kernels --example products [gemm|gemv|...] [kind]`
//!
//! Prints GOP/s and the share of the peak of byte multiply-adds in vectors (which tile registers pass) for hundreds of rows, the rounding of activations included, and for one
//! row GB/s of packed weights beside a prefetching reader, run in turn, over more weights than the last-level cache holds.
//! Medians; with `--best` the best runs, for a busy machine.
#![allow(clippy::print_stdout, reason = "a program that prints")]

use std::hint::black_box;
use std::time::Instant;

use ernie_kernels::packed::{Activations, Builder, GROUP, Kind, Matrix, Product, multiply};
use ernie_kernels::{Format, Rows, level};

fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    if best() { all[0] } else { all[all.len() / 2] }
}

/// Whether the best runs are wanted, as on a busy machine.
fn best() -> bool {
    std::env::args().any(|a| a == "--best")
}

/// Median seconds of `runs` calls after one that warms up.
fn timed(runs: usize, mut f: impl FnMut()) -> f64 {
    f();
    median((0..runs).map(|_| seconds(&mut f)).collect())
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

/// Byte multiply-adds on registers only: the operations done, or none where the processor has no VNNI.
#[cfg(target_arch = "x86_64")]
fn peak_operations() -> f64 {
    const STEPS: usize = 1_000_000;

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn run() -> i32 {
        use std::arch::x86_64::*;
        let (w, x) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(1)));
        let mut sums = [_mm512_setzero_si512(); 16];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, w, x);
            }
            for sum in &mut sums {
                // SAFETY: no instruction at all, said to change a register: keeps the loop from being folded.
                unsafe {
                    std::arch::asm!("/* {0} */", inout(zmm_reg) * sum, options(pure, nomem, nostack, preserves_flags));
                }
            }
        }
        sums.iter().map(|&s| _mm512_reduce_add_epi32(s)).fold(0, i32::wrapping_add)
    }

    if !std::arch::is_x86_feature_detected!("avx512vnni") {
        return 0.0;
    }
    // SAFETY: the feature was just found; it comes with AVX-512 F.
    black_box(unsafe { run() });
    (STEPS * 16 * 64 * 2) as f64
}

#[cfg(not(target_arch = "x86_64"))]
fn peak_operations() -> f64 {
    0.0
}

/// Byte operations per second with some threads: the median of some windows.
fn peak(threads: usize, windows: usize) -> f64 {
    let mut operations = 0.0;
    let time = timed(windows, || {
        operations = std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(peak_operations)).collect();
            running.into_iter().map(|thread| thread.join().expect("a peak")).sum()
        });
    });
    operations / time
}

/// Reads everything with every thread, a straight prefetched stream each: seconds.
fn read(data: &[f32]) -> f64 {
    let share = data.len() / ernie_kernels::threads() / 64 * 64;
    seconds(|| {
        ernie_kernels::parallel(ernie_kernels::threads(), |i| {
            let data = &data[i * share..(i + 1) * share];
            let mut sums = [0.0_f32; 64];
            for block in data.as_chunks::<64>().0 {
                #[cfg(target_arch = "x86_64")]
                for line in 0..4 {
                    let ahead = block.as_ptr().wrapping_add(512 + line * 16).cast();
                    // SAFETY: a prefetch of any address is harmless, and every x86-64 has it.
                    unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(ahead) };
                }
                for (sum, x) in sums.iter_mut().zip(block) {
                    *sum += x;
                }
            }
            black_box(sums);
        });
    })
}

fn matrix(kind: Kind, out: usize, k: usize, weights: &[f32]) -> Matrix {
    let mut builder = Builder::new(kind, out, k);
    while builder.missing() > 0 {
        let rows = builder.missing().min(weights.len() / k);
        builder.push(&weights[..rows * k]);
    }
    builder.finish()
}

/// A matrix of a stored format's blocks, all the same and of ordinary scales.
fn blocks(format: Format, out: usize, k: usize) -> Matrix {
    let mut builder = Builder::new(Kind::of(format).expect("a format of integers"), out, k);
    let mut block = vec![0x5A_u8; format.block_bytes()];
    let scale = half::f16::from_f32(0.01).to_le_bytes();
    let at = if format == Format::Q6K { 208 } else { 0 };
    block[at..at + 2].copy_from_slice(&scale);
    if matches!(format, Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K) {
        block[2..4].copy_from_slice(&scale);
    }
    let some = 1024.min(out);
    let bytes = block.repeat(some * k / format.block_elements());
    while builder.missing() > 0 {
        let rows = builder.missing().min(some);
        let bytes = &bytes[..rows * format.row_bytes(k).expect("whole blocks")];
        builder.push_rows(&Rows { format, bytes, scales: None, out_features: rows, in_features: k });
    }
    builder.finish()
}

fn product(x: &[f32], rows: usize, w: &Matrix, y: &mut [f32]) {
    let x = Activations::new(x, rows, w.in_features());
    multiply(&x, &mut [Product { rows: 0..rows, w, y }]);
}

fn main() {
    let only: Option<String> = std::env::args().nth(1);
    let kind: Option<String> = std::env::args().nth(2);
    let wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    let threads = ernie_kernels::threads();
    let big = noise(48 << 20);
    let peak_now = peak(threads, 5);
    println!(
        "{}, groups of {GROUP}; byte peak of vectors {:.0} GOP/s on {threads} threads, {:.0} on one",
        level(),
        peak_now / 1e9,
        peak(1, 5) / 1e9
    );
    let int8 = Kind::Int8;
    let mut named = vec![
        ("int8", None),
        ("int4", None),
        ("Q8_0", Some(Format::Q8_0)),
        ("Q4_0", Some(Format::Q4_0)),
        ("Q4_1", Some(Format::Q4_1)),
        ("Q4_K", Some(Format::Q4K)),
        ("Q6_K", Some(Format::Q6K)),
    ];
    named.retain(|(name, _)| kind.as_deref().is_none_or(|kind| kind == *name));
    let make = |name: &str, format: Option<Format>, out: usize, k: usize| match format {
        Some(format) => blocks(format, out, k),
        None => matrix(if name == "int8" { int8 } else { Kind::int4(32) }, out, k, &big[..4096 * k]),
    };

    if wanted("gemm") {
        println!("\nmany rows, [rows x k x out]; in brackets the rounding of activations alone");
        for (rows, k, out) in [
            (512, 1024, 2560),
            (512, 2048, 1024),
            (512, 1024, 6144),
            (512, 3072, 1024),
            (512, 576, 1536),
            (512, 1536, 576),
            (16, 1024, 6144),
            (8, 1024, 6144),
        ] {
            let x = &big[..rows * k];
            let mut y = vec![0.0; rows * out + 16];
            let skip = if std::env::var("AL").is_ok() { y.as_ptr().align_offset(64) } else { 0 };
            let y = &mut y[skip..skip + rows * out];
            let operations = (2 * rows * k * out) as f64;
            let runs = (2e10 / operations).clamp(15.0, 225.0) as usize;
            print!("  {rows:3} x {k:4} x {out:4}");
            for &(name, format) in &named {
                let w = make(name, format, out, k);
                // In turn with the peak, because neighbours slow a shared machine down by a half for seconds.
                let (rates, shares) = (0..15)
                    .map(|_| {
                        let rate = operations / timed(runs / 15, || product(x, rows, &w, y));
                        let sign = if best() { -1.0 } else { 1.0 };
                        (sign * rate, sign * rate / peak(threads, 1))
                    })
                    .unzip();
                let (rate, share) =
                    if best() { (-median(rates), -median(shares)) } else { (median(rates), median(shares)) };
                print!("   {name} {:4.0} ({:2.0}%)", rate / 1e9, share * 100.0);
            }
            let rounding = timed(20, || {
                let x = Activations::new(x, rows, k);
                multiply(&x, &mut [Product { rows: 0..rows, w: &matrix(int8, 1, k, &big[..k]), y: &mut y[..rows] }]);
            });
            println!("   [{:.3} ms]", rounding * 1e3);
        }
    }

    if wanted("gemv") {
        println!(
            "\nfew rows through 192 Mi weights and the reader in turn; GB/s of weights, share of the reader; time against one row"
        );
        let (k, out) = (1024, 192 << 10);
        let mut one = vec![];
        for &(name, format) in &named {
            let w = make(name, format, out, k);
            print!("  {name:5} {:.3} bytes a weight", w.bytes() as f64 / (k * out) as f64);
            for rows in [1, 2, 4, 8, 16] {
                let mut y = vec![0.0; rows * out];
                let x = &big[..rows * k];
                let (mut ours, mut reader) = (vec![], vec![]);
                product(x, rows, &w, &mut y);
                for _ in 0..7 {
                    reader.push(read(&big));
                    ours.push(seconds(|| product(x, rows, &w, &mut y)));
                }
                let (ours, reader) = (median(ours), (big.len() * 4) as f64 / median(reader));
                let rate = w.bytes() as f64 / ours;
                if rows == 1 {
                    one.push(ours);
                    print!("   1: {:5.1} GB/s ({:3.0}% of {:.1})", rate / 1e9, rate / reader * 100.0, reader / 1e9);
                } else {
                    print!("   {rows}: x{:.2}", ours / one[one.len() - 1]);
                }
            }
            println!("   tokens against int8 x{:.2}", one[0] / one[one.len() - 1]);
        }
    }
}
