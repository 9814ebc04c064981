//! The Jinja engine, set up as `transformers` sets up its own, and limited.
//!
//! A template comes with a checkpoint, so it is somebody's program: steps, bytes made, nesting and output are bounded
//! (minijinja charges its fuel for every byte and every item), nothing can be included or imported, and every failure
//! is one line.

use std::collections::HashSet;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};

use super::date;
use crate::{Error, Result};

/// Longest template, in bytes; the longest published have about 15,000.
const MAX_SOURCE_BYTES: usize = 1 << 20;
/// Steps for any conversation, for each message, and at most; 64 bytes made cost as much as a step.
const BASE_FUEL: u64 = 1_000_000;
const FUEL_PER_MESSAGE: u64 = 1_000;
const MAX_FUEL: u64 = 50_000_000;
/// Output: a part for the template, and times what callers wrote.
const BASE_OUTPUT_BYTES: usize = 8 << 20;
const MAX_GROWTH: usize = 8;

const NAME: &str = "chat_template";

/// Compiles a template into an environment of its own.
pub(super) fn compile(source: &str) -> Result<Environment<'static>> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(Error::Template(format!("{} bytes (expected at most {MAX_SOURCE_BYTES})", source.len())));
    }
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|e| Error::Internal(e.to_string()))?);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_recursion_limit(100);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> std::result::Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("raised: {message}")))
    });
    environment.add_function("strftime_now", |format: String| -> std::result::Result<String, minijinja::Error> {
        date::strftime(&format, std::time::SystemTime::now())
            .map_err(|what| minijinja::Error::new(ErrorKind::InvalidOperation, what))
    });
    environment.add_filter("tojson", to_json);
    environment.add_template_owned(NAME, without_generation_tags(source)).map_err(|e| failure(&e))?;
    Ok(environment)
}

/// The names that the template expects from outside.
pub(super) fn variables(environment: &Environment<'static>) -> HashSet<String> {
    environment.get_template(NAME).map(|template| template.undeclared_variables(false)).unwrap_or_default()
}

/// Renders; `messages` and `bytes` say how much work is to be expected.
pub(super) fn render(
    environment: &Environment<'static>,
    context: Value,
    messages: usize,
    bytes: usize,
) -> Result<String> {
    let mut environment = environment.clone();
    let fuel = BASE_FUEL + FUEL_PER_MESSAGE.saturating_mul(messages as u64) + bytes as u64 / 4;
    environment.set_fuel(Some(fuel.min(MAX_FUEL)));
    let template = environment.get_template(NAME).map_err(|e| failure(&e))?;
    let text = template.render(context).map_err(|e| failure(&e))?;
    let limit = BASE_OUTPUT_BYTES.saturating_add(bytes.saturating_mul(MAX_GROWTH));
    if text.len() > limit {
        return Err(Error::Template(format!("output of {} bytes (expected at most {limit})", text.len())));
    }
    Ok(text)
}

/// `transformers` marks the assistant's words by a tag of its own, which changes no text.
fn without_generation_tags(source: &str) -> String {
    let mut out = source.to_owned();
    for word in ["generation", "endgeneration"] {
        for open in ["{%", "{%-"] {
            for close in ["%}", "-%}"] {
                let tag = format!("{open} {word} {close}");
                if out.contains(&tag) {
                    // An empty set block keeps the tag's effect on white space.
                    out = out.replace(&tag, &format!("{open} set _ = none {close}"));
                }
            }
        }
    }
    out
}

/// JSON as Python's `json.dumps(…, ensure_ascii=False)` writes it: `, ` and `: `, and no escapes for HTML.
fn to_json(value: Value, options: Kwargs) -> std::result::Result<String, minijinja::Error> {
    let indent: Option<u64> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    if indent.is_some_and(|n| n > 16) {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "tojson: indent above 16"));
    }
    let mut out = String::new();
    write_json(&value, indent.map(|n| n as usize), 0, &mut out)?;
    Ok(out)
}

fn write_json(
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) -> std::result::Result<(), minijinja::Error> {
    if depth > 64 || out.len() > BASE_OUTPUT_BYTES {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "tojson: too deep or too long"));
    }
    let line = |out: &mut String, depth: usize| {
        if let Some(n) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', n * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::Map => {
            out.push('{');
            let mut any = false;
            for key in value.try_iter()? {
                out.push_str(if any { comma } else { "" });
                any = true;
                line(out, depth + 1);
                out.push_str(&quote(&key.to_string())?);
                out.push_str(": ");
                write_json(&value.get_item(&key)?, indent, depth + 1, out)?;
            }
            if any {
                line(out, depth);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut any = false;
            for item in value.try_iter()? {
                out.push_str(if any { comma } else { "" });
                any = true;
                line(out, depth + 1);
                write_json(&item, indent, depth + 1, out)?;
            }
            if any {
                line(out, depth);
            }
            out.push(']');
        }
        ValueKind::String => out.push_str(&quote(value.as_str().unwrap_or_default())?),
        ValueKind::Undefined | ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        kind => return Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson: cannot write {kind}"))),
    }
    Ok(())
}

fn quote(text: &str) -> std::result::Result<String, minijinja::Error> {
    serde_json::to_string(text).map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))
}

/// One line: what and where.
fn failure(error: &minijinja::Error) -> Error {
    let place = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "needs more steps or memory than a chat template may".to_owned(),
        _ => error.detail().map_or_else(|| error.kind().to_string(), |d| format!("{}: {d}", error.kind())),
    };
    let what: String = what.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect();
    Error::Template(format!("{place}{what}"))
}
