//! The small files beside a model file: `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`,
//! `chat_template.jinja`.
//!
//! They add tokens, give tokens roles (bos, eos, cls, sep, …), and hold the chat template. Where they disagree, the
//! order of authority is: `added_tokens_decoder`, then `special_tokens_map.json`, then `added_tokens.json`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::added::AddedToken;
use super::build::looks_like_control;
use super::guarded_regex::{one_line, shorten};

type Outcome<T> = std::result::Result<T, String>;

/// The raw bytes of the side files, each optional.
#[derive(Debug, Clone, Default)]
pub struct SideFiles {
    /// `tokenizer_config.json`
    pub tokenizer_config: Option<Vec<u8>>,
    /// `special_tokens_map.json`
    pub special_tokens_map: Option<Vec<u8>>,
    /// `added_tokens.json`
    pub added_tokens: Option<Vec<u8>>,
    /// `chat_template.jinja`
    pub chat_template: Option<Vec<u8>>,
}

/// What they say.
#[derive(Debug, Default)]
pub(super) struct Side {
    pub(super) added: Vec<AddedToken>,
    /// Role (`bos_token`, …) → literal.
    pub(super) roles: BTreeMap<String, String>,
    pub(super) additional_special: Vec<String>,
    pub(super) adds_bos: Option<bool>,
    pub(super) adds_eos: Option<bool>,
    pub(super) add_prefix_space: Option<bool>,
    pub(super) legacy: Option<bool>,
    pub(super) chat_template: Option<String>,
    pub(super) files: Vec<(String, Vec<u8>)>,
}

/// Reads them all. An error is `(file, what)`.
pub(super) fn read(files: &SideFiles) -> std::result::Result<Side, (&'static str, String)> {
    let mut side = Side::default();
    if let Some(bytes) = &files.added_tokens {
        let name = "added_tokens.json";
        object(bytes).and_then(|map| added_tokens(&map, &mut side)).map_err(|e| (name, e))?;
        side.files.push((name.into(), bytes.clone()));
    }
    let mut map_roles = BTreeMap::new();
    if let Some(bytes) = &files.special_tokens_map {
        let name = "special_tokens_map.json";
        object(bytes).and_then(|map| roles(&map, &mut map_roles, &mut side)).map_err(|e| (name, e))?;
        side.files.push((name.into(), bytes.clone()));
    }
    if let Some(bytes) = &files.tokenizer_config {
        let name = "tokenizer_config.json";
        object(bytes).and_then(|map| config(&map, &mut side)).map_err(|e| (name, e))?;
        side.files.push((name.into(), bytes.clone()));
    }
    for (role, content) in map_roles {
        side.roles.entry(role).or_insert(content);
    }
    if let Some(bytes) = &files.chat_template {
        let name = "chat_template.jinja";
        let text = std::str::from_utf8(bytes).map_err(|_| (name, "is not UTF-8".to_owned()))?;
        side.chat_template = Some(text.to_owned());
        side.files.push((name.into(), bytes.clone()));
    }
    for token in &mut side.added {
        let special = token.special
            || side.additional_special.contains(&token.content)
            || side.roles.iter().any(|(role, content)| role != "unk_token" && *content == token.content);
        token.special = special;
        token.control |= special;
    }
    Ok(side)
}

fn object(bytes: &[u8]) -> Outcome<Map<String, Value>> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    serde_json::from_slice(bytes).map_err(|e| one_line(&e.to_string()))
}

/// `{"content": id}`.
fn added_tokens(map: &Map<String, Value>, side: &mut Side) -> Outcome<()> {
    for (content, id) in map {
        let id = id
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| format!("{:?}: expected an id, found {}", shorten(content), shorten(&id.to_string())))?;
        if !content.is_empty() {
            side.added.push(AddedToken::plain(id, content, false));
        }
    }
    Ok(())
}

/// A token is a text or an object with `content`.
fn literal(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content").and_then(Value::as_str)).filter(|c| !c.is_empty())
}

fn roles(map: &Map<String, Value>, out: &mut BTreeMap<String, String>, side: &mut Side) -> Outcome<()> {
    for (key, value) in map {
        if key == "additional_special_tokens" || key == "extra_special_tokens" {
            match value {
                Value::Null => {}
                Value::Array(list) => {
                    side.additional_special.extend(list.iter().filter_map(literal).map(str::to_owned));
                }
                Value::Object(named) => {
                    side.additional_special.extend(named.values().filter_map(literal).map(str::to_owned));
                }
                _ => return Err(format!("{key}: expected a list")),
            }
        } else if key.ends_with("_token")
            && let Some(content) = literal(value)
        {
            out.insert(key.clone(), content.to_owned());
        }
    }
    Ok(())
}

fn config(map: &Map<String, Value>, side: &mut Side) -> Outcome<()> {
    if let Some(Value::Object(decoder)) = map.get("added_tokens_decoder") {
        let mut listed = Vec::with_capacity(decoder.len());
        for (id, value) in decoder {
            let id: u32 = id.parse().map_err(|_| format!("added_tokens_decoder: {:?} is no id", shorten(id)))?;
            let content =
                literal(value).ok_or_else(|| format!("added_tokens_decoder: {id}: content is missing"))?.to_owned();
            let flag = |key| value.get(key).and_then(Value::as_bool);
            let special = flag("special").unwrap_or(false);
            listed.push(AddedToken {
                id,
                special,
                control: special || looks_like_control(&content),
                lstrip: flag("lstrip").unwrap_or(false),
                rstrip: flag("rstrip").unwrap_or(false),
                single_word: flag("single_word").unwrap_or(false),
                normalized: flag("normalized").unwrap_or(!special),
                content,
            });
        }
        side.added.extend(listed);
    }
    let mut own = BTreeMap::new();
    roles(map, &mut own, side)?;
    side.roles.extend(own);
    let flag = |key| map.get(key).and_then(Value::as_bool);
    side.adds_bos = flag("add_bos_token");
    side.adds_eos = flag("add_eos_token");
    side.add_prefix_space = flag("add_prefix_space");
    side.legacy = flag("legacy");
    side.chat_template = match map.get("chat_template") {
        Some(Value::String(text)) => Some(text.clone()),
        // Several named templates: the one called "default".
        Some(Value::Array(list)) => list
            .iter()
            .find(|t| t.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|t| t.get("template").and_then(Value::as_str))
            .map(str::to_owned),
        _ => None,
    };
    Ok(())
}
