//! Where tensors come from, under the published names, each taken once and straight into its final form.
//!
//! [`Weights`] stands over a safetensors folder, a GGUF file or a seeded random source. Opening it reads tables
//! only: names are bent to the published ones in one place, every tensor the config calls for is
//! looked up and its shape checked. The decoder then takes tensor after tensor; what a [`WeightsAs`] asks for is
//! done while packing, a few rows at a time from the map into the final buffer, so that there is never a second whole copy.
//! [`Weights::finish`] refuses a file with tensors nobody took, except the short list that may be skipped: the
//! multi-token-prediction modules and, in VL models, everything for pictures.
//!
//! It does not know what the tensors are used for, beyond matrix or not.

use std::path::PathBuf;

use ernie_files::{Bytes, TensorInfo};
pub use ernie_nn::Format;

mod adapter;
mod bend;
mod convert;
mod nibbles;
mod quantize;
mod random;
mod save;
mod source;
mod stored;
mod to_gguf;
mod upcycle;

pub use adapter::{AdapterFiles, adapter_files, read_adapter};
pub use quantize::quantize_into;
pub(crate) use random::uniform;
pub use save::{Copied, SHARD_BYTES, SaveAs, SaveTensor, Values, save, save_into, save_sharded, write_floats};
pub use source::Weights;
pub use stored::Stored;
pub use to_gguf::{GgufAs, write_gguf};
pub use upcycle::{Upcycling, upcycle_into};

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder in the published layout: `config.json` and `*.safetensors`.
    Folder(PathBuf),
    /// A `.gguf` file.
    Gguf(PathBuf),
    /// A preset, drawn from a seed.
    Preset(String, u64),
}

/// The number format weights are brought to while they are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeightsAs {
    /// As stored.
    #[default]
    Native,
    /// Widened to 32-bit floats; what training needs.
    F32,
    /// Rounded to brain floats.
    Bf16,
    /// Rounded to 8-bit integers, symmetric, one scale a row; embedding and head included. Inputs are rounded to 8 bits as
    /// they are used.
    Int8,
    /// Rounded to 4-bit integers with a scale and a minimum every 32; embedding and head to 8 bits. Inputs as with `Int8`.
    Int4,
}

impl std::str::FromStr for WeightsAs {
    type Err = crate::Error;

    fn from_str(text: &str) -> crate::Result<Self> {
        match text {
            "native" => Ok(Self::Native),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "int8" => Ok(Self::Int8),
            "int4" => Ok(Self::Int4),
            other => Err(crate::Error::Request(format!(
                "`{}` is no weight format; expected native, f32, bf16, int8 or int4",
                other.chars().take(40).collect::<String>()
            ))),
        }
    }
}

/// A tensor that is kept for saving though nothing runs it yet (multi-token prediction).
#[derive(Clone)]
pub struct Kept {
    /// Name, type and shape as stored.
    pub info: TensorInfo,
    /// Its bytes, still in the map.
    pub bytes: Bytes,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.info.name, self.info.shape)
    }
}

/// What loading did: every stored tensor is counted as used or named as skipped.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// Stored tensors that the model uses.
    pub used: usize,
    /// Stored tensors that it does not, by name.
    pub skipped: Vec<String>,
    /// Bytes of the weights in their final form.
    pub weight_bytes: u64,
    /// Lines for the user: keys ignored, what is inferred, what is not built.
    pub notes: Vec<String>,
    /// Skipped tensors that a save carries over (multi-token prediction).
    pub kept: Vec<Kept>,
}
