//! From the metadata of a GGUF file to a checked [`ModelConfig`], and back.
//!
//! Three architectures are read: `ernie4_5`, `ernie4_5-moe`, and `llama`, whose dense decoder is ours under other
//! names (llama.cpp stores its query and key rows in the interleaved order this family uses). Keys of the
//! architecture that we do not know are refused where they speak of attention, positions or experts, and noted
//! elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use ernie_files::gguf::{Gguf, Value};

use super::{Architecture, ModelConfig, MoeConfig};
use crate::error::one_line;
use crate::{Error, Result};

impl ModelConfig {
    /// Reads the shape of a GGUF file from its metadata and tensor table.
    ///
    /// # Errors
    /// [`Error::Key`] naming the metadata key at fault, [`Error::Tensor`] for tensors that change the rotary
    /// frequencies, [`Error::Files`] for keys of the wrong type.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        Self::from_gguf_with_notes(file).map(|(config, _)| config)
    }

    /// As [`Self::from_gguf`], with lines for the user about what was ignored.
    ///
    /// # Errors
    /// As [`Self::from_gguf`].
    pub fn from_gguf_with_notes(file: &Gguf) -> Result<(Self, Vec<String>)> {
        let place = file.path().display().to_string();
        let name = file.need_str("general.architecture")?;
        let (architecture, prefix) = match name {
            "ernie4_5" => (Architecture::Dense, "ernie4_5"),
            "ernie4_5-moe" => (Architecture::Moe, "ernie4_5-moe"),
            "llama" => (Architecture::Dense, "llama"),
            other => {
                let other: String = other.chars().take(60).collect();
                let problem = format!("`{other}` is not read here; expected ernie4_5, ernie4_5-moe or llama");
                return Err(Error::key(&place, "general.architecture", problem));
            }
        };
        let mut keys = Keys { file, place, prefix, read: BTreeSet::new() };
        let config = read(&mut keys, architecture)?;
        let notes = keys.settle()?;
        config.check(&keys.place)?;
        Ok((config, notes))
    }
}

impl ModelConfig {
    /// The metadata that [`Self::from_gguf`] reads, but for the tokenizer's.
    ///
    /// # Errors
    /// [`Error::NotBuilt`] for a VL model.
    pub fn to_gguf(&self) -> Result<BTreeMap<String, Value>> {
        let name = match self.architecture {
            Architecture::Dense => "ernie4_5",
            Architecture::Moe => "ernie4_5-moe",
            _ => return Err(Error::not_built("VL models in GGUF")),
        };
        let mut metadata = BTreeMap::from([("general.architecture".to_owned(), Value::String(name.into()))]);
        let mut set = |key: &str, value: Value| metadata.insert(format!("{name}.{key}"), value);
        let count = |count: usize| Value::U32(u32::try_from(count).unwrap_or(u32::MAX));
        set("context_length", count(self.max_position_embeddings));
        set("embedding_length", count(self.hidden_size));
        set("block_count", count(self.num_hidden_layers));
        set("feed_forward_length", count(self.intermediate_size));
        set("attention.head_count", count(self.num_attention_heads));
        set("attention.head_count_kv", count(self.num_key_value_heads));
        set("attention.key_length", count(self.head_dim));
        set("attention.value_length", count(self.head_dim));
        set("attention.layer_norm_rms_epsilon", Value::F32(self.rms_norm_eps as f32));
        set("rope.dimension_count", count(self.head_dim));
        set("rope.freq_base", Value::F32(self.rope_theta as f32));
        set("vocab_size", count(self.vocab_size));
        if let Some(moe) = &self.moe {
            set("expert_count", count(moe.num_experts));
            set("expert_used_count", count(moe.k));
            set("expert_feed_forward_length", count(moe.intermediate_size));
            set("expert_shared_count", count(moe.num_shared_experts));
            set("expert_shared_feed_forward_length", count(moe.shared_intermediate_size()));
            set("interleave_moe_layer_step", count(moe.layer_interval));
            set("leading_dense_block_count", count(moe.layer_start_index));
        }
        Ok(metadata)
    }
}

/// The keys of one architecture, and which of them have been read.
struct Keys<'a> {
    file: &'a Gguf,
    place: String,
    prefix: &'static str,
    read: BTreeSet<String>,
}

impl Keys<'_> {
    fn name(&mut self, key: &str) -> String {
        let name = format!("{}.{key}", self.prefix);
        self.read.insert(name.clone());
        name
    }

    fn error(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::key(&self.place, format!("{}.{key}", self.prefix), problem)
    }

    fn count(&mut self, key: &str) -> Result<Option<usize>> {
        let name = self.name(key);
        // Some writers give one number per layer; all layers here are alike.
        if let Some(Value::Array(_)) = self.file.metadata().get(&name) {
            let list = self.file.get_i64s(&name)?.unwrap_or_default();
            let first = list.first().copied().and_then(|n| usize::try_from(n).ok());
            return match first {
                Some(first) if list.iter().all(|&n| usize::try_from(n) == Ok(first)) => Ok(Some(first)),
                _ => Err(self.error(key, "layers that differ are not built; expected one number")),
            };
        }
        Ok(self.file.get_u32(&name)?.map(|n| n as usize))
    }

    fn needed(&mut self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.error(key, "missing; expected an integer"))
    }

    /// The number a person would have written: the shortest decimal that is this f32.
    fn number(&mut self, key: &str) -> Result<Option<f64>> {
        let name = self.name(key);
        Ok(self.file.get_f32(&name)?.map(|x| x.to_string().parse().unwrap_or(f64::NAN)))
    }

    /// Refuses `key` unless it is absent or one of `neutral`.
    fn neutral(&mut self, key: &str, neutral: &[f64]) -> Result<()> {
        let name = self.name(key);
        let value = match self.file.metadata().get(&name) {
            None => return Ok(()),
            Some(Value::Bool(flag)) => f64::from(u8::from(*flag)),
            Some(value) => match (value.as_u64(), value.as_f32()) {
                (Some(n), _) => n as f64,
                (None, Some(x)) => f64::from(x),
                (None, None) => f64::NAN,
            },
        };
        if neutral.contains(&value) {
            return Ok(());
        }
        Err(self.error(key, "changes the numbers and is not built"))
    }

    /// Refuses or notes the keys of the architecture that nobody has read.
    fn settle(&mut self) -> Result<Vec<String>> {
        let own = format!("{}.", self.prefix);
        let mut unknown = Vec::new();
        for key in self.file.metadata().keys() {
            let Some(tail) = key.strip_prefix(&own) else { continue };
            if self.read.contains(key) {
                continue;
            }
            let weighty = ["attention.", "rope.", "expert", "logit", "embedding_", "residual_", "sliding"];
            let tail = one_line(&tail.chars().take(80).collect::<String>());
            if weighty.iter().any(|start| tail.starts_with(start)) {
                return Err(self.error(&tail, "not known here, and it may change the numbers"));
            }
            unknown.push(tail);
        }
        if unknown.is_empty() {
            return Ok(Vec::new());
        }
        let shown = unknown.iter().take(12).cloned().collect::<Vec<_>>().join(", ");
        Ok(vec![format!("GGUF keys of the model that are not known here, ignored: {shown}")])
    }
}

fn read(keys: &mut Keys<'_>, architecture: Architecture) -> Result<ModelConfig> {
    let file = keys.file;
    for tensor in file.tensors() {
        if ["rope_freqs", "rope_factors_long", "rope_factors_short"].iter().any(|name| tensor.name.contains(name)) {
            let problem = "changes the rotary frequencies, which is not built";
            return Err(Error::tensor(&keys.place, &tensor.name, problem));
        }
    }
    let hidden_size = keys.needed("embedding_length")?;
    let num_attention_heads = keys.needed("attention.head_count")?;
    let num_hidden_layers = keys.needed("block_count")?;
    if num_attention_heads == 0 {
        return Err(keys.error("attention.head_count", "expected at least 1"));
    }
    let head_dim = match keys.count("attention.key_length")? {
        Some(width) => width,
        None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
        None => {
            let problem = format!("{num_attention_heads} heads do not divide the hidden size {hidden_size}");
            return Err(keys.error("attention.head_count", problem));
        }
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        if keys.count(key)?.is_some_and(|width| width != head_dim) {
            return Err(keys.error(key, format!("expected the width of a head, {head_dim}")));
        }
    }
    refuse_changes(keys)?;
    let embedding = file.info("token_embd.weight");
    let rows = embedding.and_then(|tensor| tensor.shape.first().copied());
    let rows =
        rows.ok_or_else(|| Error::MissingTensors { place: keys.place.clone(), names: "token_embd.weight".to_owned() })?;
    if keys.count("vocab_size")?.is_some_and(|size| size != rows) {
        return Err(keys.error("vocab_size", format!("token_embd.weight has {rows} rows")));
    }
    let moe = moe(keys, architecture, num_hidden_layers)?;
    let id = |key: &str| -> Result<Option<u32>> { Ok(file.get_u32(key)?) };
    let mut eos_token_ids: Vec<u32> = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        if let Some(id) = id(key)?
            && !eos_token_ids.contains(&id)
        {
            eos_token_ids.push(id);
        }
    }
    let eps = keys.number("attention.layer_norm_rms_epsilon")?;
    let has = |wanted: &str| file.tensors().iter().any(|tensor| tensor.name == wanted);
    Ok(ModelConfig {
        architecture,
        vocab_size: rows,
        hidden_size,
        intermediate_size: keys.needed("feed_forward_length")?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: keys.count("attention.head_count_kv")?.unwrap_or(num_attention_heads),
        head_dim,
        rms_norm_eps: eps
            .ok_or_else(|| keys.error("attention.layer_norm_rms_epsilon", "missing; expected a number"))?,
        rope_theta: keys.number("rope.freq_base")?.unwrap_or(10_000.0),
        max_position_embeddings: keys.needed("context_length")?,
        tie_word_embeddings: !has("output.weight"),
        use_bias: has("blk.0.attn_q.bias"),
        bos_token_id: id("tokenizer.ggml.bos_token_id")?,
        eos_token_ids,
        pad_token_id: id("tokenizer.ggml.padding_token_id")?,
        initializer_range: 0.02,
        moe,
        mtp_layers: 0,
        labels: Vec::new(),
        vision: None,
        dtype: None,
        quantization: None,
    })
}

/// Keys that are harmless at one value and change the numbers at every other.
fn refuse_changes(keys: &mut Keys<'_>) -> Result<()> {
    let kind = keys.name("rope.scaling.type");
    if let Some(kind) = keys.file.get_str(&kind)?
        && kind != "none"
    {
        // A linear scaling by 1 is none.
        let factor = keys.number("rope.scaling.factor")?;
        if kind != "linear" || factor.unwrap_or(f64::NAN) != 1.0 {
            let kind: String = kind.chars().take(40).collect();
            return Err(keys.error("rope.scaling.type", format!("`{kind}`: RoPE scaling is not built; expected none")));
        }
    }
    keys.neutral("rope.scaling.factor", &[0.0, 1.0])?;
    keys.neutral("rope.scale_linear", &[0.0, 1.0])?;
    keys.neutral("rope.scaling.attn_factor", &[0.0, 1.0])?;
    keys.neutral("attention.sliding_window", &[0.0])?;
    keys.neutral("attention.causal", &[1.0])?;
    keys.neutral("use_parallel_residual", &[0.0])?;
    keys.neutral("logit_scale", &[0.0, 1.0])?;
    keys.neutral("nextn_predict_layers", &[0.0])?;
    // Without scaling these two say nothing.
    keys.name("rope.scaling.original_context_length");
    keys.name("rope.scaling.finetuned");
    // The layer norm's epsilon beside the RMS norm's is a leftover; a layout of the tensors' rows is told by the type.
    keys.name("attention.layer_norm_epsilon");
    keys.name("tensor_data_layout");
    Ok(())
}

fn moe(keys: &mut Keys<'_>, architecture: Architecture, layers: usize) -> Result<Option<MoeConfig>> {
    if architecture == Architecture::Dense {
        for key in ["expert_count", "expert_used_count"] {
            if keys.count(key)?.unwrap_or(0) > 0 {
                return Err(keys.error(key, "experts in a dense architecture are not built; expected 0"));
            }
        }
        return Ok(None);
    }
    keys.neutral("expert_weights_scale", &[0.0, 1.0])?;
    keys.neutral("expert_weights_norm", &[1.0])?;
    keys.neutral("expert_gating_func", &[0.0, 1.0])?;
    keys.neutral("expert_group_count", &[0.0, 1.0])?;
    keys.neutral("expert_group_used_count", &[0.0, 1.0])?;
    let num_experts = keys.needed("expert_count")?;
    let k = keys.needed("expert_used_count")?;
    if k > num_experts {
        return Err(keys.error("expert_used_count", format!("{k} experts per token, but there are {num_experts}")));
    }
    let width = keys.needed("expert_feed_forward_length")?;
    let count = keys.count("expert_shared_count")?;
    let shared_width = keys.count("expert_shared_feed_forward_length")?;
    let num_shared_experts = match (count, shared_width) {
        (_, Some(total)) if width > 0 && total.is_multiple_of(width) => {
            let found = total / width;
            if count.is_some_and(|count| count != found && total != 0) {
                return Err(keys.error("expert_shared_count", format!("the shared MLP is {found} experts wide")));
            }
            found
        }
        (_, Some(total)) => {
            let problem = format!("{total} is no multiple of the expert width {width}");
            return Err(keys.error("expert_shared_feed_forward_length", problem));
        }
        (count, None) => count.unwrap_or(0),
    };
    Ok(Some(MoeConfig {
        num_experts,
        k,
        intermediate_size: width,
        num_shared_experts,
        layer_start_index: keys.count("leading_dense_block_count")?.unwrap_or(0),
        layer_end_index: layers.saturating_sub(1),
        layer_interval: keys.count("interleave_moe_layer_step")?.unwrap_or(1),
        norm_min: 1e-12,
        use_correction_bias: keys.file.tensors().iter().any(|tensor| tensor.name.contains(".exp_probs_b")),
    }))
}
