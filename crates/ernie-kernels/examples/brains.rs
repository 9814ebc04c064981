//! Speed of products in bf16 as training needs them, beside the peak of the same run.
//!
//! Run with: `cargo run --release -p ernie-kernels --example brains`; with `--best` the best runs, for a busy machine.
#![allow(clippy::print_stdout, reason = "a program that prints")]

mod timing;

use ernie_kernels::floats::{FloatVec, Floats, Width};
use ernie_kernels::gemm::brains;
use ernie_kernels::limits::Limits;
use timing::{median, noise};

fn main() {
    let peak = Limits::measure(ernie_kernels::threads()).bf16_gflop_per_s;
    println!("{} threads at {}, peak {:?} GFLOP/s", ernie_kernels::threads(), ernie_kernels::level(), peak);
    for [rows, ins, outs] in
        [[4096, 512, 512], [4096, 512, 1536], [4096, 1536, 512], [1024, 512, 8192], [2048, 1024, 3072], [512, 256, 256]]
    {
        let (x, w, dy) = (noise(rows * ins), noise(outs * ins), noise(rows * outs));
        let narrow = |x: &[f32]| Floats::F32(x).to_width(Width::Bf16);
        let (x, dy) = (narrow(&x), narrow(&dy));
        let room = |n: usize| FloatVec::zeros(Width::Bf16, n);
        let (mut y, mut dx, mut dw) = (room(rows * outs), room(rows * ins), vec![0.0_f32; outs * ins]);
        let rate = |f: &mut dyn FnMut()| 2.0 * (rows * ins * outs) as f64 / median(9, f) / 1e9;
        let forward = rate(&mut || brains::nt(x.view(), (&w).into(), (&mut y).into(), rows, ins, outs, false));
        let input = rate(&mut || brains::nn(dy.view(), (&w).into(), (&mut dx).into(), rows, outs, ins, false));
        let weight = rate(&mut || brains::tn(dy.view(), x.view(), (&mut dw).into(), outs, rows, ins, false));
        println!("  {rows:5} x {ins:5} x {outs:5}: x Wt {forward:6.0}, dy W {input:6.0}, dyt x {weight:6.0} GFLOP/s");
    }
}
