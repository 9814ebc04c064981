//! Serving: an engine that turns ids into ids, and sessions that put text around it.
//!
//! * [`engine`] runs many requests on one model, step by step. It sees ids, never text; logits, scores and answers all
//!   come out of it.
//! * [`session`] is engine plus text: chat templates, streaming decode, stop strings, history. `chat` and `generate` use
//!   it.
//! * `http` (a feature of that name) is the server: the OpenAI API over an engine that runs on a thread of its own.
//!
//! This crate knows no training and prints nothing. Nothing in it reads the environment, and the clock only to tell how
//! long a request took and whether guessing tokens saves time; no answer depends on it.
//!
//! ```no_run
//! use ernie_model::{ModelSource, WeightsAs, load};
//! use ernie_serve::engine::{Engine, EngineOptions, Event, Generate, Request};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let loaded = load(&ModelSource::Folder("ERNIE-4.5-0.3B-PT".into()), WeightsAs::Native)?;
//! let mut engine = Engine::new(loaded.decoder, EngineOptions::default())?;
//! engine.submit(Request::generate(vec![5, 6, 7], Generate { max_tokens: 16, ..Generate::default() }))?;
//! while !engine.is_idle() {
//!     for event in engine.step()? {
//!         if let Event::Token { id, .. } = event {
//!             println!("{id}");
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```

pub mod engine;
mod error;
#[cfg(feature = "http")]
pub mod http;
pub mod session;

pub use error::{Error, ErrorKind, Result};
