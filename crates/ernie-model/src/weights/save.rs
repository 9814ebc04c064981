//! Writing a model in the published `-PT` layout: `config.json`, `generation_config.json`, and safetensors, in one
//! file or in shards with an index.
//!
//! Tensors are streamed: one tensor's values are asked for at a time. They are ordered by the width of
//! their type, wide first, so that every tensor starts at a multiple of its own width, as readers expect that
//! view the file in place.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ernie_files::atomic::Folder;
use ernie_files::safetensors::Writer;
use ernie_files::{Dtype, TensorInfo};
use serde_json::json;

use super::bend::is_mtp;
use super::nibbles::int4_of;
use super::{Kept, convert};
use crate::config::{INT4_GROUP, Quantization, Role, StoredDtype};
use crate::{Error, ModelConfig, Result};

/// The head's published name.
const HEAD: &str = "lm_head.weight";

/// Elements of an embedding row from which two more bytes a row do not count.
const LONG_ROW: usize = 512;

/// Bytes of tensors in one file before the next shard begins.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// The number format a model is saved in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SaveAs {
    /// Everything in f32.
    F32,
    /// Everything in bf16 but routers and correction bias, which stay f32, as published.
    Bf16,
    /// Matrices, embedding and head included, as I8 with an F16 scale a row; everything else in f32.
    Int8,
    /// Matrices in four bits with an F16 scale every 32 weights (compressed-tensors' `pack-quantized`, symmetric), embedding and head as in
    /// [`Self::Int8`]; everything else in f32.
    Int4,
}

impl SaveAs {
    /// What the config says of it.
    fn quantization(self) -> Option<Quantization> {
        match self {
            SaveAs::F32 | SaveAs::Bf16 => None,
            SaveAs::Int8 => Some(Quantization::Int8Channel),
            SaveAs::Int4 => Some(Quantization::Int4Group),
        }
    }
}

/// Values handed out when they are written.
pub type Values<'a> = Box<dyn Fn() -> Result<Cow<'a, [f32]>> + 'a>;

/// One tensor to save: its published name, its shape, and where its values come from.
pub struct SaveTensor<'a> {
    /// Published name.
    pub name: String,
    /// Rows first.
    pub shape: Vec<usize>,
    /// Called once for each piece that is written: more than once for integers, whose scales lie apart.
    pub values: Values<'a>,
}

impl<'a> SaveTensor<'a> {
    /// A tensor whose values are at hand.
    pub fn of(name: impl Into<String>, shape: impl Into<Vec<usize>>, values: &'a [f32]) -> Self {
        SaveTensor { name: name.into(), shape: shape.into(), values: Box::new(move || Ok(Cow::Borrowed(values))) }
    }
}

/// A tensor copied out of a model that goes on changing. Copies of a copy share its numbers.
#[derive(Clone, Debug)]
pub struct Copied {
    /// Published name.
    pub name: String,
    /// Rows first.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Arc<Vec<f32>>,
}

impl Copied {
    /// The numbers of `tensor` as they are now.
    ///
    /// # Errors
    /// Those of its source.
    pub fn of(tensor: &SaveTensor<'_>) -> Result<Self> {
        let values = Arc::new(values(tensor)?.into_owned());
        Ok(Self { name: tensor.name.clone(), shape: tensor.shape.clone(), values })
    }

    /// The copy as a tensor to save.
    pub fn tensor(&self) -> SaveTensor<'_> {
        SaveTensor::of(self.name.as_str(), self.shape.as_slice(), &self.values)
    }
}

/// Writes tensors in f32 as one file, in their order.
///
/// # Errors
/// From the disk, and those of the tensors' sources.
pub fn write_floats(path: &Path, tensors: &[SaveTensor<'_>], metadata: &BTreeMap<String, String>) -> Result<()> {
    let pieces: Vec<Piece<'_, '_>> = tensors.iter().map(|tensor| Piece::Floats(tensor, Dtype::F32)).collect();
    let infos: Vec<TensorInfo> = pieces.iter().map(Piece::info).collect();
    let mut writer = Writer::create(path, &infos, metadata)?;
    pieces.iter().try_for_each(|piece| piece.write(&mut writer))?;
    Ok(writer.finish()?)
}

/// What is written for one tensor.
enum Piece<'a, 'b> {
    Floats(&'a SaveTensor<'b>, Dtype),
    Int8(&'a SaveTensor<'b>),
    /// Of a tensor, for the one that is named.
    Scales(&'a SaveTensor<'b>, &'a str),
    Int4(&'a SaveTensor<'b>, Int4),
    Kept(&'a Kept),
}

/// A part of a 4-bit tensor.
#[derive(Clone, Copy)]
enum Int4 {
    Integers,
    Scales,
    Shape,
}

impl Int4 {
    const ALL: [Self; 3] = [Int4::Integers, Int4::Scales, Int4::Shape];

    fn info(self, tensor: &SaveTensor<'_>) -> TensorInfo {
        let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
        let (part, dtype, shape) = match self {
            Int4::Integers => ("packed", Dtype::I32, vec![rows, columns / 8]),
            Int4::Scales => ("scale", Dtype::F16, vec![rows, columns / INT4_GROUP]),
            Int4::Shape => ("shape", Dtype::I64, vec![2]),
        };
        TensorInfo::new(format!("{}_{part}", tensor.name), dtype, shape)
    }

    fn write(self, tensor: &SaveTensor<'_>, writer: &mut Writer) -> Result<()> {
        let rounded = || Ok::<_, Error>(int4_of(&values(tensor)?, tensor.shape[1]));
        let bytes = match self {
            Int4::Integers => rounded()?.0,
            Int4::Scales => rounded()?.1,
            Int4::Shape => tensor.shape.iter().flat_map(|&n| (n as i64).to_le_bytes()).collect(),
        };
        Ok(writer.write(&bytes)?)
    }
}

impl Piece<'_, '_> {
    fn info(&self) -> TensorInfo {
        match self {
            Piece::Floats(tensor, dtype) => TensorInfo::new(tensor.name.clone(), *dtype, tensor.shape.clone()),
            Piece::Int8(tensor) => TensorInfo::new(tensor.name.clone(), Dtype::I8, tensor.shape.clone()),
            Piece::Scales(tensor, name) => {
                let rows = tensor.shape.first().copied().unwrap_or(1);
                TensorInfo::new(format!("{name}_scale"), Dtype::F16, [rows, 1])
            }
            Piece::Int4(tensor, part) => part.info(tensor),
            Piece::Kept(kept) => kept.info.clone(),
        }
    }

    fn write(&self, writer: &mut Writer) -> Result<()> {
        match self {
            Piece::Kept(kept) => Ok(writer.write(&kept.bytes)?),
            Piece::Floats(tensor, Dtype::F32) => Ok(writer.write(bytemuck::cast_slice(&values(tensor)?))?),
            Piece::Floats(tensor, _) => {
                let mut bytes = Vec::new();
                for run in values(tensor)?.chunks(1 << 18) {
                    bytes.clear();
                    bytes.extend(run.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()));
                    writer.write(&bytes)?;
                }
                Ok(())
            }
            Piece::Int8(tensor) => Ok(writer.write(&int8(tensor)?.0)?),
            Piece::Int4(tensor, part) => part.write(tensor, writer),
            Piece::Scales(tensor, _) => {
                let scales = int8(tensor)?.1;
                let bytes: Vec<u8> =
                    scales.iter().flat_map(|&scale| half::f16::from_f32(scale).to_le_bytes()).collect();
                Ok(writer.write(&bytes)?)
            }
        }
    }
}

/// The values of a tensor, refused where they are not finite or not as many as the shape says.
fn values<'a>(tensor: &'a SaveTensor<'_>) -> Result<Cow<'a, [f32]>> {
    let values = (tensor.values)()?;
    let elements: usize = tensor.shape.iter().product();
    if values.len() != elements {
        let problem = format!("{} values for shape {:?}", values.len(), tensor.shape);
        return Err(Error::Internal(format!("tensor `{}`: {problem}", tensor.name)));
    }
    Ok(values)
}

fn int8(tensor: &SaveTensor<'_>) -> Result<(Vec<u8>, Vec<f32>)> {
    let columns = tensor.shape.get(1).copied().unwrap_or(1);
    Ok(convert::int8_of(&values(tensor)?, columns))
}

/// Saves a model as the folder `path`, complete or not at all.
///
/// # Errors
/// As [`save_into`], and [`Error::Files`] if the folder cannot be put in place.
pub fn save(
    path: &Path,
    config: &ModelConfig,
    tensors: &[SaveTensor<'_>],
    kept: &[Kept],
    save_as: SaveAs,
) -> Result<()> {
    let folder = Folder::begin(path)?;
    save_into(folder.path(), config, tensors, kept, save_as)?;
    Ok(folder.commit()?)
}

/// Writes a model's files into an existing folder, which the caller makes atomic.
///
/// `tensors` are those of [`ModelConfig::tensors`] and, if there is one of them, [`ModelConfig::mtp_tensors`], in any order; `kept` are carried over as they are.
///
/// # Errors
/// [`Error::Internal`] if the tensors are not those of the config, [`Error::NotBuilt`] for VL models, and
/// [`Error::Files`] when writing fails.
pub fn save_into(
    folder: &Path,
    config: &ModelConfig,
    tensors: &[SaveTensor<'_>],
    kept: &[Kept],
    save_as: SaveAs,
) -> Result<()> {
    save_sharded(folder, config, tensors, kept, save_as, SHARD_BYTES)
}

/// As [`save_into`], with the size of a shard.
///
/// # Errors
/// As [`save_into`].
pub fn save_sharded(
    folder: &Path,
    config: &ModelConfig,
    tensors: &[SaveTensor<'_>],
    kept: &[Kept],
    save_as: SaveAs,
    shard_bytes: u64,
) -> Result<()> {
    if config.has_vl_layout() {
        return Err(Error::not_built("saving the text side of a VL model"));
    }
    check(config, tensors)?;
    let mut config = config.clone();
    config.dtype = Some(if save_as == SaveAs::Bf16 { StoredDtype::Bf16 } else { StoredDtype::F32 });
    config.quantization = save_as.quantization();
    // Without its tensors there is no multi-token prediction to announce.
    let has_mtp = !kept.is_empty() || tensors.iter().any(|tensor| is_mtp(&tensor.name));
    config.mtp_layers = if has_mtp { config.mtp_layers } else { 0 };

    let mut pieces = Vec::new();
    for tensor in tensors {
        let role = Role::of(&tensor.name);
        match save_as {
            SaveAs::Int4 if role.is_matrix() && !matches!(role, Role::Embedding | Role::Head) => {
                if !tensor.shape[1].is_multiple_of(INT4_GROUP) {
                    let problem = format!("rows of {} are no whole groups of {INT4_GROUP}", tensor.shape[1]);
                    return Err(Error::not_built(format!("4 bits for `{}`: {problem}", tensor.name)));
                }
                pieces.extend(Int4::ALL.map(|part| Piece::Int4(tensor, part)));
            }
            SaveAs::Int8 | SaveAs::Int4 if role.is_matrix() => {
                pieces.extend([Piece::Scales(tensor, &tensor.name), Piece::Int8(tensor)]);
                // Who ties the head to the embedding after reading, as `transformers` does, looks for its scales all the same. Beside short rows they would
                // be felt in the size.
                if role == Role::Embedding && config.tie_word_embeddings && tensor.shape[1] >= LONG_ROW {
                    pieces.push(Piece::Scales(tensor, HEAD));
                }
            }
            SaveAs::Bf16 if !matches!(role, Role::Router | Role::CorrectionBias) => {
                pieces.push(Piece::Floats(tensor, Dtype::Bf16));
            }
            _ => pieces.push(Piece::Floats(tensor, Dtype::F32)),
        }
    }
    pieces.extend(kept.iter().map(Piece::Kept));
    let mut pieces: Vec<_> = pieces
        .into_iter()
        .map(|piece| {
            let info = piece.info();
            (piece, info)
        })
        .collect();
    pieces.sort_by_key(|(_, info)| std::cmp::Reverse(info.dtype.size_bytes()));
    write_shards(folder, &pieces, shard_bytes)?;

    let write = |name: &str, value: &serde_json::Value| -> Result<()> {
        let text = format!("{value:#}\n");
        Ok(ernie_files::atomic::write(&folder.join(name), text.as_bytes())?)
    };
    write("config.json", &config.to_json())?;
    write("generation_config.json", &generation(&config))
}

/// That `tensors` are exactly those of the config, with or without multi-token prediction.
fn check(config: &ModelConfig, tensors: &[SaveTensor<'_>]) -> Result<()> {
    let mut specs = config.tensors();
    if tensors.iter().any(|tensor| is_mtp(&tensor.name)) {
        specs.extend(config.mtp_tensors());
    }
    let wanted: BTreeMap<String, Vec<usize>> = specs.into_iter().map(|spec| (spec.name, spec.shape)).collect();
    for tensor in tensors {
        if wanted.get(&tensor.name) != Some(&tensor.shape) {
            let problem = format!("tensor `{}` {:?} is not of the model", tensor.name, tensor.shape);
            return Err(Error::Internal(format!("saving: {problem}")));
        }
    }
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    if names.len() != tensors.len() || names.len() != wanted.len() {
        let problem =
            format!("{} tensors, {} of them different, expected {}", tensors.len(), names.len(), wanted.len());
        return Err(Error::Internal(format!("saving: {problem}")));
    }
    Ok(())
}

fn write_shards(folder: &Path, pieces: &[(Piece<'_, '_>, TensorInfo)], shard_bytes: u64) -> Result<()> {
    let mut shards: Vec<Vec<usize>> = vec![Vec::new()];
    let (mut here, mut total) = (0, 0);
    for (index, (_, info)) in pieces.iter().enumerate() {
        let bytes = info.bytes() as u64;
        if here > 0 && here + bytes > shard_bytes {
            shards.push(Vec::new());
            here = 0;
        }
        here += bytes;
        total += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push(index);
        }
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut weight_map = BTreeMap::new();
    for (number, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            of => format!("model-{:05}-of-{of:05}.safetensors", number + 1),
        };
        let infos: Vec<TensorInfo> = shard.iter().map(|&index| pieces[index].1.clone()).collect();
        let mut writer = Writer::create(&folder.join(&name), &infos, &metadata)?;
        for &index in shard {
            pieces[index].0.write(&mut writer)?;
            weight_map.insert(pieces[index].1.name.clone(), name.clone());
        }
        writer.finish()?;
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        let text = format!("{index:#}\n");
        ernie_files::atomic::write(&folder.join("model.safetensors.index.json"), text.as_bytes())?;
    }
    Ok(())
}

/// The family's defaults for generating, with this model's ids.
fn generation(config: &ModelConfig) -> serde_json::Value {
    let json = config.to_json();
    json!({
        "bos_token_id": json["bos_token_id"],
        "eos_token_id": json["eos_token_id"],
        "pad_token_id": json["pad_token_id"],
        "do_sample": true,
        "temperature": 0.8,
        "top_p": 0.8,
        "repetition_penalty": 1.0,
    })
}
