//! Structured output: what a grammar allows, what is refused, and what it costs.

#[path = "support/schema.rs"]
mod schema;
#[path = "support/writer.rs"]
mod writer;

use ernie_serve::engine::{Engine, EngineOptions, Event, FinishReason, Generate, Request, Sampling, Verdict, Watcher};
use ernie_serve::session::{Grammar, GrammarCache, GrammarVocab};
use proptest::prelude::*;
use serde_json::{Value, json};
use writer::{Chain, EOS, End, answer, tokenizer, vocab};

/// Answers under a schema, which must all be what it allows.
fn check(schema: &Value, seeds: std::ops::Range<u64>) -> Vec<String> {
    let grammar = Grammar::json_schema(&vocab(), schema).unwrap_or_else(|error| panic!("{schema}: {error}"));
    let mut texts = Vec::new();
    for seed in seeds {
        let (text, _, end) = answer(grammar.watcher(), seed, 3000);
        assert!(end != End::Stuck, "{schema}: {text}");
        if end == End::Length {
            continue;
        }
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{schema}: {error}: {text}"));
        assert!(schema::allows(schema, schema, &value), "{schema}: {text}");
        texts.push(text);
    }
    assert!(!texts.is_empty(), "{schema}: no answer ends");
    texts
}

fn refusal(schema: &Value) -> String {
    let error = match Grammar::json_schema(&vocab(), schema) {
        Err(error) => error,
        Ok(_) => panic!("{schema} was taken"),
    };
    let line = error.to_string();
    assert!(error.is_input() && !line.contains('\n') && line.len() < 600, "{line}");
    line
}

/// Schemas of every keyword that is honoured.
fn honoured() -> Vec<Value> {
    let object = |properties: Value, required: Value| json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
    vec![
        json!(true),
        json!({}),
        json!({"title": "anything", "description": "x", "$schema": "https://json-schema.org/draft/2020-12/schema"}),
        json!({"type": ["string", "null"], "minLength": 2, "maxLength": 4}),
        json!({"type": "string", "pattern": "^[a-c]+$", "maxLength": 3}),
        json!({"type": "string", "pattern": "\\d"}),
        json!({"type": "integer", "minimum": -3, "exclusiveMaximum": 12}),
        json!({"type": "integer", "multipleOf": 7, "maximum": 100, "minimum": -100}),
        json!({"type": "number", "minimum": 0.5, "maximum": 2.25}),
        json!({"enum": ["a", "\"q\"\n\\", 1, -2.5, 0.1, null, true, [1, {"x": []}], {"k": "v"}, 100000]}),
        json!({"const": {"a": [1, "b"], "c": null}}),
        json!({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}),
        json!({"type": "array", "prefixItems": [{"const": 1}, {"type": "null"}], "items": {"const": "r"}, "minItems": 1, "maxItems": 4}),
        json!({"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": {"type": "null"}, "maxItems": 2}),
        object(
            json!({"a": {"type": "integer", "minimum": 0, "maximum": 9}, "b": {"type": "null"}, "c": true}),
            json!(["a", "c"]),
        ),
        json!({"type": "object", "properties": {"a": {"const": 1}}, "required": ["z"]}),
        json!({"type": "object", "properties": {"a": {"const": 1}, "\n\"": {"const": 2}}, "additionalProperties": {"const": "other"}}),
        json!({"type": "object", "patternProperties": {"^x": {"const": 1}, "^y": {"const": 2}}, "additionalProperties": false, "maxProperties": 2}),
        json!({"type": "object", "properties": {"xa": {"type": "integer"}}, "patternProperties": {"^x": {"enum": [5, "no"]}}}),
        json!({"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "minProperties": 1, "additionalProperties": false}),
        json!({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "minProperties": 2}),
        json!({"allOf": [object(json!({"a": {"type": "integer"}}), json!(["a"])), {"properties": {"a": {"maximum": 5, "minimum": 4}}}]}),
        json!({"anyOf": [{"type": "integer", "minimum": 3, "maximum": 5}, {"type": "string", "maxLength": 2}, {"type": "null"}]}),
        json!({"oneOf": [{"type": "boolean"}, {"const": "x"}, {"const": "y"}]}),
        // Unions as Python's packages write them: the options are references and differ in a constant.
        json!({
            "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
            "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat"}},
            "$defs": {
                "Cat": object(json!({"kind": {"const": "cat"}, "lives": {"enum": [7, 9]}}), json!(["kind", "lives"])),
                "Dog": object(json!({"kind": {"const": "dog"}, "friend": {"anyOf": [{"$ref": "#/$defs/Cat"}, {"type": "null"}]}}), json!(["kind", "friend"]))
            }
        }),
        // Recursion.
        json!({"$ref": "#/$defs/tree", "$defs": {"tree": object(json!({"v": {"const": 1}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}}), json!(["v", "next"]))}}),
        json!({"type": "array", "items": {"$ref": "#"}, "maxItems": 1}),
        json!({"$ref": "#/definitions/a", "definitions": {
            "a": {"type": "array", "items": {"$ref": "#/definitions/b"}, "maxItems": 2},
            "b": {"anyOf": [{"const": 1}, {"$ref": "#/definitions/a"}]},
            "unreachable": {"type": "string"}
        }}),
    ]
}

#[test]
fn answers_are_what_the_schema_allows() {
    for schema in honoured() {
        let schema = match &schema {
            // The validator of the tests knows no words about words.
            Value::Object(map) if map.contains_key("discriminator") => Value::Object(
                map.iter().filter(|(key, _)| *key != "discriminator").map(|(k, v)| (k.clone(), v.clone())).collect(),
            ),
            _ => schema,
        };
        check(&schema, 0..12);
    }
}

#[test]
fn formats_are_kept() {
    for format in ernie_serve::session::grammar::schema::FORMATS {
        let texts = check_text(&json!({"type": "string", "format": format}));
        assert!(texts.iter().all(|text| text.len() > 2), "{format}: {texts:?}");
    }
    let dates = check_text(&json!({"type": "string", "format": "date"}));
    assert!(dates.iter().all(|date| date.len() == 12 && date.as_bytes()[5] == b'-'), "{dates:?}");
}

/// Answers that end, which the validator cannot judge.
fn check_text(schema: &Value) -> Vec<String> {
    let grammar = Grammar::json_schema(&vocab(), schema).unwrap();
    let answers = (0..10).map(|seed| answer(grammar.watcher(), seed, 500));
    let texts: Vec<String> = answers.filter(|(_, _, end)| *end != End::Length).map(|(text, _, _)| text).collect();
    assert!(!texts.is_empty() && texts.iter().all(|text| serde_json::from_str::<Value>(text).is_ok()), "{texts:?}");
    texts
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let deep = (0..100).fold(json!({}), |inner, _| json!({"items": inner}));
    let many: Vec<Value> = (0..6000).map(|_| json!({})).collect();
    let entries: Vec<usize> = (0..1_000_000).collect();
    let long = "a".repeat(5000);
    let alternatives = (0..10_000).map(|i| format!("w{i}")).collect::<Vec<_>>().join("|");
    let chain: serde_json::Map<String, Value> =
        (0..2000).map(|i| (format!("d{i}"), json!({"$ref": format!("#/$defs/d{}", (i + 1) % 2000)}))).collect();
    let own = |keyword: &str, value: Value| json!({"properties": {"a": {keyword: value}}});
    for (schema, words) in [
        (json!(5), "schema: expected a JSON schema, an object, found a number"),
        (json!("string"), "found a text"),
        (json!(false), "allows nothing"),
        // Keywords.
        (own("not", json!({})), "schema #/properties/a: the keyword \"not\" is not supported"),
        (own("if", json!({})), "\"if\""),
        (own("contains", json!({})), "\"contains\""),
        (own("uniqueItems", json!(true)), "\"uniqueItems\""),
        (own("propertyNames", json!({})), "\"propertyNames\""),
        (own("dependentRequired", json!({})), "\"dependentRequired\""),
        (own("dependencies", json!({})), "\"dependencies\""),
        (own("unevaluatedProperties", json!(false)), "\"unevaluatedProperties\""),
        (own("contentEncoding", json!("base64")), "\"contentEncoding\""),
        (own("nullable", json!(true)), "\"nullable\""),
        (own("minlength", json!(3)), "\"minlength\""),
        (own("$anchor", json!("x")), "\"$anchor\""),
        (own("$dynamicRef", json!("#x")), "\"$dynamicRef\""),
        (json!({"x-guidance": {"lenient": true}}), "\"x-guidance\""),
        (json!({"a\nb<|im_end|>": 1}), "the keyword \"a b<|im_end|>\""),
        (own("$id", json!("x")), "$id is supported at the root"),
        (own("format", json!("regex")), "the format \"regex\" is not supported"),
        (json!({"$defs": {"unused": {"not": {}}}}), "schema #/$defs/unused: the keyword \"not\""),
        (json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "\"oneOf\" is supported only where"),
        (json!({"$schema": "https://example.com/mine"}), "schema #/$schema: is no dialect"),
        // Values.
        (own("type", json!("text")), "schema #/properties/a/type: expected one or more of"),
        (own("type", json!([])), "/type"),
        (own("enum", json!([])), "/enum: expected a list of at least one value"),
        (own("minLength", json!(-1)), "/minLength: expected a whole number from 0 to 100000, found -1"),
        (own("maxItems", json!(1_000_000_000)), "/maxItems: expected a whole number"),
        (own("minItems", json!(1.5)), "/minItems"),
        (own("minimum", json!("3")), "/minimum: expected a number, found a text"),
        (own("maximum", json!(1e300)), "within ±2^53"),
        (own("const", json!(9_007_199_254_740_993_u64)), "within ±2^53"),
        (own("const", json!("a\u{1}")), "control character"),
        (own("multipleOf", json!(0)), "/multipleOf: expected a number above 0"),
        (
            json!({"type": "number", "exclusiveMinimum": 1, "maximum": 1.5}),
            "schema: exclusiveMinimum 1 and maximum 1.5 cannot leave out",
        ),
        (json!({"type": "number", "minimum": -0.5, "exclusiveMaximum": 0}), "exclusiveMaximum 0 cannot leave out"),
        (own("required", json!("a")), "/required: expected a list of names"),
        (own("properties", json!([])), "/properties: expected an object of schemas"),
        (own("items", json!(3)), "/items: expected a schema, found a number"),
        (own("anyOf", json!([])), "/anyOf: expected a list of at least one schema"),
        (own("minProperties", json!(2)), "more than one property beside"),
        (json!({"prefixItems": [{}], "additionalItems": false}), "belongs to draft 2020-12"),
        (json!({"additionalItems": false}), "means nothing"),
        // Patterns.
        (own("pattern", json!("a(?=b)")), "schema #/properties/a/pattern: the pattern is malformed"),
        (own("pattern", json!("(?<!a)b")), "malformed"),
        (own("pattern", json!("(a)\\1")), "malformed"),
        (own("pattern", json!("(")), "malformed"),
        (own("pattern", json!("\\bword")), "word boundary"),
        (own("pattern", json!(long)), "5000 bytes (expected at most 4096)"),
        (own("pattern", json!(alternatives)), "bytes (expected at most 4096)"),
        (own("pattern", json!("((a{1000}){1000}){1000}")), "repeats itself"),
        (own("pattern", json!("a{1,1000000}")), "repeats itself"),
        (json!({"patternProperties": {"(": {}}}), "malformed"),
        // References.
        (own("$ref", json!("http://127.0.0.1/x")), "refers outside of the document: \"http://127.0.0.1/x\""),
        (own("$ref", json!("file:///etc/passwd")), "nothing is fetched"),
        (own("$ref", json!("other.json#/a")), "refers outside"),
        (own("$ref", json!("#anchor")), "is not of the form #/"),
        (own("$ref", json!("#/$defs/a~1b")), "without escapes"),
        (own("$ref", json!("#/$defs/missing")), "is not in the document"),
        (own("$ref", json!(7)), "expected a text"),
        (json!({"$ref": "#/title", "title": "no schema"}), "schema #/title: expected a schema, found a text"),
        (json!({"$ref": "#"}), "schema #: no answer can satisfy it: it contains itself"),
        (
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
            "no answer can satisfy it",
        ),
        (json!({"$ref": "#/$defs/d0", "$defs": chain}), "levels in all"),
        // What nothing satisfies.
        (json!({"type": "integer", "minimum": 5, "maximum": 4}), "no answer can satisfy it"),
        (json!({"type": "string", "minLength": 5, "maxLength": 4}), "no answer can satisfy it"),
        (json!({"type": "array", "minItems": 5, "maxItems": 4}), "no answer can satisfy it"),
        (json!({"allOf": [{"type": "string"}, {"type": "null"}]}), "no answer can satisfy it"),
        (json!({"type": "object", "required": ["a"], "additionalProperties": false}), "no answer can satisfy it"),
        (json!({"type": "string", "pattern": "^a$", "minLength": 2}), "no answer can satisfy it"),
        (
            json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
            "schema #: no answer can satisfy it",
        ),
        (
            json!({"properties": {"a": {"$ref": "#/$defs/l"}}, "$defs": {"l": {"type": "array", "items": {"$ref": "#/$defs/l"}, "minItems": 1}}}),
            "schema #/$defs/l: no answer",
        ),
        // Sizes.
        (deep, "more than 64 levels deep"),
        (json!({"anyOf": many}), "more than 5000 schemas"),
        (json!({"enum": entries}), "bytes (expected at most 262144)"),
        (json!({"enum": (0..3000).collect::<Vec<_>>()}), "3000 entries of enums"),
        (json!({"description": "x".repeat(300_000)}), "bytes (expected at most 262144)"),
    ] {
        let started = std::time::Instant::now();
        let line = refusal(&schema);
        assert!(line.contains(words), "{line}\nwithout: {words}");
        assert!(started.elapsed().as_secs() < 20, "{line}: {:?}", started.elapsed());
    }
}

/// Bounds that are fine in each part, and together leave nothing or what cannot be written.
#[test]
fn bounds_that_meet_are_refused() {
    let all = |parts: &[Value]| json!({"allOf": parts});
    let least = |bound: f64| json!({"type": "integer", "exclusiveMinimum": bound});
    let most = |bound: f64| json!({"type": "integer", "exclusiveMaximum": bound});
    let of_a = |schema: &Value| json!({"type": "object", "properties": {"a": schema}, "required": ["a"]});
    let above_one = json!({"type": "number", "exclusiveMinimum": 1});
    for (schema, words) in [
        (
            all(&[least(3.0), most(4.0)]),
            "schema: no answer can satisfy it: integer interval (3, 4) contains no integer",
        ),
        (all(&[least(3.2), most(3.9)]), "no answer can satisfy it"),
        (all(&[json!({"type": "number", "minimum": 3}), json!({"exclusiveMaximum": 3})]), "no answer can satisfy it"),
        (all(&[of_a(&least(3.0)), of_a(&most(4.0))]), "required property 'a' is unsatisfiable"),
        (
            json!({"$ref": "#/$defs/low", "exclusiveMaximum": 4, "$defs": {"low": least(3.0)}}),
            "integer interval (3, 4) contains no integer",
        ),
        (json!({"type": "integer", "multipleOf": 7, "allOf": [least(7.0), most(14.0)]}), "no answer can satisfy it"),
        // A whole number without its fractions.
        (
            all(&[above_one.clone(), json!({"maximum": 1.5})]),
            "schema: exclusiveMinimum 1 and maximum 1.5 cannot leave out",
        ),
        (
            all(&[of_a(&above_one), of_a(&json!({"maximum": 1.5}))]),
            "schema #/properties/a: exclusiveMinimum 1 and maximum 1.5",
        ),
        (
            json!({"type": "array", "items": all(&[above_one.clone(), json!({"exclusiveMaximum": 1.25})])}),
            "schema #/items: exclusiveMinimum 1 and exclusiveMaximum 1.25",
        ),
        (
            json!({"$ref": "#/$defs/up", "minimum": -0.5, "$defs": {"up": {"type": "number", "exclusiveMaximum": 0}}}),
            "minimum -0.5 and exclusiveMaximum 0 cannot leave out",
        ),
        (
            all(&[
                json!({"anyOf": [{"type": "null"}, above_one]}),
                json!({"anyOf": [{"maximum": 9}, {"maximum": 1.5}]}),
            ]),
            "maximum 1.5 cannot leave out",
        ),
        (
            all(&[json!({"type": "integer", "multipleOf": 65_537}), json!({"multipleOf": 65_539})]),
            "the common multiple of multipleOf 65537 and 65539 is too large",
        ),
    ] {
        let line = refusal(&schema);
        assert!(line.contains(words), "{line}\nwithout: {words}");
    }
    // What only looks alike is honoured.
    check(&all(&[least(3.0), most(5.0)]), 0..3);
    check(&all(&[least(1.0), json!({"maximum": 2.5})]), 0..3);
    check(&json!({"anyOf": [above_one, {"type": "number", "maximum": -1.5}]}), 0..12);
    check(&json!({"type": "object", "properties": {"a": above_one, "b": {"type": "number", "maximum": 1.5}}}), 0..6);
    check(
        &all(&[json!({"type": "integer", "multipleOf": 4}), json!({"multipleOf": 6, "minimum": 1, "maximum": 30})]),
        0..6,
    );
}

#[test]
fn schemas_at_the_limits_compile() {
    // As deep as may be, through references and through nesting, in every combination that recurses.
    let chain: serde_json::Map<String, Value> = (0..500)
        .map(|i| {
            (
                format!("d{i}"),
                json!({"type": "object", "properties": {"x": {"$ref": format!("#/$defs/d{}", (i + 1) % 500)}}}),
            )
        })
        .collect();
    check_text(&json!({"$ref": "#/$defs/d0", "$defs": chain}));
    let deep = (0..60)
        .fold(json!({"const": 1}), |inner, _| json!({"anyOf": [{"type": "array", "items": inner}, {"type": "null"}]}));
    assert!(
        Grammar::json_schema(&vocab(), &deep).is_err_and(|error| error.is_input()),
        "twice as many levels as allowed"
    );
    let deep = (0..30)
        .fold(json!({"const": 1}), |inner, _| json!({"anyOf": [{"type": "array", "items": inner}, {"type": "null"}]}));
    check(&deep, 0..3);
    let wide: serde_json::Map<String, Value> =
        (0..1000).map(|i| (format!("p{i}"), json!({"type": "integer"}))).collect();
    check(&json!({"type": "object", "properties": wide, "additionalProperties": false}), 0..2);
    check(&json!({"enum": (0..2000).map(|i| format!("entry {i}")).collect::<Vec<_>>()}), 0..4);
    check(&json!({"type": "array", "items": {"const": 1}, "maxItems": 100_000}), 0..4);
    check(&json!({"type": "string", "maxLength": 100_000}), 0..4);
}

#[test]
fn hostile_schemas_cost_little() {
    // Products of alternatives, and references that meet in every combination.
    let choice = |n: usize| json!({"anyOf": (0..n).map(|i| json!({"properties": {format!("k{i}"): {"type": "integer"}}})).collect::<Vec<_>>()});
    let product = json!({"allOf": (0..12).map(|_| choice(8)).collect::<Vec<_>>()});
    let trees = json!({
        "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
        "$defs": {
            "a": {"type": "object", "properties": {"child": {"$ref": "#/$defs/a"}}},
            "b": {"type": "object", "properties": {"child": {"$ref": "#/$defs/b"}}}
        }
    });
    let hard = |i: usize| format!("^(a|b)*a(a|b){{{}}}$", i + 20);
    let patterns =
        |n: usize| json!({"allOf": (0..n).map(|i| json!({"type": "string", "pattern": hard(i)})).collect::<Vec<_>>()});
    let names: serde_json::Map<String, Value> =
        (0..4).map(|i| (format!("^{i}(a|b)*a(a|b){{25}}"), json!({}))).collect();
    let named = json!({"type": "object", "patternProperties": names, "additionalProperties": {"type": "string", "pattern": hard(1)}});
    // The same with bounds, which are looked at in every combination.
    let bound = |i: usize| json!({"anyOf": (0..8).map(|k| json!({"type": "number", "exclusiveMinimum": i + k})).collect::<Vec<_>>()});
    let bounds = json!({"allOf": (0..12).map(bound).collect::<Vec<_>>()});
    let rings: serde_json::Map<String, Value> = (0..40)
        .map(|i| (format!("r{i}"), json!({"type": "object", "properties": {"next": {"$ref": format!("#/$defs/r{}", (i * 7 + 1) % 40)}, "n": {"exclusiveMinimum": i}}})))
        .collect();
    let ring =
        json!({"allOf": (0..40).map(|i| json!({"$ref": format!("#/$defs/r{i}")})).collect::<Vec<_>>(), "$defs": rings});
    for schema in [product, trees, bounds, ring, patterns(4), named] {
        let started = std::time::Instant::now();
        if let Ok(grammar) = Grammar::json_schema(&vocab(), &schema) {
            let _ = answer(grammar.watcher(), 1, 20);
        }
        assert!(started.elapsed().as_secs() < 30, "{schema}: {:?}", started.elapsed());
    }
    assert!(refusal(&patterns(20)).contains("more than 4 patterns and formats in parts that must hold at once"));
    let names: serde_json::Map<String, Value> = (0..60).map(|i| (format!("(x|y){{{i}}}z.*{i}"), json!({}))).collect();
    assert!(refusal(&json!({"patternProperties": names})).contains("more than 4 patterns"));
}

#[test]
fn regular_expressions() {
    let texts = |pattern: &str| -> Vec<String> {
        let grammar = Grammar::regex(&vocab(), pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        let answers = (0..10).map(|seed| answer(grammar.watcher(), seed, 400));
        answers.filter(|(_, _, end)| *end != End::Length).map(|(text, _, _)| text).collect()
    };
    for pattern in [
        "yes|no",
        "(a+)+b",
        "[a-z]{2,5}(, [a-z]{2,5})*",
        "\\d{3}-\\d{4}",
        "^(é|日本)\\s?$",
        "a/b\\/c\nd",
        "(?i)hello",
        "[^\"]{0,9}",
        "",
        "a{0}",
        "\\{\"a\": \\[\\]\\}",
        "\\p{Greek}{2}",
    ] {
        let whole = fancy_regex::Regex::new(&format!("^(?:{pattern})$")).unwrap();
        let texts = texts(pattern);
        assert!(!texts.is_empty(), "{pattern}");
        assert!(texts.iter().all(|text| whole.is_match(text).unwrap()), "{pattern}: {texts:?}");
    }
    for (pattern, words) in [
        ("(", "regex: the pattern is malformed: unclosed group"),
        ("a\\", "malformed"),
        ("(?=a)b", "malformed"),
        ("(?<=a)b", "malformed"),
        ("(a)\\1", "malformed"),
        ("\\bx", "word boundary"),
        ("(?m)^a$", "end of a line"),
        ("(?s-u:.)*", "malformed"),
        ("[^\\s\\S]", "no answer can satisfy it"),
        ("a{1,1000000}", "repeats itself"),
        ("a$b", "regex: "),
    ] {
        let error = Grammar::regex(&vocab(), pattern).err().unwrap_or_else(|| panic!("{pattern} was taken"));
        assert!(error.is_input() && error.to_string().contains(words), "{pattern}: {error}");
    }
}

#[test]
fn nothing_but_text_is_ever_allowed() {
    let tokenizer = tokenizer();
    for grammar in [Grammar::regex(&vocab(), "(?s:.*)").unwrap(), Grammar::json_schema(&vocab(), &json!({})).unwrap()] {
        let mut watcher = grammar.watch();
        for _ in 0..20 {
            let mut logits = vec![0.0; tokenizer.vocab_size() + 7];
            watcher.mask(&mut logits);
            let allowed: Vec<u32> = (0..logits.len() as u32).filter(|&id| logits[id as usize] == 0.0).collect();
            for &id in &allowed {
                assert!(id == EOS || (tokenizer.kind(id).is_some() && !tokenizer.is_control(id)), "{id}");
            }
            assert_eq!(allowed.contains(&EOS), watcher.may_end());
            let Some(&next) = allowed.iter().find(|&&id| id != EOS) else { break };
            if watcher.accept(next) == Verdict::Stop {
                break;
            }
        }
    }
}

/// Models without a better end name a line break as one: it must not end an answer in the middle of an object.
#[test]
fn an_end_that_is_text_is_allowed_at_the_end_alone() {
    let tokenizer = tokenizer();
    let size = tokenizer.vocab_size();
    let line = (0..size as u32).find(|&id| tokenizer.token_bytes(id).is_some_and(|bytes| bytes == b"\n")).unwrap();
    let vocab = GrammarVocab::new(&tokenizer, size, &[EOS, line], &[]).unwrap();
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
    let grammars = [Grammar::json_schema(&vocab, &schema).unwrap(), Grammar::regex(&vocab, "a\n*b?").unwrap()];
    for (grammar, seed) in grammars.iter().flat_map(|grammar| (0..20).map(move |seed| (grammar, seed))) {
        let mut watcher = grammar.watch();
        let mut random = writer::random(seed);
        for _ in 0..40 {
            let mut logits = vec![0.0; size];
            watcher.mask(&mut logits);
            assert_eq!(logits[line as usize] == 0.0, watcher.may_end());
            let allowed: Vec<u32> =
                (0..size as u32).filter(|&id| logits[id as usize] == 0.0 && ![EOS, line].contains(&id)).collect();
            let Some(&next) = allowed.get((random() * allowed.len() as f32) as usize) else { break };
            if watcher.accept(next) == Verdict::Stop {
                break;
            }
        }
    }
}

#[test]
fn a_thousand_schemas_keep_the_cache_bounded() {
    let cache = GrammarCache::new(vocab(), 64, 4 << 20);
    for i in 0..1000 {
        cache.json_schema(&json!({"type": "object", "properties": {format!("p{i}"): {"const": i}}})).unwrap();
        assert!(cache.len() <= 64 && cache.bytes() <= 4 << 20);
    }
    assert!(cache.len() > 10);
    let again = cache.json_schema(&json!({"type": "object", "properties": {"p999": {"const": 999}}})).unwrap();
    assert_eq!(cache.len(), cache.len().min(64));
    assert!(answer(again.watcher(), 1, 300).0.starts_with('{'));
    let small = GrammarCache::new(vocab(), 10, 10);
    small.json_object().unwrap();
    assert!(small.is_empty() && small.bytes() == 0);
}

/// Runs requests in one engine; what each said and why it ended.
fn run(options: EngineOptions, requests: Vec<Generate>) -> (Vec<(Vec<u32>, FinishReason)>, u64) {
    let model = Chain { vocab_size: tokenizer().vocab_size() + 7 };
    let mut engine = Engine::with_model(Box::new(model), options).unwrap();
    let ids: Vec<_> = requests
        .into_iter()
        .enumerate()
        .map(|(index, generate)| engine.submit(Request::generate(vec![70 + index as u32], generate)).unwrap())
        .collect();
    let mut out = vec![(Vec::new(), FinishReason::Cancelled); ids.len()];
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            let at = ids.iter().position(|id| *id == event.request()).unwrap();
            match event {
                Event::Token { id, logprob, .. } => {
                    assert!(logprob.is_none_or(|logprob| logprob.logprob <= 0.0 && logprob.top.len() == 2));
                    out[at].0.push(id);
                }
                Event::Finished { reason, .. } => out[at].1 = reason,
                _ => {}
            }
        }
    }
    (out, engine.stats().accepted)
}

#[test]
fn grammars_hold_with_guesses_log_probabilities_seeds_and_company() {
    let item = json!({"type": "object", "properties": {"id": {"enum": [1, 2]}, "kind": {"const": "cat"}}, "required": ["id", "kind"], "additionalProperties": false});
    let schema = json!({"type": "array", "items": item, "minItems": 8, "maxItems": 12});
    let grammar = Grammar::json_schema(&vocab(), &schema).unwrap();
    let requests = || -> Vec<Generate> {
        let request = |temperature: f32, seed: u64, logprobs| Generate {
            max_tokens: 1500,
            sampling: Sampling { temperature, seed: Some(seed), ..Sampling::default() },
            logprobs,
            watcher: Some(grammar.watcher()),
            ..Generate::default()
        };
        vec![request(0.0, 0, None), request(0.7, 1, Some(2)), request(1.0, 2, None), request(0.0, 3, Some(2))]
    };
    let plain = EngineOptions { draft_tokens: 0, ..EngineOptions::default() };
    let guessing = EngineOptions { draft_tokens: 8, ..EngineOptions::default() };
    let (together, kept) = run(guessing.clone(), requests());
    assert!(kept > 20, "{kept} guesses were right");
    assert_eq!(run(plain.clone(), requests()).0, together);
    for (index, request) in requests().into_iter().enumerate() {
        // Its prompt is its number.
        let mut alone: Vec<Generate> = (0..index).map(|_| Generate::default()).collect();
        alone.push(request);
        assert_eq!(run(guessing.clone(), alone).0[index], together[index]);
    }
    for (ids, reason) in &together {
        assert_eq!(*reason, FinishReason::Stop);
        let text = tokenizer().decode_continuation(ids);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(schema::allows(&schema, &schema, &value), "{text}");
    }
    let cut = Generate { max_tokens: 9, watcher: Some(grammar.watcher()), ..Generate::default() };
    let (cut, _) = run(guessing, vec![cut]);
    assert_eq!((cut[0].0.as_slice(), cut[0].1.clone()), (&together[0].0[..9], FinishReason::Length));
}

#[test]
fn end_ids_may_be_ignored_and_a_complete_answer_still_ends() {
    let grammar = Grammar::regex(&vocab(), "ab?").unwrap();
    let generate =
        Generate { max_tokens: 50, ignore_eos: true, watcher: Some(grammar.watcher()), ..Generate::default() };
    let (out, _) = run(EngineOptions::default(), vec![generate]);
    assert_eq!(out[0].1, FinishReason::Stop);
    assert!(out[0].0.len() <= 3);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    /// Schemas of any make: refused, or every answer is what they allow.
    #[test]
    fn any_schema_is_kept_or_refused(schema in any_schema(), seed in 0u64..1000) {
        let Ok(grammar) = Grammar::json_schema(&vocab(), &schema) else { return Ok(()) };
        for seed in seed..seed + 3 {
            let (text, _, end) = answer(grammar.watcher(), seed, 600);
            prop_assert!(end != End::Stuck, "{}: {}", schema, text);
            if end == End::Length {
                continue;
            }
            let value: Value = match serde_json::from_str(&text) {
                Ok(value) => value,
                // 9e778 is a number of JSON, and none that a double holds.
                Err(error) if error.to_string().starts_with("number out of range") => continue,
                Err(error) => return Err(TestCaseError::fail(format!("{schema}: {error}: {text}"))),
            };
            prop_assert!(schema::allows(&schema, &schema, &value), "{}: {}", schema, text);
        }
    }
}

fn any_schema() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec!["a", "b", "ab", "x", "é"]);
    let value = prop::sample::select(vec![
        json!(1),
        json!(-7),
        json!(0.5),
        json!("a"),
        json!("b\"c"),
        json!(null),
        json!(true),
        json!([1]),
        json!({"a": 1}),
    ]);
    let leaf = prop_oneof![
        Just(json!({"type": "null"})),
        Just(json!({"type": "boolean"})),
        (-9i32..9, 0i32..9).prop_map(|(low, span)| json!({"type": "integer", "minimum": low, "maximum": low + span})),
        (-90i32..90, 1i32..90).prop_map(|(low, span)| {
            json!({"type": "number", "exclusiveMinimum": f64::from(low) / 10.0, "maximum": f64::from(low + span) / 10.0})
        }),
        (0usize..3, 0usize..3).prop_map(|(low, span)| json!({"type": "string", "minLength": low, "maxLength": low + span})),
        prop::sample::select(vec!["^a+$", "b", "^[^a]{1,2}$", "\\d"]).prop_map(|pattern| json!({"type": "string", "pattern": pattern})),
        prop::collection::vec(value.clone(), 1..4).prop_map(|values| json!({"enum": values})),
        value.prop_map(|value| json!({"const": value})),
        (2i32..7).prop_map(|unit| json!({"type": "integer", "multipleOf": unit, "minimum": -50, "maximum": 50})),
        Just(json!({"$ref": "#"})),
    ];
    leaf.prop_recursive(3, 12, 3, move |inner| {
        let properties = prop::collection::btree_map(name.clone(), inner.clone(), 0..3);
        let objects = (properties, prop::collection::vec(name.clone(), 0..2), any::<Option<bool>>(), 0u64..3).prop_map(
            |(properties, required, more, least)| {
                let mut schema = json!({"type": "object", "properties": properties, "required": required});
                if let Some(more) = more {
                    schema["additionalProperties"] = json!(more);
                }
                if least > 0 {
                    schema["minProperties"] = json!(least);
                }
                schema
            },
        );
        let named = prop::sample::select(vec!["^a", "b$", "x"]);
        let patterned = (named, inner.clone(), inner.clone(), any::<Option<bool>>()).prop_map(|(pattern, schema, of_a, more)| {
            let mut schema = json!({"type": "object", "patternProperties": {pattern: schema}, "properties": {"ab": of_a}});
            if let Some(more) = more {
                schema["additionalProperties"] = json!(more);
            }
            schema
        });
        let arrays = (inner.clone(), 0usize..3, 0usize..3, prop::collection::vec(inner.clone(), 0..2)).prop_map(
            |(items, low, span, first)| match first.is_empty() {
                true => json!({"type": "array", "items": items, "minItems": low, "maxItems": low + span}),
                false => json!({"type": "array", "prefixItems": first, "items": items, "minItems": low, "maxItems": low + span}),
            },
        );
        let several = prop::collection::vec(inner, 1..3);
        let joined = (prop::sample::select(vec!["anyOf", "oneOf", "allOf"]), several).prop_map(|(word, list)| json!({word: list}));
        prop_oneof![objects, patterned, arrays, joined]
    })
}
