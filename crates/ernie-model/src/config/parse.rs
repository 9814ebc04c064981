//! From the text of a `config.json` to a checked [`ModelConfig`].
//!
//! Two layouts (flat, as on the hub, and nested under `text_config`, as `transformers` writes VL models) and two
//! generations of spellings meet here; nothing behind this file knows of them.

use serde_json::Value;

use super::check::{MAX_CONTEXT, MAX_HEAD_DIM, MAX_LAYERS, MAX_PARTS, MAX_VOCAB, MAX_WIDTH};
use super::json::{Keys, describe};
use super::{Architecture, ModelConfig, MoeConfig, StoredDtype, VisionConfig, keys, labels, quantization};
use crate::error::one_line;
use crate::{Error, Result};

/// Largest `config.json` that is read.
pub(crate) const MAX_CONFIG_BYTES: u64 = 16 << 20;

impl ModelConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is not a JSON object, [`Error::Key`] naming the key that is missing, of the wrong
    /// type, out of range, or changes the numbers in a way that is not implemented, [`Error::NotBuilt`] for switches
    /// of this program that do not exist yet.
    pub fn from_json(text: &str) -> Result<Self> {
        Self::from_json_with_notes(text, "config.json").map(|(config, _)| config)
    }

    /// Reads the text of a `config.json` called `place` in errors; also returns lines for the user about what was
    /// ignored or assumed.
    ///
    /// # Errors
    /// As [`Self::from_json`].
    pub fn from_json_with_notes(text: &str, place: &str) -> Result<(Self, Vec<String>)> {
        let malformed = |problem: String| Error::Malformed { place: place.to_owned(), problem };
        if text.len() as u64 > MAX_CONFIG_BYTES {
            return Err(malformed(format!("{} bytes, more than {MAX_CONFIG_BYTES}", text.len())));
        }
        let root: Value = serde_json::from_str(text).map_err(|error| malformed(format!("not JSON: {error}")))?;
        let Value::Object(map) = &root else {
            return Err(malformed(format!("expected a JSON object, found {}", describe(&root))));
        };
        let mut notes = Vec::new();
        let config = read(&mut Keys::new(place, map), &mut notes)?;
        config.check(place)?;
        Ok((config, notes))
    }
}

fn read(top: &mut Keys<'_>, notes: &mut Vec<String>) -> Result<ModelConfig> {
    let (architecture, classifies) = architecture(top)?;
    if let Some(switches) = top.object("ernie_rs")?
        && let Some(first) = switches.names().first()
    {
        return Err(Error::not_built(format!("the switch `ernie_rs.{first}`")));
    }
    let quantization = match top.object("quantization_config")? {
        Some(mut keys) => Some(quantization::read(&mut keys)?),
        None => None,
    };
    let dtype = dtype(top)?;
    let nested = if architecture == Architecture::VlText { top.object("text_config")? } else { None };
    let mut config = match nested {
        Some(mut text) => {
            if let (Some(outer), Some(inner)) = (top.flag("tie_word_embeddings")?, text.flag("tie_word_embeddings")?)
                && outer != inner
            {
                return Err(top.error("tie_word_embeddings", format!("{outer} here but {inner} in `text_config`")));
            }
            text.take("model_type");
            let inner_dtype = self::dtype(&mut text)?;
            let mut config = read_text(&mut text, Some(top), architecture, notes)?;
            config.dtype = inner_dtype;
            unknown(&mut text, notes)?;
            config
        }
        None => read_text(top, None, architecture, notes)?,
    };
    config.dtype = dtype.or(config.dtype);
    config.quantization = quantization;
    if classifies {
        config.labels = labels::read(top)?;
    }
    if config.vision.is_some() {
        notes.push("pictures are not built yet: the text side of this model is loaded".to_owned());
    }
    unknown(top, notes)?;
    Ok(config)
}

/// Refuses what changes the numbers, and notes what nobody read.
fn unknown(keys: &mut Keys<'_>, notes: &mut Vec<String>) -> Result<()> {
    keys::settle(keys)?;
    if keys.present("auto_map").is_some() || keys.flag("trust_remote_code").is_ok_and(|flag| flag == Some(true)) {
        notes.push("`auto_map` names code that comes with the model: ignored, nothing of it is run".to_owned());
    }
    let unread = keys.unread();
    if !unread.is_empty() {
        let shown: Vec<String> =
            unread.iter().take(12).map(|key| one_line(&key.chars().take(60).collect::<String>())).collect();
        let more = unread.len().saturating_sub(12);
        let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
        notes.push(format!("config keys that are not known here, ignored: {}{tail}", shown.join(", ")));
    }
    Ok(())
}

/// The decoder, and whether a head for labels stands on it. `transformers` names labels in configs of other models too, where they mean nothing.
fn architecture(top: &mut Keys<'_>) -> Result<(Architecture, bool)> {
    let by_type = match top.text("model_type")? {
        None => None,
        Some(name) => Some(match name.as_str() {
            "ernie4_5" => Architecture::Dense,
            "ernie4_5_moe" => Architecture::Moe,
            "ernie4_5_moe_vl" | "ernie4_5_vl_moe" => Architecture::VlText,
            other => {
                let other: String = other.chars().take(60).collect();
                let known = "ernie4_5, ernie4_5_moe, ernie4_5_moe_vl or ernie4_5_vl_moe";
                return Err(top.error("model_type", format!("`{other}` is not of this family; expected {known}")));
            }
        }),
    };
    let mut classifies = false;
    let by_class = match top.present("architectures") {
        None => None,
        Some(Value::Array(names)) => {
            let name = names.first().and_then(Value::as_str);
            let name = name.ok_or_else(|| top.error("architectures", "expected a list with a class name"))?;
            // Baidu writes `Ernie4_5_ForCausalLM`, transformers `Ernie4_5ForCausalLM`.
            let plain: String = name.chars().filter(|c| *c != '_').take(80).collect::<String>().to_ascii_lowercase();
            classifies = plain.ends_with("forsequenceclassification");
            Some(match plain.as_str() {
                "ernie45forsequenceclassification" => Architecture::Dense,
                "ernie45moeforsequenceclassification" => Architecture::Moe,
                "ernie45forcausallm" => Architecture::Dense,
                "ernie45moeforcausallm" => Architecture::Moe,
                "ernie45vlmoeforconditionalgeneration" | "ernie45moevlforconditionalgeneration" => Architecture::VlText,
                _ => {
                    let name: String = name.chars().take(80).collect();
                    return Err(top.error("architectures", format!("`{name}` is not of this family")));
                }
            })
        }
        Some(other) => return Err(top.error("architectures", format!("expected a list, found {}", describe(other)))),
    };
    match (by_type, by_class) {
        (Some(a), Some(b)) if a != b => {
            Err(top.error("model_type", format!("says {a:?} but `architectures` says {b:?}")))
        }
        (a, b) => match a.or(b) {
            Some(architecture) => Ok((architecture, classifies)),
            None => Err(top.error("model_type", "missing; expected ernie4_5 or ernie4_5_moe")),
        },
    }
}

fn dtype(keys: &mut Keys<'_>) -> Result<Option<StoredDtype>> {
    let mut found: Option<StoredDtype> = None;
    for key in ["dtype", "torch_dtype"] {
        let Some(name) = keys.text(key)? else { continue };
        let value = match name.strip_prefix("torch.").unwrap_or(&name) {
            "float32" | "float" => StoredDtype::F32,
            "float16" | "half" => StoredDtype::F16,
            "bfloat16" => StoredDtype::Bf16,
            other => {
                let other: String = other.chars().take(40).collect();
                return Err(keys.error(key, format!("`{other}`; expected float32, float16 or bfloat16")));
            }
        };
        if found.is_some_and(|first| first != value) {
            return Err(keys.error(key, "contradicts `dtype`"));
        }
        found = Some(value);
    }
    Ok(found)
}

/// Reads the text model from `keys`; `outer` is the object around it in the nested form.
fn read_text<'a>(
    keys: &mut Keys<'a>,
    outer: Option<&mut Keys<'a>>,
    architecture: Architecture,
    notes: &mut Vec<String>,
) -> Result<ModelConfig> {
    let vocab_size = keys.required_count("vocab_size", 1, MAX_VOCAB)?;
    let hidden_size = keys.required_count("hidden_size", 1, MAX_WIDTH)?;
    let num_hidden_layers = keys.required_count("num_hidden_layers", 1, MAX_LAYERS)?;
    let num_attention_heads = keys.required_count("num_attention_heads", 1, MAX_PARTS)?;
    let num_key_value_heads = match keys.take("num_key_value_heads") {
        Some(Value::Null) => num_attention_heads,
        _ => keys.required_count("num_key_value_heads", 1, MAX_PARTS)?,
    };
    let head_dim = match keys.count("head_dim", 2, MAX_HEAD_DIM)? {
        Some(width) => width,
        // The reference class for dense models has 128 as its default; the others divide.
        None if architecture == Architecture::Dense && keys.take("head_dim").is_none() => {
            notes.push("no `head_dim` in the config: 128, as in the reference".to_owned());
            128
        }
        None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
        None => {
            let problem = format!("{num_attention_heads} heads do not divide the hidden size {hidden_size}");
            return Err(keys.error("num_attention_heads", problem));
        }
    };
    let (rope_theta, mrope_time) = rope(keys, architecture, head_dim)?;
    let own_tie = keys.flag("tie_word_embeddings")?;
    let (moe, vision_moe) = moe(keys, architecture, num_hidden_layers)?;
    let config = ModelConfig {
        architecture,
        vocab_size,
        hidden_size,
        intermediate_size: keys.required_count("intermediate_size", 1, MAX_WIDTH)?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        rms_norm_eps: keys.positive("rms_norm_eps")?.unwrap_or(1e-5),
        rope_theta,
        max_position_embeddings: keys.count("max_position_embeddings", 1, MAX_CONTEXT)?.unwrap_or(131_072),
        tie_word_embeddings: true,
        use_bias: keys.flag("use_bias")?.unwrap_or(false),
        bos_token_id: token(keys, "bos_token_id")?,
        eos_token_ids: tokens(keys, "eos_token_id")?,
        pad_token_id: token(keys, "pad_token_id")?,
        initializer_range: keys.positive("initializer_range")?.unwrap_or(0.02),
        moe,
        mtp_layers: keys.count("num_nextn_predict_layers", 0, MAX_LAYERS)?.unwrap_or(0),
        labels: Vec::new(),
        vision: None,
        dtype: None,
        quantization: None,
    };
    let nested = outer.is_some();
    let side = outer.unwrap_or(keys);
    let outer_tie = side.flag("tie_word_embeddings")?;
    let vision = match vision_moe {
        Some(experts) => Some(vision(side, nested, experts, mrope_time.unwrap_or(20.min(head_dim / 2)))?),
        None => None,
    };
    Ok(ModelConfig { tie_word_embeddings: own_tie.or(outer_tie).unwrap_or(true), vision, ..config })
}

fn token(keys: &mut Keys<'_>, key: &str) -> Result<Option<u32>> {
    Ok(keys.count(key, 0, u32::MAX as usize)?.map(|id| id as u32))
}

fn tokens(keys: &mut Keys<'_>, key: &str) -> Result<Vec<u32>> {
    match keys.present(key) {
        Some(Value::Array(items)) => {
            if items.len() > 1024 {
                return Err(keys.error(key, format!("{} ids, more than 1024", items.len())));
            }
            items.iter().map(|item| keys.as_count(key, item, 0, u32::MAX as usize).map(|id| id as u32)).collect()
        }
        _ => Ok(token(keys, key)?.into_iter().collect()),
    }
}

/// The rotary base and, in VL models, how many pairs follow time.
fn rope(keys: &mut Keys<'_>, architecture: Architecture, head_dim: usize) -> Result<(f64, Option<usize>)> {
    let mut theta = keys.positive("rope_theta")?;
    let mut time = match architecture {
        Architecture::VlText => keys.count("freq_allocation", 0, head_dim / 2)?,
        _ => None,
    };
    if keys.flag("rope_3d")? == Some(false) && architecture == Architecture::VlText {
        return Err(keys.error("rope_3d", "1-D rotary positions in a VL model are not built; expected true"));
    }
    for name in ["rope_parameters", "rope_scaling"] {
        let Some(mut rope) = keys.object(name)? else { continue };
        for kind in ["rope_type", "type"] {
            if let Some(text) = rope.text(kind)?
                && text != "default"
            {
                let text: String = text.chars().take(40).collect();
                return Err(rope.error(kind, format!("`{text}`: RoPE scaling is not built; expected `default`")));
            }
        }
        if let Some(value) = rope.positive("rope_theta")? {
            if theta.is_some_and(|first| first != value) {
                return Err(rope.error("rope_theta", format!("{value} contradicts `rope_theta` elsewhere")));
            }
            theta = Some(value);
        }
        if rope.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
            return Err(rope.error("partial_rotary_factor", "partial rotation is not built; expected 1"));
        }
        if architecture == Architecture::VlText
            && let Some(value) = rope.present("mrope_section")
        {
            let section = mrope_time(value, head_dim);
            let section = section.ok_or_else(|| {
                rope.error("mrope_section", format!("expected [n, n, t] with 2 n + t = {}", head_dim / 2))
            })?;
            if time.is_some_and(|first| first != section) {
                return Err(rope.error("mrope_section", "contradicts `freq_allocation`"));
            }
            time = Some(section);
        }
        if let Some(key) = rope.unread().first() {
            return Err(
                rope.error(key.rsplit('.').next().unwrap_or(key), "unknown here, and it may change the numbers")
            );
        }
    }
    Ok((theta.unwrap_or(500_000.0), time))
}

fn mrope_time(value: &Value, head_dim: usize) -> Option<usize> {
    let items = value.as_array()?;
    let [height, width, time] = items.as_slice() else { return None };
    let (height, width, time) = (height.as_u64()?, width.as_u64()?, time.as_u64()?);
    let sum = height.checked_add(width)?.checked_add(time)?;
    (height == width && sum == head_dim as u64 / 2).then_some(time as usize)
}

/// Vision experts per layer and their width.
type VisionExperts = (usize, usize);

fn moe(
    keys: &mut Keys<'_>,
    architecture: Architecture,
    layers: usize,
) -> Result<(Option<MoeConfig>, Option<VisionExperts>)> {
    let vl = architecture == Architecture::VlText;
    let experts_key = if keys.has("moe_num_experts") { "moe_num_experts" } else { "num_experts" };
    if architecture == Architecture::Dense {
        for key in ["moe_num_experts", "num_experts"] {
            if keys.count(key, 0, MAX_PARTS)?.unwrap_or(0) > 0 {
                return Err(keys.error(key, "experts in a dense model; expected `model_type` ernie4_5_moe"));
            }
        }
        for key in DENSE_LEFTOVERS {
            keys.take(key);
        }
        return Ok((None, None));
    }
    let [num_experts, vision_experts] = pair(keys, experts_key, vl, 1, MAX_PARTS)?;
    if keys.has("moe_num_experts")
        && let Some(other) = keys.present("num_experts")
        && Some(other) != keys.present("moe_num_experts")
    {
        return Err(keys.error("num_experts", "contradicts `moe_num_experts`"));
    }
    let num_experts = num_experts.ok_or_else(|| keys.error("moe_num_experts", "missing; expected an integer"))?;
    let [width, vision_width] = pair(keys, "moe_intermediate_size", vl, 1, MAX_WIDTH)?;
    let width = width.ok_or_else(|| keys.error("moe_intermediate_size", "missing; expected an integer"))?;
    let k = keys.spelled("moe_k", "num_experts_per_tok", 1, MAX_PARTS)?;
    let k = k.ok_or_else(|| keys.error("moe_k", "missing; expected an integer"))?;
    if k > num_experts {
        return Err(keys.error("moe_k", format!("{k} experts per token, but there are {num_experts}")));
    }
    let (start, end, interval) = match keys.present("mlp_layer_types") {
        Some(list) => {
            for key in ["moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"] {
                keys.take(key);
            }
            layer_types(keys, list, layers)?
        }
        None => layer_range(keys, vl, layers)?,
    };
    let moe = MoeConfig {
        num_experts,
        k,
        intermediate_size: width,
        num_shared_experts: keys.count("moe_num_shared_experts", 0, MAX_PARTS)?.unwrap_or(0),
        layer_start_index: start,
        layer_end_index: end,
        layer_interval: interval,
        norm_min: keys.positive("moe_norm_min")?.unwrap_or(1e-12),
        use_correction_bias: keys.flag("moe_use_aux_free")?.unwrap_or(true),
    };
    let vision = match vl {
        false => None,
        true => {
            let width = vision_width
                .ok_or_else(|| keys.error("moe_intermediate_size", "expected a list [text, vision] in a VL model"))?;
            Some((vision_experts.unwrap_or(num_experts), width))
        }
    };
    Ok((Some(moe), vision))
}

/// Keys that Baidu's one config class writes for dense models too, without effect there.
const DENSE_LEFTOVERS: &[&str] = &[
    "moe_k",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "moe_num_shared_experts",
    "moe_layer_start_index",
    "moe_layer_end_index",
    "moe_layer_interval",
    "moe_norm_min",
    "moe_use_aux_free",
];

/// A number, or a list `[text, vision]`; the second half is there in VL models only.
fn pair(keys: &mut Keys<'_>, key: &str, vl: bool, low: usize, high: usize) -> Result<[Option<usize>; 2]> {
    match keys.present(key) {
        None => Ok([None, None]),
        Some(Value::Array(items)) => match items.as_slice() {
            [only] => Ok([Some(keys.as_count(key, only, low, high)?), None]),
            [text, vision] if vl => {
                Ok([Some(keys.as_count(key, text, low, high)?), Some(keys.as_count(key, vision, low, high)?)])
            }
            _ => Err(keys.error(key, format!("expected one number{}", if vl { " or [text, vision]" } else { "" }))),
        },
        Some(value) => Ok([Some(keys.as_count(key, value, low, high)?), None]),
    }
}

/// First and last MoE layer and the interval, from the index keys.
fn layer_range(keys: &mut Keys<'_>, vl: bool, layers: usize) -> Result<(usize, usize, usize)> {
    let [start, vision_start] = pair(keys, "moe_layer_start_index", vl, 0, layers - 1)?;
    let start = start.ok_or_else(|| keys.error("moe_layer_start_index", "missing; expected an integer"))?;
    // -1 is the last layer, and so is anything past it.
    let last = |keys: &Keys<'_>, value: &Value| match value.as_i64() {
        Some(-1) => Ok(layers - 1),
        Some(end) if end >= 0 => Ok(usize::try_from(end).unwrap_or(usize::MAX).min(layers - 1)),
        _ => Err(keys.error("moe_layer_end_index", format!("expected a layer or -1, found {}", describe(value)))),
    };
    let (end, vision_end) = match keys.present("moe_layer_end_index") {
        None => (layers - 1, None),
        Some(Value::Array(items)) => match items.as_slice() {
            [text] => (last(keys, text)?, None),
            [text, vision] if vl => (last(keys, text)?, Some(last(keys, vision)?)),
            _ => return Err(keys.error("moe_layer_end_index", "expected a layer, -1, or [text, vision] in a VL model")),
        },
        Some(value) => (last(keys, value)?, None),
    };
    if vision_start.is_some_and(|other| other != start) || vision_end.is_some_and(|other| other != end) {
        return Err(keys.error("moe_layer_start_index", "text and vision experts in different layers are not built"));
    }
    if start > end {
        return Err(keys.error("moe_layer_start_index", format!("{start} is past the last MoE layer {end}")));
    }
    Ok((start, end, keys.count("moe_layer_interval", 1, MAX_LAYERS)?.unwrap_or(1)))
}

/// The same three numbers from a list of "dense" and "sparse".
fn layer_types(keys: &mut Keys<'_>, list: &Value, layers: usize) -> Result<(usize, usize, usize)> {
    let key = "mlp_layer_types";
    let wrong = || keys.error(key, format!("expected a list of {layers} times \"dense\" or \"sparse\""));
    let items = list.as_array().filter(|items| items.len() == layers).ok_or_else(wrong)?;
    let mut sparse = Vec::with_capacity(layers);
    for item in items {
        match item.as_str() {
            Some("sparse") => sparse.push(true),
            Some("dense") => sparse.push(false),
            _ => return Err(wrong()),
        }
    }
    let first = sparse.iter().position(|&is| is).ok_or_else(|| keys.error(key, "no layer is sparse"))?;
    let last = sparse.iter().rposition(|&is| is).unwrap_or(first);
    // The interval is the distance to the second sparse layer, where there is one.
    let second = sparse[first + 1..].iter().position(|&is| is).map_or(1, |gap| gap + 1);
    let matches = |interval: usize| {
        sparse
            .iter()
            .enumerate()
            .all(|(layer, &is)| is == ((first..=last).contains(&layer) && (layer + 1).is_multiple_of(interval)))
    };
    if !matches(second) {
        return Err(keys.error(key, "experts in layers that no start, end and interval describe are not built"));
    }
    Ok((first, last, second))
}

/// The picture side: `side` is the object that holds `vision_config`.
fn vision(
    side: &mut Keys<'_>,
    nested: bool,
    (num_experts, expert_intermediate_size): VisionExperts,
    freq_allocation: usize,
) -> Result<VisionConfig> {
    let temporal = if nested { None } else { side.count("temporal_conv_size", 1, 64)? };
    let mut vision = side.required_object("vision_config")?;
    let hidden_size = vision.spelled("hidden_size", "embed_dim", 1, MAX_WIDTH)?;
    let hidden_size = hidden_size.ok_or_else(|| vision.error("hidden_size", "missing; expected an integer"))?;
    let intermediate_size = match vision.count("intermediate_size", 1, MAX_WIDTH)? {
        Some(width) => width,
        None => {
            let ratio = vision.positive("mlp_ratio")?.unwrap_or(4.0);
            let width = hidden_size as f64 * ratio;
            if width.fract() != 0.0 || !(1.0..=MAX_WIDTH as f64).contains(&width) {
                return Err(vision.error("mlp_ratio", format!("{ratio} times {hidden_size} is no width")));
            }
            width as usize
        }
    };
    Ok(VisionConfig {
        depth: vision.required_count("depth", 1, MAX_LAYERS)?,
        hidden_size,
        intermediate_size,
        num_heads: vision.required_count("num_heads", 1, MAX_PARTS)?,
        in_channels: vision.count("in_channels", 1, 64)?.unwrap_or(3),
        patch_size: vision.required_count("patch_size", 1, 4096)?,
        spatial_merge_size: vision.required_count("spatial_merge_size", 1, 64)?,
        temporal_merge_size: vision.count("temporal_merge_size", 1, 64)?.or(temporal).unwrap_or(2),
        num_experts,
        expert_intermediate_size,
        freq_allocation,
    })
}
