//! What the commands that write a checkpoint share: its folder, its format, and the files that stand beside weights.

use crate::{
    failure::{Failure, Result},
    model::{Model, Place},
};
use ernie_files::atomic::Folder;
use ernie_model::weights::SaveAs;
use ernie_model::{ModelConfig, config::StoredDtype};
use std::{fs, path::Path};

/// The folder that appears as `out` when it is whole.
pub(super) fn new_folder(out: &Path) -> Result<Folder> {
    Folder::begin(out).map_err(|error| {
        let failure = Failure::from(error);
        if out.exists() { failure.hint("--out takes a folder that does not exist or is empty") } else { failure }
    })
}

/// The format of a new checkpoint of the same model: bf16 where it is stored in 16 bits, else f32.
pub(super) fn as_stored(model: &Model, config: &ModelConfig) -> SaveAs {
    let stored = match &model.place {
        Place::Gguf(_) => None,
        Place::Folder(_) | Place::Preset(_) => config.dtype,
    };
    match stored {
        Some(StoredDtype::F16 | StoredDtype::Bf16) => SaveAs::Bf16,
        _ => SaveAs::F32,
    }
}

/// Files that belong to a model and not to its weights, by the beginning of their names.
const BESIDE: &[&str] = &[
    "tokenizer",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.",
    "merges.txt",
    "chat_template",
    "generation_config.json",
    "preprocessor_config.json",
    "LICENSE",
    "NOTICE",
];

/// Puts the tokenizer and what else belongs to the model into its new folder.
pub(super) fn beside(model: &Model, to: &Path) -> Result<()> {
    let from = match &model.place {
        Place::Folder(folder) => folder,
        Place::Gguf(_) => {
            if let Some(tokenizer) = model.tokenizer()? {
                tokenizer.save(to)?;
            }
            return Ok(());
        }
        Place::Preset(_) => return Ok(()),
    };
    for entry in fs::read_dir(from).map_err(|e| Failure::io(from.display(), &e))? {
        let path = entry.map_err(|e| Failure::io(from.display(), &e))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // A pulled model is a folder of links, so links are followed.
        if path.is_file() && BESIDE.iter().any(|beginning| name.starts_with(beginning)) {
            fs::copy(&path, to.join(name)).map_err(|e| Failure::io(path.display(), &e))?;
        }
    }
    Ok(())
}

/// Bytes of the weight files in a folder.
pub(super) fn weight_files(folder: &Path) -> Result<u64> {
    let io = |e: std::io::Error| Failure::io(folder.display(), &e);
    let mut bytes = 0;
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry.path().extension().is_some_and(|extension| extension == "safetensors") {
            bytes += entry.metadata().map_err(io)?.len();
        }
    }
    Ok(bytes)
}
