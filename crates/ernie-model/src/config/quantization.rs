//! The `quantization_config` key, in the compressed-tensors spelling.
//!
//! Two forms are read and written: 8-bit integers, symmetric, one scale a row (`int-quantized`, strategy `channel`), and 4-bit integers with a scale and, if not
//! symmetric, a zero a group (`pack-quantized`, strategy `group`, or `channel` for one group a row), alone or side by side (`mixed-precision`). Activations
//! are untouched. Everything else is refused by name.

use serde_json::{Value, json};

use super::Quantization;
use super::json::Keys;
use crate::{Error, Result};

/// Weights that share a scale in what is written.
pub(crate) const INT4_GROUP: usize = 32;

/// Reads `quantization_config`.
pub(super) fn read(keys: &mut Keys<'_>) -> Result<Quantization> {
    let method = keys.required_text("quant_method")?;
    if method != "compressed-tensors" {
        return Err(keys.error("quant_method", format!("`{method}` is not built; expected `compressed-tensors`")));
    }
    let format = keys.required_text("format")?;
    if format != "mixed-precision" && bits_of(&format).is_none() {
        let expected = "expected `int-quantized`, `pack-quantized` or `mixed-precision`";
        return Err(keys.error("format", format!("`{format}` is not built; {expected}")));
    }
    for key in ["kv_cache_scheme", "sparsity_config", "transform_config"] {
        match keys.take(key) {
            None | Some(Value::Null) => {}
            Some(Value::Object(map)) if map.is_empty() => {}
            Some(_) => return Err(keys.error(key, "not built; expected null")),
        }
    }
    // Which tensors are quantised is read off their types, so the lists of layers carry nothing we need.
    for key in ["quantization_status", "global_compression_ratio", "ignore", "version", "kv_cache_scheme"] {
        keys.take(key);
    }
    let mut groups = keys.required_object("config_groups")?;
    let names = groups.names();
    if names.is_empty() {
        return Err(keys.error("config_groups", "expected at least one group"));
    }
    let mut form = Quantization::Int8Channel;
    for name in names {
        let mut group = groups.required_object(&name)?;
        if read_group(&mut group, &format)? == 4 {
            form = Quantization::Int4Group;
        }
    }
    Ok(form)
}

/// The width of the weights in a format.
fn bits_of(format: &str) -> Option<usize> {
    match format {
        "int-quantized" | "naive-quantized" => Some(8),
        "pack-quantized" => Some(4),
        _ => None,
    }
}

/// Reads a group and gives the bits of its weights.
fn read_group(group: &mut Keys<'_>, format: &str) -> Result<usize> {
    for key in ["input_activations", "output_activations"] {
        if !matches!(group.take(key), None | Some(Value::Null)) {
            return Err(group.error(key, "quantised activations are not built; expected null"));
        }
    }
    let format = group.text("format")?.unwrap_or_else(|| format.to_owned());
    let Some(expected) = bits_of(&format) else {
        let problem = format!("`{format}` is not built; expected `int-quantized` or `pack-quantized`");
        return Err(group.error("format", problem));
    };
    let mut weights = group.required_object("weights")?;
    let bits = weights.required_count("num_bits", 1, 64)?;
    let kind = weights.required_text("type")?;
    let strategy = weights.required_text("strategy")?;
    let strategies: &[&str] = if expected == 8 { &["channel"] } else { &["group", "channel"] };
    if bits != expected || kind != "int" || !strategies.contains(&strategy.as_str()) {
        let what = format!("{bits}-bit `{kind}` weights with strategy `{strategy}` in `{format}`");
        let built = "8-bit `int` with strategy `channel` in `int-quantized`, 4-bit `int` with strategy `group` in `pack-quantized`";
        return Err(Error::not_built(format!("{what} (expected {built})")));
    }
    if weights.flag("dynamic")?.is_some_and(|dynamic| dynamic) {
        return Err(weights.error("dynamic", "expected false"));
    }
    let symmetric = weights.flag("symmetric")?;
    if expected == 8 && symmetric == Some(false) {
        return Err(weights.error("symmetric", "expected true"));
    }
    // How long the groups of four bits are is read off their scales, and zeros off the file; that a row is in its own order is not.
    let order = weights.text("actorder")?;
    if order.as_ref().is_some_and(|order| !matches!(order.as_str(), "weight" | "static")) {
        return Err(weights.error("actorder", "not built; expected null, `weight` or `static`"));
    }
    let nulls: &[&str] =
        if expected == 8 { &["group_size", "block_structure", "zp_dtype"] } else { &["block_structure"] };
    for key in nulls {
        if !matches!(weights.take(key), None | Some(Value::Null)) {
            return Err(weights.error(key, "not built; expected null"));
        }
    }
    Ok(bits)
}

/// Writes `quantization_config`.
pub(super) fn write(quantization: Quantization) -> Value {
    let bytes = |targets: &[&str]| {
        json!({
            "targets": targets,
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": true,
                "strategy": "channel",
                "group_size": null,
                "dynamic": false
            },
            "input_activations": null,
            "output_activations": null,
            "format": "int-quantized"
        })
    };
    let nibbles = json!({
        "targets": ["re:.*_proj$"],
        "weights": {
            "num_bits": 4,
            "type": "int",
            "symmetric": true,
            "strategy": "group",
            "group_size": INT4_GROUP,
            "dynamic": false
        },
        "input_activations": null,
        "output_activations": null,
        "format": "pack-quantized"
    });
    let (format, groups) = match quantization {
        Quantization::Int8Channel => ("int-quantized", json!({ "group_0": bytes(&["Linear", "Embedding"]) })),
        Quantization::Int4Group => {
            let rest = bytes(&["re:.*embed_tokens$", "re:.*lm_head$"]);
            ("mixed-precision", json!({ "group_0": nibbles, "group_1": rest }))
        }
    };
    json!({
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["re:.*mlp\\.gate$", "score"],
        "kv_cache_scheme": null
    })
}
