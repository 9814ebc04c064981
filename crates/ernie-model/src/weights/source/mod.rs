//! [`Weights`]: opening a model, taking its tensors, and accounting for every one of them.

mod integers;

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::Path;

use ernie_files::gguf::{GgmlType, Gguf};
use ernie_files::{Bytes, Checkpoint, Dtype};
use ernie_nn::Form;

use super::bend::{self, Dialect, Part, Place, Skip};
use super::convert::{self, Kind};
use super::stored::Values;
use super::{Format, Kept, LoadReport, ModelSource, Stored, WeightsAs, random};
use crate::config::{MAX_CONFIG_BYTES, Role, SCORE, StoredDtype};
use crate::error::one_line;
use crate::{Error, ModelConfig, Result};

/// How many names an error lists before it says how many more there are.
const NAMES_SHOWN: usize = 6;

/// The tensors of one model, each to be taken once.
pub struct Weights {
    config: ModelConfig,
    source: Source,
    dialect: Dialect,
    to: WeightsAs,
    place: String,
    /// Elements taken so far of each stored tensor.
    taken: HashMap<String, usize>,
    weight_bytes: u64,
    notes: Vec<String>,
    /// Stored tensors that are set aside by name, with the reason.
    set_aside: BTreeMap<String, String>,
    /// Where multi-token prediction is trained: the seed that draws what the file lacks of it.
    mtp_seed: Option<u64>,
    mtp_drawn: usize,
    /// Where the head for labels is drawn, whatever the file holds: from which seed.
    score_seed: Option<u64>,
}

enum Source {
    Checkpoint(Box<Checkpoint>),
    Gguf(Box<Gguf>),
    Random(u64),
}

/// A stored tensor as its file describes it.
struct Seen {
    kind: Kind,
    shape: Vec<usize>,
    /// Whether it is an 8-bit tensor whose scales stand beside it.
    scaled: bool,
    /// Whether it is a 4-bit tensor in pieces: integers, scales, zeros and shape.
    packed: bool,
}

/// A tensor found: its place and what is there.
struct Found {
    place: Place,
    seen: Seen,
}

impl Weights {
    /// Opens a model: reads its config and tables, and checks that every tensor is there with the right shape.
    ///
    /// # Errors
    /// Those of the config; [`Error::NotAModel`] for a path without a model, [`Error::MissingTensors`] and
    /// [`Error::Tensor`] for weights that do not fit the config, [`Error::Files`] for files that cannot be read.
    pub fn open(source: &ModelSource, to: WeightsAs) -> Result<Self> {
        match source {
            ModelSource::Folder(path) => Self::open_folder(path, to),
            ModelSource::Gguf(path) => {
                let file = Gguf::open(path)?;
                let (config, notes) = ModelConfig::from_gguf_with_notes(&file)?;
                Self::assemble(config, Source::Gguf(Box::new(file)), to, path.display().to_string(), notes)
            }
            ModelSource::Preset(name, seed) => Self::random(ModelConfig::preset(name)?, *seed, to),
        }
    }

    /// Fresh weights for `config` from a seed.
    ///
    /// [`WeightsAs::Native`] gives the type the config names, f32 where it names none.
    ///
    /// # Errors
    /// [`Error::Key`] if the config has been changed into one that cannot be.
    pub fn random(config: ModelConfig, seed: u64, to: WeightsAs) -> Result<Self> {
        let mut config = config;
        config.check("model")?;
        config.quantization = None;
        let to = match (to, config.dtype) {
            (WeightsAs::Native, Some(StoredDtype::Bf16 | StoredDtype::F16)) => WeightsAs::Bf16,
            (WeightsAs::Native, _) => WeightsAs::F32,
            (to, _) => to,
        };
        let notes = vec![format!("weights are random, drawn from seed {seed}")];
        Self::assemble(config, Source::Random(seed), to, "random weights".to_owned(), notes)
    }

    fn open_folder(path: &Path, to: WeightsAs) -> Result<Self> {
        let config_path = path.join("config.json");
        if !config_path.is_file() {
            let problem = "no config.json here; expected a folder with config.json and *.safetensors";
            return Err(Error::NotAModel { path: path.to_owned(), problem: problem.to_owned() });
        }
        let text = ernie_files::read_text(&config_path, MAX_CONFIG_BYTES)?;
        let (config, mut notes) = ModelConfig::from_json_with_notes(&text, &config_path.display().to_string())?;
        let checkpoint = Checkpoint::open(path)?;
        notes.extend(checkpoint.notes().iter().cloned());
        Self::assemble(config, Source::Checkpoint(Box::new(checkpoint)), to, path.display().to_string(), notes)
    }

    fn assemble(config: ModelConfig, source: Source, to: WeightsAs, place: String, notes: Vec<String>) -> Result<Self> {
        let dialect = match &source {
            Source::Gguf(_) => Dialect::Gguf,
            _ if config.has_vl_layout() => Dialect::PublishedVl,
            _ => Dialect::Published,
        };
        let mut weights = Weights {
            config,
            source,
            dialect,
            to,
            place,
            taken: HashMap::new(),
            weight_bytes: 0,
            notes,
            set_aside: BTreeMap::new(),
            mtp_seed: None,
            mtp_drawn: 0,
            score_seed: None,
        };
        if !matches!(weights.source, Source::Random(_)) {
            weights.check_all()?;
            weights.check_tie()?;
        }
        Ok(weights)
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The same model with `modules` modules of multi-token prediction to train ([`crate::decoder::build_trainable`]); what the file lacks of them is drawn from
    /// `seed`.
    #[must_use]
    pub fn with_mtp(mut self, modules: usize, seed: u64) -> Self {
        self.config.mtp_layers = modules;
        self.mtp_seed = Some(seed);
        self
    }

    /// The same model with a head that tells these labels apart. One for just these that the file holds stays; any other gives way to one drawn from `seed`.
    ///
    /// # Errors
    /// [`Error::Key`] for what cannot be labels, [`Error::NotBuilt`] for a VL model.
    pub fn with_labels(mut self, labels: &[String], seed: u64) -> Result<Self> {
        if self.config.labels == labels {
            return Ok(self);
        }
        if self.config.has_vl_layout() {
            return Err(Error::not_built("a classification head on the text side of a VL model"));
        }
        if !self.config.labels.is_empty() {
            self.set_aside.insert(SCORE.to_owned(), "a head for other labels".to_owned());
            self.notes.push("the model's head tells other labels apart and gives way to a new one".to_owned());
        }
        self.config.labels = labels.to_vec();
        self.config.check(&self.place)?;
        self.score_seed = Some(seed);
        Ok(self)
    }

    /// How many modules of multi-token prediction there are to train: those whose tensors the file holds, whatever its config says, or those of the config
    /// where weights are drawn.
    pub fn mtp_modules(&self) -> usize {
        match &self.source {
            Source::Random(_) => self.config.mtp_layers,
            Source::Gguf(_) => 0,
            Source::Checkpoint(checkpoint) => {
                let stored =
                    |module: &usize| checkpoint.info(&format!("model.mtp_linear_proj.{module}.weight")).is_some();
                (0..).take_while(stored).count()
            }
        }
    }

    /// How many modules of multi-token prediction were asked for.
    pub(crate) fn mtp_to_train(&self) -> usize {
        self.mtp_seed.map_or(0, |_| self.config.mtp_layers)
    }

    /// The number format that matrices are brought to.
    pub fn weights_as(&self) -> WeightsAs {
        self.to
    }

    /// Takes the matrix with this published name; [`Stored::pack`] then brings it to the form asked for when opening.
    ///
    /// # Shapes
    /// `shape` is what the model needs, rows (outputs) first.
    ///
    /// # Errors
    /// [`Error::MissingTensors`]; [`Error::Tensor`] for another shape, and for a type that is no float. Values that are not finite are
    /// refused where they are packed.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Stored> {
        self.take_optional(name, shape)?.ok_or_else(|| self.missing(name))
    }

    /// As [`Self::take`], with `None` where the file has no such tensor.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_optional(&mut self, name: &str, shape: &[usize]) -> Result<Option<Stored>> {
        let rows = shape.first().copied().unwrap_or(1);
        let columns = shape.get(1..).unwrap_or_default().iter().product();
        let mut at = [self.place.clone(), name.to_owned()];
        let (values, kind) = if let Source::Random(seed) = self.source {
            self.taken.insert(name.to_owned(), rows * columns);
            (Values::Random { seed, name: name.to_owned(), std: self.config.initializer_range }, Kind::F32)
        } else {
            let Some(found) = self.find(name, shape)? else { return Ok(None) };
            at[1].clone_from(&found.place.stored);
            if found.seen.packed {
                let (format, bytes) = self.blocks(&found)?;
                (Values::Blocks { format, bytes }, Kind::Format(format))
            } else if found.place.part == Part::Transposed {
                let (bytes, _) = self.read_finite(&found)?;
                (Values::Floats(transpose(&found.seen, &bytes, shape)), Kind::F32)
            } else {
                let (bytes, scales) = self.read(&found)?;
                (Values::Mapped { kind: found.seen.kind, bytes, scales }, found.seen.kind)
            }
        };
        let form = match self.to {
            WeightsAs::Native => kind.form(),
            WeightsAs::F32 => Form::F32,
            WeightsAs::Bf16 => Form::BF16,
            WeightsAs::Int8 => Form::INT8,
            // Rounding the head to 4 bits costs more than all other matrices together: SmolLM2's perplexity rises by 8 %.
            WeightsAs::Int4 if matches!(Role::of(name), Role::Embedding | Role::Head) => Form::INT8,
            // Rounded to four bits already, on a grid that another would miss.
            WeightsAs::Int4 if matches!(values, Values::Blocks { .. }) => kind.form(),
            WeightsAs::Int4 => Form::int4(),
        };
        let stored = Stored { at, values, shape: [rows, columns], form };
        self.weight_bytes += stored.memory_bytes();
        Ok(Some(stored))
    }

    /// Takes a tensor as f32 whatever the format asked for: norms, routers, biases, and everything for training.
    ///
    /// # Errors
    /// As [`Self::take`], and [`Error::Tensor`] for values that are not finite.
    pub fn take_f32(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        if let Some(values) = self.take_optional_f32(name, shape)? {
            return Ok(values);
        }
        match self.mtp_seed {
            Some(seed) if bend::is_mtp(name) => {
                self.mtp_drawn += 1;
                Ok(random::values(seed, name, shape.iter().product(), self.config.initializer_range))
            }
            _ => Err(self.missing(name)),
        }
    }

    /// As [`Self::take_f32`], with `None` where the file has no such tensor.
    ///
    /// # Errors
    /// As [`Self::take_f32`].
    pub fn take_optional_f32(&mut self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>> {
        let elements: usize = shape.iter().product();
        let values = if let Some(seed) = self.score_seed.filter(|_| name == SCORE) {
            random::values(seed, name, elements, self.config.initializer_range)
        } else if let Source::Random(seed) = self.source {
            self.taken.insert(name.to_owned(), elements);
            random::values(seed, name, elements, self.config.initializer_range)
        } else {
            let Some(found) = self.find(name, shape)? else { return Ok(None) };
            if found.seen.packed {
                let (format, bytes) = self.blocks(&found)?;
                let values = convert::widen(Kind::Format(format), &bytes, None, [shape[0], shape[1]]);
                self.weight_bytes += 4 * values.len() as u64;
                return Ok(Some(values));
            }
            let (bytes, scales) = self.read_finite(&found)?;
            if found.place.part == Part::Transposed {
                transpose(&found.seen, &bytes, shape)
            } else {
                let rows = if shape.len() > 1 { shape[0] } else { 1 };
                let columns = elements.checked_div(rows).unwrap_or(0);
                convert::widen(found.seen.kind, &bytes, scales.as_deref(), [rows, columns])
            }
        };
        self.weight_bytes += 4 * values.len() as u64;
        Ok(Some(values))
    }

    /// Closes the account: every stored tensor was taken whole, or is on the short list of what may be skipped.
    ///
    /// # Errors
    /// [`Error::UnusedTensors`] naming what is neither.
    pub fn finish(self) -> Result<LoadReport> {
        let mut report = LoadReport { weight_bytes: self.weight_bytes, notes: self.notes, ..LoadReport::default() };
        let mut unused = Names::default();
        for (name, elements) in self.source.names() {
            let taken = self.taken.get(&name).copied().unwrap_or(0);
            if let Some(reason) = self.set_aside.get(&name) {
                report.used += usize::from(taken > 0);
                report.skipped.push(format!("{name} ({reason})"));
            } else if self.taken.contains_key(&name) && taken == elements {
                report.used += 1;
            } else if let Some(skip) = bend::may_skip(self.dialect, &self.config, &name) {
                if skip == Skip::Mtp
                    && let Source::Checkpoint(checkpoint) = &self.source
                    && let Some(info) = checkpoint.info(&name)
                {
                    report.kept.push(Kept { info: info.clone(), bytes: checkpoint.bytes(&name)? });
                }
                report.skipped.push(name);
            } else {
                unused.add(&name);
            }
        }
        if let Source::Random(_) = self.source {
            report.used = self.taken.len();
        }
        if unused.count > 0 {
            return Err(Error::UnusedTensors { place: self.place, names: unused.to_string() });
        }
        if self.mtp_drawn > 0 {
            report.notes.push(format!("multi-token prediction begins anew: {} tensors were drawn", self.mtp_drawn));
        }
        if !report.kept.is_empty() {
            report.notes.push(format!(
                "multi-token prediction is not used here: {} tensors are kept for saving",
                report.kept.len()
            ));
        }
        Ok(report)
    }

    fn missing(&self, name: &str) -> Error {
        Error::MissingTensors { place: self.place.clone(), names: name.to_owned() }
    }

    /// Looks up every tensor the config calls for, so that a file is refused before anything is converted.
    fn check_all(&mut self) -> Result<()> {
        let mut missing = Names::default();
        let mut failed = None;
        let _ = self.config.for_each_tensor(&mut |spec| {
            match self.look_up(&spec.name, &spec.shape) {
                Ok(Some(_)) => {}
                Ok(None) => missing.add(&spec.name),
                Err(error) => failed = Some(error),
            }
            // A config may call for far more tensors than a hostile file has bytes.
            if failed.is_some() || missing.count > 10_000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        if missing.count > 0 {
            return Err(Error::MissingTensors { place: self.place.clone(), names: missing.to_string() });
        }
        let used = self.config.moe.as_ref().is_some_and(|moe| moe.use_correction_bias);
        if self.dialect == Dialect::PublishedVl && used {
            for (name, _) in self.source.names() {
                if name.ends_with("e_score_correction_bias") {
                    self.set_aside.insert(name, "second row: vision".to_owned());
                }
            }
        }
        Ok(())
    }

    /// A tied model may carry a head only if it is the embedding; anything else would be silently ignored.
    fn check_tie(&mut self) -> Result<()> {
        if !self.config.tie_word_embeddings {
            return Ok(());
        }
        let Source::Checkpoint(checkpoint) = &self.source else { return Ok(()) };
        for part in ["", "_scale"] {
            let [head, embedding] = ["lm_head.weight", "model.embed_tokens.weight"].map(|name| format!("{name}{part}"));
            // Its scales may come without it, for programs that look for them before they tie.
            let Some(one) = checkpoint.info(&head) else { continue };
            let Some(other) = checkpoint.info(&embedding) else { continue };
            let same = one.dtype == other.dtype
                && one.shape == other.shape
                && checkpoint.bytes(&head)?[..] == checkpoint.bytes(&embedding)?[..];
            if !same {
                let problem = "the config says `tie_word_embeddings`, but this differs from the embedding's";
                return Err(Error::tensor(&self.place, &head, problem));
            }
            self.set_aside.insert(head, "equal to the embedding it is tied to".to_owned());
        }
        Ok(())
    }

    /// Finds a tensor and marks it as taken.
    fn find(&mut self, name: &str, shape: &[usize]) -> Result<Option<Found>> {
        let Some(found) = self.look_up(name, shape)? else { return Ok(None) };
        let elements: usize = shape.iter().product();
        *self.taken.entry(found.place.stored.clone()).or_default() += elements;
        Ok(Some(found))
    }

    /// Where a tensor lies, with type and shape checked.
    fn look_up(&self, name: &str, shape: &[usize]) -> Result<Option<Found>> {
        for place in bend::places(self.dialect, &self.config, name, shape) {
            let Some(seen) = self.see(&place.stored)? else { continue };
            if seen.shape != place.shape {
                let hint = match (seen.shape.as_slice(), place.shape.as_slice()) {
                    ([a, b], [c, d]) if a == d && b == c => ", which looks transposed",
                    _ => "",
                };
                let problem = format!("expected shape {:?}, found {:?}{hint}", place.shape, seen.shape);
                return Err(Error::tensor(&self.place, &place.stored, problem));
            }
            let columns = place.shape.last().copied().unwrap_or(1);
            let rows = place.shape.iter().rev().skip(1).product();
            if seen.kind.bytes(rows, columns).is_none() {
                let problem = format!("rows of {columns} do not fill whole blocks of {:?}", seen.kind);
                return Err(Error::tensor(&self.place, &place.stored, problem));
            }
            return Ok(Some(Found { place, seen }));
        }
        Ok(None)
    }

    /// Type and shape of a stored tensor.
    fn see(&self, stored: &str) -> Result<Option<Seen>> {
        let refuse = |what: &str| {
            let problem = format!("stored as {what}; expected a float type");
            Err(Error::tensor(&self.place, stored, problem))
        };
        match &self.source {
            Source::Random(_) => Ok(None),
            Source::Checkpoint(checkpoint) => {
                let Some(info) = checkpoint.info(stored) else { return self.see_packed(checkpoint, stored) };
                let (kind, scaled) = match info.dtype {
                    Dtype::F32 => (Kind::Format(Format::F32), false),
                    Dtype::F16 => (Kind::Format(Format::F16), false),
                    Dtype::Bf16 => (Kind::Format(Format::Bf16), false),
                    Dtype::F64 => (Kind::F64, false),
                    Dtype::I8 if self.config.quantization.is_some() => (Kind::Format(Format::Int8), true),
                    Dtype::I8 => return refuse("I8 without a `quantization_config` in config.json"),
                    other => return refuse(&other.to_string()),
                };
                Ok(Some(Seen { kind, shape: info.shape.clone(), scaled, packed: false }))
            }
            Source::Gguf(file) => {
                let Some(info) = file.info(stored) else { return Ok(None) };
                let format = match info.kind {
                    GgmlType::F32 => Format::F32,
                    GgmlType::F16 => Format::F16,
                    GgmlType::Bf16 => Format::Bf16,
                    GgmlType::Q8_0 => Format::Q8_0,
                    GgmlType::Q4_0 => Format::Q4_0,
                    GgmlType::Q4_1 => Format::Q4_1,
                    GgmlType::Q5_0 => Format::Q5_0,
                    GgmlType::Q5_1 => Format::Q5_1,
                    GgmlType::Q4K => Format::Q4K,
                    GgmlType::Q5K => Format::Q5K,
                    GgmlType::Q6K => Format::Q6K,
                    other => return Err(Error::not_built(format!("tensor `{stored}` of type {}", other.as_str()))),
                };
                Ok(Some(Seen { kind: Kind::Format(format), shape: info.shape.clone(), scaled: false, packed: false }))
            }
        }
    }

    /// As [`Self::read`], and every value is finite.
    fn read_finite(&mut self, found: &Found) -> Result<(Bytes, Option<Vec<f32>>)> {
        let (bytes, scales) = self.read(found)?;
        if !convert::all_finite(found.seen.kind, &bytes) {
            return Err(Error::tensor(&self.place, &found.place.stored, convert::NOT_FINITE));
        }
        Ok((bytes, scales))
    }

    /// The bytes of a found tensor's part, and its scales.
    fn read(&mut self, found: &Found) -> Result<(Bytes, Option<Vec<f32>>)> {
        let stored = &found.place.stored;
        let all = match &self.source {
            Source::Checkpoint(checkpoint) => checkpoint.bytes(stored)?,
            Source::Gguf(file) => file.bytes(stored)?,
            Source::Random(_) => return Err(Error::Internal("random weights have no bytes".to_owned())),
        };
        let wanted = match found.place.part {
            Part::Whole | Part::Transposed => 0..all.len(),
            Part::Piece { index, of } => {
                let piece = all.len() / of;
                index * piece..(index + 1) * piece
            }
        };
        let columns = found.seen.shape.last().copied().unwrap_or(1);
        let rows = found.seen.shape.iter().rev().skip(1).product();
        let bytes = (found.seen.kind.bytes(rows, columns) == Some(all.len())).then(|| all.slice(wanted)).flatten();
        let Some(bytes) = bytes else {
            return Err(Error::tensor(&self.place, stored, format!("{} bytes do not make its shape", all.len())));
        };
        let scales = if found.seen.scaled { Some(self.scales(found)?) } else { None };
        Ok((bytes, scales))
    }
}

impl Source {
    /// Every stored tensor with its number of elements.
    fn names(&self) -> Vec<(String, usize)> {
        match self {
            Source::Checkpoint(file) => file.tensors().map(|t| (t.name.clone(), t.elements())).collect(),
            Source::Gguf(file) => file.tensors().iter().map(|t| (t.name.clone(), t.elements())).collect(),
            Source::Random(_) => Vec::new(),
        }
    }
}

/// Values of a tensor stored `[columns, rows]`, as `shape = [rows, columns]`.
fn transpose(seen: &Seen, bytes: &[u8], shape: &[usize]) -> Vec<f32> {
    let (rows, columns) = (shape[0], shape[1]);
    let stored = convert::widen(seen.kind, bytes, None, [columns, rows]);
    let mut out = vec![0.0; rows * columns];
    for (row, out) in out.chunks_exact_mut(columns.max(1)).enumerate() {
        for (column, out) in out.iter_mut().enumerate() {
            *out = stored[column * rows + row];
        }
    }
    out
}

/// A list of names that is cut in messages.
#[derive(Default)]
struct Names {
    shown: Vec<String>,
    count: usize,
}

impl Names {
    fn add(&mut self, name: &str) {
        self.count += 1;
        if self.shown.len() < NAMES_SHOWN {
            self.shown.push(one_line(&name.chars().take(120).collect::<String>()));
        }
    }
}

impl std::fmt::Display for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.shown.join(", "))?;
        match self.count - self.shown.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
