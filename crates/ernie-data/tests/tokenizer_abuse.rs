//! Hostile tokenizer files and hostile texts: one clear error or a right answer, soon, and never a panic.

mod tokenizer_support;

use std::time::{Duration, Instant};

use ernie_data::Error;
use ernie_data::tokenizer::{SideFiles, Tokenizer};
use serde_json::{Value, json};
use tokenizer_support::{Bits, cases, fixture, gunzip};

const SAMPLE: &str = "The <s>quick</s> 中国 e\u{301} 😀 1234 www. e.g.\n\t  x<sep>";

fn byte_level() -> Value {
    serde_json::from_slice(&gunzip(&fixture("byte_level.json.gz"))).unwrap()
}

fn read(value: &Value) -> Result<Tokenizer, Error> {
    Tokenizer::from_json_bytes(&serde_json::to_vec(value).unwrap())
}

/// An error must be the input's fault and one line.
fn clear(error: &Error) -> String {
    let line = error.to_string();
    assert!(error.is_input() && !line.contains('\n') && line.len() < 1000, "{line}");
    line
}

/// Uses whatever was read.
fn use_it(result: Result<Tokenizer, Error>) {
    match result {
        Err(error) => drop(clear(&error)),
        Ok(tokenizer) => {
            for ids in [tokenizer.encode(SAMPLE), tokenizer.encode_with_special(SAMPLE)] {
                match ids {
                    Ok(ids) => drop(tokenizer.decode(&ids)),
                    Err(error) => drop(clear(&error)),
                }
            }
        }
    }
}

/// Flips, cuts, doublings and zeroed stretches of a file.
fn damage(bytes: &[u8], bits: &mut Bits) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..=bits.below(3) {
        if out.is_empty() {
            break;
        }
        let at = bits.below(out.len());
        match bits.below(6) {
            0 => out.truncate(at),
            1 | 2 => out[at] ^= 1 << bits.below(8),
            3 => out[at] = bits.next() as u8,
            4 => {
                let end = (at + bits.below(64)).min(out.len());
                let copy = out[at..end].to_vec();
                out.splice(at..at, copy);
            }
            _ => {
                let end = (at + bits.below(16)).min(out.len());
                out[at..end].fill(0xFF);
            }
        }
    }
    out
}

#[test]
fn damaged_tokenizer_json() {
    // A small file, so that the damage falls on every part of it; the large one less often.
    let mut small = byte_level();
    let vocab: serde_json::Map<String, Value> = small["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, id)| id.as_u64().unwrap() < 300)
        .map(|(t, id)| (t.clone(), id.clone()))
        .collect();
    small["model"]["merges"] = small["model"]["merges"].as_array().unwrap()[..10].into();
    small["model"]["vocab"] = vocab.into();
    small["added_tokens"] = small["added_tokens"].as_array().unwrap()[..3].into();
    small["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": "x+"}, "content": "y"}]});
    assert!(read(&small).is_ok(), "{:?}", read(&small).err());
    let small = serde_json::to_vec(&small).unwrap();
    let large = gunzip(&fixture("modern.json.gz"));
    for seed in 0..cases(2_000) as u64 {
        let mut bits = Bits(seed);
        let file = if seed % 8 == 0 { &large } else { &small };
        use_it(Tokenizer::from_json_bytes(&damage(file, &mut bits)));
    }
}

#[test]
fn damaged_sentencepiece_models() {
    let models = ["sp_ernie.model", "sp_nmt_nfkc.model", "sp_suffix.model"].map(fixture);
    for seed in 0..cases(2_000) as u64 {
        let mut bits = Bits(seed ^ 0x5EED);
        let model = &models[seed as usize % 3];
        use_it(Tokenizer::from_sentencepiece(&damage(model, &mut bits), &SideFiles::default()));
    }
}

#[test]
fn damaged_side_files() {
    let model = fixture("sp_ernie.model");
    let config = json!({
        "added_tokens_decoder": {"1": {"content": "<s>", "special": true}, "1800": {"content": "<x>", "special": true, "lstrip": true}},
        "bos_token": "<s>", "eos_token": {"content": "</s>"}, "additional_special_tokens": ["<x>"],
        "chat_template": "{{ bos_token }}", "add_bos_token": true,
    });
    let config = serde_json::to_vec(&config).unwrap();
    let added = serde_json::to_vec(&json!({"<x>": 1800, "<y>": 1801})).unwrap();
    for seed in 0..cases(2_000) as u64 / 4 {
        let mut bits = Bits(seed ^ 0xC0F1);
        let side = SideFiles {
            tokenizer_config: Some(damage(&config, &mut bits)),
            added_tokens: Some(damage(&added, &mut bits)),
            special_tokens_map: Some(damage(&config, &mut bits)),
            chat_template: Some(damage(b"{{ x }}", &mut bits)),
        };
        use_it(Tokenizer::from_sentencepiece(&model, &side));
    }
}

#[test]
fn wrong_vocabularies_are_named() {
    let change = |edit: &dyn Fn(&mut Value)| {
        let mut file = byte_level();
        edit(&mut file);
        clear(&read(&file).unwrap_err())
    };
    for (line, says) in [
        (change(&|f| f["model"]["vocab"]["new"] = json!(5)), "id 5 stands for both"),
        (change(&|f| f["model"]["vocab"]["new"] = json!(4_000_000_000u64)), "4000000000"),
        (change(&|f| f["model"]["vocab"]["new"] = json!(-1)), "-1"),
        (change(&|f| f["model"]["vocab"]["new"] = json!(1.5)), "1.5"),
        (change(&|f| f["model"]["merges"][0] = json!(["nowhere", "x"])), "nowhere"),
        (change(&|f| f["model"]["merges"][0] = json!("a b c")), "a b c"),
        (change(&|f| f["model"]["merges"][0] = json!(["a"])), "merge"),
        (change(&|f| f["added_tokens"][0]["id"] = json!(7)), "<s>"),
        (change(&|f| f["added_tokens"][0]["content"] = json!("x".repeat(5000))), "added token"),
        (change(&|f| f["model"]["type"] = json!("Unigram")), "Unigram"),
        (change(&|f| f["model"]["type"] = json!("WordPiece")), "WordPiece"),
        (change(&|f| f["model"]["unk_token"] = json!("missing")), "missing"),
        (change(&|f| f["model"]["dropout"] = json!(0.1)), "dropout"),
        (change(&|f| f["model"]["end_of_word_suffix"] = json!("</w>")), "end_of_word_suffix"),
        (change(&|f| f["pre_tokenizer"] = json!({"type": "Magic"})), "Magic"),
        (change(&|f| f["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})), "Precompiled"),
        (change(&|f| f["decoder"] = json!({"type": "CTC"})), "CTC"),
        (
            change(&|f| {
                f["pre_tokenizer"] =
                    json!({"type": "Split", "pattern": {"Regex": "(a{1000}){1000}"}, "behavior": "Isolated"})
            }),
            "repeats",
        ),
        (
            change(&|f| {
                f["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "["}, "behavior": "Isolated"})
            }),
            "pattern",
        ),
    ] {
        assert!(line.contains(says), "{line} should name {says}");
    }
    // A token written twice in the JSON itself.
    let twice = br#"{"model": {"type": "BPE", "vocab": {"a": 0, "a": 1}, "merges": []}}"#;
    assert!(clear(&Tokenizer::from_json_bytes(twice).unwrap_err()).contains("twice"));
    // Holes are allowed; they decode to U+FFFD.
    let mut holes = byte_level();
    holes["model"]["vocab"]["far"] = json!(9_000);
    let tokenizer = read(&holes).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.decode(&[8_999])), (9_001, "\u{FFFD}".to_owned()));
}

#[test]
fn huge_and_deep_files_are_refused_soon() {
    let started = Instant::now();
    let deep = "[".repeat(1_000_000);
    let nested = format!("{{\"normalizer\": {}{}}}", "{\"a\":".repeat(500_000), "}".repeat(500_000));
    for file in [deep.as_bytes(), nested.as_bytes(), b"", b"null", b"{}", b"{\"model\":{}}", b"\xFF\xFE", b"[1,2,3]"] {
        clear(&Tokenizer::from_json_bytes(file).unwrap_err());
        clear(&Tokenizer::from_sentencepiece(file, &SideFiles::default()).unwrap_err());
    }
    // A file that only claims to be large: 1 GB by its size, without a byte on the disk.
    let folder = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer.model"] {
        let file = std::fs::File::create(folder.path().join(name)).unwrap();
        file.set_len(1 << 30).unwrap();
        let line = clear(&Tokenizer::from_folder(folder.path()).unwrap_err());
        assert!(line.contains(name), "{line}");
        std::fs::remove_file(folder.path().join(name)).unwrap();
    }
    let mut nest = json!({"type": "NFC"});
    for _ in 0..60 {
        nest = json!({"type": "Sequence", "normalizers": [nest]});
    }
    let mut file = byte_level();
    file["normalizer"] = nest;
    use_it(read(&file));
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_hostile_pattern_or_replacement_ends_in_an_error() {
    for step in [
        json!({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(?:(?=a)a+)+b"}, "behavior": "Isolated"}}),
        json!({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(?:(?=a)(?:a|aa))+b|a"}, "behavior": "Isolated"}}),
        json!({"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(10_000)}}),
        json!({"normalizer": {"type": "Replace", "pattern": {"Regex": "a"}, "content": "b".repeat(10_000)}}),
        json!({"normalizer": {"type": "Sequence", "normalizers": vec![json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}); 60]}}),
    ] {
        let mut file = byte_level();
        for (key, value) in step.as_object().unwrap() {
            file[key] = value.clone();
        }
        let tokenizer = read(&file).unwrap();
        let started = Instant::now();
        clear(&tokenizer.encode(&("a".repeat(20_000) + "c")).unwrap_err());
        assert!(started.elapsed() < Duration::from_secs(15), "{step}: {:?}", started.elapsed());
    }
}

#[test]
fn a_megabyte_of_anything_is_fast() {
    let json = |name: &str| Tokenizer::from_json_bytes(&gunzip(&fixture(name))).unwrap();
    let sp = |name: &str| Tokenizer::from_sentencepiece(&fixture(name), &SideFiles::default()).unwrap();
    let n = 1_000_000;
    let texts = [
        "a".repeat(n),
        " ".repeat(n),
        "\n".repeat(n),
        "0".repeat(n),
        "e".to_owned() + &"\u{301}".repeat(n),
        "中".repeat(n / 2),
        "<".repeat(n),
        "<s>".repeat(n / 3),
        "👨\u{200d}".repeat(n / 4),
        " a".repeat(n / 2),
        "▁".repeat(n / 3),
    ];
    let all = [
        json("byte_level.json.gz"),
        json("modern.json.gz"),
        json("llama_style.json.gz"),
        sp("sp_ernie.model"),
        sp("sp_nmt_nfkc.model"),
    ];
    for (i, tokenizer) in all.iter().enumerate() {
        for text in &texts {
            let started = Instant::now();
            let ids = tokenizer.encode(text).unwrap();
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "{i} {:?}…: {:?}",
                &text[..3.min(text.len())],
                started.elapsed()
            );
            if i == 0 || i == 3 && !text.contains('▁') {
                assert_eq!(&tokenizer.decode(&ids), text);
            }
        }
    }
}
