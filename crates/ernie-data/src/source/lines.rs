//! Lines of a bounded length.

use std::io::BufRead;

use super::files::Entry;
use crate::{Error, Result};

/// Lines of one file, counted from 1, none longer than the cap.
pub(super) struct LineReader {
    inner: Box<dyn BufRead + Send>,
    entry: Entry,
    line: u64,
    cap: usize,
}

impl LineReader {
    /// The lines of a file, behind its byte-order mark if it has one.
    pub(super) fn open(entry: &Entry, cap: u64) -> Result<Self> {
        let mut inner = entry.reader()?;
        if inner.fill_buf().map_err(|e| entry.read_error(e))?.starts_with("\u{feff}".as_bytes()) {
            inner.consume(3);
        }
        Ok(LineReader { inner, entry: entry.clone(), line: 0, cap: cap as usize })
    }

    /// Appends the next line, its end included; false at the end of the file.
    ///
    /// # Errors
    /// [`Error::Data`] for a line longer than the cap; of it, only the cap has been read.
    pub(super) fn append(&mut self, bytes: &mut Vec<u8>) -> Result<bool> {
        self.line += 1;
        let before = bytes.len();
        loop {
            let available = match self.inner.fill_buf() {
                Ok(available) => available,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.entry.read_error(e)),
            };
            if available.is_empty() {
                return Ok(bytes.len() > before);
            }
            let (taken, done) = match available.iter().position(|&b| b == b'\n') {
                Some(end) => (end + 1, true),
                None => (available.len(), false),
            };
            let length = bytes.len() - before + taken;
            if length > self.cap {
                return Err(self.too_long("a line"));
            }
            bytes.extend_from_slice(&available[..taken]);
            self.inner.consume(taken);
            if done {
                return Ok(true);
            }
        }
    }

    /// True if no line is left.
    pub(super) fn at_end(&mut self) -> Result<bool> {
        let entry = &self.entry;
        self.inner.fill_buf().map(<[u8]>::is_empty).map_err(|e| entry.read_error(e))
    }

    /// Holds a record of several lines to the cap.
    pub(super) fn check_length(&self, bytes: usize) -> Result<()> {
        if bytes > self.cap { Err(self.too_long("a paragraph")) } else { Ok(()) }
    }

    /// An input error at the line read last.
    pub(super) fn fault(&self, what: &str) -> Error {
        Error::Data { at: format!("{}:{}", self.entry.label, self.line), what: what.to_owned() }
    }

    fn too_long(&self, what: &str) -> Error {
        self.fault(&format!("{what} longer than {} bytes (data.max_record_bytes)", self.cap))
    }
}
