//! Text in and out: tokenizers, templates, sources, packing, samplers.
//!
//! This crate turns bytes into token ids and back. It knows files and text; it knows no tensors and no model.
//!
//! * [`tokenizer`] reads `tokenizer.json`, SentencePiece `tokenizer.model` and the tokenizer inside a GGUF, and
//!   trains byte-level BPE.
//! * [`chat`] renders chat templates so that text typed by a caller can never become a control token.
//! * [`conversation`] reads conversations to learn from, and which of their tokens carry a loss.
//! * [`labelled`] reads texts with labels, and counts how often a label was found.
//! * [`source`] streams documents out of text, JSONL and Parquet files, plain, gzip or zstd; [`packing`] turns their
//!   ids into rows of one length; [`sampler`] and [`mixture`] choose which row comes next; [`loader`] is all of them
//!   behind one face for training and evaluation; [`bundled`] is a small English corpus inside the program.

pub mod bundled;
pub mod chat;
pub mod conversation;
mod error;
pub mod labelled;
pub mod loader;
pub mod mixture;
pub mod packing;
pub mod sampler;
pub mod source;
pub mod tokenizer;

pub use error::{Error, ErrorKind, Result};
pub use loader::{HeldOut, Loader, LoaderConfig, LoaderState, Reading};
pub use packing::{Batch, Marks};
