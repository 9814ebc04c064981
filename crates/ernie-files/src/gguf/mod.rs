//! GGUF versions 2 and 3, little-endian: metadata, tensor table, mapped bytes.
//!
//! Tensors are described and handed out as stored; what the numbers of a block mean is the business of the kernels.
//! Every kind of block the format has ever had is known by name ([`GgmlType`]), so that one we cannot compute with is
//! refused by its name. Metadata is read through typed getters: a key of the wrong type is an error that names it.

mod parse;
mod types;
mod value;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result, quoted};
use crate::map::{Bytes, Map};

pub use types::GgmlType;
pub use value::{Array, Value};
pub use write::{NewTensor, Writer};

/// One tensor of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Name in the file, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// How the elements are stored.
    pub kind: GgmlType,
    /// Extents, outermost first, that is `[out, in]` for a matrix (the file has them the other way round). One to four, none 0.
    pub shape: Vec<usize>,
    /// Where its bytes lie in the file.
    pub(crate) range: Range<usize>,
}

impl GgufTensor {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        // The table's check has excluded overflow.
        self.shape.iter().product()
    }

    /// Number of bytes in the file.
    pub fn bytes(&self) -> usize {
        self.range.len()
    }
}

/// An open GGUF file: table checked, tensors mapped.
pub struct Gguf {
    path: PathBuf,
    map: Arc<Map>,
    version: u32,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<GgufTensor>,
    by_name: HashMap<String, usize>,
}

impl Gguf {
    /// Opens a file and checks its metadata and tensor table.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Malformed`] for what is broken; [`Error::Refused`] for version 1, big-endian files,
    /// one part of a split model, and block kinds that are unknown or were removed from the format; [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let map = Map::open(path)?;
        let table = parse::parse(path, map.all()?)?;
        let gguf = Self {
            path: path.to_path_buf(),
            map,
            version: table.version,
            metadata: table.metadata,
            by_name: table.by_name,
            tensors: table.tensors,
        };
        if let Some(parts) = gguf.get_u64("split.count")?
            && parts > 1
        {
            let what = format!("is one of {parts} parts of a split model: merge them into one file first");
            return Err(Error::refused(path, what));
        }
        Ok(gguf)
    }

    /// All metadata, by key.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// All tensors, in the order of the table.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// A tensor's description, if it is here.
    pub fn info(&self, name: &str) -> Option<&GgufTensor> {
        self.by_name.get(name).map(|&index| &self.tensors[index])
    }

    /// A tensor's bytes as stored: a view into the map.
    ///
    /// # Errors
    /// [`Error::NoTensor`]; [`Error::Changed`] if the file was cut since it was opened.
    pub fn bytes(&self, name: &str) -> Result<Bytes> {
        let Some(tensor) = self.info(name) else {
            return Err(Error::NoTensor { path: self.path.clone(), name: name.chars().take(120).collect() });
        };
        self.map.view(tensor.range.clone())
    }

    /// Bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes() as u64).sum()
    }

    /// The version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A whole number of any integer type that fits. `None` where the key is absent.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the value is of another type or does not fit.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>> {
        self.get(key, "a whole number below 2^32", |value| value.as_u64()?.try_into().ok())
    }

    /// As [`Gguf::get_u32`], for 64 bits.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the value is of another type or negative.
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>> {
        self.get(key, "a whole number", Value::as_u64)
    }

    /// A float of either width.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the value is of another type.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>> {
        self.get(key, "a float", Value::as_f32)
    }

    /// A truth value.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the value is of another type.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "true or false", Value::as_bool)
    }

    /// A string.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the value is of another type.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>> {
        self.get(key, "a string", Value::as_str)
    }

    /// A list of strings, such as `tokenizer.ggml.tokens`.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the value is of another type.
    pub fn get_strings(&self, key: &str) -> Result<Option<&[String]>> {
        self.get(key, "a list of strings", |value| match value {
            Value::Array(Array::String(strings)) => Some(strings.as_slice()),
            _ => None,
        })
    }

    /// A list of floats of either width, such as `tokenizer.ggml.scores`.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the value is of another type.
    pub fn get_f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.get(key, "a list of floats", |value| value.as_array()?.to_f32s())
    }

    /// A list of whole numbers of any integer type, such as `tokenizer.ggml.token_type`.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the value is of another type or an entry does not fit.
    pub fn get_i64s(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.get(key, "a list of whole numbers", |value| value.as_array()?.to_i64s())
    }

    /// [`Gguf::get_u32`] of a key that must be there.
    ///
    /// # Errors
    /// [`Error::Malformed`], also where the key is absent.
    pub fn need_u32(&self, key: &str) -> Result<u32> {
        self.get_u32(key)?.ok_or_else(|| self.absent(key))
    }

    /// [`Gguf::get_f32`] of a key that must be there.
    ///
    /// # Errors
    /// [`Error::Malformed`], also where the key is absent.
    pub fn need_f32(&self, key: &str) -> Result<f32> {
        self.get_f32(key)?.ok_or_else(|| self.absent(key))
    }

    /// [`Gguf::get_str`] of a key that must be there.
    ///
    /// # Errors
    /// [`Error::Malformed`], also where the key is absent.
    pub fn need_str(&self, key: &str) -> Result<&str> {
        self.get_str(key)?.ok_or_else(|| self.absent(key))
    }

    /// [`Gguf::get_strings`] of a key that must be there.
    ///
    /// # Errors
    /// [`Error::Malformed`], also where the key is absent.
    pub fn need_strings(&self, key: &str) -> Result<&[String]> {
        self.get_strings(key)?.ok_or_else(|| self.absent(key))
    }

    fn get<'a, T>(&'a self, key: &str, expected: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(Error::malformed(
                &self.path,
                format!("key {}: is {}, expected {expected}", quoted(key), value.describe()),
            )),
        }
    }

    fn absent(&self, key: &str) -> Error {
        Error::malformed(&self.path, format!("key {} is missing", quoted(key)))
    }
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gguf")
            .field("path", &self.path)
            .field("version", &self.version)
            .field("keys", &self.metadata.len())
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}
