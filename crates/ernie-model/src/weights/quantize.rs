//! A model in 8 or 4 bits as a checkpoint: matrices rounded to nearest while they are written, everything else widened.

use std::cell::RefCell;
use std::path::Path;

use ernie_files::gguf::{GgmlType, Gguf};

use super::{LoadReport, ModelSource, SaveAs, SaveTensor, Weights, WeightsAs, save_into};
use crate::{Error, ModelConfig, Result};

/// Writes the files of `source` in an integer format, [`SaveAs::Int8`] or [`SaveAs::Int4`], into an existing folder, which the caller makes atomic:
/// `config.json`, `generation_config.json` and weights.
///
/// Embedding and head are quantised with the rest, to 8 bits; norms, routers and biases become f32; multi-token-prediction tensors
/// are carried over as they are. One tensor is widened at a time. Everything is read and checked before the first byte is
/// written. `each` is told the number of tensors done, and of all, twice over: checked, then written.
///
/// # Errors
/// [`Error::Request`] for a model whose weights are quantised already, [`Error::NotBuilt`] for VL models and for rows that are no whole groups; those of
/// [`Weights::open`] and [`save_into`].
pub fn quantize_into(
    source: &ModelSource,
    to: SaveAs,
    folder: &Path,
    each: &mut dyn FnMut(usize, usize),
) -> Result<(ModelConfig, LoadReport)> {
    refuse_gguf_blocks(source)?;
    let mut weights = Weights::open(source, WeightsAs::Native)?;
    let config = weights.config().clone();
    if config.quantization.is_some() {
        return Err(already("by the `quantization_config` of its config.json"));
    }
    if config.has_vl_layout() {
        return Err(Error::not_built("quantising the text side of a VL model"));
    }
    let specs = config.tensors();
    let of = 2 * specs.len();
    for (done, spec) in specs.iter().enumerate() {
        match spec.role.is_matrix() {
            true => drop(weights.take(&spec.name, &spec.shape)?),
            false => drop(weights.take_f32(&spec.name, &spec.shape)?),
        }
        each(done + 1, of);
    }
    let report = weights.finish()?;

    let weights = RefCell::new(Weights::open(source, WeightsAs::Native)?);
    let progress = RefCell::new((specs.len(), each));
    let tensors: Vec<SaveTensor<'_>> = specs
        .iter()
        .map(|spec| SaveTensor {
            name: spec.name.clone(),
            shape: spec.shape.clone(),
            values: Box::new(|| {
                let (done, each) = &mut *progress.borrow_mut();
                // Matrices are asked for more than once.
                *done = (*done + 1).min(of);
                each(*done, of);
                Ok(weights.borrow_mut().take_f32(&spec.name, &spec.shape)?.into())
            }),
        })
        .collect();
    save_into(folder, &config, &tensors, &report.kept, to)?;
    Ok((config, report))
}

/// A GGUF says tensor by tensor what it is stored in.
fn refuse_gguf_blocks(source: &ModelSource) -> Result<()> {
    let ModelSource::Gguf(path) = source else { return Ok(()) };
    let file = Gguf::open(path)?;
    let plain = |kind| matches!(kind, GgmlType::F64 | GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16);
    match file.tensors().iter().find(|tensor| !plain(tensor.kind)) {
        Some(tensor) => Err(already(&format!("`{}` is stored as {}", tensor.name, tensor.kind.as_str()))),
        None => Ok(()),
    }
}

fn already(how: &str) -> Error {
    Error::Request(format!("the model is quantised already ({how}); expected float weights"))
}
