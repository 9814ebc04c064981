//! A watcher looks over one request's shoulder while it is generated.
//!
//! Stop strings and grammars are watchers. They are called on the engine's thread, between the forward pass and the
//! event, so they must be quick and must not block.

/// What a watcher says after seeing a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Continue,
    /// The answer is complete: the request finishes with [`super::FinishReason::Stop`] after this token.
    Stop,
}

/// Watches one request.
pub trait Watcher: Send {
    /// Changes the logits before a token is picked; negative infinity forbids an id. Leaves them alone by default.
    ///
    /// `logits` has one entry for each id of the vocabulary. It is called once for each token, before penalties and
    /// temperature. Forbidding every id fails the request.
    fn mask(&mut self, logits: &mut [f32]) {
        let _ = logits;
    }

    /// Sees the id that was picked. It is not called for an end-of-sequence id that ends the request.
    fn accept(&mut self, id: u32) -> Verdict;

    /// Why it forbade every id, if it did: one line for the caller.
    fn trouble(&self) -> Option<&str> {
        None
    }
}
