//! From ids to text that may be shown, as they come.
//!
//! [`TextStream`] joins the two things that hold text back: characters spread over several tokens, and stop strings. The
//! same stream, as a watcher on the engine's thread, is what ends the request ([`StopWatcher`]), so that both always
//! agree.

use ernie_data::tokenizer::{DecodeStream, Tokenizer};

use super::stop::StopFilter;
use crate::Result;
use crate::engine::{Verdict, Watcher};

/// Turns the ids of one answer into text.
#[derive(Debug, Clone)]
pub struct TextStream {
    decode: DecodeStream,
    filter: StopFilter,
    /// Stop strings that are special tokens: these never show as text.
    stop_ids: Vec<u32>,
    stopped: bool,
}

impl TextStream {
    /// A stream that ends at the first of `stops`. Special tokens are left out of the text; a stop string that names
    /// one ends the answer at that token.
    ///
    /// # Errors
    /// As [`StopFilter::new`].
    pub fn new(tokenizer: &Tokenizer, stops: &[String]) -> Result<Self> {
        let stop_ids =
            stops.iter().filter_map(|stop| tokenizer.id_of(stop)).filter(|&id| tokenizer.is_special(id)).collect();
        let filter = StopFilter::new(stops)?;
        Ok(Self { decode: tokenizer.stream(), filter, stop_ids, stopped: false })
    }

    /// Shows these tokens, though they are special: tags of calls and of reasoning, which are looked for in the text.
    #[must_use]
    pub fn showing(mut self, tokenizer: &Tokenizer, tags: &[&str]) -> Self {
        self.decode = self.decode.showing(tags.iter().filter_map(|tag| tokenizer.id_of(tag)));
        self
    }

    /// Takes an id; gives the text that is whole and safe now, often none.
    pub fn push(&mut self, id: u32) -> String {
        if self.stopped {
            return String::new();
        }
        if self.stop_ids.contains(&id) {
            self.stopped = true;
            return self.filter.finish();
        }
        let text = match self.decode.push(id) {
            Some(text) => self.filter.push(&text),
            None => String::new(),
        };
        self.stopped = self.filter.stopped();
        text
    }

    /// The end of the ids: gives what was held back.
    pub fn finish(mut self) -> String {
        if self.stopped {
            return String::new();
        }
        let tail = self.decode.finish().unwrap_or_default();
        let mut text = self.filter.push(&tail);
        text += &self.filter.finish();
        text
    }

    /// Whether a stop string has come.
    pub fn stopped(&self) -> bool {
        self.stopped
    }
}

/// Ends a request at its stop strings.
#[derive(Debug, Clone)]
pub struct StopWatcher(pub TextStream);

impl Watcher for StopWatcher {
    fn accept(&mut self, id: u32) -> Verdict {
        self.0.push(id);
        if self.0.stopped() { Verdict::Stop } else { Verdict::Continue }
    }
}
