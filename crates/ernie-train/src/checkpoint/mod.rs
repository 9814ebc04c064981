//! Checkpoints: `RUN/checkpoint-N/` in the published layout, with the training state beside it.
//!
//! ```text
//! checkpoint-200/
//!   config.json, model.safetensors, tokenizer files      any program of the field loads these
//!   adapter/                 of a run that trains one: as PEFT reads it; the weights above have its change in them
//!   training_state/
//!     masters.safetensors    every trained tensor and correction bias, f32
//!     moments.safetensors    NAME.first and NAME.second for every trained tensor, f32 or (`optimizer.moments`) bf16
//!     average.safetensors    of a run with `optimizer.ema`: the running average of every trained tensor, which is what is published
//!     recipe.toml            the resolved recipe
//!     state.json             step, loader position, commit, and the size of every file: written last
//! ```
//!
//! The folder appears under its name in one rename after everything in it is on disk, so a crash at any moment leaves the older checkpoints
//! as they were and at most a hidden leftover. A folder that is not whole all the same (copied half-way, say) is known by the sizes in
//! `state.json` and never taken as the newest.

mod background;
mod load;
mod save;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ernie_data::Loader;
use ernie_data::LoaderState;
use ernie_model::Decoder;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::optimizer::Optimizer;
use crate::standing::Standing;

pub(crate) use background::Saving;
pub(crate) use load::{read_recipe, restore};
pub use save::{Snapshot, save};
pub(crate) use save::{Unwritten, bytes};

/// Version of the layout of `training_state/`.
pub const VERSION: u32 = 1;

/// The folder of the training state inside a checkpoint.
pub const STATE_FOLDER: &str = "training_state";

/// The folder of the adapter inside a checkpoint of a run that trains one.
pub const ADAPTER_FOLDER: &str = "adapter";

const STATE_FILE: &str = "state.json";
const MASTERS_FILE: &str = "masters.safetensors";
const MOMENTS_FILE: &str = "moments.safetensors";
const AVERAGE_FILE: &str = "average.safetensors";
const RECIPE_FILE: &str = "recipe.toml";

/// A state file holds a mark for every data file, and there may be many.
const MAX_STATE_BYTES: u64 = 1 << 28;

/// What a run needs to go on, beside the tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// [`VERSION`] of whoever wrote it.
    pub version: u32,
    /// Steps made.
    pub step: u64,
    /// Positions seen.
    pub tokens: u64,
    /// Steps the optimiser made (its bias correction counts them).
    pub optimizer_steps: u64,
    /// Position in the data, and marks of the data.
    pub loader: LoaderState,
    /// Commit of the program that wrote it.
    pub commit: String,
    /// crc32c of the weights that an adapter was trained beside; none where all of the model is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_crc32c: Option<u32>,
    /// The best held-out loss so far, and how long ago it was.
    #[serde(default)]
    pub standing: Standing,
    /// Size in bytes of every file of the checkpoint but this one, by its path inside it.
    #[serde(default)]
    pub files: BTreeMap<String, u64>,
}

impl State {
    /// The state now.
    pub fn new(step: u64, tokens: u64, optimizer: &Optimizer, loader: &Loader, commit: &str) -> Self {
        Self {
            version: VERSION,
            step,
            tokens,
            optimizer_steps: optimizer.steps(),
            loader: loader.state(),
            commit: commit.to_owned(),
            base_crc32c: None,
            standing: Standing::default(),
            files: BTreeMap::new(),
        }
    }
}

/// crc32c of a model's weights, in their order: what tells the base of an adapter from another of the same shape. Of packed matrices the embedding
/// stands for all.
pub(crate) fn fingerprint(decoder: &Decoder) -> Result<u32> {
    let parameters = decoder.parameters();
    let mut crc = parameters
        .iter()
        .try_fold(0, |crc, parameter| parameter.read(|weights| crc32c::crc32c_append(crc, &save::bytes(weights))))?;
    if !parameters.iter().any(|parameter| parameter.name() == "model.embed_tokens.weight") {
        let mut row = vec![0.0; decoder.config().hidden_size];
        for index in 0..decoder.config().vocab_size {
            decoder.embedding_row(index, &mut row)?;
            crc = crc32c::crc32c_append(crc, &save::bytes(&row));
        }
    }
    Ok(crc)
}

/// The newest complete checkpoint of a run folder, and its step.
///
/// # Errors
/// [`Error::State`] where the newest was written by a newer version of the program: taking an older one would lose its work unasked.
pub fn newest(run: &Path) -> Result<Option<(u64, PathBuf)>> {
    for (step, path) in list(run)?.into_iter().rev() {
        if complete(&path)? {
            return Ok(Some((step, path)));
        }
    }
    Ok(None)
}

/// All folders of `run` that are called `checkpoint-N`, complete or not, by N.
pub fn list(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match std::fs::read_dir(run) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(run, "cannot be listed", error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| Error::io(run, "cannot be listed", error))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        // Only the spelling we write: `checkpoint-007` is somebody else's.
        let step = name.and_then(|name| name.strip_prefix("checkpoint-")).and_then(|digits| {
            let step: u64 = digits.parse().ok()?;
            (step.to_string() == digits).then_some(step)
        });
        if let Some(step) = step
            && path.is_dir()
        {
            found.push((step, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Removes the oldest complete checkpoints beyond the newest `keep`, but for that of step `best`; 0 keeps all.
pub fn keep_newest(run: &Path, keep: usize, best: Option<u64>) -> Result<()> {
    if keep == 0 {
        return Ok(());
    }
    let all = list(run)?;
    let mut whole = Vec::new();
    for (step, path) in all {
        if best != Some(step) && complete(&path)? {
            whole.push(path);
        }
    }
    let surplus = whole.len().saturating_sub(keep);
    whole.iter().take(surplus).try_for_each(|path| discard(path))
}

/// Removes a checkpoint folder: first out of sight in one rename, so that a crash half-way leaves no half of a checkpoint.
fn discard(path: &Path) -> Result<()> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut hidden = path.with_file_name(format!(".{name}.ernie-tmp-removed"));
    // A leftover of that name from a crash; `atomic::clean` will take both.
    for count in 0.. {
        if !hidden.exists() {
            break;
        }
        hidden = path.with_file_name(format!(".{name}.ernie-tmp-removed-{count}"));
    }
    std::fs::rename(path, &hidden).map_err(|error| Error::io(path, "cannot be removed", error))?;
    std::fs::remove_dir_all(&hidden).map_err(|error| Error::io(&hidden, "cannot be removed", error))
}

/// Whether every file of the checkpoint is there in its full size.
fn complete(path: &Path) -> Result<bool> {
    let Some(state) = read_state(path)? else { return Ok(false) };
    Ok(!state.files.is_empty()
        && state.files.iter().all(|(name, bytes)| {
            std::fs::metadata(path.join(name)).is_ok_and(|file| file.is_file() && file.len() == *bytes)
        }))
}

/// The state of a checkpoint; `None` where there is none, or half of one.
fn read_state(path: &Path) -> Result<Option<State>> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let file = path.join(STATE_FOLDER).join(STATE_FILE);
    if !file.is_file() {
        return Ok(None);
    }
    let text = ernie_files::read_bounded(&file, MAX_STATE_BYTES)?;
    let Ok(Version { version }) = serde_json::from_slice(&text) else { return Ok(None) };
    if version > VERSION {
        return Err(Error::state(
            &file,
            format!("written by a newer program (version {version}), expected version {VERSION} or older"),
        ));
    }
    Ok(serde_json::from_slice(&text).ok())
}

#[cfg(test)]
mod tests;
