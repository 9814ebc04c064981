//! String columns of a Parquet file, row by row.
//!
//! The Parquet library decodes; this is the door before it. The library allocates by what headers say and has been
//! written for files that mean well, so the footer's schema and the header of every page to be read are walked first
//! (sizes against the file's own, nesting, dictionary counts), encodings whose decoders allocate by figures inside the
//! data are refused by name, and a panic is caught and becomes an error of the file.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};

use parquet::basic::{Compression, Type};
use parquet::column::reader::{ColumnReaderImpl, get_typed_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::Piece;
use super::files::Entry;
use super::thrift::{self, Event};
use crate::{Error, Result};

/// Rows decoded at a time.
const ROWS: usize = 64;
/// Largest footer; one of a million columns and row groups is smaller.
const MAX_FOOTER_BYTES: u64 = 64 << 20;
/// A page may always be this large.
const FREE_PAGE_BYTES: u64 = 16 << 20;
/// Beyond that it may hold this many bytes for each byte in the file.
const EXPANSION: u64 = 4096;
/// And never more than this.
const MAX_PAGE_BYTES: u64 = 1 << 30;

/// The wanted columns of one open file.
pub(super) struct Columns {
    entry: Entry,
    file: File,
    file_bytes: u64,
    reader: SerializedFileReader<File>,
    indices: Vec<usize>,
    next_group: usize,
    group: Vec<Column>,
    /// Rows read and not yet given, the next one last.
    ready: Vec<Option<String>>,
    row: u64,
    max_record_bytes: usize,
}

/// One column of the open row group.
struct Column {
    reader: ColumnReaderImpl<ByteArrayType>,
    optional: bool,
}

impl Columns {
    /// Reads the footer and finds the columns.
    ///
    /// # Errors
    /// [`Error::Data`] for a file that is not Parquet, or has no such string column.
    pub(super) fn open(entry: &Entry, names: &[String], max_record_bytes: u64) -> Result<Self> {
        let Some((mut file, path)) = entry.file()? else { return Err(entry.fault("not Parquet")) };
        let io = |source| Error::Io { path: path.to_owned(), source };
        let file_bytes = file.metadata().map_err(io)?.len();
        check_footer(&mut file, file_bytes).map_err(|what| entry.fault(&what))?;
        let copy = file.try_clone().map_err(io)?;
        let reader = guarded(|| SerializedFileReader::new(copy)).map_err(|what| entry.fault(&what))?;
        let schema = reader.metadata().file_metadata().schema_descr();
        let mut indices = Vec::new();
        for name in names {
            let Some(i) = (0..schema.num_columns()).find(|&i| schema.column(i).path().string() == *name) else {
                let has: Vec<String> =
                    schema.columns().iter().take(8).map(|c| format!("`{}`", c.path().string())).collect();
                return Err(
                    entry.fault(&format!("no column `{name}` (data.text_fields); the file has {}", has.join(", ")))
                );
            };
            let column = schema.column(i);
            if column.physical_type() != Type::BYTE_ARRAY || column.max_rep_level() > 0 {
                return Err(entry.fault(&format!("the column `{name}` is not a column of strings")));
            }
            indices.push(i);
        }
        Ok(Columns {
            entry: entry.clone(),
            file,
            file_bytes,
            reader,
            indices,
            next_group: 0,
            group: Vec::new(),
            ready: Vec::new(),
            row: 0,
            max_record_bytes: max_record_bytes as usize,
        })
    }

    /// The next row as a document; rows without text are counted and passed over.
    pub(super) fn piece(&mut self, empty: &mut u64) -> Result<Option<Piece>> {
        loop {
            while let Some(row) = self.ready.pop() {
                self.row += 1;
                match row {
                    Some(text) if !text.trim().is_empty() => {
                        return Ok(Some(Piece { text, ends: true, separator_bytes: 0 }));
                    }
                    _ => *empty += 1,
                }
            }
            if self.group.is_empty() {
                if self.next_group == self.reader.num_row_groups() {
                    return Ok(None);
                }
                self.open_group()?;
            }
            self.read_rows()?;
        }
    }

    /// Measures the pages of the next row group and opens its columns.
    fn open_group(&mut self) -> Result<()> {
        let number = self.next_group;
        self.next_group += 1;
        let metadata = self.reader.metadata().row_group(number);
        for &i in &self.indices {
            let chunk = metadata.columns().get(i).ok_or_else(|| self.entry.fault("a row group lacks a column"))?;
            check_pages(&mut self.file, self.file_bytes, chunk)
                .map_err(|what| self.entry.fault(&format!("row group {number}: {what}")))?;
        }
        self.group = guarded(|| {
            let group = self.reader.get_row_group(number)?;
            self.indices
                .iter()
                .map(|&i| {
                    let optional = group.metadata().column(i).column_descr().max_def_level() > 0;
                    Ok(Column { reader: get_typed_column_reader(group.get_column_reader(i)?), optional })
                })
                .collect()
        })
        .map_err(|what| self.entry.fault(&format!("row group {number}: {what}")))?;
        Ok(())
    }

    /// Reads some rows of the open group; closes it at its end.
    fn read_rows(&mut self) -> Result<()> {
        let mut columns = Vec::new();
        let first = self.row;
        let fault = |what: &str| self.entry.fault(&format!("after row {first}: {what}"));
        for column in &mut self.group {
            let values = guarded(|| column.read()).map_err(|what| fault(&what))?;
            columns.push(values);
        }
        let rows = columns.first().map_or(0, Vec::len);
        if columns.iter().any(|values| values.len() != rows) {
            return Err(fault("columns of different length"));
        }
        if rows == 0 {
            self.group.clear();
            return Ok(());
        }
        for row in (0..rows).rev() {
            let mut text = Some(String::new());
            for (i, values) in columns.iter().enumerate() {
                let (Some(value), Some(so_far)) = (&values[row], &mut text) else {
                    text = None;
                    break;
                };
                if so_far.len() + value.len() > self.max_record_bytes {
                    return Err(fault(&format!(
                        "a text longer than {} bytes (data.max_record_bytes)",
                        self.max_record_bytes
                    )));
                }
                let value = std::str::from_utf8(value.data())
                    .map_err(|_| fault(&format!("row {} is not UTF-8", first + row as u64 + 1)))?;
                if i > 0 {
                    so_far.push('\n');
                }
                so_far.push_str(value);
            }
            self.ready.push(text);
        }
        Ok(())
    }
}

impl Column {
    /// Up to [`ROWS`] values; fewer only at the end of the row group.
    fn read(&mut self) -> parquet::errors::Result<Vec<Option<ByteArray>>> {
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        let mut rows = Vec::new();
        while rows.len() < ROWS {
            levels.clear();
            values.clear();
            let (records, _, _) =
                self.reader.read_records(ROWS - rows.len(), self.optional.then_some(&mut levels), None, &mut values)?;
            if records == 0 {
                break;
            }
            if !self.optional {
                rows.extend(values.drain(..).map(Some));
                continue;
            }
            // A row is there where its level is the deepest one; each such level has a value.
            let deepest = levels.iter().copied().max().unwrap_or(0);
            let full = if values.is_empty() { i16::MAX } else { deepest };
            let mut present = values.drain(..);
            for &level in &levels {
                rows.push(if level == full { present.next() } else { None });
            }
            if present.next().is_some() {
                return Err(parquet::errors::ParquetError::General("more values than levels".into()));
            }
        }
        Ok(rows)
    }
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread is one that the Parquet door catches and turns into an input error.
///
/// For a program's panic hook: such a panic is the library's answer to a damaged file, not a defect to report.
pub fn panics_are_caught() -> bool {
    GUARDED.get()
}

/// Runs the library; its errors and panics become one line.
fn guarded<T>(run: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, String> {
    let outer = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(run));
    GUARDED.set(outer);
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(format!("damaged Parquet: {}", error.to_string().replace('\n', " "))),
        Err(_) => Err("damaged Parquet: its structure makes no sense".into()),
    }
}

/// Judges the footer before anything is allocated by it.
fn check_footer(file: &mut File, file_bytes: u64) -> Result<(), String> {
    let damaged = |what: &str| format!("damaged Parquet: {what}");
    let mut tail = [0; 8];
    if file_bytes < 12 {
        return Err(damaged("too short"));
    }
    file.seek(SeekFrom::Start(file_bytes - 8))
        .and_then(|_| file.read_exact(&mut tail))
        .map_err(|e| damaged(&e.to_string()))?;
    match &tail[4..] {
        b"PAR1" => {}
        b"PARE" => return Err("an encrypted Parquet file; decrypt it first".into()),
        _ => return Err(damaged("it does not end in PAR1 (cut off?)")),
    }
    let footer_bytes = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    if footer_bytes > file_bytes - 12 || footer_bytes > MAX_FOOTER_BYTES {
        return Err(damaged(&format!("a footer of {footer_bytes} bytes in a file of {file_bytes}")));
    }
    let mut footer = vec![0; footer_bytes as usize];
    file.seek(SeekFrom::Start(file_bytes - 8 - footer_bytes))
        .and_then(|_| file.read_exact(&mut footer))
        .map_err(|e| damaged(&e.to_string()))?;
    let mut schema = Schema::default();
    thrift::walk(&mut footer.as_slice(), &mut |path, event| schema.visit(path, event))
        .map_err(|what| damaged(&what))?;
    schema.finish().map_err(|what| damaged(&what))
}

/// The shape of a schema, a list of elements in depth-first order with a count of children each.
#[derive(Default)]
struct Schema {
    elements: Option<u64>,
    children: Option<i64>,
    /// Children still to come at each open level.
    open: Vec<i64>,
    seen: u64,
}

impl Schema {
    const MAX_DEPTH: usize = 64;

    fn visit(&mut self, path: &[i16], event: Event) -> Result<(), String> {
        match (path, event) {
            ([2], Event::List(count)) => match self.elements.replace(count) {
                Some(_) => Err("two schemas".into()),
                None => Ok(()),
            },
            ([2, field @ 1..=10], Event::Field(kind)) => {
                let expected = match field {
                    4 => thrift::BINARY,
                    10 => thrift::STRUCT,
                    _ => thrift::I32,
                };
                if kind == expected { Ok(()) } else { Err(format!("schema field {field} has wire type {kind}")) }
            }
            ([2, 5], Event::Int(count)) => match self.children.replace(count) {
                Some(_) => Err("two counts of children".into()),
                None => Ok(()),
            },
            ([2], Event::ElementEnd) => self.element(),
            _ => Ok(()),
        }
    }

    /// One element ends: it is a child of the level above and opens one of its own.
    fn element(&mut self) -> Result<(), String> {
        self.seen += 1;
        let children = self.children.take().unwrap_or(0);
        let left = self.elements.unwrap_or(0).saturating_sub(self.seen);
        if children < 0 || children as u64 > left {
            return Err(format!("a group of {children} columns where {left} are left"));
        }
        match self.open.last_mut() {
            Some(level) => *level -= 1,
            None if self.seen > 1 => return Err("columns outside the schema's root".into()),
            None => {}
        }
        self.open.push(children);
        while self.open.last() == Some(&0) {
            self.open.pop();
        }
        if self.open.len() > Self::MAX_DEPTH { Err("a schema nested too deep".into()) } else { Ok(()) }
    }

    fn finish(&self) -> Result<(), String> {
        match self.elements {
            None | Some(0) => Err("no schema".into()),
            Some(_) if !self.open.is_empty() => Err("a schema with columns missing".into()),
            Some(_) => Ok(()),
        }
    }
}

/// Judges every page of a chunk by its header.
fn check_pages(file: &mut File, file_bytes: u64, chunk: &ColumnChunkMetaData) -> Result<(), String> {
    let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
    let (start, length) = match (u64::try_from(start), u64::try_from(chunk.compressed_size())) {
        (Ok(start), Ok(length)) if start.checked_add(length).is_some_and(|end| end <= file_bytes) => (start, length),
        _ => return Err("a column outside the file".into()),
    };
    let mut reader = BufReader::new(file);
    let io = |e: std::io::Error| e.to_string();
    let mut at = start;
    while at < start + length {
        reader.seek(SeekFrom::Start(at)).map_err(io)?;
        let mut header = (&mut reader).take(start + length - at);
        let mut page = Page::default();
        thrift::walk(&mut header, &mut |path, event| page.visit(path, event))?;
        let body = start + length - header.limit();
        let body_bytes = page.check()?;
        if body_bytes > start + length - body {
            return Err("a page that runs out of its column".into());
        }
        if matches!(chunk.compression(), Compression::GZIP(_)) {
            // The library's gzip decoder does not stop at the stated size, so the page is inflated once to measure it.
            reader.seek(SeekFrom::Start(body)).map_err(io)?;
            let limit = page.bytes[1].unwrap_or(0) as u64 + 1;
            let inflated = flate2::read::MultiGzDecoder::new((&mut reader).take(body_bytes)).take(limit);
            if std::io::copy(&mut { inflated }, &mut std::io::sink()).unwrap_or(0) == limit {
                return Err("a gzip page larger than it says".into());
            }
        }
        at = body + body_bytes;
    }
    Ok(())
}

/// What a page's header says of its size.
#[derive(Default)]
struct Page {
    /// Type, uncompressed size, compressed size.
    bytes: [Option<i64>; 3],
    dictionary_values: Option<i64>,
}

impl Page {
    fn visit(&mut self, path: &[i16], event: Event) -> Result<(), String> {
        let once = |slot: &mut Option<i64>, value| match slot.replace(value) {
            Some(_) => Err("a page header with a field twice".to_owned()),
            None => Ok(()),
        };
        match (path, event) {
            ([1..=4] | [5, 1..=4] | [7, 1..=2] | [8, 1..=6], Event::Field(kind)) if kind != thrift::I32 => {
                Err(format!("page header field {path:?} has wire type {kind}"))
            }
            ([5..=8], Event::Field(kind)) if kind != thrift::STRUCT => {
                Err(format!("page header field {path:?} has wire type {kind}"))
            }
            ([field @ 1..=3], Event::Int(value)) => once(&mut self.bytes[*field as usize - 1], value),
            ([7, 1], Event::Int(value)) => once(&mut self.dictionary_values, value),
            ([5, 2] | [8, 4], Event::Int(encoding)) if !matches!(encoding, 0 | 2 | 8) => {
                let name = match encoding {
                    6 => "DELTA_LENGTH_BYTE_ARRAY",
                    7 => "DELTA_BYTE_ARRAY",
                    _ => "unknown",
                };
                Err(format!("the encoding {name} ({encoding}) is not read; write the column as PLAIN or dictionary"))
            }
            _ => Ok(()),
        }
    }

    /// The bytes of the page in the file.
    fn check(&self) -> Result<u64, String> {
        let [Some(_), Some(whole), Some(stored)] = self.bytes else {
            return Err("a page header without sizes".into());
        };
        let (Ok(whole), Ok(stored)) = (u64::try_from(whole), u64::try_from(stored)) else {
            return Err("a page of negative size".into());
        };
        let allowed = FREE_PAGE_BYTES.max(stored.saturating_mul(EXPANSION)).min(MAX_PAGE_BYTES);
        if whole > allowed {
            return Err(format!("a page that expands from {stored} to {whole} bytes"));
        }
        // A string of a dictionary takes four bytes of length at least.
        if self.dictionary_values.is_some_and(|n| n < 0 || n as u64 > whole / 4) {
            return Err("a dictionary of more strings than its page can hold".into());
        }
        Ok(stored)
    }
}
