//! A request's JSON, field by field: what is missing, wrong or not honoured is said by name.
//!
//! `null` is the same as absent, as it is for OpenAI. Fields that nobody asks for are ignored, because clients send many;
//! those that would change the answer are asked for and refused ([`Fields::refuse`]).

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::{ApiError, ApiResult};

/// The fields of a JSON object.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    map: Map<String, Value>,
    /// What stands before a field's name in messages: empty, or `messages[3].`.
    place: String,
}

impl Fields {
    /// Parses a body. Nesting is bounded by the parser.
    pub(super) fn parse(body: &[u8]) -> ApiResult<Self> {
        if body.is_empty() {
            return Err(ApiError::input("the body is empty: expected a JSON object"));
        }
        let value: Value =
            serde_json::from_slice(body).map_err(|e| ApiError::input(format!("the body is not JSON: {e}")))?;
        match value {
            Value::Object(map) => Ok(Self { map, place: String::new() }),
            other => Err(ApiError::input(format!("the body is {}: expected a JSON object", kind(&other)))),
        }
    }

    /// The fields of an object inside a request, which stands at `place`.
    pub(super) fn of(value: Value, place: &str) -> ApiResult<Self> {
        match value {
            Value::Object(map) => Ok(Self { map, place: format!("{place}.") }),
            other => Err(ApiError::field(place, kind(&other), "an object")),
        }
    }

    /// The full name of a field, for messages.
    pub(super) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.place)
    }

    /// Takes a field out, whatever it is.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.get_mut(name).map(Value::take).filter(|value| !value.is_null())
    }

    /// The error for a value that is not what it may be.
    pub(super) fn wrong(&self, name: &str, value: &Value, expected: impl Display) -> ApiError {
        ApiError::field(&self.name(name), shown(value), expected)
    }

    /// A field that must be there.
    pub(super) fn need(&mut self, name: &str, expected: impl Display) -> ApiResult<Value> {
        self.take(name).ok_or_else(|| ApiError::field(&self.name(name), "missing", expected))
    }

    /// A field of true or false.
    pub(super) fn bool(&mut self, name: &str) -> ApiResult<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(self.wrong(name, &other, "true or false")),
        }
    }

    /// A whole number within a range.
    pub(super) fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> ApiResult<Option<i64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_i64().filter(|n| range.contains(n)) {
            Some(n) => Ok(Some(n)),
            None => {
                let expected = format!("a whole number from {} to {}", range.start(), range.end());
                Err(self.wrong(name, &value, expected))
            }
        }
    }

    /// A count within a range.
    pub(super) fn count(&mut self, name: &str, range: RangeInclusive<u64>) -> ApiResult<Option<usize>> {
        let range = *range.start() as i64..=i64::try_from(*range.end()).unwrap_or(i64::MAX);
        Ok(self.integer(name, range)?.map(|n| n as usize))
    }

    /// A number; its range is the sampler's to judge.
    pub(super) fn number(&mut self, name: &str) -> ApiResult<Option<f32>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(number.as_f64().map(|n| n as f32)),
            Some(other) => Err(self.wrong(name, &other, "a number")),
        }
    }

    /// A text.
    pub(super) fn text(&mut self, name: &str) -> ApiResult<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, &other, "a string")),
        }
    }

    /// A list.
    pub(super) fn list(&mut self, name: &str) -> ApiResult<Option<Vec<Value>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(self.wrong(name, &other, "a list")),
        }
    }

    /// Refuses a field unless it says what is done anyway.
    pub(super) fn refuse(&mut self, name: &str, why: &str, harmless: impl FnOnce(&Value) -> bool) -> ApiResult<()> {
        match self.take(name) {
            Some(value) if !harmless(&value) => Err(ApiError::unsupported(&self.name(name), why)),
            _ => Ok(()),
        }
    }
}

/// Whether a value says nothing: false, zero, or empty.
pub(super) fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// What kind of value it is, with its article.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A number or boolean as it was sent, the kind of anything else: texts of callers are not repeated.
fn shown(value: &Value) -> String {
    match value {
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) if text.len() <= 40 => format!("{text:?}"),
        other => kind(other).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        Fields::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn bodies_that_are_no_object_are_refused_in_one_line() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for bad in ["", "[]", "7", "null", "{", "{\"a\":1,}", "\u{feff}{}", "{\"a\":1e400}", "{\"a\":NaN}", &deep] {
            let error = Fields::parse(bad.as_bytes()).unwrap_err();
            assert_eq!(error.status.as_u16(), 400, "{bad}");
            assert!(!error.message.contains('\n') && error.message.len() < 500);
        }
        for bad in [&b"{\"a\":\"\xff\"}"[..], b"{\"a\":\"\\ud800\"}"] {
            assert_eq!(Fields::parse(bad).unwrap_err().status.as_u16(), 400);
        }
    }

    #[test]
    fn a_field_is_named_when_it_is_wrong() {
        let mut f = fields(r#"{"n": 1.5, "m": "7", "big": 18446744073709551615, "t": 3, "none": null}"#);
        for name in ["n", "m", "big"] {
            let error = f.clone().count(name, 1..=16).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name));
            assert!(error.message.contains("from 1 to 16"), "{}", error.message);
        }
        assert!(f.text("t").unwrap_err().message.contains("`t` is 3: expected a string"));
        assert_eq!(f.bool("none").unwrap(), None);
        assert_eq!(f.bool("absent").unwrap(), None);
        assert_eq!(fields(r#"{"t": 1e39}"#).number("t").unwrap(), Some(f32::INFINITY));
    }

    #[test]
    fn what_changes_the_answer_is_refused_unless_it_asks_for_nothing() {
        for (json, fine) in [("{}", true), (r#"{"x": []}"#, true), (r#"{"x": null}"#, true), (r#"{"x": [1]}"#, false)] {
            assert_eq!(fields(json).refuse("x", "is not honoured", is_nothing).is_ok(), fine, "{json}");
        }
    }
}
