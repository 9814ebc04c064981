//! The ways into a [`Tokenizer`] — a folder, bytes, a GGUF — and the way back to a folder.

use std::path::Path;

use ernie_files::gguf::Gguf;
use ernie_files::read_bounded;

use super::build::Parts;
use super::side::{self, SideFiles};
use super::{Tokenizer, gguf, json, sentencepiece};
use crate::{Error, Result};

/// Largest model file: the largest published `tokenizer.json` has 33 MB.
const MAX_MODEL_BYTES: u64 = 64 << 20;
/// Largest side file.
const MAX_SIDE_BYTES: u64 = 8 << 20;

impl Tokenizer {
    /// Reads the tokenizer of a checkpoint folder: `tokenizer.json`, or else `tokenizer.model`, with the small files
    /// beside it (`tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`, `chat_template.jinja`).
    ///
    /// # Errors
    /// [`Error::NoTokenizer`]; [`Error::Tokenizer`] naming the file; [`Error::Files`].
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let optional = |name: &str| -> Result<Option<Vec<u8>>> {
            let path = folder.join(name);
            if path.exists() { Ok(Some(read_bounded(&path, MAX_SIDE_BYTES)?)) } else { Ok(None) }
        };
        let side = SideFiles {
            tokenizer_config: optional("tokenizer_config.json")?,
            special_tokens_map: optional("special_tokens_map.json")?,
            added_tokens: optional("added_tokens.json")?,
            chat_template: optional("chat_template.jinja")?,
        };
        for (name, read) in [("tokenizer.json", json::read as Reader), ("tokenizer.model", sentencepiece::read)] {
            let path = folder.join(name);
            if path.exists() {
                let bytes = read_bounded(&path, MAX_MODEL_BYTES)?;
                return assemble(read(&bytes), name, bytes, &side, &|file| folder.join(file).display().to_string());
            }
        }
        Err(Error::NoTokenizer { path: folder.to_path_buf() })
    }

    /// Reads the bytes of a `tokenizer.json`, without side files.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn from_json_bytes(bytes: &[u8]) -> Result<Self> {
        Self::from_json(bytes, &SideFiles::default())
    }

    /// Reads the bytes of a `tokenizer.json` and of the files beside it.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn from_json(bytes: &[u8], side: &SideFiles) -> Result<Self> {
        assemble(json::read(bytes), "tokenizer.json", bytes.to_vec(), side, &str::to_owned)
    }

    /// Reads the bytes of a SentencePiece `tokenizer.model` and of the files beside it.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn from_sentencepiece(bytes: &[u8], side: &SideFiles) -> Result<Self> {
        assemble(sentencepiece::read(bytes), "tokenizer.model", bytes.to_vec(), side, &str::to_owned)
    }

    /// Reads the tokenizer inside a GGUF: byte-level BPE (`gpt2`) or SentencePiece BPE (`llama`).
    ///
    /// # Errors
    /// [`Error::Tokenizer`] naming the key; [`Error::Files`] for a key of the wrong type.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        gguf::read(file)
    }

    /// Writes the files that this tokenizer was read from (for one from a GGUF: the same tokenizer in the published
    /// layout) into an existing folder.
    ///
    /// # Errors
    /// [`Error::Files`] or [`Error::Io`] when the disk refuses.
    pub fn save(&self, folder: &Path) -> Result<()> {
        for (name, bytes) in &self.0.files {
            let path = folder.join(name);
            ernie_files::atomic::write(&path, bytes)?;
        }
        Ok(())
    }
}

type Reader = fn(&[u8]) -> std::result::Result<Parts, String>;

pub(super) fn assemble(
    parts: std::result::Result<Parts, String>,
    name: &str,
    bytes: Vec<u8>,
    side: &SideFiles,
    place: &dyn Fn(&str) -> String,
) -> Result<Tokenizer> {
    let wrong = |file: &str, what| Error::Tokenizer { at: place(file), what };
    let mut parts = parts.map_err(|what| wrong(name, what))?;
    parts.files.push((name.to_owned(), bytes));
    let side = side::read(side).map_err(|(file, what)| wrong(file, what))?;
    parts.finish(side).map_err(|what| wrong(name, what))
}
