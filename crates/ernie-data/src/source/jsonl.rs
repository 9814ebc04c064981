//! The text of one JSON object a line.
//!
//! Only the fields asked for are kept; all else is parsed and dropped as it goes by, so a line costs its own length and
//! no tree is ever built.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::Piece;
use super::lines::LineReader;
use crate::Result;

/// The next line of a JSONL file that is not blank.
pub(super) fn line(lines: &mut LineReader) -> Result<Option<Piece>> {
    let mut bytes = Vec::new();
    while lines.append(&mut bytes)? {
        if !bytes.iter().all(u8::is_ascii_whitespace) {
            let not_text = |at: usize| lines.fault(&format!("not UTF-8 at byte {} of the line", at + 1));
            let text = String::from_utf8(bytes).map_err(|e| not_text(e.utf8_error().valid_up_to()))?;
            return Ok(Some(Piece { text, ends: true, separator_bytes: 0 }));
        }
        bytes.clear();
    }
    Ok(None)
}

/// The next document of a JSONL file.
pub(super) fn piece(lines: &mut LineReader, fields: &[String], empty: &mut u64) -> Result<Option<Piece>> {
    loop {
        let Some(Piece { text: line, .. }) = self::line(lines)? else { return Ok(None) };
        let text = text_of(&line, fields).map_err(|what| lines.fault(&what))?;
        if text.trim().is_empty() {
            *empty += 1;
            continue;
        }
        return Ok(Some(Piece { text, ends: true, separator_bytes: 0 }));
    }
}

/// The wanted fields of one object, joined.
fn text_of(line: &str, fields: &[String]) -> Result<String, String> {
    if line.trim_start().starts_with('[') {
        return Err("a JSON array; expected one object a line (JSON Lines)".into());
    }
    let mut json = serde_json::Deserializer::from_str(line);
    Pick { fields }.deserialize(&mut json).and_then(|text| json.end().map(|()| text)).map_err(|error| {
        // serde_json counts lines inside the text it was given, which is always one line here.
        let message = error.to_string();
        let what = message.split(" at line ").next().unwrap_or(&message);
        match error.classify() {
            serde_json::error::Category::Data => what.to_owned(),
            _ => format!("not a JSON object: {what} at column {}", error.column()),
        }
    })
}

/// Takes the named fields of a map and ignores the others.
struct Pick<'a> {
    fields: &'a [String],
}

impl<'de> DeserializeSeed<'de> for Pick<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Pick<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
        let mut found: Vec<Option<String>> = vec![None; self.fields.len()];
        let mut others: Vec<String> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            match self.fields.iter().position(|field| *field == key) {
                Some(i) if found[i].is_some() => {
                    return Err(A::Error::custom(format!("the field `{key}` stands twice")));
                }
                Some(i) => found[i] = Some(map.next_value::<Text>()?.0),
                None => {
                    map.next_value::<IgnoredAny>()?;
                    if others.len() < 6 {
                        others.push(format!("`{}`", key.chars().take(40).collect::<String>()));
                    }
                }
            }
        }
        let mut text = String::new();
        for (i, value) in found.into_iter().enumerate() {
            let Some(value) = value else {
                let has = if others.is_empty() { "nothing else".to_owned() } else { others.join(", ") };
                return Err(A::Error::custom(format!(
                    "no field `{}` (data.text_fields); the object has {has}",
                    self.fields[i]
                )));
            };
            if i > 0 {
                text.push('\n');
            }
            text.push_str(&value);
        }
        Ok(text)
    }
}

/// A JSON string, and nothing else.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, fields: &[&str], expected: Result<&str, &str>) {
        let fields: Vec<String> = fields.iter().map(|&f| f.to_owned()).collect();
        match (text_of(line, &fields), expected) {
            (Ok(text), Ok(expected)) => assert_eq!(text, expected, "{line}"),
            (Err(what), Err(part)) => assert!(what.contains(part), "{line}: {what}"),
            (got, _) => panic!("{line}: {got:?}"),
        }
    }

    #[test]
    fn fields_are_picked_and_joined() {
        check(r#"{"id": 1, "text": "a\u00e9\n", "x": [{}, null]}"#, &["text"], Ok("aé\n"));
        check(r#"{"answer": "b", "question": "a"}"#, &["question", "answer"], Ok("a\nb"));
        check(r#"{"text": "\ud83d\ude00\u0000"}"#, &["text"], Ok("😀\0"));
        check(
            &format!(r#"{{"deep": {}{}, "text": "a"}}"#, "[".repeat(100_000), "]".repeat(100_000)),
            &["text"],
            Ok("a"),
        );
    }

    #[test]
    fn faults_say_what_was_expected() {
        check(
            r#"{"body": "a", "id": 3}"#,
            &["text"],
            Err("no field `text` (data.text_fields); the object has `body`, `id`"),
        );
        check("{}", &["text"], Err("nothing else"));
        check(r#"{"text": 5}"#, &["text"], Err("expected a string"));
        check(r#"{"text": null}"#, &["text"], Err("expected a string"));
        check(r#"{"text": "a", "text": "b"}"#, &["text"], Err("stands twice"));
        check(r#"{"text": "a"} {"text": "b"}"#, &["text"], Err("not a JSON object"));
        check(r#"{"text": "a",}"#, &["text"], Err("not a JSON object"));
        check(r#"{"text": "\ud800"}"#, &["text"], Err("not a JSON object"));
        check(r#"{"text": "a", "n": NaN}"#, &["text"], Err("not a JSON object"));
        check(r#"[{"text": "a"}]"#, &["text"], Err("a JSON array"));
        check(r#""text""#, &["text"], Err("expected a JSON object"));
        check("{", &["text"], Err("not a JSON object"));
    }
}
