//! Fetches.
use std::path::PathBuf;
use super::Store;
use crate::error::Result;

/// What to fetch, and from where.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// Name on the hub, `ORG/NAME`.
    pub name: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Address of the hub.
    pub endpoint: String,
    /// Access token, for private and gated models.
    pub token: Option<String>,
    /// Exact file names to fetch instead of those that make a model run, such as one `.gguf` file.
    pub files: Vec<String>,
    /// How often a broken download is taken up again without having got any further.
    pub retries: u32,
}

impl PullOptions {
    /// A whole model from the default branch of the public hub, without a token.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            revision: super::DEFAULT_REVISION.into(),
            endpoint: super::DEFAULT_ENDPOINT.into(),
            token: None,
            files: Vec::new(),
            retries: 5,
        }
    }
}

/// Hears how a pull goes. Every method may be left out; `()` hears nothing.
pub trait Progress {
    /// A file begins; `done_bytes` of `total_bytes` are here already from an earlier, broken pull.
    fn begin(&mut self, _file: &str, _total_bytes: u64, _done_bytes: u64) {}
    /// Bytes of the current file have arrived.
    fn advance(&mut self, _bytes: u64) {}
    /// All bytes of the file are here and its hash is being checked.
    fn checking(&mut self, _file: &str) {}
    /// The file is in the store; `fetched` is false where it was there before.
    fn end(&mut self, _file: &str, _fetched: bool) {}
}

impl Progress for () {}

impl Store {
    /// Fetches a model and returns the folder of its files.
    pub fn pull(&self, options: &PullOptions, progress: &mut dyn Progress) -> Result<PathBuf> {
        let _ = progress;
        Err(crate::error::Error::hub(&options.name, "unfinished"))
    }
}
