//! The packed stream at rest: four bytes a position, in memory up to a cap and in an unnamed file beyond it.
//!
//! Rows are cut by arithmetic, so the stream itself is all there is to keep: an id, and in its top bits whether a
//! document starts there and whether what follows carries no loss. Any row can be had at any time, which is what shuffling and
//! resuming need.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Batch, IGNORED, Marks};
use crate::{Error, Result};

/// Set in a stored position where a document starts.
const STARTS: u32 = 1 << 31;

/// Set in a stored position whose target carries no loss.
const SILENT: u32 = 1 << 30;

/// Which row of which source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// Index of the source in the mixture.
    pub source: u32,
    /// Row of that source's store.
    pub row: u32,
}

/// Takes documents in and packs them; [`Builder::finish`] gives the store.
pub struct Builder {
    seq_len: usize,
    marks: Marks,
    cap_bytes: u64,
    spill_dir: Option<PathBuf>,
    body: Body,
    positions: u64,
    silent: u64,
    documents: u64,
    text_bytes: u64,
    largest_id: u32,
    open: bool,
    hash: Sha256,
}

/// Where the positions lie.
enum Body {
    Memory(Vec<u32>),
    Writing(BufWriter<File>),
    File(File),
}

/// A packed stream; see the [module](super) for how documents lie in it.
pub struct TokenStore {
    seq_len: usize,
    marks: Marks,
    body: Body,
    positions: u64,
    silent: u64,
    documents: u64,
    text_bytes: u64,
    largest_id: u32,
    cut: bool,
    sha256: String,
    spill_dir: Option<PathBuf>,
}

impl Builder {
    /// A builder of rows of `seq_len` positions that keeps at most `cap_bytes` in memory and goes on in an unnamed file
    /// in `spill_dir` beyond that.
    ///
    /// # Errors
    /// [`Error::Setting`] if `seq_len` is 0 or a mark does not fit 30 bits.
    pub fn new(seq_len: usize, marks: Marks, cap_bytes: u64, spill_dir: Option<&Path>) -> Result<Self> {
        if seq_len == 0 || seq_len > 1 << 24 {
            return Err(Error::Setting {
                key: "data.seq_len".into(),
                what: format!("{seq_len} is outside 1 to {}", 1 << 24),
            });
        }
        if marks.start.max(marks.end) >= SILENT {
            return Err(Error::Setting { key: "marks".into(), what: "ids of start and end must be below 2^30".into() });
        }
        Ok(Builder {
            seq_len,
            marks,
            cap_bytes,
            spill_dir: spill_dir.map(Path::to_owned),
            body: Body::Memory(Vec::new()),
            positions: 0,
            silent: 0,
            documents: 0,
            text_bytes: 0,
            largest_id: marks.start.max(marks.end),
            open: false,
            hash: Sha256::new(),
        })
    }

    /// Adds a whole document of ids that cover `text_bytes` bytes of text.
    ///
    /// # Errors
    /// As [`Builder::piece`].
    pub fn document(&mut self, ids: &[u32], text_bytes: u64) -> Result<()> {
        self.piece(ids, text_bytes, true)
    }

    /// Adds a piece of a document; the first piece after one that `ends` starts the next document.
    ///
    /// # Errors
    /// [`Error::Io`] if the spill file cannot be written, [`Error::Setting`] if one is needed and no folder was given,
    /// [`Error::Internal`] for an id of 2^30 or more.
    pub fn piece(&mut self, ids: &[u32], text_bytes: u64, ends: bool) -> Result<()> {
        if !self.open {
            self.push(self.marks.start | STARTS)?;
            self.documents += 1;
            self.open = true;
        }
        for &id in ids {
            self.check(id)?;
            self.push(id)?;
        }
        self.text_bytes += text_bytes;
        if ends {
            self.open = false;
        }
        Ok(())
    }

    /// Adds a document as it is, without marks: position `i` predicts `ids[i + 1]` where `trained[i + 1]`, and nothing else.
    ///
    /// # Errors
    /// As [`Builder::piece`].
    pub(super) fn example(&mut self, ids: &[u32], trained: &[bool], text_bytes: u64) -> Result<()> {
        for (i, &id) in ids.iter().enumerate() {
            self.check(id)?;
            let silent = !trained.get(i + 1).copied().unwrap_or(false);
            self.silent += u64::from(silent);
            self.push(id | if i == 0 { STARTS } else { 0 } | if silent { SILENT } else { 0 })?;
        }
        self.documents += 1;
        self.text_bytes += text_bytes;
        Ok(())
    }

    /// Fills the row that was begun with what carries no loss.
    ///
    /// # Errors
    /// As [`Builder::piece`].
    pub(super) fn end_row(&mut self) -> Result<()> {
        let end = self.marks.end | SILENT;
        let mut first = STARTS;
        while !self.positions.is_multiple_of(self.seq_len as u64) {
            self.silent += 1;
            self.push(end | first)?;
            first = 0;
        }
        Ok(())
    }

    /// Positions in a row.
    pub(super) fn seq_len(&self) -> usize {
        self.seq_len
    }

    fn check(&mut self, id: u32) -> Result<()> {
        if id >= SILENT {
            return Err(Error::Internal(format!("the tokenizer gave the id {id}, which is not below 2^30")));
        }
        self.largest_id = self.largest_id.max(id);
        Ok(())
    }

    /// Positions so far.
    pub fn positions(&self) -> u64 {
        self.positions
    }

    /// Bytes of text so far.
    pub fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    /// Closes the stream. A document still open was cut off: what follows its last token is unknown, so that position's
    /// target is [`IGNORED`].
    ///
    /// # Errors
    /// [`Error::Io`] if the spill file cannot be written; [`Error::Setting`] for more than 2^32 rows.
    pub fn finish(self) -> Result<TokenStore> {
        let body = match self.body {
            Body::Writing(writer) => {
                Body::File(writer.into_inner().map_err(|e| spill_error(&self.spill_dir, e.into_error()))?)
            }
            body => body,
        };
        let store = TokenStore {
            seq_len: self.seq_len,
            marks: self.marks,
            body,
            positions: self.positions,
            silent: self.silent,
            documents: self.documents,
            text_bytes: self.text_bytes,
            largest_id: self.largest_id,
            cut: self.open,
            sha256: hex(&self.hash.finalize()),
            spill_dir: self.spill_dir,
        };
        if store.positions.div_ceil(store.seq_len as u64) > u64::from(u32::MAX) {
            return Err(Error::Setting {
                key: "data.seq_len".into(),
                what: format!("{} positions in rows of {} are more than 2^32 rows", store.positions, store.seq_len),
            });
        }
        Ok(store)
    }

    fn push(&mut self, position: u32) -> Result<()> {
        self.hash.update(position.to_le_bytes());
        self.positions += 1;
        if let Body::Memory(held) = &mut self.body {
            if (held.len() as u64) < self.cap_bytes / 4 {
                held.push(position);
                return Ok(());
            }
            let Some(dir) = &self.spill_dir else {
                return Err(Error::Setting {
                    key: "data.memory_bytes".into(),
                    what: format!(
                        "the tokens need more than {} bytes and there is no folder to put them in; take less text",
                        self.cap_bytes
                    ),
                });
            };
            let file = tempfile::tempfile_in(dir).map_err(|e| spill_error(&self.spill_dir, e))?;
            let mut writer = BufWriter::with_capacity(1 << 20, file);
            for value in held.iter() {
                writer.write_all(&value.to_le_bytes()).map_err(|e| spill_error(&self.spill_dir, e))?;
            }
            self.body = Body::Writing(writer);
        }
        match &mut self.body {
            Body::Writing(writer) => {
                writer.write_all(&position.to_le_bytes()).map_err(|e| spill_error(&self.spill_dir, e))
            }
            _ => Err(Error::Internal("a finished token store was written to".into())),
        }
    }
}

impl TokenStore {
    /// Rows, the last one filled up with padding.
    pub fn rows(&self) -> u32 {
        // `finish` has checked that the rows fit.
        self.positions.div_ceil(self.seq_len as u64) as u32
    }

    /// Positions in a row.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Targets that carry a loss, over all rows.
    pub fn targets(&self) -> u64 {
        self.positions - self.silent - u64::from(self.cut)
    }

    /// Documents, a cut-off one at the end included.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// Bytes of text that the targets of all rows cover; see the [module](super).
    pub fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    /// The largest id in the stream, marks included: it must be below the model's `vocab_size`.
    pub fn largest_id(&self) -> u32 {
        self.largest_id
    }

    /// SHA-256 of the stream, in hex: equal if and only if every token and every document border is.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// True if the stream outgrew the memory cap and lies in a file.
    pub fn spilled(&self) -> bool {
        matches!(self.body, Body::File(_))
    }

    /// Appends row `row` to `batch`; `source` is only noted in [`Batch::places`].
    ///
    /// # Errors
    /// [`Error::Internal`] if there is no such row, [`Error::Io`] if the spill file cannot be read.
    pub fn append_row(&mut self, source: u32, row: u32, batch: &mut Batch) -> Result<()> {
        if row >= self.rows() || batch.seq_len != self.seq_len {
            return Err(Error::Internal(format!("row {row} of {} asked for", self.rows())));
        }
        let first = u64::from(row) * self.seq_len as u64;
        let stretch = self.read(first, self.seq_len + 1)?;
        let held = stretch.len().min(self.seq_len);
        let mut segment = 0;
        for (i, &position) in stretch[..held].iter().enumerate() {
            if position & STARTS != 0 && i > 0 {
                batch.lengths.push(segment);
                segment = 0;
            }
            segment += 1;
            batch.ids.push(position & !(STARTS | SILENT));
            batch.targets.push(match stretch.get(i + 1) {
                _ if position & SILENT != 0 => IGNORED,
                Some(next) if next & STARTS == 0 => i64::from(next & !SILENT),
                None if self.cut => IGNORED,
                _ => i64::from(self.marks.end),
            });
        }
        batch.lengths.push(segment);
        if held < self.seq_len {
            let padding = self.seq_len - held;
            batch.ids.extend(std::iter::repeat_n(self.marks.end, padding));
            batch.targets.extend(std::iter::repeat_n(IGNORED, padding));
            batch.lengths.push(padding);
        }
        batch.rows += 1;
        batch.places.push(Place { source, row });
        Ok(())
    }

    /// Up to `count` stored positions from `first` on.
    fn read(&mut self, first: u64, count: usize) -> Result<Vec<u32>> {
        let count = count.min((self.positions - first) as usize);
        match &mut self.body {
            Body::Memory(held) => Ok(held[first as usize..first as usize + count].to_vec()),
            Body::File(file) => {
                let mut bytes = vec![0; count * 4];
                file.seek(SeekFrom::Start(first * 4))
                    .and_then(|_| file.read_exact(&mut bytes))
                    .map_err(|e| spill_error(&self.spill_dir, e))?;
                Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            }
            Body::Writing(_) => Err(Error::Internal("an unfinished token store was read".into())),
        }
    }
}

/// An error of the spill file, which has no name of its own.
fn spill_error(dir: &Option<PathBuf>, source: std::io::Error) -> Error {
    Error::Io { path: dir.clone().unwrap_or_default(), source }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
