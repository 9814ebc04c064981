//! JSON schemas of callers: checked word by word before they are compiled.
//!
//! The compiler below passes over what it does not know. That would promise what is not kept, so here every keyword is
//! looked at: it is honoured, it says nothing about the answer (`title`), or it is refused by name. Values are checked
//! too, so that the message says where the mistake is. References stay inside the document; nothing is fetched.

mod bounds;
mod endless;
mod keywords;
mod references;

use serde_json::{Map, Value};

pub use super::pattern::MAX_PATTERN_BYTES;
use crate::{Error, Result};

/// Bytes of a schema, written without white space, at most.
pub const MAX_SCHEMA_BYTES: usize = 256 << 10;
/// Levels of schemas inside schemas at most.
pub const MAX_DEPTH: usize = 64;
/// Schemas in a document, those inside others counted, at most.
pub const MAX_SCHEMAS: usize = 5000;
/// Entries of all `enum`s together at most.
pub const MAX_ENUM_ENTRIES: usize = 2000;
/// Levels of everything that is referred to, added up, at most: it bounds how deep the compiler goes.
pub const MAX_LEVELS: usize = 1500;
/// Patterns and formats that may have to hold at once.
pub const MAX_PATTERNS: usize = 4;
/// Largest `minItems`, `maxLength` and the like.
pub const MAX_COUNT: u64 = 100_000;

/// Formats of text that are honoured.
pub const FORMATS: [&str; 10] =
    ["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"];

/// A schema that can be compiled, as the compiler wants it.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) schema: Value,
}

/// Checks a whole document. `what` names it in messages.
pub(super) fn check(what: &str, schema: &Value) -> Result<Checked> {
    if !schema.is_object() && !schema.is_boolean() {
        return Err(Error::refused(what, format!("expected a JSON schema, an object, found {}", kind(schema))));
    }
    let bytes = schema.to_string().len();
    if bytes > MAX_SCHEMA_BYTES {
        return Err(Error::refused(what, format!("{bytes} bytes (expected at most {MAX_SCHEMA_BYTES})")));
    }
    let met = keywords::check(what, schema)?;
    if met.levels > MAX_LEVELS {
        let expected = format!("{} levels in all that is referred to (expected at most {MAX_LEVELS})", met.levels);
        return Err(Error::refused(what, expected));
    }
    if let Some(reference) = endless::find(schema, &met.references) {
        let why = "no answer can satisfy it: it contains itself without a way to end";
        return Err(Error::refused(format!("{what} {reference}"), why));
    }
    bounds::check(what, schema)?;
    Ok(Checked { schema: references::inline(schema) })
}

/// What a schema says of a list: of its first elements one by one, and of all others.
fn elements(map: &Map<String, Value>) -> (&[Value], Option<&Value>) {
    let (first, rest) = match (map.get("items"), map.get("prefixItems")) {
        (Some(Value::Array(first)), _) => (Some(first), map.get("additionalItems")),
        (items, first) => (first.and_then(Value::as_array), items),
    };
    (first.map_or(&[], Vec::as_slice), rest)
}

/// What a value is, for messages.
pub(in crate::session) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
