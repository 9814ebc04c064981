//! TOML text and `key.path=value` overrides in, a typed recipe out, with every problem of every key.
//!
//! Each key is read by itself, so that one wrong key does not hide the next.

use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::{BUNDLED, Recipe};
use crate::error::{Error, Result};

/// No recipe is longer than this.
pub(super) const MAX_RECIPE_BYTES: u64 = 1 << 20;

/// Reads `text` and lays `overrides` over it, without judging values.
pub(super) fn read(text: &str, name: &str, folder: &Path, overrides: &[String], current_dir: &Path) -> Result<Recipe> {
    let mut table: Table = text.parse().map_err(|error| syntax(name, &error))?;
    resolve_paths(&mut table, folder);
    let mut problems = Vec::new();
    for argument in overrides {
        let (mut layer, path) = parse_override(argument)?;
        resolve_paths(&mut layer, current_dir);
        if let Err(problem) = lay_over(&mut table, layer, &path) {
            problems.push(problem);
        }
    }
    let recipe = typed(table, &mut problems);
    if problems.is_empty() { Ok(recipe) } else { Err(Error::Recipe { path: name.to_owned(), problems }) }
}

/// One line from the parser's several.
fn syntax(name: &str, error: &toml::de::Error) -> Error {
    let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
    let at = error.span().map_or(String::new(), |span| format!(" at byte {}", span.start));
    Error::Syntax { path: name.to_owned(), message: format!("{message}{at}") }
}

/// `a.b=value` as a table of tables with one leaf. A value that is not TOML is a string, so that quotes are seldom needed in a shell.
fn parse_override(argument: &str) -> Result<(Table, String)> {
    let bad = |message: &str| Error::Syntax { path: format!("--set {argument}"), message: message.to_owned() };
    let (path, text) = argument.split_once('=').ok_or_else(|| bad("expected key.path=value"))?;
    let path = path.trim();
    let keys: Vec<&str> = path.split('.').map(str::trim).collect();
    if keys.iter().any(|key| key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')) {
        return Err(bad("expected dotted names before the ="));
    }
    if keys.len() > 4 {
        return Err(bad("no key lies this deep"));
    }
    let text = text.trim();
    let value = format!("value = {text}")
        .parse::<Table>()
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    let mut layer = value;
    for key in keys.iter().rev() {
        layer = Value::Table(Table::from_iter([((*key).to_owned(), layer)]));
    }
    match layer {
        Value::Table(table) => Ok((table, path.to_owned())),
        _ => Err(bad("expected dotted names before the =")),
    }
}

/// Lays the one leaf of `layer` over `table`.
fn lay_over(table: &mut Table, layer: Table, path: &str) -> std::result::Result<(), String> {
    for (key, value) in layer {
        let over_table = matches!(table.get(&key), Some(Value::Table(_)));
        match value {
            Value::Table(inner) if over_table && !(path == "data.tokenizer" && key == "tokenizer") => {
                if let Some(Value::Table(below)) = table.get_mut(&key) {
                    lay_over(below, inner, path)?;
                }
            }
            // `model.preset` and its siblings exclude each other: naming one takes the others' place.
            value => {
                const EXCLUSIVE: [&str; 3] = ["preset", "config", "weights"];
                if path == format!("model.{key}") && EXCLUSIVE.contains(&key.as_str()) {
                    table.retain(|other, _| !EXCLUSIVE.contains(&other));
                }
                table.insert(key, value);
            }
        }
    }
    Ok(())
}

/// Reads each key of each table by itself and gathers what does not fit.
fn typed(table: Table, problems: &mut Vec<String>) -> Recipe {
    let mut good = Table::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) if is_table(&key) => {
                let mut kept = Table::new();
                for (name, value) in inner {
                    let path = format!("{key}.{name}");
                    let alone = Table::from_iter([(
                        key.clone(),
                        Value::Table(Table::from_iter([(name.clone(), value.clone())])),
                    )]);
                    if fits::<Recipe>(&path, alone, problems) {
                        kept.insert(name, value);
                    }
                }
                good.insert(key, Value::Table(kept));
            }
            value => {
                if fits::<Recipe>(&key, Table::from_iter([(key.clone(), value.clone())]), problems) {
                    good.insert(key, value);
                }
            }
        }
    }
    match good.try_into() {
        Ok(recipe) => recipe,
        Err(error) => {
            problems.push(one_line(error.message()));
            Recipe::default()
        }
    }
}

/// Whether `key` is a table of the recipe (and not an unknown key that happens to hold one).
fn is_table(key: &str) -> bool {
    Table::try_from(Recipe::default()).is_ok_and(|known| matches!(known.get(key), Some(Value::Table(_))))
}

/// Whether this one key reads as a `T`; if not, says why.
fn fits<T: DeserializeOwned>(path: &str, table: Table, problems: &mut Vec<String>) -> bool {
    match table.try_into::<T>() {
        Ok(_) => true,
        Err(error) => {
            problems.push(format!("{path}: {}", one_line(error.message())));
            false
        }
    }
}

/// A message of the parser in our words, on one line.
fn one_line(message: &str) -> String {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    if message.contains("untagged enum TokenizerSource") {
        return "expected a path, a MODEL or { train = VOCAB }".to_owned();
    }
    message.replace("unknown field", "unknown key")
}

/// Makes the paths of a layer absolute, each where it is written.
fn resolve_paths(table: &mut Table, folder: &Path) {
    if let Some(Value::Table(model)) = table.get_mut("model") {
        for key in ["config", "weights"] {
            if let Some(Value::String(path)) = model.get_mut(key) {
                resolve_one(path, folder, key == "config");
            }
        }
    }
    let tasks = table.get_mut("evaluation").and_then(|evaluation| evaluation.get_mut("tasks"));
    for task in tasks.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(Value::String(path)) = task.get_mut("data") {
            resolve_one(path, folder, true);
        }
    }
    if let Some(Value::Table(data)) = table.get_mut("data") {
        for key in ["train", "held_out"] {
            data.get_mut(key).into_iter().for_each(|globs| resolve_globs(globs, folder));
        }
        let mixed = data.get_mut("mixture").and_then(Value::as_array_mut).into_iter().flatten();
        for source in mixed.filter_map(Value::as_table_mut) {
            source.get_mut("files").into_iter().for_each(|globs| resolve_globs(globs, folder));
        }
        if let Some(Value::String(path)) = data.get_mut("tokenizer") {
            resolve_one(path, folder, false);
        }
    }
}

/// A path becomes absolute; what may also be a hub name does so only if there is a file of that name.
fn resolve_one(path: &mut String, folder: &Path, always: bool) {
    let joined = folder.join(&*path);
    if !path.is_empty() && !path.starts_with("preset:") && (always || path.starts_with('.') || joined.exists()) {
        *path = joined.display().to_string();
    }
}

/// One glob or a list of them.
fn resolve_globs(globs: &mut Value, folder: &Path) {
    match globs {
        Value::String(glob) => resolve_glob(glob, folder),
        Value::Array(globs) => globs.iter_mut().for_each(|glob| resolve_globs(glob, folder)),
        _ => {}
    }
}

/// A glob becomes absolute; a folder whose own name has glob characters still means itself.
fn resolve_glob(pattern: &mut String, folder: &Path) {
    if pattern != BUNDLED
        && !pattern.starts_with("bundled:")
        && !pattern.is_empty()
        && !Path::new(&*pattern).is_absolute()
    {
        *pattern = format!("{}/{}", glob::Pattern::escape(&folder.display().to_string()), pattern);
    }
}
