//! The safetensors format: 8 bytes of header length, a JSON header, the tensors' bytes.
//!
//! The header is read by our own bounded reader rather than by the format's crate, whose arithmetic on
//! offsets and shapes can still be made to overflow by a hostile file. [`Writer`] streams a file out, one that appears
//! under its name only when it is complete. To open checkpoints use [`crate::Checkpoint`], which also knows folders and shards.

pub(crate) mod header;
mod writer;

pub use header::{MAX_DIMS, MAX_HEADER_BYTES};
pub use writer::Writer;
