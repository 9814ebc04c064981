//! The ERNIE-4.5 decoder: config, weights, forward.
//!
//! A checkpoint becomes a model in two steps: its config is checked into a [`ModelConfig`] that cannot be
//! wrong, then each tensor goes from the map into its final form and into the one [`Decoder`]. This room knows
//! nothing of text, training or HTTP.
//!
//! ```
//! use ernie_model::{ContiguousCache, ModelSource, Tokens, WeightsAs, load};
//!
//! let model = load(&ModelSource::Preset("nano".into(), 7), WeightsAs::F32)?.decoder;
//! let mut cache = ContiguousCache::new(model.config());
//! let mut tokens = Tokens::default();
//! tokens.push(cache.add_slot(), 0, &[5, 6, 7]);
//! let logits = model.forward_logits(&tokens, Some(&mut cache), &[2])?;
//! assert_eq!(logits.len(), model.config().vocab_size);
//! # Ok::<(), ernie_model::Error>(())
//! ```

pub mod config;
pub mod decoder;
mod error;
pub mod weights;

pub use config::{Architecture, ModelConfig, MoeConfig, ParameterCount};
pub use decoder::{
    Adaptation, CacheFormat, Classifier, ContiguousCache, Decoder, KvCache, MoeLayer, PAGE, PagedCache, Probe, Span,
    Tokens, build, build_trainable, load, load_trainable,
};
pub use error::{Error, ErrorKind, Result};
pub use weights::{LoadReport, ModelSource, Stored, WeightsAs};

/// A model and what loading it did.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub decoder: Decoder,
    /// Tensors used and skipped, bytes, notes.
    pub report: LoadReport,
}
