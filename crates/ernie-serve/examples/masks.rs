//! What a grammar costs a step: the time of a mask over a vocabulary of the size of ERNIE's.
//!
//! Run with: `cargo run --release -p ernie-serve --example masks TEXT...`
//!
//! Trains a tokenizer of 103,424 ids on the files (30 MB of English and Chinese give as many), lets a model that says anything answer under each grammar, and times
//! every mask. Prints what the vocabulary and each grammar cost to make, and of the masks the median, the 99th of a hundred
//! and the longest.
#![allow(clippy::print_stdout, reason = "a program that prints")]

use std::time::Instant;

use ernie_data::tokenizer::{Tokenizer, TrainOptions, train_bpe};
use ernie_serve::engine::{Verdict, Watcher};
use ernie_serve::session::{Grammar, GrammarVocab};
use serde_json::{Value, json};

/// Ids of ERNIE-4.5.
const IDS: usize = 103_424;
/// Tokens of one answer at most, and answers to each grammar.
const TOKENS: usize = 300;
const ANSWERS: u64 = 8;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let texts: Vec<String> = std::env::args().skip(1).map(std::fs::read_to_string).collect::<Result<_, _>>()?;
    if texts.is_empty() {
        return Err("expected files of text to train a tokenizer on".into());
    }
    let tokenizer = train_bpe(texts.iter().flat_map(|text| text.lines()), &TrainOptions::ernie(IDS))?;
    let end_ids: Vec<u32> = tokenizer.eos().into_iter().collect();
    let begin = Instant::now();
    let vocab = GrammarVocab::new(&tokenizer, IDS, &end_ids, &[])?;
    println!(
        "{} ids with text of {IDS}; the vocabulary for grammars took {:.0} ms\n",
        tokenizer.vocab_size(),
        ms(begin)
    );
    println!(
        "{:<22} {:>9} {:>7} {:>9} {:>9} {:>9} {:>9}",
        "grammar", "made, ms", "masks", "first, µs", "median", "99 %", "longest"
    );
    for (name, schema) in schemas() {
        let begin = Instant::now();
        let grammar = Grammar::json_schema(&vocab, &schema)?;
        report(name, ms(begin), &grammar, &tokenizer);
    }
    let begin = Instant::now();
    let pattern = r"[A-Z][a-z]{1,20}(, [a-z]{1,20}){0,50}\. \d{4}-\d{2}-\d{2}";
    let grammar = Grammar::regex(&vocab, pattern)?;
    report("a regular expression", ms(begin), &grammar, &tokenizer);
    Ok(())
}

fn schemas() -> Vec<(&'static str, Value)> {
    let person = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "email": {"type": "string", "format": "email"},
            "kind": {"enum": ["friend", "colleague", "stranger"]},
            "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{2,12}$"}, "maxItems": 4},
            "born": {"type": "string", "format": "date"},
            "score": {"type": "number", "minimum": 0, "maximum": 1}
        },
        "required": ["name", "age", "email", "kind", "tags", "born", "score"],
        "additionalProperties": false
    });
    let wide: serde_json::Map<String, Value> =
        (0..200).map(|i| (format!("field_{i}"), json!({"type": ["string", "number", "null"]}))).collect();
    vec![
        ("a person", person.clone()),
        ("a list of persons", json!({"type": "array", "items": person, "minItems": 3})),
        (
            "free texts",
            json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "required": ["a", "b"]}),
        ),
        ("any object", json!({"type": "object"})),
        ("200 optional fields", json!({"type": "object", "properties": wide, "additionalProperties": false})),
        ("2,000 words", json!({"enum": (0..2000).map(|i| format!("entry {i} of many")).collect::<Vec<_>>()})),
    ]
}

/// Lets answers be written under a grammar and prints what the masks took.
fn report(name: &str, made_ms: f64, grammar: &Grammar, tokenizer: &Tokenizer) {
    let (mut first, mut all) = (Vec::new(), Vec::new());
    for seed in 0..ANSWERS {
        let took = answer(grammar.watcher(), tokenizer, seed);
        first.extend(took.first().copied());
        all.extend(took);
    }
    first.sort_by(f64::total_cmp);
    all.sort_by(f64::total_cmp);
    let at = |share: f64| all.get((all.len() as f64 * share) as usize).copied().unwrap_or_default();
    let (first, longest) =
        (first.get(first.len() / 2).copied().unwrap_or_default(), all.last().copied().unwrap_or_default());
    println!(
        "{name:<22} {made_ms:>9.1} {:>7} {first:>9.0} {:>9.0} {:>9.0} {longest:>9.0}",
        all.len(),
        at(0.5),
        at(0.99)
    );
}

/// One answer of any allowed tokens, closing ones more often as it grows: microseconds of each mask.
fn answer(mut watcher: Box<dyn Watcher>, tokenizer: &Tokenizer, seed: u64) -> Vec<f64> {
    let mut random = random(seed);
    let mut took = Vec::new();
    let closes: Vec<bool> = (0..IDS as u32)
        .map(|id| tokenizer.token_bytes(id).is_some_and(|bytes| bytes.iter().any(|byte| b"\"}]".contains(byte))))
        .collect();
    while took.len() < TOKENS {
        let closing = (took.len() as f32 / 30.0).min(2.0) * random();
        let mut logits: Vec<f32> = closes.iter().map(|&closes| random() + if closes { closing } else { 0.0 }).collect();
        let begin = Instant::now();
        watcher.mask(&mut logits);
        took.push(ms(begin) * 1e3);
        let best = (0..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best });
        if logits[best] == f32::NEG_INFINITY || watcher.accept(best as u32) == Verdict::Stop {
            break;
        }
    }
    took
}

fn ms(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1e3
}

fn random(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def0;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    }
}
