//! Reading one JSON object key by key, strictly: right types only, aliases that agree, nothing unread.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// One JSON object and the keys of it that have been read.
pub(super) struct Keys<'a> {
    place: &'a str,
    /// Path of this object within the file, with a trailing dot, or empty.
    path: String,
    map: &'a Map<String, Value>,
    read: BTreeSet<&'a str>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(place: &'a str, map: &'a Map<String, Value>) -> Self {
        Keys { place, path: String::new(), map, read: BTreeSet::new() }
    }

    /// An error about `key` of this object.
    pub(super) fn error(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::key(self.place, format!("{}{key}", self.path), problem)
    }

    /// All names of the object.
    pub(super) fn names(&self) -> Vec<String> {
        self.map.keys().cloned().collect()
    }

    /// The raw value of `key`, which then counts as read.
    pub(super) fn take(&mut self, key: &str) -> Option<&'a Value> {
        let (name, value) = self.map.get_key_value(key)?;
        self.read.insert(name.as_str());
        Some(value)
    }

    /// The raw value of `key` unless it is absent or null.
    pub(super) fn present(&mut self, key: &str) -> Option<&'a Value> {
        self.take(key).filter(|value| !value.is_null())
    }

    /// Whether the object holds `key` with a value other than null; reads nothing.
    pub(super) fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    /// The names not read so far, with their path.
    pub(super) fn unread(&self) -> Vec<String> {
        self.map
            .keys()
            .filter(|key| !self.read.contains(key.as_str()))
            .map(|key| format!("{}{key}", self.path))
            .collect()
    }

    fn child(&self, key: &str, map: &'a Map<String, Value>) -> Keys<'a> {
        Keys { place: self.place, path: format!("{}{key}.", self.path), map, read: BTreeSet::new() }
    }

    pub(super) fn object(&mut self, key: &str) -> Result<Option<Keys<'a>>> {
        match self.present(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(self.child(key, map))),
            Some(other) => Err(self.error(key, format!("expected an object, found {}", describe(other)))),
        }
    }

    pub(super) fn required_object(&mut self, key: &str) -> Result<Keys<'a>> {
        self.object(key)?.ok_or_else(|| self.error(key, "missing; expected an object"))
    }

    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>> {
        match self.present(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.error(key, format!("expected a string, found {}", describe(other)))),
        }
    }

    pub(super) fn required_text(&mut self, key: &str) -> Result<String> {
        self.text(key)?.ok_or_else(|| self.error(key, "missing; expected a string"))
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<Option<bool>> {
        match self.present(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.error(key, format!("expected true or false, found {}", describe(other)))),
        }
    }

    /// An integer between `low` and `high`, both included.
    pub(super) fn count(&mut self, key: &str, low: usize, high: usize) -> Result<Option<usize>> {
        match self.present(key) {
            None => Ok(None),
            Some(value) => self.as_count(key, value, low, high).map(Some),
        }
    }

    pub(super) fn required_count(&mut self, key: &str, low: usize, high: usize) -> Result<usize> {
        self.count(key, low, high)?
            .ok_or_else(|| self.error(key, format!("missing; expected an integer in {low}..={high}")))
    }

    pub(super) fn as_count(&self, key: &str, value: &Value, low: usize, high: usize) -> Result<usize> {
        value
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| (low..=high).contains(n))
            .ok_or_else(|| self.error(key, format!("expected an integer in {low}..={high}, found {}", describe(value))))
    }

    /// A finite number greater than zero.
    pub(super) fn positive(&mut self, key: &str) -> Result<Option<f64>> {
        match self.present(key) {
            None => Ok(None),
            Some(value) => value
                .as_f64()
                .filter(|x| x.is_finite() && *x > 0.0)
                .map(Some)
                .ok_or_else(|| self.error(key, format!("expected a number above 0, found {}", describe(value)))),
        }
    }

    /// A finite number of either sign.
    pub(super) fn number(&mut self, key: &str) -> Result<Option<f64>> {
        match self.present(key) {
            None => Ok(None),
            Some(value) => value
                .as_f64()
                .filter(|x| x.is_finite())
                .map(Some)
                .ok_or_else(|| self.error(key, format!("expected a number, found {}", describe(value)))),
        }
    }

    /// The value of the first of two spellings that is there; both must agree where both are.
    pub(super) fn spelled(&mut self, one: &str, other: &str, low: usize, high: usize) -> Result<Option<usize>> {
        match (self.count(one, low, high)?, self.count(other, low, high)?) {
            (Some(a), Some(b)) if a != b => Err(self.error(one, format!("{a} here but {b} under `{other}`"))),
            (a, b) => Ok(a.or(b)),
        }
    }
}

/// A short name for a JSON value in an error message; long values are cut.
pub(super) fn describe(value: &Value) -> String {
    let cut = |text: &str| match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    };
    match value {
        Value::Null => "null".into(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => cut(&number.to_string()),
        Value::String(text) => format!("the string {:?}", cut(text)),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".into(),
    }
}
