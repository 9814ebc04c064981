//! Writing GGUF version 3: the table first, then tensors in their order, each as its bytes come.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Array, GgmlType, Value};
use crate::atomic::NewFile;
use crate::error::{Error, Result, quoted};

/// Where tensors begin: at multiples of this, the format's default.
const ALIGNMENT: u64 = 32;

/// A tensor that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTensor {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// How its elements are stored.
    pub kind: GgmlType,
    /// Extents, outermost first, as [`super::GgufTensor`] has them. One to four, none 0; rows are whole blocks.
    pub shape: Vec<usize>,
}

impl NewTensor {
    /// Bytes in the file.
    fn bytes(&self) -> Option<u64> {
        let (rows, last) = (self.shape.split_last()?.1, self.shape.last()?);
        let rows = rows.iter().try_fold(1_usize, |all, &extent| all.checked_mul(extent))?;
        u64::try_from(self.kind.row_bytes(*last)?.checked_mul(rows)?).ok()
    }
}

/// A file that appears under its name when it is whole.
pub struct Writer {
    path: PathBuf,
    file: NewFile,
    sizes: Vec<u64>,
    current: usize,
    written: u64,
}

impl Writer {
    /// Starts a file with these metadata and tensors.
    ///
    /// # Errors
    /// [`Error::Misuse`] where a name stands twice, or a shape is not one of the format's or not of whole blocks; [`Error::Io`] from the disk.
    pub fn create(path: &Path, metadata: &BTreeMap<String, Value>, tensors: &[NewTensor]) -> Result<Self> {
        let mut head = Vec::new();
        head.extend(b"GGUF");
        head.extend(3_u32.to_le_bytes());
        head.extend((tensors.len() as u64).to_le_bytes());
        head.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            text(&mut head, key);
            head.extend(value.type_number().to_le_bytes());
            put(&mut head, value);
        }
        let (mut names, mut sizes, mut offset) = (HashSet::new(), Vec::new(), 0_u64);
        for tensor in tensors {
            let wrong = |what: &str| Error::misuse(path, format!("tensor {}: {what}", quoted(&tensor.name)));
            if !names.insert(tensor.name.as_str()) {
                return Err(wrong("stands twice"));
            }
            let shaped = (1..=4).contains(&tensor.shape.len()) && !tensor.shape.contains(&0);
            let bytes =
                tensor.bytes().filter(|_| shaped).ok_or_else(|| wrong("its shape is not one of whole blocks"))?;
            text(&mut head, &tensor.name);
            head.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|&extent| head.extend((extent as u64).to_le_bytes()));
            head.extend(tensor.kind.number().to_le_bytes());
            head.extend(offset.to_le_bytes());
            offset += bytes.next_multiple_of(ALIGNMENT);
            sizes.push(bytes);
        }
        head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
        let mut file = NewFile::create(path)?;
        file.write_all(&head).map_err(Error::io(path, "write"))?;
        Ok(Self { path: path.to_owned(), file, sizes, current: 0, written: 0 })
    }

    /// Appends bytes of the tensor at hand, all of which must be of it.
    ///
    /// # Errors
    /// [`Error::Misuse`] for more bytes than it has, [`Error::Io`] from the disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let size = self.sizes.get(self.current).copied().unwrap_or(0);
        if self.written + bytes.len() as u64 > size {
            return Err(Error::misuse(&self.path, format!("tensor {} has {size} bytes, got more", self.current)));
        }
        self.file.write_all(bytes).map_err(Error::io(&self.path, "write"))?;
        self.written += bytes.len() as u64;
        if self.written == size {
            let padding = vec![0; (size.next_multiple_of(ALIGNMENT) - size) as usize];
            self.file.write_all(&padding).map_err(Error::io(&self.path, "write"))?;
            (self.current, self.written) = (self.current + 1, 0);
        }
        Ok(())
    }

    /// Makes the file durable and gives it its name.
    ///
    /// # Errors
    /// [`Error::Misuse`] where bytes are missing, [`Error::Io`] from the disk; the file does not appear then.
    pub fn finish(self) -> Result<()> {
        if self.current < self.sizes.len() {
            let what = format!("tensor {} of {} is not whole", self.current + 1, self.sizes.len());
            return Err(Error::misuse(&self.path, what));
        }
        self.file.commit()
    }
}

fn text(into: &mut Vec<u8>, text: &str) {
    into.extend((text.len() as u64).to_le_bytes());
    into.extend(text.as_bytes());
}

fn put(into: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(value) => into.push(*value),
        Value::I8(value) => into.extend(value.to_le_bytes()),
        Value::U16(value) => into.extend(value.to_le_bytes()),
        Value::I16(value) => into.extend(value.to_le_bytes()),
        Value::U32(value) => into.extend(value.to_le_bytes()),
        Value::I32(value) => into.extend(value.to_le_bytes()),
        Value::U64(value) => into.extend(value.to_le_bytes()),
        Value::I64(value) => into.extend(value.to_le_bytes()),
        Value::F32(value) => into.extend(value.to_le_bytes()),
        Value::F64(value) => into.extend(value.to_le_bytes()),
        Value::Bool(value) => into.push(u8::from(*value)),
        Value::String(value) => text(into, value),
        Value::Array(values) => {
            into.extend(values.type_number().to_le_bytes());
            into.extend((values.len() as u64).to_le_bytes());
            match values {
                Array::U8(all) => into.extend(all),
                Array::I8(all) => into.extend(all.iter().flat_map(|value| value.to_le_bytes())),
                Array::U16(all) => into.extend(all.iter().flat_map(|value| value.to_le_bytes())),
                Array::I16(all) => into.extend(all.iter().flat_map(|value| value.to_le_bytes())),
                Array::U32(all) => into.extend(all.iter().flat_map(|value| value.to_le_bytes())),
                Array::I32(all) => into.extend(all.iter().flat_map(|value| value.to_le_bytes())),
                Array::U64(all) => into.extend(all.iter().flat_map(|value| value.to_le_bytes())),
                Array::I64(all) => into.extend(all.iter().flat_map(|value| value.to_le_bytes())),
                Array::F32(all) => into.extend(all.iter().flat_map(|value| value.to_le_bytes())),
                Array::F64(all) => into.extend(all.iter().flat_map(|value| value.to_le_bytes())),
                Array::Bool(all) => into.extend(all.iter().map(|value| u8::from(*value))),
                Array::String(all) => all.iter().for_each(|value| text(into, value)),
            }
        }
    }
}

impl Value {
    /// The format's number of the type.
    fn type_number(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::String(_) => 8,
            Self::Array(_) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }
}

impl Array {
    /// The format's number of the elements' type.
    fn type_number(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::String(_) => 8,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Gguf;

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let metadata = BTreeMap::from([
            ("general.architecture".to_owned(), Value::String("llama".into())),
            ("a.count".to_owned(), Value::U32(7)),
            ("a.negative".to_owned(), Value::I64(-7)),
            ("a.number".to_owned(), Value::F32(0.5)),
            ("a.truth".to_owned(), Value::Bool(true)),
            ("a.words".to_owned(), Value::Array(Array::String(vec!["x".into(), String::new(), "é".into()]))),
            ("a.kinds".to_owned(), Value::Array(Array::I32(vec![1, -3]))),
        ]);
        let tensors = [
            NewTensor { name: "a".into(), kind: GgmlType::F32, shape: vec![3] },
            NewTensor { name: "b".into(), kind: GgmlType::Q8_0, shape: vec![2, 32] },
        ];
        let mut writer = Writer::create(&path, &metadata, &tensors).unwrap();
        let a: Vec<u8> = [1.0_f32, 2.0, 3.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let b: Vec<u8> = (0..68).collect();
        writer.write(&a[..5]).unwrap();
        writer.write(&a[5..]).unwrap();
        assert!(!path.exists());
        writer.write(&b).unwrap();
        writer.finish().unwrap();
        let file = Gguf::open(&path).unwrap();
        assert_eq!(file.metadata(), &metadata);
        assert_eq!((&*file.bytes("a").unwrap(), &*file.bytes("b").unwrap()), (&a[..], &b[..]));
        assert_eq!(file.info("b").unwrap().shape, [2, 32]);
    }

    #[test]
    fn half_a_file_does_not_appear_and_misuse_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let tensor =
            |name: &str, shape: &[usize]| NewTensor { name: name.into(), kind: GgmlType::Q8_0, shape: shape.to_vec() };
        let none = BTreeMap::new();
        assert!(Writer::create(&path, &none, &[tensor("a", &[33])]).is_err());
        assert!(Writer::create(&path, &none, &[tensor("a", &[32]), tensor("a", &[32])]).is_err());
        let mut writer = Writer::create(&path, &none, &[tensor("a", &[32])]).unwrap();
        assert!(writer.write(&[0; 35]).is_err());
        writer.write(&[0; 33]).unwrap();
        assert!(writer.finish().is_err() && !path.exists());
    }
}
