//! Numeric kernels over slices: what the arithmetic of a decoder needs, and nothing that knows about decoders.
//!
//! Every function takes slices and writes slices. There are no tensors, no models and no files here, and no errors either:
//! the caller has checked shapes at its own door, and a slice of the wrong length is a bug that panics with the two lengths
//! (each function says so under `# Panics`).
//!
//! Each kernel is one safe body compiled several times, for AVX-512, for AVX2 with FMA, and for the plain instruction set
//! ([`Level`]); the level is chosen once at run time and can be forced ([`set_level`], [`with_level`]) so that tests reach
//! every level that the machine has. The matrix products alone are written by hand: [`linear`] for weights as they are stored,
//! [`packed`] for integer weights repacked when they are loaded. Beside all of them stands [`mod@reference`], the same
//! mathematics as plain loops, against which the tests compare.
//!
//! Two rules hold everywhere. A result does not depend on the number of threads. And the order of a sum over the inner
//! dimension, or over cache positions, depends on that dimension and on the absolute position only, so that a row gives the
//! same bits alone, in a batch, or in any chunking.
//!
//! ```
//! use ernie_kernels::{Rows, linear};
//!
//! // Two output features over three input features, one row of input.
//! let weights = [1.0_f32, 2.0, 3.0, -1.0, 0.5, 0.0];
//! let x = [1.0_f32, 1.0, 2.0];
//! let mut y = [0.0_f32; 2];
//! linear::forward(&x, &Rows::from_f32(&weights, 2, 3), &mut y);
//! assert_eq!(y, [9.0, -0.5]);
//! ```
//!
//! Legend used in shapes: `T` rows (tokens), `H` query heads, `G` key/value heads, `D` head width, `E` experts, `V` vocabulary.

#[macro_use]
mod simd;
#[macro_use]
mod lanes;

pub mod adamw;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
pub mod cross_entropy;
pub mod elementwise;
pub mod embedding;
pub mod experts;
pub mod floats;
pub mod formats;
pub mod fresh;
pub mod gemm;
mod level;
pub mod limits;
pub mod linear;
pub mod logits;
pub mod memory;
pub mod muon;
pub mod norm;
pub mod packed;
mod pool;
pub mod quantize;
pub mod reference;
pub mod rope;
pub mod route;
pub mod softmax;
pub mod swiglu;

pub use formats::Format;
pub use level::{Level, Unsupported, level, set_level, supported_levels, with_level};
pub use linear::Rows;
pub use pool::{catch_panics, panics_are_caught, parallel, set_threads, threads};
