//! Tensors with gradients, ops, one [`Linear`].
//!
//! This room binds the kernels to `candle_core::Tensor` as ops with gradients. It knows nothing of the
//! family, of files or of text. Three ideas carry it:
//!
//! * a [`Value`] is a tensor that remembers how it was made; [`Value::backward`] walks that memory once
//!   and frees it as it goes, and may say when a parameter's gradient is whole ([`Value::backward_telling`]). This small tape is ours because the ops here have more inputs than candle's
//!   `CustomOp` allows, and because activations must be freed when they are used, not when the loss is;
//! * a [`Parameter`] is a named leaf with a gradient; an optimiser changes it in place;
//! * a [`Linear`] is the one way to multiply by a weight, whatever number format the weight is stored in.
//!
//! Beside each op stands the same op composed of plain candle ops ([`ops::plain`]): the reference that
//! tests compare with, gradients included.
//!
//! ```
//! use ernie_nn::{Parameter, Value, ops};
//! let w = Parameter::from_vec("w", vec![1.0, 2.0, 3.0, 4.0], &[2, 2])?;
//! let x = Value::from_vec(vec![1.0, 1.0], &[1, 2])?;
//! let y = ops::sum(&ops::linear(&x, &w)?)?; // 1+2 + 3+4
//! y.backward()?;
//! assert_eq!(y.scalar()?, 10.0);
//! assert_eq!(w.grad_vec()?, vec![1.0, 1.0, 1.0, 1.0]);
//! # Ok::<(), ernie_nn::Error>(())
//! ```

mod error;
mod linear;
pub mod ops;
mod packed;
mod parameter;
mod slice;
mod tape;
mod through;
mod value;
mod weight;

pub use candle_core::Tensor;
/// Floats in one of two widths, and which that is.
pub use ernie_kernels::floats::{Floats, FloatsMut, Width, bf16};
/// Bytes that start on a cache line: what pages of a cache are made of.
pub use ernie_kernels::packed::Buffer;
/// Arithmetic over slices that rooms above need as it is: the optimiser's pass, stored formats, rounding to int8, a look over
/// logits.
pub use ernie_kernels::{Format, adamw, catch_panics, formats, logits, muon, panics_are_caught, parallel, quantize};
pub use error::{Error, Result};
pub use linear::{Adapter, Linear};
pub use ops::attention::{CacheFormat, Heads, PAGE, Span};
pub use packed::{Blocks, Float, Form, Kind, Packed, Packer, Scales};
pub use parameter::Parameter;
pub use tape::{Recording, no_grad};
pub use through::{Each, Through};
pub use value::Value;
pub use weight::Weight;
