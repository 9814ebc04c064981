//! Writing a checkpoint, whole or not at all: from the model itself, or from a copy of it ([`super::background`]).

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use ernie_data::tokenizer::Tokenizer;
use ernie_files::atomic::Folder;
use ernie_files::safetensors::Writer;
use ernie_files::{Dtype, TensorInfo};
use ernie_model::weights::{AdapterFiles, Copied, Kept, SaveAs, SaveTensor, adapter_files, save_into, write_floats};
use ernie_model::{Decoder, ModelConfig};
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
    let path = match place(run, snapshot.state.step)? {
        Place::Taken(path) => return Ok(path),
        Place::Free(path) => path,
    };
    let average = snapshot.average.take();
    let (frame, published) = Frame::of(path, &snapshot)?;
    let folder = frame.begin()?;
    match average {
        Some(average) => {
            average.instead(|| frame.publish(&folder, &published))?;
            frame.finish(folder, &Training::of(&snapshot, Some(&*average)))
        }
        None => {
            frame.publish(&folder, &published)?;
            frame.finish(folder, &Training::of(&snapshot, None))
        }
    }
}

/// A checkpoint that is yet to be written, by whoever has the time: all of it copied.
pub(crate) struct Unwritten {
    frame: Frame,
    published: Published<Copied>,
    training: Training<'static, Copied>,
}

impl Unwritten {
    /// Copies what goes into `run/checkpoint-N`; `None` where that is there already.
    pub(crate) fn of(run: &Path, mut snapshot: Snapshot<'_>) -> Result<Option<Self>> {
        let Place::Free(path) = place(run, snapshot.state.step)? else { return Ok(None) };
        let mut average = snapshot.average.take();
        let (frame, published) = Frame::of(path, &snapshot)?;
        let averaged = match &mut average {
            Some(average) => Some(average.instead(|| published.copied(&HashMap::new()))?),
            None => None,
        };
        let training = Training::of(&snapshot, average.as_deref()).copied()?;
        let published = match averaged {
            Some(averaged) => averaged,
            // What is published is what is trained, unless an adapter's change is put into it.
            None if frame.adapter.is_some() => published.copied(&HashMap::new())?,
            None => published.copied(&training.masters.iter().map(|copy| (copy.name.as_str(), copy)).collect())?,
        };
        Ok(Some(Self { frame, published, training }))
    }

    /// Where it will be.
    pub(crate) fn path(&self) -> &Path {
        &self.frame.path
    }

    /// As [`save`].
    pub(crate) fn write(&self) -> Result<PathBuf> {
        let folder = self.frame.begin()?;
        self.frame.publish(&folder, &self.published.tensors())?;
        self.frame.finish(folder, &self.training.tensors())
    }
}

/// What stands where a checkpoint is to be.
enum Place {
    /// The same checkpoint, whole.
    Taken(PathBuf),
    /// Nothing, or nothing any more.
    Free(PathBuf),
}

fn place(run: &Path, step: u64) -> Result<Place> {
    let path = run.join(format!("checkpoint-{step}"));
    if path.exists() {
        if complete(&path)? {
            return Ok(Place::Taken(path));
        }
        discard(&path)?;
    }
    Ok(Place::Free(path))
}

/// A checkpoint but for its tensors.
struct Frame {
    path: PathBuf,
    /// None beside integers: there is no model with the change in it, and `ernie merge` makes one from the base as it was published.
    config: Option<ModelConfig>,
    save_as: SaveAs,
    kept: Vec<Kept>,
    tokenizer: Tokenizer,
    adapter: Option<AdapterFiles>,
    recipe: String,
    state: State,
}

impl Frame {
    fn of(path: PathBuf, snapshot: &Snapshot<'_>) -> Result<(Self, Published<SaveTensor<'static>>)> {
        let recipe = snapshot.recipe;
        let save_as = match recipe.checkpoint.dtype {
            Float::F32 => SaveAs::F32,
            Float::Bf16 => SaveAs::Bf16,
        };
        let whole = recipe.adapter.packed_base().is_none();
        let model = if whole { snapshot.decoder.save_tensors() } else { Vec::new() };
        let (files, adapter) = match recipe.adapter.adaptation() {
            Some(adaptation) => {
                let base = recipe.model.weights.as_deref();
                let (files, tensors) = adapter_files(snapshot.decoder, &adaptation, base)?;
                (Some(files), tensors)
            }
            None => (None, Vec::new()),
        };
        let frame = Self {
            path,
            config: whole.then(|| snapshot.decoder.config().clone()),
            save_as,
            kept: snapshot.kept.to_vec(),
            tokenizer: snapshot.tokenizer.clone(),
            adapter: files,
            recipe: recipe.to_toml()?,
            state: snapshot.state.clone(),
        };
        Ok((frame, Published { model, adapter }))
    }

    fn begin(&self) -> Result<Folder> {
        let folder = Folder::begin(&self.path)?;
        let training = folder.path().join(STATE_FOLDER);
        std::fs::create_dir(&training).map_err(|error| Error::io(&training, "cannot be created", error))?;
        Ok(folder)
    }

    /// Config, weights and tokenizer as every program of the field reads them.
    fn publish(&self, folder: &Folder, tensors: &Published<SaveTensor<'_>>) -> Result<()> {
        let folder = folder.path();
        if let Some(config) = &self.config {
            save_into(folder, config, &tensors.model, &self.kept, self.save_as)?;
        }
        self.tokenizer.save(folder)?;
        if let Some(adapter) = &self.adapter {
            let folder = folder.join(ADAPTER_FOLDER);
            std::fs::create_dir(&folder).map_err(|error| Error::io(&folder, "cannot be created", error))?;
            adapter.write(&folder, &tensors.adapter)?;
        }
        Ok(())
    }

    /// The training state, and the folder's own name.
    fn finish(&self, folder: Folder, tensors: &Training<'_, SaveTensor<'_>>) -> Result<PathBuf> {
        let training = folder.path().join(STATE_FOLDER);
        let floats =
            |name: &str, tensors: &[SaveTensor<'_>]| write_floats(&training.join(name), tensors, &BTreeMap::new());
        if let Some(averages) = &tensors.averages {
            floats(AVERAGE_FILE, averages)?;
        }
        floats(MASTERS_FILE, &tensors.masters)?;
        moments(&training.join(MOMENTS_FILE), &tensors.moments)?;
        write(&training.join(RECIPE_FILE), self.recipe.as_bytes())?;

        let mut state = self.state.clone();
        sizes(folder.path(), "", &mut state.files)?;
        let text = serde_json::to_vec_pretty(&state)
            .map_err(|error| Error::Internal(format!("state cannot be written as JSON: {error}")))?;
        write(&training.join(STATE_FILE), &text)?;
        folder.commit()?;
        Ok(self.path.clone())
    }
}

/// The tensors that others read: of the model, and of an adapter.
struct Published<T> {
    model: Vec<T>,
    adapter: Vec<T>,
}

impl Published<SaveTensor<'_>> {
    /// Copies of them; those of the model that are `known` by their names are not copied again.
    fn copied(&self, known: &HashMap<&str, &Copied>) -> Result<Published<Copied>> {
        let model = self.model.iter().map(|tensor| match known.get(tensor.name.as_str()) {
            Some(&copy) => Ok(copy.clone()),
            None => Ok(Copied::of(tensor)?),
        });
        Ok(Published { model: model.collect::<Result<_>>()?, adapter: copies(&self.adapter)? })
    }
}

impl Published<Copied> {
    fn tensors(&self) -> Published<SaveTensor<'_>> {
        Published { model: tensors(&self.model), adapter: tensors(&self.adapter) }
    }
}

/// The tensors of the training state, by file.
struct Training<'a, T> {
    masters: Vec<T>,
    moments: Vec<Moment<'a>>,
    averages: Option<Vec<T>>,
}

/// A moment as it is held, in either width.
struct Moment<'a> {
    info: TensorInfo,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Training<'a, SaveTensor<'a>> {
    fn of(snapshot: &Snapshot<'a>, average: Option<&'a Average>) -> Self {
        let trained = snapshot.decoder.trained().into_iter().map(|parameter| SaveTensor {
            name: parameter.name().to_owned(),
            shape: parameter.shape().to_vec(),
            values: Box::new(move || Ok(Cow::Owned(parameter.to_vec()?))),
        });
        let biases = snapshot.decoder.correction_biases().into_iter().map(|(name, bias)| SaveTensor {
            name,
            shape: vec![1, bias.len()],
            values: Box::new(move || Ok(Cow::Owned(bias.clone()))),
        });
        let moments = snapshot.optimizer.moments().flat_map(|m| {
            // Muon has no second moment.
            let kept = [("first", m.first), ("second", m.second)].into_iter().filter(|(_, values)| !values.is_empty());
            kept.map(move |(which, values)| {
                let dtype = if values.width() == Width::Bf16 { Dtype::Bf16 } else { Dtype::F32 };
                let info = TensorInfo::new(format!("{}.{which}", m.name), dtype, m.shape.to_vec());
                Moment { info, bytes: values.bytes() }
            })
        });
        let averages = |average: &'a Average| {
            average.slots().map(|(of, values)| SaveTensor::of(of.name(), of.shape(), values)).collect()
        };
        Self { masters: trained.chain(biases).collect(), moments: moments.collect(), averages: average.map(averages) }
    }

    fn copied(&self) -> Result<Training<'static, Copied>> {
        let averages = self.averages.as_deref().map(copies).transpose()?;
        let own = |moment: &Moment<'_>| Moment { info: moment.info.clone(), bytes: Cow::Owned(moment.bytes.to_vec()) };
        Ok(Training { masters: copies(&self.masters)?, moments: self.moments.iter().map(own).collect(), averages })
    }
}

impl Training<'_, Copied> {
    fn tensors(&self) -> Training<'_, SaveTensor<'_>> {
        Training {
            masters: tensors(&self.masters),
            moments: self.moments.iter().map(Moment::borrowed).collect(),
            averages: self.averages.as_deref().map(tensors),
        }
    }
}

impl Moment<'_> {
    fn borrowed(&self) -> Moment<'_> {
        Moment { info: self.info.clone(), bytes: Cow::Borrowed(&*self.bytes) }
    }
}

fn moments(path: &Path, moments: &[Moment<'_>]) -> Result<()> {
    let infos: Vec<TensorInfo> = moments.iter().map(|moment| moment.info.clone()).collect();
    let mut writer = Writer::create(path, &infos, &BTreeMap::new())?;
    moments.iter().try_for_each(|moment| writer.write(&moment.bytes))?;
    Ok(writer.finish()?)
}

fn copies(tensors: &[SaveTensor<'_>]) -> Result<Vec<Copied>> {
    tensors.iter().map(|tensor| Ok(Copied::of(tensor)?)).collect()
}

fn tensors(copies: &[Copied]) -> Vec<SaveTensor<'_>> {
    copies.iter().map(Copied::tensor).collect()
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
