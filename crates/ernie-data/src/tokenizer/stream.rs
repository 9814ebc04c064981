//! Decoding ids as they arrive.
//!
//! A character may take several tokens, so bytes wait here until they are whole. What can never become a character is
//! given as U+FFFD at once; at most three bytes wait.

use super::Tokenizer;

/// See the module; made by [`Tokenizer::stream`].
#[derive(Debug, Clone)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Special tokens that are written out all the same.
    shown: Vec<u32>,
    waiting: Vec<u8>,
}

impl DecodeStream {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, shown: Vec::new(), waiting: Vec::new() }
    }

    /// Writes these special tokens out too.
    #[must_use]
    pub fn showing(mut self, ids: impl IntoIterator<Item = u32>) -> Self {
        self.shown.extend(ids);
        self
    }

    /// Takes an id; gives the text that is whole now, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if self.skip_special && self.tokenizer.is_special(id) && !self.shown.contains(&id) {
            return None;
        }
        self.waiting.extend_from_slice(self.tokenizer.token_bytes(id).unwrap_or("\u{FFFD}".as_bytes()));
        let mut out = String::new();
        let mut rest = self.waiting.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (good, bad) = rest.split_at(e.valid_up_to());
                    out.push_str(std::str::from_utf8(good).unwrap_or_default());
                    match e.error_len() {
                        Some(len) => {
                            out.push('\u{FFFD}');
                            rest = &bad[len..];
                        }
                        None => {
                            rest = bad;
                            break;
                        }
                    }
                }
            }
        }
        self.waiting = rest.to_vec();
        (!out.is_empty()).then_some(out)
    }

    /// The end: an unfinished character becomes U+FFFD.
    pub fn finish(self) -> Option<String> {
        (!self.waiting.is_empty()).then(|| String::from_utf8_lossy(&self.waiting).into_owned())
    }
}
