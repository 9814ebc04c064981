//! Schemas that no answer can ever satisfy, because they contain themselves without a way out.

use std::collections::{BTreeSet, HashSet};

use serde_json::{Map, Value};

use super::{elements, references::resolve};

/// A reference of the document that no finite value satisfies; `#` for the document itself.
pub(super) fn find<'a>(document: &'a Value, references: &'a BTreeSet<String>) -> Option<&'a str> {
    let mut ends: HashSet<&str> = HashSet::new();
    // Each round finds what ends because of what the rounds before have found.
    loop {
        let more: Vec<&str> = references
            .iter()
            .map(String::as_str)
            .filter(|reference| !ends.contains(reference))
            .filter(|reference| resolve(document, reference).is_some_and(|target| can_end(target, &ends)))
            .collect();
        if more.is_empty() {
            break;
        }
        ends.extend(more);
    }
    let endless = references.iter().map(String::as_str).find(|reference| !ends.contains(reference));
    endless.or_else(|| (!can_end(document, &ends)).then_some("#"))
}

/// Whether some finite value satisfies the schema, when the references in `ends` are all that do.
fn can_end(schema: &Value, ends: &HashSet<&str>) -> bool {
    let Some(map) = schema.as_object() else { return true };
    let list = |key: &str| map.get(key).and_then(Value::as_array);
    let referred = map.get("$ref").and_then(Value::as_str).is_none_or(|reference| ends.contains(reference));
    let all = list("allOf").is_none_or(|schemas| schemas.iter().all(|schema| can_end(schema, ends)));
    let any = |key: &str| list(key).is_none_or(|schemas| schemas.iter().any(|schema| can_end(schema, ends)));
    if !(referred && all && any("anyOf") && any("oneOf")) {
        return false;
    }
    if map.contains_key("const") || map.contains_key("enum") {
        return true;
    }
    let types: Vec<&str> = match map.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => return true,
    };
    types.into_iter().any(|name| match name {
        "object" => object_ends(map, ends),
        "array" => array_ends(map, ends),
        _ => true,
    })
}

fn object_ends(map: &Map<String, Value>, ends: &HashSet<&str>) -> bool {
    let mut required = map.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    required.all(|name| {
        let listed = map.get("properties").and_then(|properties| properties.get(name));
        listed.or_else(|| map.get("additionalProperties")).is_none_or(|schema| can_end(schema, ends))
    })
}

fn array_ends(map: &Map<String, Value>, ends: &HashSet<&str>) -> bool {
    let least = map.get("minItems").and_then(Value::as_u64).unwrap_or(0) as usize;
    let (first, rest) = elements(map);
    let rest_ends = least <= first.len() || rest.is_none_or(|schema| can_end(schema, ends));
    first.iter().take(least).all(|schema| can_end(schema, ends)) && rest_ends
}
