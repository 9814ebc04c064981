//! Documents out of files, as a stream.
//!
//! A source is a list of globs (`*`, `?`, `[…]`; `**` for any depth, not through links). Files are taken in sorted order, each once, and read from beginning to end; nothing is
//! held beyond one record. What a file is:
//!
//! * **Compression** (none, gzip, zstd) and **Parquet** are recognised by the first bytes, whatever the name says.
//! * **JSONL or text** cannot be told apart by bytes: names ending in `.jsonl`, `.ndjson` or `.json` (before `.gz`,
//!   `.zst`) are JSONL, all else is text; [`SourceConfig::format`] overrides that for every file of the source.
//!
//! What a document is:
//!
//! * JSONL: one object a line; its text is the string field `text`, or the fields of [`SourceConfig::text_fields`]
//!   joined by a line break. Blank lines are passed over. Bytes that are not UTF-8 are an error.
//! * Parquet: one row; the same fields name its string columns. A null row is no document.
//! * Text: [`Documents`] says: the whole file (the default), a line, or a paragraph. Bytes that are not UTF-8 become
//!   U+FFFD and are counted in a note.
//!
//! Documents without any text are passed over. A byte-order mark at the head of a file is dropped.
//!
//! # Hostile files
//!
//! A line, row or paragraph longer than [`SourceConfig::max_record_bytes`] is an error. gzip and zstd are streamed
//! with a window of at most 128 MiB, and output beyond 64 MiB that is more than 4,096 times the input read so far is
//! refused as a decompression bomb. Only regular files are opened. See [`parquet`](self) rows for their own checks:
//! every page is measured before the Parquet library sees it, and a panic inside that library becomes an error.

mod columns;
mod files;
mod jsonl;
mod lines;
mod thrift;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use columns::panics_are_caught;
use files::Entry;
pub use files::FileMark;
use lines::LineReader;

use crate::{Error, Result};

/// How long a line, row or paragraph may be by default: 64 MiB.
pub const MAX_RECORD_BYTES: u64 = 64 << 20;

/// A whole-file document comes in pieces of about this many bytes, cut at line ends.
pub const PIECE_BYTES: usize = 64 << 10;

/// What a text file's documents are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Documents {
    /// The file is one document (books, code, anything that reads on).
    #[default]
    File,
    /// Every line that is not blank is one (lists of sentences, one article a line).
    Line,
    /// Every run of lines between blank lines is one.
    Paragraph,
}

/// What the files of a source are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// See the [module](self).
    #[default]
    Auto,
    /// Plain text.
    Text,
    /// One JSON object a line.
    Jsonl,
    /// Apache Parquet.
    Parquet,
}

/// Which files to read and what their documents are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourceConfig {
    /// Globs, absolute or relative to the base folder; also `bundled:train` and `bundled:held_out`.
    pub paths: Vec<String>,
    /// What the files are.
    pub format: Format,
    /// What the documents of text files are.
    pub documents: Documents,
    /// The JSONL fields or Parquet columns that hold the text, joined by a line break if several.
    pub text_fields: Vec<String>,
    /// Longest line, row or paragraph in bytes, from 1 to 2^30.
    pub max_record_bytes: u64,
    /// Gives the whole line of a JSONL file, whatever it holds, instead of the text in its fields.
    pub whole_lines: bool,
}

impl Default for SourceConfig {
    fn default() -> Self {
        SourceConfig {
            paths: Vec::new(),
            format: Format::Auto,
            documents: Documents::File,
            text_fields: vec!["text".into()],
            max_record_bytes: MAX_RECORD_BYTES,
            whole_lines: false,
        }
    }
}

impl SourceConfig {
    /// These globs, everything else by default.
    pub fn new(globs: &[&str]) -> Self {
        SourceConfig { paths: globs.iter().map(|&glob| glob.to_owned()).collect(), ..SourceConfig::default() }
    }
}

/// A document, or a piece of a long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// True if the document ends here; otherwise the next piece goes on with it.
    pub ends: bool,
    /// Bytes of the separator that was cut off after the text (a line's `\n`).
    pub separator_bytes: u64,
}

/// How far a source has been read. [`Source::seek`] goes back to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Index of the file.
    pub file: usize,
    /// Pieces already given from it.
    pub record: u64,
}

/// A stream of documents; see the [module](self).
pub struct Source {
    config: SourceConfig,
    entries: Vec<Entry>,
    position: Position,
    open: Option<Records>,
    notes: Notes,
}

/// Oddities that were passed over, to be told once.
#[derive(Debug, Default)]
struct Notes {
    empty: u64,
    replaced: u64,
}

/// The records of one open file.
enum Records {
    Text(LineReader),
    Jsonl(LineReader),
    Parquet(Box<columns::Columns>),
}

impl Source {
    /// Finds the files; reads none of them yet.
    ///
    /// # Errors
    /// [`Error::Data`] names the glob that is malformed, matches nothing or is a folder; [`Error::Setting`] a key that
    /// is out of range.
    pub fn open(config: &SourceConfig, base_dir: &Path) -> Result<Self> {
        if config.text_fields.is_empty() {
            return Err(Error::Setting { key: "data.text_fields".into(), what: "at least one field is needed".into() });
        }
        if !(1..=1 << 30).contains(&config.max_record_bytes) {
            return Err(Error::Setting {
                key: "data.max_record_bytes".into(),
                what: format!("{} is outside 1 to 2^30", config.max_record_bytes),
            });
        }
        let entries = files::find(&config.paths, base_dir)?;
        Ok(Source {
            config: config.clone(),
            entries,
            position: Position::default(),
            open: None,
            notes: Notes::default(),
        })
    }

    /// The next document or piece of one; `None` at the end of the last file.
    ///
    /// # Errors
    /// [`Error::Data`] names file and line of a malformed record; [`Error::Io`] if a file cannot be read.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Piece>> {
        loop {
            let Some(entry) = self.entries.get(self.position.file) else { return Ok(None) };
            let records = match &mut self.open {
                Some(records) => records,
                empty => empty.insert(open(entry, &self.config)?),
            };
            let piece = match records {
                Records::Text(lines) => text_piece(lines, &self.config, &mut self.notes)?,
                Records::Jsonl(lines) if self.config.whole_lines => jsonl::line(lines)?,
                Records::Jsonl(lines) => jsonl::piece(lines, &self.config.text_fields, &mut self.notes.empty)?,
                Records::Parquet(columns) => columns.piece(&mut self.notes.empty)?,
            };
            match piece {
                Some(piece) => {
                    self.position.record += 1;
                    return Ok(Some(piece));
                }
                None => {
                    self.open = None;
                    self.position = Position { file: self.position.file + 1, record: 0 };
                }
            }
        }
    }

    /// An input error in the record given last.
    pub fn fault(&self, what: &str) -> Error {
        match &self.open {
            Some(Records::Text(lines) | Records::Jsonl(lines)) => lines.fault(what),
            _ => Error::Data { at: self.describe(), what: what.to_owned() },
        }
    }

    /// How far this has been read.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Goes to a position of the same files, by reading over the records of one file.
    ///
    /// # Errors
    /// [`Error::Resume`] if the files have no such position; those of [`Source::next`].
    pub fn seek(&mut self, position: Position) -> Result<()> {
        if position.file > self.entries.len() {
            return Err(Error::Resume(format!(
                "the data position is in file {}, there are {}",
                position.file,
                self.entries.len()
            )));
        }
        self.open = None;
        self.position = Position { file: position.file, record: 0 };
        while self.position.record < position.record {
            if self.next()?.is_none() || self.position.file != position.file {
                return Err(Error::Resume(format!(
                    "the data position is record {} of file {}, which has fewer",
                    position.record, position.file
                )));
            }
        }
        Ok(())
    }

    /// Marks of all files in order: path, size and a hash of head and tail.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read.
    pub fn marks(&self) -> Result<Vec<FileMark>> {
        self.entries.iter().map(Entry::mark).collect()
    }

    /// The files in the order they are read.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.label.as_str())
    }

    /// What to call this source in a message.
    pub fn describe(&self) -> String {
        self.config.paths.join(", ")
    }

    /// One line for each kind of oddity met so far.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.notes.replaced > 0 {
            notes.push(format!(
                "{}: {} records held bytes that are not UTF-8; they read as U+FFFD",
                self.describe(),
                self.notes.replaced
            ));
        }
        if self.notes.empty > 0 {
            notes.push(format!("{}: {} records without text were passed over", self.describe(), self.notes.empty));
        }
        notes
    }
}

/// Opens a file as what it is.
fn open(entry: &Entry, config: &SourceConfig) -> Result<Records> {
    let format = match config.format {
        Format::Auto if entry.is_parquet()? => Format::Parquet,
        Format::Auto if entry.is_jsonl_by_name() => Format::Jsonl,
        Format::Auto => Format::Text,
        chosen => chosen,
    };
    Ok(match format {
        Format::Parquet => {
            Records::Parquet(Box::new(columns::Columns::open(entry, &config.text_fields, config.max_record_bytes)?))
        }
        Format::Jsonl => Records::Jsonl(LineReader::open(entry, config.max_record_bytes)?),
        _ => Records::Text(LineReader::open(entry, config.max_record_bytes)?),
    })
}

/// The next piece of a text file.
fn text_piece(lines: &mut LineReader, config: &SourceConfig, notes: &mut Notes) -> Result<Option<Piece>> {
    let mut bytes = Vec::new();
    match config.documents {
        Documents::File => {
            // Cut between lines once there is enough; a piece of blanks alone is text here, for the file is kept whole.
            while bytes.len() < PIECE_BYTES && lines.append(&mut bytes)? {}
            if bytes.is_empty() {
                return Ok(None);
            }
            let ends = lines.at_end()?;
            Ok(Some(Piece { text: decode(bytes, notes), ends, separator_bytes: 0 }))
        }
        Documents::Line => loop {
            bytes.clear();
            if !lines.append(&mut bytes)? {
                return Ok(None);
            }
            let separator_bytes = strip_line_end(&mut bytes);
            if bytes.iter().all(u8::is_ascii_whitespace) {
                notes.empty += u64::from(!bytes.is_empty());
                continue;
            }
            return Ok(Some(Piece { text: decode(bytes, notes), ends: true, separator_bytes }));
        },
        Documents::Paragraph => loop {
            let before = bytes.len();
            let more = lines.append(&mut bytes)?;
            let blank = bytes[before..].iter().all(u8::is_ascii_whitespace);
            if !blank {
                lines.check_length(bytes.len())?;
                continue;
            }
            if before > 0 {
                let mut separator_bytes = (bytes.len() - before) as u64;
                bytes.truncate(before);
                separator_bytes += strip_line_end(&mut bytes);
                return Ok(Some(Piece { text: decode(bytes, notes), ends: true, separator_bytes }));
            }
            bytes.clear();
            if !more {
                return Ok(None);
            }
        },
    }
}

/// Bytes to text, with U+FFFD for what is not UTF-8.
fn decode(bytes: Vec<u8>, notes: &mut Notes) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| {
        notes.replaced += 1;
        String::from_utf8_lossy(error.as_bytes()).into_owned()
    })
}

/// Takes `\n` or `\r\n` off the end; says how many bytes that was.
fn strip_line_end(bytes: &mut Vec<u8>) -> u64 {
    let before = bytes.len();
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    (before - bytes.len()) as u64
}
