//! The header of a safetensors file, checked once so that everything after can trust it.
//!
//! After [`parse`] every tensor's range lies inside the file, equals its shape times its element size, and the ranges
//! cover the data without gap or overlap. Memory taken is a small multiple of the header's own length.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::dtype::{Dtype, TensorInfo};
use crate::error::{Error, Result, quoted};

/// Longest header that is read: the format's own limit.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Most dimensions a tensor may have. No published model has more than five.
pub const MAX_DIMS: usize = 16;
/// Bytes of the length field in front of the header.
const LENGTH_BYTES: usize = 8;
/// The one key of the header that is not a tensor.
pub(crate) const METADATA_KEY: &str = "__metadata__";

/// A checked header.
#[derive(Debug)]
pub(crate) struct Header {
    /// Tensors in the order of their bytes, each with its range in the *file*.
    pub(crate) tensors: Vec<(TensorInfo, Range<usize>)>,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// Reads and checks the header of a whole file.
pub(crate) fn parse(path: &Path, file: &[u8]) -> Result<Header> {
    let bad = |what: String| Error::malformed(path, what);
    let Some(length_field) = file.first_chunk::<LENGTH_BYTES>() else {
        return Err(bad(format!("is {} bytes, too short for a safetensors file", file.len())));
    };
    foreign(path, file)?;
    let length = u64::from_le_bytes(*length_field);
    let rest = &file[LENGTH_BYTES..];
    if length > MAX_HEADER_BYTES {
        return Err(bad(format!("header length {length} is over the limit of {MAX_HEADER_BYTES} bytes")));
    }
    // The limit fits any usize.
    let Some((json, data)) = rest.split_at_checked(length as usize) else {
        return Err(bad(format!("header length {length} is past the end: the file is {} bytes", file.len())));
    };
    if json.first() != Some(&b'{') {
        return Err(bad("the header is not a JSON object".into()));
    }
    let text = std::str::from_utf8(json)
        .map_err(|error| bad(format!("the header is not UTF-8: bad byte at {}", error.valid_up_to())))?;
    let raw: RawHeader = serde_json::from_str(text).map_err(|error| bad(format!("header: {error}")))?;
    let data_start = LENGTH_BYTES + json.len();
    let tensors = check(path, raw.tensors, data_start, data.len())?;
    Ok(Header { tensors, metadata: raw.metadata.unwrap_or_default() })
}

/// Says clearly when the file is of another kind.
fn foreign(path: &Path, file: &[u8]) -> Result<()> {
    if file.starts_with(b"GGUF") {
        return Err(Error::refused(path, "is a GGUF file, expected safetensors"));
    }
    // A zip archive is what `torch.save` writes; a pickle starts with its protocol number.
    if file.starts_with(b"PK\x03\x04") || (file[0] == 0x80 && (2..=5).contains(&file[1])) {
        return Err(Error::refused(path, crate::checkpoint::PICKLE));
    }
    if file.starts_with(b"version https://git-lfs") {
        return Err(Error::refused(path, "is a git-lfs pointer, not the weights: fetch them with `git lfs pull`"));
    }
    Ok(())
}

/// Turns raw entries into checked ones.
fn check(
    path: &Path,
    raw: Vec<(String, RawTensor)>,
    data_start: usize,
    data_bytes: usize,
) -> Result<Vec<(TensorInfo, Range<usize>)>> {
    let mut tensors = Vec::with_capacity(raw.len());
    for (name, entry) in raw {
        let bad = |what: String| Error::malformed(path, format!("tensor {}: {what}", quoted(&name)));
        let Ok(dtype) = entry.dtype.parse::<Dtype>() else {
            return Err(bad(format!("unknown dtype {}", quoted(&entry.dtype))));
        };
        let mut shape = Vec::with_capacity(entry.shape.0.len());
        for extent in entry.shape.0 {
            shape.push(usize::try_from(extent).map_err(|_| bad(format!("extent {extent} is too large")))?);
        }
        let (begin, end) = entry.data_offsets;
        if begin > end {
            return Err(bad(format!("data_offsets [{begin}, {end}] are reversed")));
        }
        if end > data_bytes as u64 {
            return Err(bad(format!(
                "data_offsets [{begin}, {end}] are past the end: the file holds {data_bytes} bytes of data"
            )));
        }
        let info = TensorInfo { name: String::new(), dtype, shape };
        let Some(expected) = info.checked_bytes() else {
            return Err(bad(format!("shape {:?} times {dtype} overflows", info.shape)));
        };
        if expected as u64 != end - begin {
            return Err(bad(format!(
                "shape {:?} of {dtype} needs {expected} bytes, data_offsets [{begin}, {end}] give {}",
                info.shape,
                end - begin
            )));
        }
        // Both are at most `data_bytes`, a usize.
        let range = begin as usize..end as usize;
        tensors.push((TensorInfo { name, ..info }, range));
    }
    tensors.sort_by_key(|(_, range)| (range.start, range.end));
    let mut covered = 0;
    for (info, range) in &mut tensors {
        if range.start != covered {
            let what = if range.start < covered { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return Err(Error::malformed(
                path,
                format!("tensor {}: {what}: starts at {}, expected {covered}", quoted(&info.name), range.start),
            ));
        }
        covered = range.end;
        // Cannot overflow: both parts lie within the file.
        *range = data_start + range.start..data_start + range.end;
    }
    if covered != data_bytes {
        return Err(Error::malformed(
            path,
            format!("{} bytes follow the last tensor, expected none", data_bytes - covered),
        ));
    }
    Ok(tensors)
}

/// The JSON as it stands, with names once only.
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: Option<BTreeMap<String, String>>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: RawShape,
    data_offsets: (u64, u64),
}

/// Extents, at most [`MAX_DIMS`]; the list is not read further than that.
struct RawShape(Vec<u64>);

impl<'de> Deserialize<'de> for RawShape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Extents;
        impl<'de> Visitor<'de> for Extents {
            type Value = RawShape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX_DIMS} extents")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<RawShape, A::Error> {
                let mut shape = Vec::new();
                while let Some(extent) = list.next_element()? {
                    if shape.len() == MAX_DIMS {
                        return Err(de::Error::custom(format!("shape has over {MAX_DIMS} dimensions")));
                    }
                    shape.push(extent);
                }
                Ok(RawShape(shape))
            }
        }
        deserializer.deserialize_seq(Extents)
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
                let mut header = RawHeader { tensors: Vec::new(), metadata: None };
                let mut seen = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(de::Error::custom(format!("{} stands twice", quoted(&name))));
                    }
                    if name == METADATA_KEY {
                        header.metadata = Some(map.next_value::<UniqueStrings>()?.0);
                    } else {
                        let entry = map
                            .next_value()
                            .map_err(|error| de::Error::custom(format!("tensor {}: {error}", quoted(&name))))?;
                        header.tensors.push((name, entry));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A JSON object of strings in which no key stands twice.
pub(crate) struct UniqueStrings(pub(crate) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for UniqueStrings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = UniqueStrings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<UniqueStrings, A::Error> {
                let mut strings = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if strings.contains_key(&key) {
                        return Err(de::Error::custom(format!("{} stands twice", quoted(&key))));
                    }
                    strings.insert(key, value);
                }
                Ok(UniqueStrings(strings))
            }
        }
        deserializer.deserialize_map(Strings)
    }
}
