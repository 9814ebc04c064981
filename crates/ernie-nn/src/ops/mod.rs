//! Ops with gradients, at the grain of layer parts.
//!
//! Every op works on flat rows `[T, …]`: a batch is a list of tokens, and sequences are spans of it.
//! Each is bound to a kernel, and has a twin of plain candle ops in [`plain`].
//!
//! Shape letters: `T` tokens, `h` hidden, `N` query heads, `K` key-value heads, `D` head width,
//! `E` experts, `k` experts a token, `V` vocabulary.

pub mod attention;
mod cross_entropy;
mod dispatch;
mod elementwise;
mod embedding;
mod experts;
mod multiply;
pub mod plain;
mod recompute;
mod rms_norm;
mod rope;
mod route;
mod router_losses;
mod rows;
mod swiglu;

pub use attention::{Write, attention, attention_over_pages, page_bytes, write_pages};
pub use cross_entropy::{CrossEntropy, IGNORED, head_cross_entropy, weighted_head_cross_entropy};
pub use dispatch::dispatch;
pub use elementwise::{add, add_row, concat, round_to_bf16, scale, sum, weighted_sum, widen};
pub use embedding::embedding;
pub use experts::{Expert, experts};
pub use multiply::{linear, multiply};
pub(crate) use multiply::{multiply_all, multiply_for};
pub use recompute::{Outputs, recomputed};
pub use rms_norm::{add_rms_norm, rms_norm, rms_norm_to};
pub use rope::{Angles, rope};
pub use route::{Routing, route};
pub use router_losses::{balance_loss, orthogonal_loss, z_loss};
pub use rows::{add_at, place};
pub use swiglu::swiglu;
