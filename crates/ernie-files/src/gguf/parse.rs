//! The front of a GGUF file, checked once so that everything after can trust it.
//!
//! Layout: magic, version, counts; the metadata; the tensor table; padding; the tensors. Every count and length is held
//! against the bytes that are really left before anything is reserved for it, so memory is a small multiple of the file.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use super::GgufTensor;
use super::types::GgmlType;
use super::value::{Array, Value};
use crate::error::{Error, Result, quoted};

/// Where tensors start where the file does not say.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Largest alignment that is believed; no file needs more than a huge page.
const MAX_ALIGNMENT: u64 = 1 << 21;
/// Most dimensions of a tensor in ggml.
const MAX_DIMS: u32 = 4;
/// Longest key of the specification.
const MAX_KEY_BYTES: u64 = 65_535;
/// Longest tensor name that is read; the format's own limit is 64.
const MAX_NAME_BYTES: u64 = 1024;
/// Least bytes of one key (length, type, value) and of one table entry (length, dims count, one dim, kind, offset).
const MIN_KEY_BYTES: usize = 8 + 4 + 1;
const MIN_TENSOR_BYTES: usize = 8 + 4 + 8 + 4 + 8;

/// The checked front of a file.
pub(super) struct Table {
    pub(super) version: u32,
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: Vec<GgufTensor>,
    pub(super) by_name: HashMap<String, usize>,
}

/// Reads and checks everything in front of the tensors' bytes.
pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Table> {
    let mut reader = Reader { path, file, at: 0 };
    let version = reader.version()?;
    let tensor_count = reader.count("tensors", MIN_TENSOR_BYTES)?;
    let key_count = reader.count("metadata keys", MIN_KEY_BYTES)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..key_count {
        let key = reader.string("a key", MAX_KEY_BYTES)?;
        if key.is_empty() {
            return Err(reader.bad("a key is empty"));
        }
        let kind = reader.u32(&key)?;
        let value = reader.value(&key, kind)?;
        if metadata.contains_key(&key) {
            return Err(reader.bad(format!("key {} stands twice", quoted(&key))));
        }
        metadata.insert(key, value);
    }
    let alignment = alignment(path, &metadata)?;
    // The counts were bounded by the file's size above.
    let mut entries = Vec::with_capacity(tensor_count.min(reader.left() / MIN_TENSOR_BYTES));
    for _ in 0..tensor_count {
        entries.push(reader.tensor(alignment)?);
    }
    let data_start = (reader.at as u64).next_multiple_of(alignment);
    place(path, entries, data_start, file.len() as u64, version, metadata)
}

/// Alignment of tensors: a power of two.
fn alignment(path: &Path, metadata: &BTreeMap<String, Value>) -> Result<u64> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    match value.as_u64() {
        Some(alignment) if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT => Ok(alignment),
        _ => Err(Error::malformed(
            path,
            format!(
                "key \"general.alignment\": is {}, expected a power of two up to {MAX_ALIGNMENT}",
                value.describe()
            ),
        )),
    }
}

/// A table entry with its offset relative to the data.
struct Entry {
    name: String,
    kind: GgmlType,
    shape: Vec<usize>,
    offset: u64,
    bytes: u64,
}

/// Puts the entries into the file and makes sure that they lie in it and apart.
fn place(
    path: &Path,
    entries: Vec<Entry>,
    data_start: u64,
    file_bytes: u64,
    version: u32,
    metadata: BTreeMap<String, Value>,
) -> Result<Table> {
    let mut tensors = Vec::with_capacity(entries.len());
    let mut by_name = HashMap::with_capacity(entries.len());
    for entry in entries {
        let bad = |what: String| Error::malformed(path, format!("tensor {}: {what}", quoted(&entry.name)));
        let range = data_start
            .checked_add(entry.offset)
            .and_then(|start| Some(start..start.checked_add(entry.bytes)?))
            .filter(|range| range.end <= file_bytes);
        let Some(range) = range else {
            return Err(bad(format!(
                "offset {} and {} bytes are past the end: the file is {file_bytes} bytes with data from {data_start}",
                entry.offset, entry.bytes
            )));
        };
        if by_name.insert(entry.name.clone(), tensors.len()).is_some() {
            return Err(bad("stands twice in the table".into()));
        }
        // Both ends lie within a mapped file, so they fit.
        let range = range.start as usize..range.end as usize;
        tensors.push(GgufTensor { name: entry.name, kind: entry.kind, shape: entry.shape, range });
    }
    let mut ranges: Vec<(&Range<usize>, &str)> =
        tensors.iter().map(|tensor| (&tensor.range, tensor.name.as_str())).collect();
    ranges.sort_by_key(|(range, _)| (range.start, range.end));
    for pair in ranges.windows(2) {
        if pair[1].0.start < pair[0].0.end {
            let (first, second) = (quoted(pair[0].1), quoted(pair[1].1));
            return Err(Error::malformed(path, format!("tensor {second}: overlaps tensor {first}")));
        }
    }
    Ok(Table { version, metadata, tensors, by_name })
}

/// A cursor that never leaves the file.
struct Reader<'a> {
    path: &'a Path,
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn bad(&self, what: impl AsRef<str>) -> Error {
        Error::malformed(self.path, what)
    }

    fn left(&self) -> usize {
        self.file.len() - self.at
    }

    /// The next `count` bytes, or an error that says whose they would have been.
    fn take(&mut self, count: usize, whose: &str) -> Result<&'a [u8]> {
        match self.file[self.at..].get(..count) {
            Some(bytes) => {
                self.at += count;
                Ok(bytes)
            }
            None => Err(self.bad(format!(
                "ends at byte {} within {}: {count} bytes expected, {} left",
                self.file.len(),
                quoted(whose),
                self.left()
            ))),
        }
    }

    fn array<const N: usize>(&mut self, whose: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N, whose)?);
        Ok(bytes)
    }

    fn u32(&mut self, whose: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(whose)?))
    }

    fn u64(&mut self, whose: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(whose)?))
    }

    /// Magic and version.
    fn version(&mut self) -> Result<u32> {
        if self.file.get(..4) != Some(b"GGUF") {
            return Err(self.bad("is not a GGUF file: it does not start with \"GGUF\""));
        }
        self.at = 4;
        let version = self.u32("version")?;
        match version {
            2 | 3 => Ok(version),
            1 => Err(Error::refused(self.path, "is GGUF version 1, expected 2 or 3: convert it again")),
            _ if matches!(version.swap_bytes(), 1..=3) => {
                Err(Error::refused(self.path, "is a big-endian GGUF file, expected little-endian"))
            }
            _ => Err(Error::refused(self.path, format!("is GGUF version {version}, expected 2 or 3"))),
        }
    }

    /// A count of things that take at least `least` bytes each, believed only as far as the file goes.
    fn count(&mut self, what: &str, least: usize) -> Result<usize> {
        let count = self.u64(what)?;
        let most = (self.left() / least) as u64;
        if count > most {
            return Err(self.bad(format!("claims {count} {what}, the {} bytes left hold at most {most}", self.left())));
        }
        Ok(count as usize)
    }

    fn string(&mut self, whose: &str, limit: u64) -> Result<String> {
        let length = self.u64(whose)?;
        if length > limit || length > self.left() as u64 {
            return Err(self.bad(format!(
                "{}: claims {length} bytes of text, expected at most {}",
                quoted(whose),
                limit.min(self.left() as u64)
            )));
        }
        let bytes = self.take(length as usize, whose)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.bad(format!("{}: holds text that is not UTF-8", quoted(whose)))),
        }
    }

    fn truth(&mut self, key: &str) -> Result<bool> {
        match self.array::<1>(key)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.bad(format!("key {}: truth value {other}, expected 0 or 1", quoted(key)))),
        }
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.array(key)?)),
            1 => Value::I8(i8::from_le_bytes(self.array(key)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(key)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(key)?)),
            4 => Value::U32(u32::from_le_bytes(self.array(key)?)),
            5 => Value::I32(i32::from_le_bytes(self.array(key)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(key)?)),
            7 => Value::Bool(self.truth(key)?),
            8 => Value::String(self.string(key, u64::MAX)?),
            9 => Value::Array(self.list(key)?),
            10 => Value::U64(u64::from_le_bytes(self.array(key)?)),
            11 => Value::I64(i64::from_le_bytes(self.array(key)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(key)?)),
            _ => return Err(self.bad(format!("key {}: unknown value type {kind}", quoted(key)))),
        })
    }

    fn list(&mut self, key: &str) -> Result<Array> {
        let kind = self.u32(key)?;
        Ok(match kind {
            0 => Array::U8(self.numbers(key, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(key, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(key, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(key, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(key, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(key, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(key, f32::from_le_bytes)?),
            7 => {
                let count = self.entries(key, 1)?;
                (0..count).map(|_| self.truth(key)).collect::<Result<_>>().map(Array::Bool)?
            }
            8 => {
                let count = self.entries(key, 8)?;
                (0..count).map(|_| self.string(key, u64::MAX)).collect::<Result<_>>().map(Array::String)?
            }
            9 => return Err(self.bad(format!("key {}: a list of lists, which no known key is", quoted(key)))),
            10 => Array::U64(self.numbers(key, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(key, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(key, f64::from_le_bytes)?),
            _ => return Err(self.bad(format!("key {}: a list of unknown type {kind}", quoted(key)))),
        })
    }

    /// The length of a list whose entries take at least `least` bytes.
    fn entries(&mut self, key: &str, least: usize) -> Result<usize> {
        let count = self.u64(key)?;
        if count > (self.left() / least) as u64 {
            return Err(self.bad(format!(
                "key {}: claims {count} entries, {} bytes are left",
                quoted(key),
                self.left()
            )));
        }
        Ok(count as usize)
    }

    fn numbers<T, const N: usize>(&mut self, key: &str, read: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let count = self.entries(key, N)?;
        let bytes = self.take(count * N, key)?;
        let (chunks, _) = bytes.as_chunks::<N>();
        Ok(chunks.iter().map(|chunk| read(*chunk)).collect())
    }

    /// One entry of the tensor table.
    fn tensor(&mut self, alignment: u64) -> Result<Entry> {
        let name = self.string("a tensor's name", MAX_NAME_BYTES)?;
        if name.is_empty() {
            return Err(self.bad("a tensor's name is empty"));
        }
        let path = self.path;
        let bad = |what: String| Error::malformed(path, format!("tensor {}: {what}", quoted(&name)));
        let dims = self.u32(&name)?;
        if dims == 0 || dims > MAX_DIMS {
            return Err(bad(format!("{dims} dimensions, expected 1 to {MAX_DIMS}")));
        }
        let mut shape = Vec::with_capacity(dims as usize);
        for _ in 0..dims {
            let extent = self.u64(&name)?;
            match usize::try_from(extent) {
                Ok(0) => return Err(bad("a dimension is 0".into())),
                Ok(extent) => shape.push(extent),
                Err(_) => return Err(bad(format!("a dimension is {extent}"))),
            }
        }
        let number = self.u32(&name)?;
        let Some(kind) = GgmlType::from_number(number) else {
            return Err(Error::refused(
                path,
                match GgmlType::removed(number) {
                    Some(old) => format!(
                        "tensor {}: ggml type {old} was removed from the format: quantise the model again",
                        quoted(&name)
                    ),
                    None => format!("tensor {}: unknown ggml type {number}", quoted(&name)),
                },
            ));
        };
        let offset = self.u64(&name)?;
        if !offset.is_multiple_of(alignment) {
            return Err(bad(format!("offset {offset} is not a multiple of the alignment {alignment}")));
        }
        // In the file the row comes first.
        let row = shape[0];
        let Some(row_bytes) = kind.row_bytes(row) else {
            return Err(bad(format!("rows of {row} are not whole blocks of {} for {kind}", kind.block_elements())));
        };
        let bytes = shape[1..].iter().try_fold(row_bytes, |bytes, &extent| bytes.checked_mul(extent));
        // The elements are fewer than 2^63 as well, so that their product never wraps later.
        let elements = shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent));
        let (Some(bytes), Some(_)) = (bytes, elements) else {
            return Err(bad(format!("dimensions {shape:?} overflow")));
        };
        shape.reverse();
        Ok(Entry { name, kind, shape, offset, bytes: bytes as u64 })
    }
}
