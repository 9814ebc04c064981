//! Pages of bf16 in tile registers (AMX): queries and the softmax's weights are rounded to bf16 too, sums are f32.
//!
//! Sixteen query rows at a time go through a page: scores, softmax, values. While the tile unit multiplies for some rows, the vector unit
//! takes the powers of others.

pub(super) mod pairs;
mod product;
mod softmax;
mod walk;

/// Elements that a product sums over.
const DEPTH: usize = 32;
