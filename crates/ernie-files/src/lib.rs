//! Files: bounded readers, read-only maps, atomic writes and the local model store.
//!
//! This room knows bytes, names, shapes and folders. It knows nothing of tensors that compute, models or text. Whatever
//! it opens is treated as hostile: lengths are checked before they are believed, memory is bounded by the file's real
//! size, nothing is executed, and every fault is one line ([`Error`]) that says whose it is ([`ErrorKind`]).
//!
//! * [`Checkpoint`] opens safetensors: a file, a folder, a folder of shards. [`safetensors::Writer`] writes them.
//! * [`gguf::Gguf`] opens GGUF v2 and v3: metadata and tensor table.
//! * Both hand out [`Bytes`], views into a read-only map: nothing is copied.
//! * [`atomic`] makes files and whole folders appear complete or not at all.
//! * [`store::Store`] is the hub's own cache layout: resolve, list, remove, and pull with every hash checked.
//!
//! ```
//! use std::collections::BTreeMap;
//! use ernie_files::{Checkpoint, Dtype, TensorInfo, safetensors::Writer};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("model.safetensors");
//!
//! let tensors = [TensorInfo::new("model.norm.weight", Dtype::F32, [2])];
//! let mut writer = Writer::create(&path, &tensors, &BTreeMap::new())?;
//! writer.write(&1.0_f32.to_le_bytes())?;
//! writer.write(&0.5_f32.to_le_bytes())?;
//! writer.finish()?;
//!
//! let checkpoint = Checkpoint::open(folder.path())?;
//! let info = checkpoint.info("model.norm.weight").ok_or("missing")?;
//! assert_eq!((info.dtype, info.shape.as_slice()), (Dtype::F32, &[2][..]));
//! assert_eq!(checkpoint.bytes("model.norm.weight")?[..4], 1.0_f32.to_le_bytes());
//! assert!(checkpoint.bytes("model.nrom.weight").unwrap_err().is_input());
//! # Ok(())
//! # }
//! ```

pub mod atomic;
mod checkpoint;
mod dtype;
mod error;
pub mod gguf;
mod map;
mod read;
pub mod safetensors;
pub mod store;

pub use checkpoint::Checkpoint;
pub use dtype::{Dtype, TensorInfo, UnknownDtype};
pub use error::{Error, ErrorKind, Result};
pub use map::Bytes;
pub use read::{read_bounded, read_text};
