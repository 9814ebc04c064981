//! Files made by hand, byte by byte, for tests that break them.
#![allow(dead_code)] // Each test binary uses its own part.

use std::collections::BTreeMap;
use std::path::Path;

use ernie_files::{Dtype, TensorInfo, safetensors::Writer};

/// How many random cases a property is tried on.
pub(crate) fn cases() -> u64 {
    std::env::var("ERNIE_TEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(2_500)
}

/// A small generator (splitmix64): tests must not differ between runs.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Breaks bytes: cuts, flips, overwrites, inserts, with a liking for the front, where the lengths are.
pub(crate) fn mutate(bytes: &mut Vec<u8>, front: usize, random: &mut Random) {
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            return;
        }
        let zone = if random.below(4) == 0 { bytes.len() } else { front.min(bytes.len()) };
        let at = random.below(zone);
        match random.below(6) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = random.next() as u8,
            3 => bytes[at] = [0, 0xff, 0x7f, 0x80, b'9', b'"'][random.below(6)],
            4 => {
                let n = random.next();
                let value = [n, u64::MAX, 1 << 60, 1 << 32, 0][random.below(5)].to_le_bytes();
                let end = (at + 8).min(bytes.len());
                bytes[at..end].copy_from_slice(&value[..end - at]);
            }
            _ => bytes.insert(at, random.next() as u8),
        }
    }
}

/// A safetensors file from its header's text and its data.
pub(crate) fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

/// Writes a checkpoint of f32 tensors named so, each with four elements.
pub(crate) fn shard(path: &Path, names: &[&str]) {
    let tensors: Vec<_> = names.iter().map(|name| TensorInfo::new(*name, Dtype::F32, [2, 2])).collect();
    let mut writer = Writer::create(path, &tensors, &BTreeMap::new()).unwrap();
    for index in 0..names.len() {
        writer.write(&[index as u8; 16]).unwrap();
    }
    writer.finish().unwrap();
}

/// A GGUF file being put together.
#[derive(Clone)]
pub(crate) struct Gguf {
    pub(crate) magic: Vec<u8>,
    pub(crate) version: u32,
    pub(crate) tensor_count: Option<u64>,
    pub(crate) key_count: Option<u64>,
    pub(crate) keys: Vec<Vec<u8>>,
    pub(crate) tensors: Vec<Vec<u8>>,
    pub(crate) alignment: usize,
    pub(crate) data: Vec<u8>,
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// A key with a value of this type, the value given as bytes.
pub(crate) fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend(kind.to_le_bytes());
    bytes.extend(value);
    bytes
}

/// The value of a list: type of its entries, count, entries.
pub(crate) fn list(kind: u32, count: u64, entries: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(entries);
    bytes
}

/// A table entry; extents in the file's order, the row first.
pub(crate) fn tensor(name: &str, extents: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend((extents.len() as u32).to_le_bytes());
    for extent in extents {
        bytes.extend(extent.to_le_bytes());
    }
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

impl Gguf {
    /// A sound file: every type of value, a plain matrix and a Q8_0 one.
    pub(crate) fn sound() -> Self {
        let mut tokens = text("<s>");
        tokens.extend(text("héllo"));
        Self {
            magic: b"GGUF".to_vec(),
            version: 3,
            tensor_count: None,
            key_count: None,
            keys: vec![
                key("general.architecture", 8, &text("ernie4_5")),
                key("ernie4_5.block_count", 4, &18_u32.to_le_bytes()),
                key("ernie4_5.attention.layer_norm_rms_epsilon", 6, &1e-5_f32.to_le_bytes()),
                key("tokenizer.ggml.tokens", 9, &list(8, 2, &tokens)),
                key("tokenizer.ggml.scores", 9, &list(6, 2, &[0, 0, 0, 0, 0, 0, 128, 63])),
                key("tokenizer.ggml.token_type", 9, &list(5, 2, &[3, 0, 0, 0, 1, 0, 0, 0])),
                key("tokenizer.ggml.add_bos_token", 7, &[1]),
                key("small", 3, &(-5_i16).to_le_bytes()),
                key("wide", 10, &(1_u64 << 40).to_le_bytes()),
                key("double", 12, &0.25_f64.to_le_bytes()),
            ],
            tensors: vec![tensor("a", &[3, 2], 0, 0), tensor("b", &[32, 2], 8, 32)],
            alignment: 32,
            data: (0..32 + 68).collect(),
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = self.magic.clone();
        file.extend(self.version.to_le_bytes());
        file.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        file.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        file.extend(self.keys.concat());
        file.extend(self.tensors.concat());
        file.resize(file.len().next_multiple_of(self.alignment), 0);
        file.extend(&self.data);
        file
    }
}

/// Most virtual memory this process has had, in bytes, where the system says so.
pub(crate) fn peak_virtual_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmPeak:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
