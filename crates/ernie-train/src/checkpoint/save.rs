//! Writing a checkpoint, whole or not at all.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ernie_data::tokenizer::Tokenizer;
use ernie_files::atomic::Folder;
use ernie_files::safetensors::Writer;
use ernie_files::{Dtype, TensorInfo};
use ernie_model::Decoder;
use ernie_model::weights::{Kept, SaveAs, write_adapter};
use ernie_nn::Width;

use super::{
    ADAPTER_FOLDER, AVERAGE_FILE, MASTERS_FILE, MOMENTS_FILE, RECIPE_FILE, STATE_FILE, STATE_FOLDER, State, complete,
    discard,
};
use crate::average::Average;
use crate::error::{Error, Result};
use crate::optimizer::Optimizer;
use crate::recipe::{Float, Recipe};

/// Everything that goes into a checkpoint.
pub struct Snapshot<'a> {
    /// The resolved recipe.
    pub recipe: &'a Recipe,
    /// The model.
    pub decoder: &'a Decoder,
    /// Tensors of the source that nothing trains and a save carries over.
    pub kept: &'a [Kept],
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The optimiser.
    pub optimizer: &'a Optimizer,
    /// The running average of the weights, which is then what is published.
    pub average: Option<&'a mut Average>,
    /// Step, position and marks.
    pub state: &'a State,
}

/// Writes `run/checkpoint-N` and gives its path. A complete checkpoint of that step is left as it is.
///
/// # Errors
/// From the disk, a full one included; everything saved before is untouched then.
pub fn save(run: &Path, mut snapshot: Snapshot<'_>) -> Result<PathBuf> {
    let path = run.join(format!("checkpoint-{}", snapshot.state.step));
    if path.exists() {
        if complete(&path)? {
            return Ok(path);
        }
        discard(&path)?;
    }
    let folder = Folder::begin(&path)?;
    let training = folder.path().join(STATE_FOLDER);
    std::fs::create_dir(&training).map_err(|error| Error::io(&training, "cannot be created", error))?;

    match snapshot.average.take() {
        Some(average) => {
            average.instead(|| published(folder.path(), &snapshot))?;
            averages(&training.join(AVERAGE_FILE), average)?;
        }
        None => published(folder.path(), &snapshot)?,
    }
    masters(&training.join(MASTERS_FILE), snapshot.decoder)?;
    moments(&training.join(MOMENTS_FILE), snapshot.optimizer)?;
    write(&training.join(RECIPE_FILE), snapshot.recipe.to_toml()?.as_bytes())?;

    let mut state = snapshot.state.clone();
    sizes(folder.path(), "", &mut state.files)?;
    let text = serde_json::to_vec_pretty(&state)
        .map_err(|error| Error::Internal(format!("state cannot be written as JSON: {error}")))?;
    write(&training.join(STATE_FILE), &text)?;
    folder.commit()?;
    Ok(path)
}

/// Config, weights and tokenizer as every program of the field reads them.
fn published(folder: &Path, snapshot: &Snapshot<'_>) -> Result<()> {
    let save_as = match snapshot.recipe.checkpoint.dtype {
        Float::F32 => SaveAs::F32,
        Float::Bf16 => SaveAs::Bf16,
    };
    // Beside integers there is no model with the change in it: `ernie merge` makes one from the base as it was published.
    if snapshot.recipe.adapter.packed_base().is_none() {
        snapshot.decoder.save_into(folder, snapshot.kept, save_as)?;
    }
    snapshot.tokenizer.save(folder)?;
    if let Some(adaptation) = snapshot.recipe.adapter.adaptation() {
        let folder = folder.join(ADAPTER_FOLDER);
        std::fs::create_dir(&folder).map_err(|error| Error::io(&folder, "cannot be created", error))?;
        write_adapter(&folder, snapshot.decoder, &adaptation, snapshot.recipe.model.weights.as_deref())?;
    }
    Ok(())
}

fn masters(path: &Path, decoder: &Decoder) -> Result<()> {
    let parameters = decoder.trained();
    let biases = decoder.correction_biases();
    let mut infos: Vec<TensorInfo> = parameters
        .iter()
        .map(|parameter| TensorInfo::new(parameter.name(), Dtype::F32, parameter.shape().to_vec()))
        .collect();
    infos.extend(biases.iter().map(|(name, bias)| TensorInfo::new(name.as_str(), Dtype::F32, vec![1, bias.len()])));
    let mut writer = Writer::create(path, &infos, &BTreeMap::new())?;
    for parameter in &parameters {
        parameter.read(|weights| writer.write(&bytes(weights)))??;
    }
    for (_, bias) in &biases {
        writer.write(&bytes(bias))?;
    }
    Ok(writer.finish()?)
}

fn averages(path: &Path, average: &Average) -> Result<()> {
    let infos = average.slots().map(|(of, _)| TensorInfo::new(of.name(), Dtype::F32, of.shape().to_vec()));
    let mut writer = Writer::create(path, &infos.collect::<Vec<_>>(), &BTreeMap::new())?;
    for (_, values) in average.slots() {
        writer.write(&bytes(values))?;
    }
    Ok(writer.finish()?)
}

fn moments(path: &Path, optimizer: &Optimizer) -> Result<()> {
    let infos: Vec<TensorInfo> = optimizer
        .moments()
        .flat_map(|m| {
            // Muon has no second moment.
            let kept = [("first", m.first), ("second", m.second)].into_iter().filter(|(_, values)| !values.is_empty());
            kept.map(move |(which, values)| {
                let dtype = if values.width() == Width::Bf16 { Dtype::Bf16 } else { Dtype::F32 };
                TensorInfo::new(format!("{}.{which}", m.name), dtype, m.shape.to_vec())
            })
        })
        .collect();
    let mut writer = Writer::create(path, &infos, &BTreeMap::new())?;
    for m in optimizer.moments() {
        writer.write(&m.first.bytes())?;
        writer.write(&m.second.bytes())?;
    }
    Ok(writer.finish()?)
}

/// Little-endian bytes, without a copy where memory lies so already.
pub(crate) fn bytes(values: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|error| Error::io(path, "cannot be written", error))
}

/// Sizes of all files below `folder`, by their path inside it.
fn sizes(folder: &Path, prefix: &str, into: &mut BTreeMap<String, u64>) -> Result<()> {
    let failed = |error| Error::io(folder, "cannot be listed", error);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let kind = entry.metadata().map_err(failed)?;
        if kind.is_dir() {
            sizes(&entry.path(), &format!("{name}/"), into)?;
        } else {
            into.insert(name, kind.len());
        }
    }
    Ok(())
}
