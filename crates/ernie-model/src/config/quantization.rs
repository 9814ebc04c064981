//! The `quantization_config` key, in the compressed-tensors spelling.
//!
//! We read and write one form: weights as 8-bit integers, symmetric, one scale a row (`int-quantized`, strategy
//! `channel`), activations untouched. Everything else is refused by name.

use serde_json::{Value, json};

use super::Quantization;
use super::json::Keys;
use crate::{Error, Result};

/// Reads `quantization_config`.
pub(super) fn read(keys: &mut Keys<'_>) -> Result<Quantization> {
    let method = keys.required_text("quant_method")?;
    if method != "compressed-tensors" {
        return Err(keys.error("quant_method", format!("`{method}` is not built; expected `compressed-tensors`")));
    }
    let format = keys.required_text("format")?;
    if !matches!(format.as_str(), "int-quantized" | "naive-quantized") {
        return Err(keys.error("format", format!("`{format}` is not built; expected `int-quantized`")));
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
    for name in names {
        let mut group = groups.required_object(&name)?;
        read_group(&mut group)?;
    }
    Ok(Quantization::Int8Channel)
}

fn read_group(group: &mut Keys<'_>) -> Result<()> {
    for key in ["input_activations", "output_activations"] {
        if !matches!(group.take(key), None | Some(Value::Null)) {
            return Err(group.error(key, "quantised activations are not built; expected null"));
        }
    }
    if let Some(format) = group.text("format")?
        && !matches!(format.as_str(), "int-quantized" | "naive-quantized")
    {
        return Err(group.error("format", format!("`{format}` is not built; expected `int-quantized`")));
    }
    let mut weights = group.required_object("weights")?;
    let bits = weights.required_count("num_bits", 1, 64)?;
    let kind = weights.required_text("type")?;
    let strategy = weights.required_text("strategy")?;
    if bits != 8 || kind != "int" || strategy != "channel" {
        let what = format!("{bits}-bit `{kind}` weights with strategy `{strategy}`");
        return Err(Error::not_built(format!("{what} (expected 8-bit `int`, strategy `channel`)")));
    }
    for (key, expected) in [("symmetric", true), ("dynamic", false)] {
        if weights.flag(key)?.is_some_and(|value| value != expected) {
            return Err(weights.error(key, format!("expected {expected}")));
        }
    }
    for key in ["group_size", "block_structure", "actorder", "zp_dtype"] {
        if !matches!(weights.take(key), None | Some(Value::Null)) {
            return Err(weights.error(key, "not built; expected null"));
        }
    }
    Ok(())
}

/// Writes `quantization_config`.
pub(super) fn write(quantization: Quantization) -> Value {
    match quantization {
        Quantization::Int8Channel => json!({
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "quantization_status": "compressed",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear", "Embedding"],
                    "weights": {
                        "num_bits": 8,
                        "type": "int",
                        "symmetric": true,
                        "strategy": "channel",
                        "group_size": null,
                        "dynamic": false
                    },
                    "input_activations": null,
                    "output_activations": null
                }
            },
            "ignore": ["re:.*mlp\\.gate$"],
            "kv_cache_scheme": null
        }),
    }
}
