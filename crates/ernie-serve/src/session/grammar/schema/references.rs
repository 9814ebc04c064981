//! References inside a document.

use std::collections::HashSet;

use serde_json::Value;

use super::MAX_SCHEMAS;

/// How often a reference may lead to another one.
const MAX_CHAIN: usize = 16;

/// What `#` or `#/…` stands for.
pub(super) fn resolve<'a>(document: &'a Value, reference: &str) -> Option<&'a Value> {
    match reference.strip_prefix('#')? {
        "" => Some(document),
        path => document.pointer(path),
    }
}

/// The document with the options of every `oneOf` that are references written out. The compiler takes a `oneOf` whose
/// options exclude each other, and it cannot see that through a reference.
pub(super) fn inline(document: &Value) -> Value {
    let mut out = document.clone();
    // Options are copies of parts of a document that is within limits; how many may be made is limited too.
    let mut budget = MAX_SCHEMAS;
    walk(document, &mut out, &mut Vec::new(), &mut budget);
    out
}

fn walk(document: &Value, value: &mut Value, inside: &mut Vec<String>, budget: &mut usize) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| walk(document, item, inside, budget)),
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match value {
                    Value::Array(options) if key == "oneOf" => {
                        options.iter_mut().for_each(|option| write_out(document, option, inside, budget));
                    }
                    // Data, not schemas.
                    _ if ["const", "enum", "default", "examples", "example"].contains(&key.as_str()) => {}
                    value => walk(document, value, inside, budget),
                }
            }
        }
        _ => {}
    }
}

fn write_out(document: &Value, option: &mut Value, inside: &mut Vec<String>, budget: &mut usize) {
    let entered = inside.len();
    while let Some(reference) = alone(option) {
        let target = resolve(document, &reference).filter(|_| !inside.contains(&reference));
        let Some(target) = target.filter(|_| inside.len() < entered + MAX_CHAIN && *budget > 0) else { break };
        let size = count(target);
        if size > *budget {
            break;
        }
        *budget -= size;
        *option = target.clone();
        inside.push(reference);
    }
    if inside.len() < super::MAX_DEPTH {
        walk(document, option, inside, budget);
    }
    inside.truncate(entered);
}

/// Patterns and formats in a schema and in what it refers to, each counted once.
pub(super) fn patterns(document: &Value, schema: &Value) -> usize {
    fn walk<'a>(document: &'a Value, value: &'a Value, seen: &mut HashSet<&'a str>, count: &mut usize) {
        match value {
            // No more need be known.
            _ if *count > super::MAX_PATTERNS => {}
            Value::Array(items) => items.iter().for_each(|item| walk(document, item, seen, count)),
            Value::Object(map) => {
                for (key, value) in map {
                    match (key.as_str(), value) {
                        ("pattern" | "format", Value::String(_)) => *count += 1,
                        ("$ref", Value::String(reference)) => {
                            let target = resolve(document, reference).filter(|_| seen.insert(reference));
                            target.into_iter().for_each(|target| walk(document, target, seen, count));
                        }
                        ("$defs" | "definitions" | "const" | "enum" | "default" | "examples", _) => {}
                        ("patternProperties", Value::Object(map)) => {
                            *count += map.len();
                            walk(document, value, seen, count);
                        }
                        (_, value) => walk(document, value, seen, count),
                    }
                }
            }
            _ => {}
        }
    }
    let mut count = 0;
    walk(document, schema, &mut HashSet::new(), &mut count);
    count
}

/// The reference that a schema consists of.
fn alone(schema: &Value) -> Option<String> {
    let map = schema.as_object()?;
    let reference = map.get("$ref")?.as_str()?;
    let others = map.keys().all(|key| matches!(key.as_str(), "$ref" | "title" | "description" | "$comment"));
    others.then(|| reference.to_owned())
}

fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(count).sum::<usize>(),
        _ => 1,
    }
}
