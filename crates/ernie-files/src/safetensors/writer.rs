//! Writes a safetensors file as a stream: the header first, then the tensors, none of them held in memory.
//!
//! The file appears under its name when [`Writer::finish`] has made it durable, and not before (see [`crate::atomic`]).

use std::collections::{BTreeMap, HashSet};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::header::{MAX_DIMS, MAX_HEADER_BYTES, METADATA_KEY};
use crate::atomic::NewFile;
use crate::dtype::TensorInfo;
use crate::error::{Error, Result, quoted};

/// A safetensors file being written.
///
/// Bytes are handed in tensor by tensor in the order given to [`Writer::create`], in pieces of any size. In the file,
/// tensors with larger elements come first (otherwise in the given order), so that each starts at a multiple of its
/// element size: the format allows no padding, and some readers need that.
pub struct Writer {
    path: PathBuf,
    file: NewFile,
    /// Name, place in the file and length of each tensor, in the order given.
    parts: Vec<Part>,
    /// The part that the next byte belongs to, and how much of it is there.
    current: usize,
    written: u64,
    /// Where the file's cursor is. Asking the file would flush its buffer.
    position: u64,
}

struct Part {
    name: String,
    start: u64,
    bytes: u64,
}

impl Writer {
    /// Starts a file with this header.
    ///
    /// # Errors
    /// [`Error::Misuse`] where a name stands twice or is reserved, a shape overflows or has over [`MAX_DIMS`]
    /// dimensions, or the header would be over the format's limit; [`Error::Io`] from the disk.
    pub fn create(path: &Path, tensors: &[TensorInfo], metadata: &BTreeMap<String, String>) -> Result<Self> {
        let (header, mut parts) = layout(path, tensors, metadata)?;
        let mut file = NewFile::create(path)?;
        let length = header.len() as u64;
        file.write_all(&length.to_le_bytes()).map_err(Error::io(path, "write"))?;
        file.write_all(&header).map_err(Error::io(path, "write"))?;
        for part in &mut parts {
            part.start += 8 + length;
        }
        let position = 8 + length;
        let mut writer = Self { path: path.to_path_buf(), file, parts, current: 0, written: 0, position };
        writer.settle()?;
        Ok(writer)
    }

    /// Appends bytes of the tensor at hand; what is left over goes to the next.
    ///
    /// # Errors
    /// [`Error::Misuse`] for more bytes than all tensors have, [`Error::Io`] from the disk.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let Some(part) = self.parts.get(self.current) else {
                return Err(Error::misuse(&self.path, format!("{} bytes after the last tensor", bytes.len())));
            };
            let room = usize::try_from(part.bytes - self.written).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.file.write_all(now).map_err(Error::io(&self.path, "write"))?;
            self.written += now.len() as u64;
            self.position += now.len() as u64;
            bytes = later;
            if self.written == part.bytes {
                self.current += 1;
                self.written = 0;
                self.settle()?;
            }
        }
        Ok(())
    }

    /// Makes the file durable and gives it its name.
    ///
    /// # Errors
    /// [`Error::Misuse`] where bytes are missing, [`Error::Io`] from the disk; the file does not appear then.
    pub fn finish(self) -> Result<()> {
        if let Some(part) = self.parts.get(self.current) {
            let what = format!("tensor {} has {} of {} bytes", quoted(&part.name), self.written, part.bytes);
            return Err(Error::misuse(&self.path, what));
        }
        self.file.commit()
    }

    /// Skips tensors without bytes and moves to where the next one lies.
    fn settle(&mut self) -> Result<()> {
        while self.parts.get(self.current).is_some_and(|part| part.bytes == 0) {
            self.current += 1;
        }
        // Seeking flushes the buffer, so it is done only where tensors are out of order.
        if let Some(part) = self.parts.get(self.current)
            && part.start != self.position
        {
            self.file.seek(SeekFrom::Start(part.start)).map_err(Error::io(&self.path, "write"))?;
            self.position = part.start;
        }
        Ok(())
    }
}

/// The header's bytes, and each tensor's place relative to the start of the data.
fn layout(path: &Path, tensors: &[TensorInfo], metadata: &BTreeMap<String, String>) -> Result<(Vec<u8>, Vec<Part>)> {
    let mut seen = HashSet::new();
    let mut parts = Vec::with_capacity(tensors.len());
    for info in tensors {
        let bad = |what: &str| Error::misuse(path, format!("tensor {}: {what}", quoted(&info.name)));
        if info.name == METADATA_KEY {
            return Err(bad("the name is reserved"));
        }
        if !seen.insert(info.name.as_str()) {
            return Err(bad("the name stands twice"));
        }
        if info.shape.len() > MAX_DIMS {
            return Err(bad("too many dimensions"));
        }
        let bytes = info.checked_bytes().ok_or_else(|| bad("its size overflows"))? as u64;
        parts.push(Part { name: info.name.clone(), start: 0, bytes });
    }
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(tensors[index].dtype.size_bytes()));
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert(METADATA_KEY.into(), serde_json::json!(metadata));
    }
    let mut offset = 0_u64;
    for index in order {
        let (info, part) = (&tensors[index], &mut parts[index]);
        let end = offset.checked_add(part.bytes);
        let end = end.ok_or_else(|| Error::misuse(path, "the tensors' sizes overflow"))?;
        let entry = serde_json::json!({
            "dtype": info.dtype.as_str(), "shape": info.shape, "data_offsets": [offset, end],
        });
        header.insert(info.name.clone(), entry);
        part.start = offset;
        offset = end;
    }
    let mut json = serde_json::Value::Object(header).to_string().into_bytes();
    // Spaces up to a multiple of 8 keep the data aligned; readers ignore them.
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() as u64 > MAX_HEADER_BYTES {
        return Err(Error::misuse(path, format!("a header of {} bytes is over the format's limit", json.len())));
    }
    Ok((json, parts))
}
