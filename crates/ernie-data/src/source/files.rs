//! Finding files by glob, telling what they are by their first bytes, and marking them so that a change is noticed.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::packing::hex;
use crate::{Error, Result, bundled};

/// Output of a decompressor that is always allowed.
const FREE_BYTES: u64 = 64 << 20;
/// Output allowed for each byte of input beyond that. Text rarely shrinks more than a hundredfold.
const EXPANSION: u64 = 4096;
/// zstd windows up to 128 MiB, what the command-line tool takes without being asked for more.
const WINDOW_LOG_MAX: u32 = 27;
/// Bytes of head and of tail that a mark covers.
const MARKED_BYTES: u64 = 64 << 10;

/// What tells a file from a changed one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileMark {
    /// Relative to the base folder if it lies in it.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// Of the first and the last 64 KiB.
    pub sha256: String,
}

impl FileMark {
    /// In words, how this saved mark differs from the one found now.
    pub(crate) fn difference(&self, now: &FileMark) -> String {
        if self.path != now.path {
            format!("`{}` was read where `{}` is now", self.path, now.path)
        } else if self.bytes != now.bytes {
            format!("`{}` had {} bytes and has {}", self.path, self.bytes, now.bytes)
        } else {
            format!("`{}` has other content", self.path)
        }
    }
}

/// One thing to read.
#[derive(Clone)]
pub(super) struct Entry {
    /// What messages call it.
    pub(super) label: String,
    pub(super) origin: Origin,
}

/// Where its bytes are.
#[derive(Clone)]
pub(super) enum Origin {
    Disk(PathBuf),
    Bundled(&'static str),
}

/// All files of the patterns, sorted, each once.
pub(super) fn find(patterns: &[String], base_dir: &Path) -> Result<Vec<Entry>> {
    if patterns.is_empty() {
        return Err(Error::Setting { key: "data".into(), what: "no files are named".into() });
    }
    let mut paths = Vec::new();
    let mut entries = Vec::new();
    for pattern in patterns {
        match bundled::by_path(pattern) {
            Some(Some(text)) => entries.push(Entry { label: pattern.clone(), origin: Origin::Bundled(text) }),
            Some(None) => return Err(fault(pattern, "expected bundled:train or bundled:held_out")),
            None => paths.extend(matches(pattern, base_dir)?),
        }
    }
    paths.sort();
    paths.dedup();
    entries.sort_by(|a, b| a.label.cmp(&b.label));
    entries.dedup_by(|a, b| a.label == b.label);
    entries.extend(paths.into_iter().map(|path| {
        // A path below the root alone is absolute, and is better told as one.
        let short = path.strip_prefix(base_dir).ok().filter(|_| base_dir.parent().is_some());
        let label = short.unwrap_or(&path).to_string_lossy().into_owned();
        Entry { label, origin: Origin::Disk(path) }
    }));
    Ok(entries)
}

/// The regular files that one pattern matches.
fn matches(pattern: &str, base_dir: &Path) -> Result<Vec<PathBuf>> {
    // A file may have brackets in its name: what exists as written is meant as written.
    let literal = base_dir.join(pattern);
    let mut found = Vec::new();
    if literal.symlink_metadata().is_ok() {
        found.push(literal);
    } else {
        let mut parts = Vec::new();
        let mut start = base_dir.to_owned();
        for component in Path::new(pattern).components() {
            match component {
                Component::Normal(part) => parts.push(Part::new(&part.to_string_lossy(), pattern)?),
                Component::CurDir => {}
                Component::ParentDir => parts.push(Part::Name("..".into())),
                // `push` of a root or a prefix begins anew there.
                Component::RootDir | Component::Prefix(_) => start.push(component),
            }
        }
        parts.dedup_by(|a, b| matches!((a, b), (Part::AnyDepth, Part::AnyDepth)));
        expand(start, &parts, &mut found)?;
    }
    let (mut files, mut folders, mut special) = (Vec::new(), 0, 0);
    for path in found {
        let metadata = path.metadata().map_err(|e| io_error(&path, e))?;
        if metadata.is_file() {
            files.push(path);
        } else if metadata.is_dir() {
            folders += 1;
        } else {
            special += 1;
        }
    }
    if !files.is_empty() {
        return Ok(files);
    }
    Err(fault(
        pattern,
        match (folders, special) {
            (0, 0) => "no such file",
            (0, _) => "not a regular file",
            _ => "a folder; name its files, for example with FOLDER/*.jsonl",
        },
    ))
}

/// One component of a glob.
enum Part {
    /// As written.
    Name(String),
    /// With wildcards.
    Glob(glob::Pattern),
    /// `**`: any number of folders. Links to folders are not followed, for they may lead round in a circle.
    AnyDepth,
}

impl Part {
    fn new(part: &str, pattern: &str) -> Result<Self> {
        Ok(match part {
            "**" => Part::AnyDepth,
            _ if part.contains(['*', '?', '[']) => {
                Part::Glob(glob::Pattern::new(part).map_err(|e| fault(pattern, &format!("not a glob: {}", e.msg)))?)
            }
            _ => Part::Name(part.to_owned()),
        })
    }
}

/// All paths that `parts` match below `path`. Hidden names are matched only by a part that begins with a dot.
fn expand(path: PathBuf, parts: &[Part], found: &mut Vec<PathBuf>) -> Result<()> {
    let Some((part, rest)) = parts.split_first() else {
        found.push(path);
        return Ok(());
    };
    if let Part::Name(name) = part {
        let next = path.join(name);
        return if next.symlink_metadata().is_ok() { expand(next, rest, found) } else { Ok(()) };
    }
    if matches!(part, Part::AnyDepth) {
        expand(path.clone(), rest, found)?;
    }
    let entries = match std::fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        Err(e) => return Err(io_error(&path, e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| io_error(&path, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        match part {
            Part::Glob(glob) => {
                let shown = !name.starts_with('.') || glob.as_str().starts_with('.');
                if shown && glob.matches(&name) {
                    expand(entry.path(), rest, found)?;
                }
            }
            _ => {
                // The type of a link is link, so this does not follow one.
                if !name.starts_with('.') && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    expand(entry.path(), parts, found)?;
                }
            }
        }
    }
    Ok(())
}

impl Entry {
    /// An input error at this file.
    pub(super) fn fault(&self, what: &str) -> Error {
        fault(&self.label, what)
    }

    /// The file on disk; the bundled text has none.
    pub(super) fn file(&self) -> Result<Option<(File, &Path)>> {
        match &self.origin {
            Origin::Bundled(_) => Ok(None),
            Origin::Disk(path) => Ok(Some((File::open(path).map_err(|e| io_error(path, e))?, path))),
        }
    }

    /// True if the first bytes are Parquet's.
    pub(super) fn is_parquet(&self) -> Result<bool> {
        let Some((file, path)) = self.file()? else { return Ok(false) };
        Ok(head(&mut BufReader::new(file)).map_err(|e| io_error(path, e))?.starts_with(b"PAR1"))
    }

    /// True if the name, without `.gz` and the like, is that of JSON lines.
    pub(super) fn is_jsonl_by_name(&self) -> bool {
        let mut name = self.label.to_ascii_lowercase();
        for suffix in [".gz", ".gzip", ".zst", ".zstd"] {
            if let Some(stem) = name.strip_suffix(suffix) {
                name.truncate(stem.len());
                break;
            }
        }
        [".jsonl", ".ndjson", ".json"].iter().any(|suffix| name.ends_with(suffix))
    }

    /// The bytes of the file, decompressed, as a stream.
    pub(super) fn reader(&self) -> Result<Box<dyn BufRead + Send>> {
        let (file, path) = match &self.origin {
            Origin::Bundled(text) => return Ok(Box::new(text.as_bytes())),
            Origin::Disk(path) => (File::open(path).map_err(|e| io_error(path, e))?, path),
        };
        let consumed = Arc::new(AtomicU64::new(0));
        let mut raw = BufReader::with_capacity(256 << 10, Counted { inner: file, count: consumed.clone() });
        let start = head(&mut raw).map_err(|e| io_error(path, e))?;
        let inner: Box<dyn Read + Send> = if start.starts_with(&[0x1f, 0x8b]) {
            Box::new(flate2::bufread::MultiGzDecoder::new(raw))
        } else if is_zstd(&start) {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(raw).map_err(|e| io_error(path, e))?;
            decoder.window_log_max(WINDOW_LOG_MAX).map_err(|e| io_error(path, e))?;
            Box::new(decoder)
        } else {
            self.refuse(&start)?;
            return Ok(Box::new(raw));
        };
        let guarded = Guarded { inner, consumed, produced: 0 };
        let mut reader = BufReader::with_capacity(256 << 10, guarded);
        let start = head(&mut reader).map_err(|e| self.read_error(e))?;
        if start.starts_with(&[0x1f, 0x8b]) || is_zstd(&start) {
            return Err(self.fault("compressed twice; decompress it once"));
        }
        self.refuse(&start)?;
        Ok(Box::new(reader))
    }

    /// What a failed read means: the system's own errors are the environment's, all others are in the file.
    pub(super) fn read_error(&self, error: std::io::Error) -> Error {
        match (&self.origin, error.raw_os_error()) {
            (Origin::Disk(path), Some(_)) => io_error(path, error),
            _ => self.fault(&format!("damaged compressed file: {error}")),
        }
    }

    /// Refuses what is surely not text.
    fn refuse(&self, start: &[u8]) -> Result<()> {
        let kinds: [(&[u8], &str); 8] = [
            (b"PAR1", "Parquet inside a compressed file, or taken as text; store it as it is, with format auto"),
            (b"\xfd7zXZ\0", "xz is not read; use gzip or zstd"),
            (b"BZh91AY&SY", "bzip2 is not read; use gzip or zstd"),
            (b"PK\x03\x04", "a zip archive is not read; unpack it"),
            (b"\x04\x22\x4d\x18", "lz4 is not read; use gzip or zstd"),
            (b"\xff\xfe", "UTF-16 text; expected UTF-8"),
            (b"\xfe\xff", "UTF-16 text; expected UTF-8"),
            (b"GGUF", "a model file; expected text"),
        ];
        match kinds.iter().find(|(magic, _)| start.starts_with(magic)) {
            Some((_, what)) => Err(self.fault(what)),
            None => Ok(()),
        }
    }

    /// Path, size, and a hash of head and tail.
    pub(super) fn mark(&self) -> Result<FileMark> {
        let mut hash = Sha256::new();
        let bytes = match &self.origin {
            Origin::Bundled(text) => {
                hash.update(text.as_bytes());
                text.len() as u64
            }
            Origin::Disk(path) => {
                let mut file = File::open(path).map_err(|e| io_error(path, e))?;
                let bytes = file.metadata().map_err(|e| io_error(path, e))?.len();
                let mut part = Vec::new();
                for from in [0, bytes.saturating_sub(MARKED_BYTES)] {
                    part.clear();
                    file.seek(SeekFrom::Start(from))
                        .and_then(|_| (&mut file).take(MARKED_BYTES).read_to_end(&mut part))
                        .map_err(|e| io_error(path, e))?;
                    hash.update(&part);
                }
                bytes
            }
        };
        Ok(FileMark { path: self.label.clone(), bytes, sha256: hex(&hash.finalize()) })
    }
}

/// The first bytes, without taking them.
fn head(reader: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let start = reader.fill_buf()?;
    Ok(start[..start.len().min(16)].to_vec())
}

/// zstd frames, skippable ones included.
fn is_zstd(start: &[u8]) -> bool {
    start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
        || (start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18])
}

/// Counts what goes through it.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.count.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// A decompressor that may not give boundlessly more than it takes.
struct Guarded<R> {
    inner: R,
    consumed: Arc<AtomicU64>,
    produced: u64,
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.produced += read as u64;
        let consumed = self.consumed.load(Ordering::Relaxed);
        if self.produced > FREE_BYTES.saturating_add(consumed.saturating_mul(EXPANSION)) {
            return Err(std::io::Error::new(
                ErrorKind::InvalidData,
                format!("it expands more than {EXPANSION}-fold, as decompression bombs do"),
            ));
        }
        Ok(read)
    }
}

/// An input error.
fn fault(at: &str, what: &str) -> Error {
    Error::Data { at: at.to_owned(), what: what.to_owned() }
}

/// An error of the system; a file that is not there is the caller's.
fn io_error(path: &Path, source: std::io::Error) -> Error {
    if source.kind() == ErrorKind::NotFound {
        return fault(&path.to_string_lossy(), "no such file");
    }
    Error::Io { path: path.to_owned(), source }
}
