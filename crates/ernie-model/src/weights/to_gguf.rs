//! A model as one GGUF file under llama.cpp's names: what [`super::bend`] reads, written.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use ernie_files::gguf::{GgmlType, NewTensor, Value, Writer};

use super::bend::{Dialect, Part, places};
use super::{LoadReport, ModelSource, Weights, WeightsAs};
use crate::config::TensorSpec;
use crate::{Error, ModelConfig, Result};

/// In what the matrices of a GGUF file are stored; norms, routers and biases are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufAs {
    /// 32-bit floats.
    F32,
    /// Brain floats.
    Bf16,
    /// 8 bits with an f16 scale every 32 of a row; bf16 where a row is not of whole blocks.
    Q8,
}

/// Numbers of a block of [`GgufAs::Q8`].
const BLOCK: usize = 32;

/// Writes `source` as the GGUF file `path`, with the metadata of its tokenizer in `tokenizer`. The file appears whole or not at all; one tensor is widened at a
/// time. `each` is told the number of tensors written, and of all.
///
/// # Errors
/// [`Error::NotBuilt`] for a VL model, a classification head, or a mixture whose dense layers are not the first ones; those of [`Weights::open`] and of the writer.
pub fn write_gguf(
    source: &ModelSource,
    path: &Path,
    to: GgufAs,
    tokenizer: BTreeMap<String, Value>,
    each: &mut dyn FnMut(usize, usize),
) -> Result<(ModelConfig, LoadReport)> {
    let mut weights = Weights::open(source, WeightsAs::F32)?;
    let config = weights.config().clone();
    let layers = config.moe.as_ref().map(|moe| (moe.layer_start_index, moe.layer_end_index, moe.layer_interval));
    if layers.is_some_and(|(_, last, step)| last + 1 != config.num_hidden_layers || step != 1) {
        return Err(Error::not_built("a mixture whose last layers are dense, in GGUF"));
    }
    if !config.labels.is_empty() {
        return Err(Error::not_built("a classification head in GGUF"));
    }
    let mut metadata = config.to_gguf()?;
    metadata.extend(tokenizer);
    let (number, version) = match to {
        GgufAs::F32 => (0, None),
        GgufAs::Bf16 => (32, None),
        GgufAs::Q8 => (7, Some(2)),
    };
    metadata.insert("general.file_type".into(), Value::U32(number));
    if let Some(version) = version {
        metadata.insert("general.quantization_version".into(), Value::U32(version));
    }

    // Experts lie in one stack, in their order.
    let specs = config.tensors();
    let mut stored: Vec<(NewTensor, Vec<&TensorSpec>)> = Vec::new();
    for spec in &specs {
        let place = places(Dialect::Gguf, &config, &spec.name, &spec.shape).into_iter().next();
        let place = place.ok_or_else(|| Error::Internal(format!("{} has no name in GGUF", spec.name)))?;
        match stored.iter_mut().find(|(tensor, _)| tensor.name == place.stored) {
            Some((_, parts)) if matches!(place.part, Part::Piece { index, .. } if index == parts.len()) => {
                parts.push(spec)
            }
            Some(_) => return Err(Error::Internal(format!("{} is out of order", spec.name))),
            None => {
                let kind = if spec.role.is_matrix() { kind_of(to, &spec.shape) } else { GgmlType::F32 };
                stored.push((NewTensor { name: place.stored, kind, shape: place.shape }, vec![spec]));
            }
        }
    }
    let tensors: Vec<NewTensor> = stored.iter().map(|(tensor, _)| tensor.clone()).collect();
    let mut writer = Writer::create(path, &metadata, &tensors)?;
    let mut done = 0;
    for (tensor, parts) in &stored {
        for spec in parts {
            let values = weights.take_f32(&spec.name, &spec.shape)?;
            for values in values.chunks(1 << 18) {
                writer.write(&bytes(values, tensor.kind))?;
            }
            done += 1;
            each(done, specs.len());
        }
    }
    let report = weights.finish()?;
    writer.finish()?;
    Ok((config, report))
}

fn kind_of(to: GgufAs, shape: &[usize]) -> GgmlType {
    let whole = shape.last().is_some_and(|row| row.is_multiple_of(BLOCK));
    match to {
        GgufAs::F32 => GgmlType::F32,
        GgufAs::Q8 if whole => GgmlType::Q8_0,
        GgufAs::Bf16 | GgufAs::Q8 => GgmlType::Bf16,
    }
}

fn bytes(values: &[f32], kind: GgmlType) -> Cow<'_, [u8]> {
    match kind {
        GgmlType::F32 if cfg!(target_endian = "little") => Cow::Borrowed(bytemuck::cast_slice(values)),
        GgmlType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        GgmlType::Q8_0 => values.chunks(BLOCK).flat_map(q8).collect(),
        _ => values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect(),
    }
}

/// `d, q0 … q31` with `d` the largest size over 127, as llama.cpp rounds it.
fn q8(block: &[f32]) -> [u8; 2 + BLOCK] {
    let scale = block.iter().fold(0.0_f32, |most, value| most.max(value.abs())) / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut out = [0; 2 + BLOCK];
    out[..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
    for (out, value) in out[2..].iter_mut().zip(block) {
        *out = (value * inverse).round().clamp(-127.0, 127.0) as i8 as u8;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_scaled_by_its_largest() {
        let mut block = [0.0; BLOCK];
        (block[0], block[1], block[31]) = (1.27, -2.54, 0.013);
        let out = q8(&block);
        assert_eq!(half::f16::from_le_bytes([out[0], out[1]]), half::f16::from_f32(0.02));
        assert_eq!((out[2] as i8, out[3] as i8, out[33] as i8), (64, -127, 1));
        assert_eq!(q8(&[0.0; BLOCK]), [0; 34]);
    }
}
