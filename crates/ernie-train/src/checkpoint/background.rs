//! A checkpoint that is written while training goes on.
//!
//! What goes into it is copied first ([`Unwritten`]); a thread writes the copy as [`super::save`] would. One is under way at a time.

use std::path::PathBuf;
use std::thread::JoinHandle;

use super::save::Unwritten;
use crate::error::{Error, Result};
use crate::standing::Standing;

/// A checkpoint on its way to the disk. Whoever drops it waits for it.
pub(crate) struct Saving {
    /// After which step.
    pub(crate) step: u64,
    /// Where the run stood then.
    pub(crate) standing: Standing,
    thread: Option<JoinHandle<Result<PathBuf>>>,
}

impl Saving {
    /// Begins to write.
    pub(crate) fn begin(step: u64, standing: Standing, unwritten: Unwritten) -> Result<Self> {
        let path = unwritten.path().to_owned();
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(move || unwritten.write());
        let thread = thread.map_err(|error| Error::io(&path, "there is no thread to write it", error))?;
        Ok(Self { step, standing, thread: Some(thread) })
    }

    /// Whether it is written, or has failed.
    pub(crate) fn is_done(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until it is written.
    pub(crate) fn wait(mut self) -> Result<PathBuf> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome,
            _ => Err(Error::Internal("the thread that writes checkpoints broke off".into())),
        }
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        // A run that ends by another error has that one to tell.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
