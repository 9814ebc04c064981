//! Bounds of numbers that meet.
//!
//! Parts of a schema that hold at once (`allOf`, `$ref` beside other keywords, one property of two objects) are merged by the
//! compiler, and may say together what none of them says alone. That they leave nothing, it finds itself. Here is looked
//! for what it gets wrong: a whole number that is left out while its fractions are allowed (above 1, up to 1.5), which it
//! would let in, and units with a common multiple that is larger than it can hold.

use std::collections::{BTreeSet, HashSet};

use serde_json::{Map, Value};

use super::{elements, keywords::shorten, references::resolve};
use crate::{Error, Result};

/// Schemas that are laid side by side, counted each time, at most.
const MAX_STEPS: usize = 50_000;
/// References that lead from one to the next.
const MAX_CHAIN: usize = 64;
/// The largest common multiple that the compiler can hold, and a bit.
const MAX_UNIT: u64 = 1 << 32;

/// Objects of a document that hold at once.
type Way<'a> = Vec<&'a Map<String, Value>>;

/// Looks through everything that an answer can consist of. `what` names the document.
pub(super) fn check(what: &str, document: &Value) -> Result<()> {
    if !says(document, &["exclusiveMinimum", "exclusiveMaximum", "multipleOf"]) {
        return Ok(());
    }
    let mut walk = Walk { document, steps: 0, seen: HashSet::new(), todo: Vec::new() };
    walk.meet(String::new(), vec![document]);
    while let Some((at, schemas)) = walk.todo.pop() {
        let name = if at.is_empty() { what.to_owned() } else { format!("{what} #{at}") };
        let all = schemas.iter().try_fold(vec![Way::new()], |ways, schema| {
            let more = walk.ways(schema, 0)?;
            walk.both(&ways, &more)
        });
        let Some(ways) = all else {
            return Err(Error::refused(name, "bounds of numbers may meet in too many ways"));
        };
        for way in ways {
            judge(&way).map_err(|why| Error::refused(&name, why))?;
            walk.enter(&at, &way);
        }
    }
    Ok(())
}

struct Walk<'a> {
    document: &'a Value,
    steps: usize,
    /// Schemas that have met already, by where they stand in memory.
    seen: HashSet<Vec<usize>>,
    /// Schemas that hold at once for a part of the answer, and which part.
    todo: Vec<(String, Vec<&'a Value>)>,
}

impl<'a> Walk<'a> {
    /// Notes schemas that hold at once.
    fn meet(&mut self, at: String, schemas: Vec<&'a Value>) {
        let mut key: Vec<usize> = schemas.iter().map(|schema| std::ptr::from_ref(*schema).addr()).collect();
        key.sort_unstable();
        key.dedup();
        if schemas.iter().any(|schema| bounds_numbers(schema)) && self.seen.insert(key) {
            self.todo.push((at, schemas));
        }
    }

    /// The ways in which a value may satisfy a schema; `None` where they are too many.
    fn ways(&mut self, schema: &'a Value, hops: usize) -> Option<Vec<Way<'a>>> {
        let map = match schema {
            Value::Object(map) => map,
            Value::Bool(false) => return Some(Vec::new()),
            _ => return Some(vec![Way::new()]),
        };
        let mut ways = vec![vec![map]];
        let target = map.get("$ref").and_then(Value::as_str).and_then(|reference| resolve(self.document, reference));
        if let Some(target) = target.filter(|_| hops < MAX_CHAIN) {
            let more = self.ways(target, hops + 1)?;
            ways = self.both(&ways, &more)?;
        }
        let list = |key: &str| map.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for part in list("allOf") {
            let more = self.ways(part, hops)?;
            ways = self.both(&ways, &more)?;
        }
        for options in [list("anyOf"), list("oneOf")] {
            if options.iter().any(bounds_numbers) {
                let mut more = Vec::new();
                for option in options {
                    more.extend(self.ways(option, hops)?);
                }
                ways = self.both(&ways, &more)?;
            }
        }
        Some(ways)
    }

    fn both(&mut self, some: &[Way<'a>], others: &[Way<'a>]) -> Option<Vec<Way<'a>>> {
        let mut both = Vec::new();
        for (some, others) in some.iter().flat_map(|some| others.iter().map(move |others| (some, others))) {
            self.steps += some.len() + others.len();
            if self.steps > MAX_STEPS {
                return None;
            }
            both.push([some.as_slice(), others].concat());
        }
        Some(both)
    }

    /// Notes what holds for the parts of an object or a list.
    fn enter(&mut self, at: &str, way: &[&'a Map<String, Value>]) {
        let maps = |key: &'static str| way.iter().filter_map(move |map| map.get(key)?.as_object());
        let others: Vec<&Value> = way.iter().filter_map(|map| map.get("additionalProperties")).collect();
        let names: BTreeSet<&str> = maps("properties").flat_map(Map::keys).map(String::as_str).collect();
        for name in names {
            let of = |map: &&'a Map<String, Value>| -> Option<&'a Value> {
                map.get("properties").and_then(|listed| listed.get(name)).or_else(|| map.get("additionalProperties"))
            };
            self.meet(format!("{at}/properties/{}", shorten(name)), way.iter().filter_map(of).collect());
        }
        let patterns: BTreeSet<&str> = maps("patternProperties").flat_map(Map::keys).map(String::as_str).collect();
        for pattern in patterns {
            let of = maps("patternProperties").filter_map(|map| map.get(pattern)).collect();
            self.meet(format!("{at}/patternProperties/{}", shorten(pattern)), of);
        }
        self.meet(format!("{at}/additionalProperties"), others);
        let lists: Vec<_> = way.iter().map(|map| elements(map)).collect();
        let longest = lists.iter().map(|(first, _)| first.len()).max().unwrap_or(0);
        for index in 0..=longest {
            let of = lists.iter().filter_map(|(first, rest)| first.get(index).or(*rest)).collect();
            self.meet(format!("{at}/items"), of);
        }
    }
}

/// Whether a schema, or one inside it, says something about numbers or refers to one that may.
fn bounds_numbers(schema: &Value) -> bool {
    says(schema, &["$ref", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"])
}

/// Whether one of the words is a key somewhere in a value.
fn says(value: &Value, words: &[&str]) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(key, value)| words.contains(&key.as_str()) || says(value, words)),
        Value::Array(items) => items.iter().any(|item| says(item, words)),
        _ => false,
    }
}

/// A bound: the keyword, its value, and whether it leaves the value out.
#[derive(Clone, Copy)]
struct Bound {
    keyword: &'static str,
    value: f64,
    open: bool,
}

impl Bound {
    /// The narrowest of what the keywords say; of bounds at the same value the open one. `sign` is -1 for upper bounds.
    fn narrowest(way: &[&Map<String, Value>], keywords: [&'static str; 2], sign: f64) -> Option<Self> {
        let all = keywords.into_iter().zip([false, true]).flat_map(|(keyword, open)| {
            let values = way.iter().filter_map(move |map| map.get(keyword)?.as_f64());
            values.map(move |value| Self { keyword, value, open })
        });
        all.max_by(|a, b| (sign * a.value).total_cmp(&(sign * b.value)).then(a.open.cmp(&b.open)))
    }

    /// Whether this leaves a whole number out whose fractions the other bound allows.
    fn splits(self, other: Self) -> bool {
        self.open && self.value.fract() == 0.0 && self.value != other.value && other.value.trunc() == self.value
    }
}

/// Says what is wrong with the numbers that a way allows.
fn judge(way: &[&Map<String, Value>]) -> std::result::Result<(), String> {
    let has_type = |map: &&Map<String, Value>, name: &str| {
        map.get("type")
            .is_none_or(|types| types == name || types.as_array().is_some_and(|t| t.iter().any(|t| t == name)))
    };
    // A value that is written out has no range.
    let written_out = way.iter().any(|map| map.contains_key("const") || map.contains_key("enum"));
    if written_out || !way.iter().all(|map| has_type(map, "number") || has_type(map, "integer")) {
        return Ok(());
    }
    let low = Bound::narrowest(way, ["minimum", "exclusiveMinimum"], 1.0);
    let high = Bound::narrowest(way, ["maximum", "exclusiveMaximum"], -1.0);
    if let (Some(low), Some(high)) = (low, high)
        && way.iter().all(|map| has_type(map, "number"))
        && low.value < high.value
        && (low.splits(high) || high.splits(low))
    {
        let [low, high] = [low, high].map(|bound| format!("{} {}", bound.keyword, bound.value));
        return Err(format!("{low} and {high} cannot leave out a whole number whose fractions alone are allowed"));
    }
    let units: BTreeSet<String> = way.iter().filter_map(|map| Some(map.get("multipleOf")?.to_string())).collect();
    let common = units.iter().try_fold((1, 0), |common, unit| common_multiple(common, decimal(unit.parse().ok()?)?));
    if units.len() > 1 && common.is_none() {
        let units: Vec<String> = units.into_iter().collect();
        return Err(format!("the common multiple of multipleOf {} is too large", units.join(" and ")));
    }
    Ok(())
}

/// A number as a whole number and how many of its digits stand behind the decimal point.
fn decimal(mut number: f64) -> Option<(u64, u32)> {
    let mut digits = 0;
    while number.fract() != 0.0 {
        number *= 10.0;
        digits += 1;
    }
    (number < MAX_UNIT as f64).then_some((number as u64, digits))
}

/// The least common multiple, computed as the compiler does; `None` where one of its steps overflows.
fn common_multiple((a, a_digits): (u64, u32), (b, b_digits): (u64, u32)) -> Option<(u64, u32)> {
    let digits = a_digits.max(b_digits);
    let scaled = |n: u64, own: u32| n.checked_mul(10_u64.checked_pow(digits - own)?).filter(|&n| n < MAX_UNIT);
    let (a, b) = (scaled(a, a_digits)?, scaled(b, b_digits)?);
    let product = a.checked_mul(b).filter(|&product| product < MAX_UNIT)?;
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    Some((product / x.max(1), digits))
}
