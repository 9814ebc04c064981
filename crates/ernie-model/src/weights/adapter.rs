//! Adapters on disk, as PEFT writes and reads them: `adapter_config.json` and `adapter_model.safetensors`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ernie_files::{Checkpoint, Dtype, read_text};
use serde::{Deserialize, Serialize};

use super::{SaveTensor, write_floats};
use crate::config::{SCORE, default_labels};
use crate::decoder::TARGETS;
use crate::{Adaptation, Decoder, Error, Result};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";

/// What PEFT puts before a published name.
const PREFIX: &str = "base_model.model.";

/// The largest `adapter_config.json` that is read.
const MAX_CONFIG: u64 = 1 << 20;

/// `adapter_config.json`; keys that change nothing here are passed over.
#[derive(Serialize, Deserialize)]
struct Config {
    peft_type: String,
    #[serde(default)]
    task_type: Option<String>,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    bias: Option<String>,
    target_modules: Targets,
    #[serde(default)]
    rank_pattern: BTreeMap<String, usize>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
    /// Modules that were trained as a whole and lie beside the change.
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
}

/// What `modules_to_save` may name: the head for labels, which PEFT lists under the two names that it has in the field.
const WHOLE: [&str; 2] = ["classifier", "score"];

/// In the metadata of the tensors: the labels of the head as a list in JSON. PEFT has no place for them.
const LABELS: &str = "labels";

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Targets {
    Many(Vec<String>),
    One(String),
}

/// An adapter's folder but for its tensors.
pub struct AdapterFiles {
    config: Vec<u8>,
    metadata: BTreeMap<String, String>,
}

impl AdapterFiles {
    /// Writes the files into `folder`, which exists; `tensors` are those of [`adapter_files`] or copies of them.
    ///
    /// # Errors
    /// From the disk.
    pub fn write(&self, folder: &Path, tensors: &[SaveTensor<'_>]) -> Result<()> {
        ernie_files::atomic::write(&folder.join(CONFIG), &self.config)?;
        write_floats(&folder.join(TENSORS), tensors, &self.metadata)
    }
}

/// What a folder with the adapters of a model is written from, and with them of the head for labels, where that is trained beside them. Tensors are read when they are
/// asked for.
///
/// # Errors
/// [`Error::Request`] where they are packed.
pub fn adapter_files(
    decoder: &Decoder,
    adaptation: &Adaptation,
    base: Option<&str>,
) -> Result<(AdapterFiles, Vec<SaveTensor<'static>>)> {
    let score = decoder.score().filter(|score| score.is_trainable());
    let config = Config {
        peft_type: "LORA".into(),
        task_type: Some(if score.is_some() { "SEQ_CLS" } else { "CAUSAL_LM" }.into()),
        base_model_name_or_path: base.map(str::to_owned),
        r: adaptation.rank,
        lora_alpha: adaptation.alpha,
        use_rslora: adaptation.rslora,
        use_dora: false,
        fan_in_fan_out: false,
        bias: Some("none".into()),
        target_modules: Targets::Many(adaptation.targets.clone()),
        rank_pattern: BTreeMap::new(),
        alpha_pattern: BTreeMap::new(),
        modules_to_save: score.map(|_| vec!["score".to_owned()]),
    };
    let mut metadata = BTreeMap::new();
    if score.is_some() {
        let labels = serde_json::to_string(&decoder.config().labels);
        metadata.insert(LABELS.to_owned(), labels.map_err(|error| Error::Internal(error.to_string()))?);
    }
    let config = serde_json::to_vec_pretty(&config).map_err(|error| Error::Internal(error.to_string()))?;
    let adapters = decoder.adapters();
    let both: Option<Vec<_>> = adapters.iter().map(|(_, adapter)| adapter.parameters()).collect();
    let mut all = both.ok_or_else(|| Error::Request("an adapter that is packed cannot be written".into()))?.concat();
    all.extend(score);
    let tensors = all.into_iter().cloned().map(|parameter| SaveTensor {
        name: format!("{PREFIX}{}", parameter.name()),
        shape: parameter.shape().to_vec(),
        values: Box::new(move || Ok(Cow::Owned(parameter.to_vec()?))),
    });
    Ok((AdapterFiles { config, metadata }, tensors.collect()))
}

/// Adapts a model by what `folder` holds, as [`Decoder::adapt`] does, a head for labels included; a model may be given several, one after the other.
///
/// # Errors
/// [`Error::Malformed`] names what in the config is not known here, or a tensor that is missing, left over or of
/// another shape than the model's, as those of an adapter of another model are.
pub fn read_adapter(folder: &Path, decoder: &mut Decoder) -> Result<Adaptation> {
    let path = folder.join(CONFIG);
    let at = path.display().to_string();
    let wrong = |message: String| Err(Error::Malformed { place: at.clone(), problem: message });
    let config: Config = match serde_json::from_str(&read_text(&path, MAX_CONFIG)?) {
        Ok(config) => config,
        Err(error) => return wrong(error.to_string()),
    };
    if config.peft_type != "LORA" {
        return wrong(format!("peft_type is {:?}, expected \"LORA\"", config.peft_type));
    }
    let unknown = [
        ("use_dora", config.use_dora),
        ("fan_in_fan_out", config.fan_in_fan_out),
        ("rank_pattern", !config.rank_pattern.is_empty()),
        ("alpha_pattern", !config.alpha_pattern.is_empty()),
        ("bias", config.bias.as_deref().is_some_and(|bias| bias != "none")),
    ];
    if let Some((key, _)) = unknown.iter().find(|(_, set)| *set) {
        return wrong(format!("{key}: adapters of this kind are not built"));
    }
    let whole = config.modules_to_save.unwrap_or_default();
    if let Some(name) = whole.iter().find(|name| !WHOLE.contains(&name.as_str())) {
        return wrong(format!("modules_to_save: {name:?} is not built, expected \"score\""));
    }
    if !config.lora_alpha.is_finite() {
        return wrong("lora_alpha: expected a finite number".into());
    }
    let targets = match config.target_modules {
        Targets::One(all) if all == "all-linear" => TARGETS.map(str::to_owned).to_vec(),
        Targets::One(pattern) => {
            return wrong(format!("target_modules: the pattern {pattern:?}, expected a list of names"));
        }
        Targets::Many(names) => names,
    };
    let tensors = folder.join(TENSORS);
    let file = Checkpoint::open(&tensors)?;
    let experts = file.tensors().any(|info| info.name.contains(".mlp.experts."));
    let (rank, alpha, rslora) = (config.r, config.lora_alpha, config.use_rslora);
    let adaptation = Adaptation { rank, alpha, rslora, targets, experts };
    if let Err(error) = decoder.adapt(&adaptation, 0) {
        return wrong(error.to_string());
    }

    let path = tensors;
    let at = path.display().to_string();
    let wrong = |message: String| Err(Error::Malformed { place: at.clone(), problem: message });
    let mut unused: BTreeSet<String> = file.tensors().map(|info| info.name.clone()).collect();
    for (_, adapter) in decoder.adapters() {
        for parameter in adapter.parameters().into_iter().flatten() {
            let name = format!("{PREFIX}{}", parameter.name());
            let Some(info) = file.info(&name) else { return wrong(format!("tensor {name} is missing")) };
            if info.shape != parameter.shape() {
                let (has, expected) = (&info.shape, parameter.shape());
                return wrong(format!("tensor {name} is {has:?}, expected {expected:?}: an adapter of another model?"));
            }
            let Some(values) = floats(info.dtype, &file.bytes(&name)?) else {
                return wrong(format!("tensor {name} is {}, expected finite F32, F16 or BF16", info.dtype));
            };
            parameter.set(&values)?;
            unused.remove(&name);
        }
    }
    let name = format!("{PREFIX}{SCORE}");
    if let Some(info) = file.info(&name) {
        let &[rows, width] = info.shape.as_slice() else { return wrong(format!("tensor {name} is no matrix")) };
        if width != decoder.config().hidden_size {
            return wrong(format!("tensor {name} is {:?}: an adapter of another model?", info.shape));
        }
        let labels = match file.metadata().get(LABELS) {
            Some(text) => match serde_json::from_str::<Vec<String>>(text) {
                Ok(labels) if labels.len() == rows => labels,
                _ => return wrong(format!("`{LABELS}` of its metadata is no list of {rows} labels")),
            },
            None if decoder.config().labels.len() == rows => decoder.config().labels.clone(),
            None => default_labels(rows),
        };
        let Some(values) = floats(info.dtype, &file.bytes(&name)?) else {
            return wrong(format!("tensor {name} is {}, expected finite F32, F16 or BF16", info.dtype));
        };
        if let Err(error) = decoder.set_score(labels, values) {
            return wrong(format!("tensor {name}: {error}"));
        }
        unused.remove(&name);
    } else if !whole.is_empty() {
        return wrong(format!("tensor {name} is missing, which `modules_to_save` announces"));
    }
    if let Some(name) = unused.first() {
        return wrong(format!("tensor {name}: the model has no such adapter"));
    }
    Ok(adaptation)
}

/// Stored floats in 32 bits; `None` where they are something else, or not finite.
fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let half = |wide: fn(u16) -> f32| bytes.as_chunks::<2>().0.iter().map(|&b| wide(u16::from_le_bytes(b))).collect();
    let values: Vec<f32> = match dtype {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Dtype::F16 => half(|bits| half::f16::from_bits(bits).to_f32()),
        Dtype::Bf16 => half(|bits| half::bf16::from_bits(bits).to_f32()),
        _ => return None,
    };
    values.iter().all(|value| value.is_finite()).then_some(values)
}
