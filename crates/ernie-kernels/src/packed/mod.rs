//! Products with packed weights: rows of floats times a matrix that was repacked once, when it was loaded.
//!
//! [`mod@float`] holds floats ([`Panels`]); the rest of this module holds integers ([`Matrix`]).
//!
//! Input rows are rounded to bytes in groups on the fly ([`Activations`]), weights are bytes or nibbles in panels of 16 outputs
//! ([`Matrix`]), and the processor multiplies bytes. One panel format serves one row and hundreds.
//!
//! # Definition
//!
//! Let a *run* be `S = min(block, GROUP)` consecutive elements of a row, `block` being what shares a weight scale (a whole row
//! for [`Kind::Int8`]). In run `r` the weight is `d[r] * q + m[r]` with an integer `q`, the activation `s[r] * a` with an
//! integer `a`. With `dot[r] = Σ q a`, an exact i32, an output is, over `r` from first to last, starting from zero,
//!
//! * [`Kind::Int8`]: `sum = fma(dot[r], s[r], sum)`, and at the end `y = sum * d`;
//! * blocks: `sum = fma(dot[r] * d[r], s[r], sum)`, then, with minimums, `sum = fma(m[r], Σa * s[r], sum)`; `y = sum`.
//!
//! Each product, fma and conversion is rounded once. Nothing in it knows the number of rows, the level (with one exception, below), the
//! threads or the kernel: all of them give the same bits, the plain twin [`crate::reference::packed`] included. For each output the error against exact
//! weights and activations is at most `Σ |w| s / 2` from rounding the activations, and a few units in the last place.
//!
//! # Offset
//!
//! `vpdpbusd` multiplies unsigned by signed bytes. Weights are stored with an offset that makes them unsigned, and the accumulator of
//! a run starts at minus the offset times the sum of the run's activations, which is known: the offset costs nothing.
//!
//! # In tile registers
//!
//! [`Level::Amx`](crate::Level::Amx) multiplies [`Kind::Int8`] otherwise. Input rows are rounded to bf16, in which the integers of weights are
//! exact, and one tile register after the other is added up to `sum`, an f32, over the whole row; at the end `y = sum * d`. The error of rounding
//! is at most `Σ |w| |x| / 256`, a fifth of what groups of bytes cost where elements are of one magnitude, and less where one element of
//! a group is large. Order and roundings are in `bytes_amx`: there too they depend on nothing but the row and the weights.
//!
//! Blocks stay with vectors. Their dot products must become floats block by block, and only vectors convert: each product of tiles would be
//! followed by a `tilestored`, during which the processor issues nothing else for 16 cycles, and by sixteen loads, conversions and
//! multiply-adds. On a Sapphire Rapids core with all operands in the first-level cache that came to 44 cycles for 16 rows by 16 outputs by
//! 32 elements, 1,050 GOP/s, where vectors reach 650; with operands where they really lie, to 0.8 to 1.4 times the time of vectors.
//! To widen blocks to bf16 with their scales costs more than one row of input has time for: with multiply-adds in binary16 on the nibbles as they lie it
//! is five instructions for 32 weights, 1.3 to 1.6 ns on that core with operands in its caches and no product yet, where memory brings as many in 1.2.
//! Hundreds of rows would gain by it; but one row must give the bits that hundreds give, and who reads much and writes little has [`Kind::Int8`].
//!
//! ```
//! use ernie_kernels::packed::{Activations, Builder, Kind, Product, multiply};
//!
//! let weights = [1.0_f32, 2.0, 3.0, -1.0, 0.5, 0.0];
//! let mut builder = Builder::new(Kind::Int8, 2, 3);
//! builder.push(&weights);
//! let matrix = builder.finish();
//! let x = Activations::new(&[1.0, 1.0, 2.0], 1, 3);
//! let mut y = [0.0; 2];
//! multiply(&x, &mut [Product { rows: 0..1, w: &matrix, y: &mut y }]);
//! assert!((y[0] - 9.0).abs() < 0.05 && (y[1] + 0.5).abs() < 0.05);
//! ```

mod activations;
#[cfg(target_arch = "x86_64")]
mod brains;
mod buffer;
#[cfg(target_arch = "x86_64")]
mod bytes_amx;
mod encode;
pub mod float;
#[cfg(target_arch = "x86_64")]
pub(crate) mod float_amx;
pub(crate) mod float_blocks;
pub(crate) mod float_pack;
pub(crate) mod float_tile;
mod layout;
mod matrix;
mod multiply;
mod rounding;
mod tile;
mod vectors;

pub use activations::{Activations, GROUP};
pub use buffer::Buffer;
pub use float::{Float, Panels};
pub use layout::{Blocks, Kind, Scales};
pub use matrix::{Builder, Matrix};
pub use multiply::{Product, multiply, products};
pub(crate) use rounding::{ROUND, scale_of};
