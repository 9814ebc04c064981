//! The walk over a document.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::references::{patterns, resolve};
use super::{FORMATS, MAX_COUNT, MAX_DEPTH, MAX_ENUM_ENTRIES, MAX_PATTERNS, MAX_SCHEMAS, kind};
use crate::session::grammar::pattern;
use crate::{Error, Result};

/// Keywords that say nothing about what is allowed.
const ANNOTATIONS: [&str; 10] = [
    "$comment",
    "default",
    "deprecated",
    "description",
    "discriminator",
    "example",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
];

/// Dialects of JSON schema that are understood.
const DRAFTS: [&str; 5] = [
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
    "http://json-schema.org/draft-06/schema",
    "http://json-schema.org/draft-04/schema",
];

const TYPES: [&str; 7] = ["array", "boolean", "integer", "null", "number", "object", "string"];

/// Integers below this keep their value on the way.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// What the walk has met.
pub(super) struct Met {
    /// Levels of the document and of each thing referred to, added up.
    pub(super) levels: usize,
    /// All that is referred to.
    pub(super) references: BTreeSet<String>,
}

/// Checks the document and everything that it refers to.
pub(super) fn check(what: &str, document: &Value) -> Result<Met> {
    let old_draft = document.get("$schema").is_some_and(|draft| draft.as_str().is_some_and(|d| !d.contains("2020-12")));
    let mut walk = Walk {
        document,
        at: vec![what.to_owned()],
        old_draft,
        schemas: 0,
        enum_entries: 0,
        seen: BTreeSet::new(),
        references: Vec::new(),
    };
    let mut levels = walk.schema(document, 1)?;
    while let Some(reference) = walk.references.pop() {
        let Some(target) = resolve(document, &reference) else { continue };
        walk.at = vec![format!("{what} {reference}")];
        levels += walk.schema(target, 1)?;
    }
    Ok(Met { levels, references: walk.seen })
}

struct Walk<'a> {
    document: &'a Value,
    /// Where the walk is: the document's name, then keys.
    at: Vec<String>,
    old_draft: bool,
    schemas: usize,
    enum_entries: usize,
    /// References met, and those not yet looked at.
    seen: BTreeSet<String>,
    references: Vec<String>,
}

impl<'a> Walk<'a> {
    /// Checks a schema and those inside it; its levels.
    fn schema(&mut self, schema: &'a Value, depth: usize) -> Result<usize> {
        if depth > MAX_DEPTH {
            return self.refuse(format!("more than {MAX_DEPTH} levels deep"));
        }
        self.schemas += 1;
        if self.schemas > MAX_SCHEMAS {
            return self.refuse(format!("more than {MAX_SCHEMAS} schemas in one document"));
        }
        let map = match schema {
            Value::Bool(_) => return Ok(1),
            Value::Object(map) => map,
            other => return self.refuse(format!("expected a schema, found {}", kind(other))),
        };
        let mut levels = 0;
        for (keyword, value) in map {
            levels = levels.max(self.keyword(map, keyword, value, depth)?);
        }
        self.meeting(schema, map)?;
        Ok(levels + 1)
    }

    /// Where parts of a schema must hold at once their patterns are multiplied, which may take for ever.
    fn meeting(&self, schema: &Value, map: &Map<String, Value>) -> Result<()> {
        let several = ["anyOf", "oneOf", "$ref", "const", "enum"];
        let nothing = ["$defs", "definitions", "$schema", "$id", "id"];
        let count = map.iter().map(|(keyword, value)| match keyword.as_str() {
            "allOf" => value.as_array().map_or(0, Vec::len),
            keyword => usize::from(several.contains(&keyword)),
        });
        let base = map.keys().any(|keyword| {
            let keyword = keyword.as_str();
            keyword != "allOf" && ![&several[..], &nothing, &ANNOTATIONS].concat().contains(&keyword)
        });
        if count.sum::<usize>() + usize::from(base) > 1 && patterns(self.document, schema) > MAX_PATTERNS {
            return self
                .refuse(format!("more than {MAX_PATTERNS} patterns and formats in parts that must hold at once"));
        }
        Ok(())
    }

    /// Checks one keyword; the levels of what is inside.
    fn keyword(&mut self, map: &'a Map<String, Value>, keyword: &str, value: &'a Value, depth: usize) -> Result<usize> {
        self.at.push(keyword.to_owned());
        let levels = match keyword {
            _ if ANNOTATIONS.contains(&keyword) => 0,
            "$schema" => self.draft(value)?,
            "$id" | "id" => self.root_only(keyword, depth)?,
            "type" => self.types(value)?,
            "enum" => self.entries(value)?,
            "const" => self.literal(value, depth)?,
            "$ref" => self.reference(value)?,
            "allOf" | "anyOf" | "oneOf" => self.list(value, depth)?,
            "prefixItems" => self.prefix_items(map, value, depth)?,
            "items" if value.is_array() => self.list(value, depth)?,
            "items" | "additionalProperties" => self.schema(value, depth + 1)?,
            "additionalItems" => self.additional_items(map, value, depth)?,
            "properties" | "$defs" | "definitions" => self.map(value, depth)?,
            "patternProperties" => self.pattern_properties(value, depth)?,
            "minItems" | "maxItems" | "minLength" | "maxLength" | "maxProperties" => self.count(value).map(|_| 0)?,
            "minProperties" => self.min_properties(map, value)?,
            "required" => self.names(value)?,
            "pattern" => self.pattern(value)?,
            "format" => self.format(value)?,
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => self.number(value).map(|_| 0)?,
            "multipleOf" => self.multiple_of(value)?,
            // False asks for nothing.
            "uniqueItems" if value == &Value::Bool(false) => 0,
            _ => {
                self.at.pop();
                return self.refuse(format!("the keyword {:?} is not supported", shorten(keyword)));
            }
        };
        self.at.pop();
        Ok(levels)
    }

    fn refuse<T>(&self, what: impl Into<String>) -> Result<T> {
        let path: String = match self.at.as_slice() {
            [name] => name.clone(),
            // A reference stands in the name already.
            [name, keys @ ..] => {
                let root = if name.contains('#') { "" } else { " #" };
                let keys: String = keys.iter().map(|key| format!("/{}", shorten(key))).collect();
                format!("{name}{root}{keys}")
            }
            [] => String::new(),
        };
        Err(Error::refused(path, what))
    }

    fn expected<T>(&self, expected: &str, found: &Value) -> Result<T> {
        let found = if found.is_number() { shorten(&found.to_string()) } else { kind(found).to_owned() };
        self.refuse(format!("expected {expected}, found {found}"))
    }

    fn inside(&mut self, key: impl ToString, schema: &'a Value, depth: usize) -> Result<usize> {
        self.at.push(key.to_string());
        let levels = self.schema(schema, depth + 1)?;
        self.at.pop();
        Ok(levels)
    }

    fn list(&mut self, value: &'a Value, depth: usize) -> Result<usize> {
        let Some(items) = value.as_array().filter(|items| !items.is_empty()) else {
            return self.expected("a list of at least one schema", value);
        };
        let mut levels = 0;
        for (index, item) in items.iter().enumerate() {
            levels = levels.max(self.inside(index, item, depth)?);
        }
        Ok(levels)
    }

    fn map(&mut self, value: &'a Value, depth: usize) -> Result<usize> {
        let Some(map) = value.as_object() else { return self.expected("an object of schemas", value) };
        let mut levels = 0;
        for (key, schema) in map {
            levels = levels.max(self.inside(key, schema, depth)?);
        }
        Ok(levels)
    }

    fn pattern_properties(&mut self, value: &'a Value, depth: usize) -> Result<usize> {
        if value.as_object().is_some_and(|map| map.len() > MAX_PATTERNS) {
            return self.refuse(format!("more than {MAX_PATTERNS} patterns"));
        }
        for key in value.as_object().into_iter().flat_map(Map::keys) {
            pattern::check(&self.at_pattern(key), key)?;
        }
        self.map(value, depth)
    }

    fn at_pattern(&self, pattern: &str) -> String {
        format!(
            "{} #{}/{}",
            self.at[0],
            self.at[1..].iter().map(|k| format!("/{k}")).collect::<String>(),
            shorten(pattern)
        )
    }

    fn prefix_items(&mut self, map: &'a Map<String, Value>, value: &'a Value, depth: usize) -> Result<usize> {
        if self.old_draft || map.get("items").is_some_and(Value::is_array) || map.contains_key("additionalItems") {
            return self.refuse("belongs to draft 2020-12, which is not the draft of this schema");
        }
        self.list(value, depth)
    }

    fn additional_items(&mut self, map: &'a Map<String, Value>, value: &'a Value, depth: usize) -> Result<usize> {
        if !map.get("items").is_some_and(Value::is_array) {
            return self.refuse("means nothing beside items that are not a list");
        }
        self.schema(value, depth + 1)
    }

    fn draft(&self, value: &Value) -> Result<usize> {
        let known = value.as_str().is_some_and(|draft| DRAFTS.contains(&draft.trim_end_matches('#')));
        if known { Ok(0) } else { self.refuse("is no dialect of JSON schema that is understood") }
    }

    fn root_only(&self, keyword: &str, depth: usize) -> Result<usize> {
        // Deeper down it would change what references mean.
        if depth == 1 && self.at.len() == 2 && !self.at[0].contains('#') {
            return Ok(0);
        }
        self.refuse(format!("{keyword} is supported at the root of a schema only"))
    }

    fn types(&self, value: &Value) -> Result<usize> {
        let known = |value: &Value| value.as_str().is_some_and(|name| TYPES.contains(&name));
        let good = match value {
            Value::Array(names) => !names.is_empty() && names.iter().all(known),
            name => known(name),
        };
        if good { Ok(0) } else { self.refuse(format!("expected one or more of {}", TYPES.join(", "))) }
    }

    fn entries(&mut self, value: &'a Value) -> Result<usize> {
        let Some(entries) = value.as_array().filter(|entries| !entries.is_empty()) else {
            return self.expected("a list of at least one value", value);
        };
        self.enum_entries += entries.len();
        if self.enum_entries > MAX_ENUM_ENTRIES {
            let count = self.enum_entries;
            return self
                .refuse(format!("{count} entries of enums in one schema (expected at most {MAX_ENUM_ENTRIES})"));
        }
        entries.iter().try_for_each(|entry| self.literal(entry, 1).map(drop))?;
        Ok(1)
    }

    /// A value that the answer must equal.
    fn literal(&self, value: &Value, depth: usize) -> Result<usize> {
        if depth > MAX_DEPTH {
            return self.refuse(format!("more than {MAX_DEPTH} levels deep"));
        }
        match value {
            Value::Number(_) => self.number(value).map(|_| 0),
            Value::String(text) if text.chars().any(|c| c.is_control() && !"\n\r\t\u{8}\u{c}".contains(c)) => {
                self.refuse("has a control character that no answer can have")
            }
            Value::Array(items) => {
                items.iter().try_fold(0, |most, item| Ok(most.max(self.literal(item, depth + 1)? + 1)))
            }
            Value::Object(map) => {
                map.values().try_fold(0, |most, item| Ok(most.max(self.literal(item, depth + 1)? + 1)))
            }
            _ => Ok(0),
        }
    }

    fn reference(&mut self, value: &Value) -> Result<usize> {
        let Some(reference) = value.as_str() else { return self.expected("a text", value) };
        if !reference.starts_with('#') {
            return self
                .refuse(format!("refers outside of the document: {:?} (nothing is fetched)", shorten(reference)));
        }
        if reference.contains(['~', '%']) || (reference != "#" && !reference.starts_with("#/")) {
            return self.refuse(format!("{:?} is not of the form #/…, without escapes", shorten(reference)));
        }
        if resolve(self.document, reference).is_none() {
            return self.refuse(format!("{:?} is not in the document", shorten(reference)));
        }
        if self.seen.insert(reference.to_owned()) {
            self.references.push(reference.to_owned());
        }
        Ok(0)
    }

    fn count(&self, value: &Value) -> Result<u64> {
        match value.as_u64() {
            Some(count) if count <= MAX_COUNT => Ok(count),
            _ => self.expected(&format!("a whole number from 0 to {MAX_COUNT}"), value),
        }
    }

    /// A name that is not listed may come twice and then counts once, so only one of them can be asked for.
    fn min_properties(&self, map: &Map<String, Value>, value: &Value) -> Result<usize> {
        let required = map.get("required").and_then(Value::as_array).map_or(0, Vec::len) as u64;
        if self.count(value)? > required + 1 {
            return self.refuse("more than one property beside the required ones cannot be asked for");
        }
        Ok(0)
    }

    fn names(&self, value: &Value) -> Result<usize> {
        match value {
            Value::Array(names) if names.iter().all(Value::is_string) => Ok(0),
            other => self.expected("a list of names", other),
        }
    }

    fn pattern(&self, value: &Value) -> Result<usize> {
        let Some(text) = value.as_str() else { return self.expected("a text", value) };
        let at = format!("{} #{}", self.at[0], self.at[1..].iter().map(|key| format!("/{key}")).collect::<String>());
        pattern::check(&at, text).map(|()| 0)
    }

    fn format(&self, value: &Value) -> Result<usize> {
        match value.as_str() {
            Some(name) if FORMATS.contains(&name) => Ok(0),
            Some(name) => self.refuse(format!(
                "the format {:?} is not supported (expected one of {})",
                shorten(name),
                FORMATS.join(", ")
            )),
            None => self.expected("a text", value),
        }
    }

    fn number(&self, value: &Value) -> Result<f64> {
        match value.as_f64() {
            Some(number) if number.abs() < MAX_EXACT => Ok(number),
            Some(_) => self.expected("a number within ±2^53", value),
            None => self.expected("a number", value),
        }
    }

    fn multiple_of(&self, value: &Value) -> Result<usize> {
        if self.number(value)? > 0.0 { Ok(0) } else { self.expected("a number above 0", value) }
    }
}

/// A text of the caller's for a message: cut, and without control characters.
pub(super) fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
