//! A small validator of JSON schema, as the specification reads, to hold answers against.

use serde_json::Value;

/// Whether `value` is what `schema` allows; `document` is what references refer to.
pub(crate) fn allows(document: &Value, schema: &Value, value: &Value) -> bool {
    judge(document, schema, value, 0)
}

/// References followed without coming to a part of the value: beyond, a schema asks itself, and allows nothing by that.
const MAX_HOPS: usize = 8;

fn judge(document: &Value, schema: &Value, value: &Value, hops: usize) -> bool {
    let Some(map) = schema.as_object() else { return schema == &Value::Bool(true) };
    let nested = |schema: &Value, part: &Value| {
        let hops = if std::ptr::eq(part, value) { hops } else { 0 };
        judge(document, schema, part, hops)
    };
    map.iter().all(|(keyword, rule)| {
        let list = || rule.as_array().unwrap();
        let count = |length: usize, least: bool| {
            let limit = rule.as_u64().unwrap() as usize;
            if least { length >= limit } else { length <= limit }
        };
        let number = |ok: fn(f64, f64) -> bool| value.as_f64().is_none_or(|n| ok(n, rule.as_f64().unwrap()));
        match keyword.as_str() {
            "type" => match rule {
                Value::Array(types) => types.iter().any(|name| is(name.as_str().unwrap(), value)),
                name => is(name.as_str().unwrap(), value),
            },
            "enum" => list().iter().any(|entry| same(entry, value)),
            "const" => same(rule, value),
            "allOf" => list().iter().all(|schema| nested(schema, value)),
            "anyOf" => list().iter().any(|schema| nested(schema, value)),
            "oneOf" => list().iter().filter(|schema| nested(schema, value)).count() == 1,
            "$ref" => {
                let meant = document.pointer(&rule.as_str().unwrap()[1..]).unwrap();
                hops < MAX_HOPS && judge(document, meant, value, hops + 1)
            }
            "prefixItems" => value.as_array().is_none_or(|v| v.iter().zip(list()).all(|(item, s)| nested(s, item))),
            "items" => value.as_array().is_none_or(|items| {
                let skip = map.get("prefixItems").and_then(Value::as_array).map_or(0, Vec::len);
                items.iter().skip(skip).all(|item| nested(rule, item))
            }),
            "minItems" => value.as_array().is_none_or(|items| count(items.len(), true)),
            "maxItems" => value.as_array().is_none_or(|items| count(items.len(), false)),
            "properties" => value.as_object().is_none_or(|object| {
                let rules = rule.as_object().unwrap();
                object.iter().all(|(key, value)| rules.get(key).is_none_or(|schema| nested(schema, value)))
            }),
            "patternProperties" => value.as_object().is_none_or(|object| {
                let rules = rule.as_object().unwrap();
                let holds = |key: &str, value: &Value| {
                    rules.iter().all(|(pattern, schema)| !matches(pattern, key) || nested(schema, value))
                };
                object.iter().all(|(key, value)| holds(key, value))
            }),
            "additionalProperties" => value.as_object().is_none_or(|object| {
                let listed = |key: &str| {
                    let by_name = map.get("properties").is_some_and(|p| p.get(key).is_some());
                    let patterns = map.get("patternProperties").and_then(Value::as_object);
                    by_name || patterns.is_some_and(|patterns| patterns.keys().any(|pattern| matches(pattern, key)))
                };
                object.iter().all(|(key, value)| listed(key) || nested(rule, value))
            }),
            "required" => {
                value.as_object().is_none_or(|o| list().iter().all(|key| o.contains_key(key.as_str().unwrap())))
            }
            "minProperties" => value.as_object().is_none_or(|object| count(object.len(), true)),
            "maxProperties" => value.as_object().is_none_or(|object| count(object.len(), false)),
            "minLength" => value.as_str().is_none_or(|text| count(text.chars().count(), true)),
            "maxLength" => value.as_str().is_none_or(|text| count(text.chars().count(), false)),
            "pattern" => value.as_str().is_none_or(|text| matches(rule.as_str().unwrap(), text)),
            "minimum" => number(|n, limit| n >= limit),
            "maximum" => number(|n, limit| n <= limit),
            "exclusiveMinimum" => number(|n, limit| n > limit),
            "exclusiveMaximum" => number(|n, limit| n < limit),
            "multipleOf" => number(|n, unit| (n / unit - (n / unit).round()).abs() < 1e-6),
            "$defs" | "definitions" | "title" | "description" | "$schema" => true,
            other => panic!("the validator of the tests does not know {other}"),
        }
    })
}

fn is(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|n| n.fract() == 0.0),
        other => panic!("{other}"),
    }
}

/// Equal as JSON: 1 is 1.0, and the order of keys does not matter.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    fancy_regex::Regex::new(pattern).unwrap().is_match(text).unwrap()
}
