//! The files around a model: folders as published, side files, GGUF, training, saving.
#![allow(clippy::print_stderr)]

mod tokenizer_support;

use std::path::{Path, PathBuf};

use ernie_data::Error;
use ernie_data::chat::{ChatTemplate, Message};
use ernie_data::tokenizer::{Piece, SideFiles, TokenKind, Tokenizer, TrainOptions, text_from_bytes, train_bpe};
use ernie_files::gguf::Gguf;
use serde_json::json;
use tokenizer_support::{fixture, gunzip, skipped, strings};

/// A folder as ERNIE-4.5 publishes it, around the small model: ids 1800… are added tokens, the digits not special.
fn ernie_folder(folder: &Path) {
    let model = fixture("sp_ernie.model");
    let plain = Tokenizer::from_sentencepiece(&model, &SideFiles::default()).unwrap();
    std::fs::write(folder.join("tokenizer.model"), model).unwrap();
    let flags = |content: &str, special: bool| json!({"content": content, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": special});
    let mut decoder = serde_json::Map::new();
    for (id, content) in ["<unk>", "<s>", "</s>"].iter().enumerate() {
        decoder.insert(id.to_string(), flags(content, true));
    }
    for digit in '0'..='9' {
        let id = plain.id_of(&digit.to_string()).unwrap();
        decoder.insert(id.to_string(), flags(&digit.to_string(), false));
    }
    let first = plain.vocab_size();
    let mut added = serde_json::Map::new();
    for (i, content) in
        ["<|end_of_sentence|>", "<|begin_of_sentence|>", "<|IMAGE_PLACEHOLDER|>", "<|LOC_0|>"].iter().enumerate()
    {
        decoder.insert((first + i).to_string(), flags(content, true));
        added.insert((*content).to_owned(), (first + i).into());
    }
    let config = json!({
        "add_bos_token": false, "add_eos_token": false, "add_prefix_space": false, "legacy": true,
        "added_tokens_decoder": decoder, "additional_special_tokens": ["<|IMAGE_PLACEHOLDER|>"],
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>",
        "cls_token": "<|begin_of_sentence|>", "sep_token": "<|end_of_sentence|>", "mask_token": "<mask:1>",
        "tokenizer_class": "LlamaTokenizer", "clean_up_tokenization_spaces": false,
    });
    let map = json!({"bos_token": {"content": "<s>", "lstrip": false}, "cls_token": "<|begin_of_sentence|>"});
    for (name, value) in
        [("tokenizer_config.json", config), ("special_tokens_map.json", map), ("added_tokens.json", added.into())]
    {
        std::fs::write(folder.join(name), serde_json::to_vec(&value).unwrap()).unwrap();
    }
}

#[test]
fn a_folder_as_ernie_publishes_it() {
    let folder = tempfile::tempdir().unwrap();
    ernie_folder(folder.path());
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos(), tokenizer.pad(), tokenizer.unk()),
        (Some(1), Some(2), Some(0), Some(0))
    );
    let (cls, sep) = (tokenizer.role("cls_token").unwrap(), tokenizer.role("sep_token").unwrap());
    assert_eq!(tokenizer.token(cls), Some("<|begin_of_sentence|>"));
    assert!(!tokenizer.adds_bos() && !tokenizer.adds_eos());
    assert_eq!(tokenizer.role("mask_token"), None);

    let rendered = ChatTemplate::for_tokenizer(&tokenizer)
        .unwrap()
        .render(&[Message::user("Is 12</s>3?"), Message::assistant("No<|LOC_0|>.")], true, &tokenizer)
        .unwrap();
    let ids = rendered.encode(&tokenizer).unwrap();
    assert_eq!(ids[0], cls);
    assert_eq!(ids.iter().filter(|id| tokenizer.is_control(**id)).copied().collect::<Vec<_>>(), [cls, sep]);
    assert_eq!(tokenizer.decode(&ids), rendered.text());
    // The trailing space of "Assistant: " is a piece of its own.
    assert_eq!(tokenizer.token(*ids.last().unwrap()), Some("▁"));
    // Digits are ordinary text, one by one, in callers' text too.
    let digits = tokenizer.encode("12").unwrap();
    assert_eq!(digits.len(), 2);
    assert_eq!(tokenizer.kind(digits[0]), Some(TokenKind::Added));
    assert!(!tokenizer.is_control(digits[0]));
    assert_eq!(tokenizer.encode_with_special("a</s>").unwrap().last(), Some(&2));
    assert_eq!(tokenizer.decode_skipping_special(&ids), "User: Is 12</s>3?\nAssistant: No<|LOC_0|>.Assistant: ");

    // Saved and read again, it is the same.
    let copy = tempfile::tempdir().unwrap();
    tokenizer.save(copy.path()).unwrap();
    let again = Tokenizer::from_folder(copy.path()).unwrap();
    for text in strings().iter().take(300) {
        assert_eq!(again.encode_with_special(text).unwrap(), tokenizer.encode_with_special(text).unwrap());
    }
}

#[test]
fn pieces_are_one_string() {
    let tokenizer = Tokenizer::from_json_bytes(&gunzip(&fixture("byte_level.json.gz"))).unwrap();
    for text in strings().iter().filter(|t| t.chars().count() > 2).take(400) {
        let middle = text.char_indices().nth(text.chars().count() / 2).unwrap().0;
        let (a, b) = text.split_at(middle);
        let piece = |text, trusted| Piece { text, trusted };
        let whole = tokenizer.encode_with_special(text).unwrap();
        assert_eq!(tokenizer.encode_marked(&[piece(a, true), piece("", false), piece(b, true)]).unwrap(), whole);
        assert_eq!(
            tokenizer.encode_marked(&[piece(a, false), piece(b, false)]).unwrap(),
            tokenizer.encode(text).unwrap()
        );
        let mixed = tokenizer.encode_marked(&[piece(a, true), piece(b, false)]).unwrap();
        if !text.contains('<') {
            assert_eq!(mixed, whole);
        }
    }
}

#[test]
fn legacy_false_puts_the_prefix_at_the_start_only() {
    let model = fixture("sp_llama.model");
    let side = |legacy: bool| SideFiles {
        tokenizer_config: Some(serde_json::to_vec(&json!({"legacy": legacy})).unwrap()),
        ..SideFiles::default()
    };
    let pieces = |legacy| {
        let t = Tokenizer::from_sentencepiece(&model, &side(legacy)).unwrap();
        let ids = t.encode_with_special("a</s>a").unwrap();
        ids.iter().map(|id| t.token(*id).unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(pieces(true), ["▁a", "</s>", "▁a"]);
    assert_eq!(pieces(false), ["▁a", "</s>", "a"]);
}

#[test]
fn training_is_deterministic_and_round_trips() {
    let corpus: Vec<String> = strings().into_iter().filter(|t| t.len() > 40).collect();
    let options = TrainOptions::ernie(800);
    let train = |texts: &[String]| train_bpe(texts.iter(), &options).unwrap();
    let tokenizer = train(&corpus);
    assert_eq!(tokenizer.vocab_size(), 800);
    let mut reversed = corpus.clone();
    reversed.reverse();
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tokenizer.save(one.path()).unwrap();
    train(&reversed).save(two.path()).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        assert_eq!(std::fs::read(one.path().join(name)).unwrap(), std::fs::read(two.path().join(name)).unwrap());
    }
    let again = Tokenizer::from_folder(one.path()).unwrap();
    for text in strings() {
        let ids = again.encode(&text).unwrap();
        assert_eq!(ids, tokenizer.encode(&text).unwrap());
        assert_eq!(again.decode(&ids), text);
    }
    assert_eq!((again.pad(), again.bos(), again.eos()), (Some(0), Some(1), Some(2)));
    assert!(again.chat_template().is_some());
    assert!(train_bpe(corpus.iter(), &TrainOptions::ernie(200)).unwrap_err().is_input());
    // Nothing to learn from is a tokenizer of bytes.
    let empty = train_bpe(std::iter::empty::<&str>(), &TrainOptions::ernie(1000)).unwrap();
    assert_eq!(empty.vocab_size(), 261);
    assert_eq!(empty.decode(&empty.encode("é😀").unwrap()), "é😀");
}

#[test]
fn broken_utf8_becomes_replacement_characters() {
    assert_eq!(text_from_bytes(b"a\xFFb\xE4\xBD"), "a\u{FFFD}b\u{FFFD}");
    assert_eq!(text_from_bytes(b"\xEF\xBB\xBFabc"), "abc");
    let tokenizer = Tokenizer::from_sentencepiece(&fixture("sp_ernie.model"), &SideFiles::default()).unwrap();
    // Half a character, then text: one U+FFFD, and nothing before it is sure.
    let (half, a) = (tokenizer.id_of("<0xE4>").unwrap(), tokenizer.id_of("a").unwrap());
    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(half), None);
    assert_eq!(stream.push(a).as_deref(), Some("\u{FFFD}a"));
    assert_eq!(stream.push(half), None);
    assert_eq!(stream.finish().as_deref(), Some("\u{FFFD}"));
    assert_eq!(tokenizer.decode(&[half, a, 4_000_000_000]), "\u{FFFD}a\u{FFFD}");
}

#[test]
fn a_folder_without_tokenizer_says_so() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Tokenizer::from_folder(folder.path()), Err(Error::NoTokenizer { .. })));
    std::fs::write(folder.path().join("tokenizer.json"), b"{").unwrap();
    let error = Tokenizer::from_folder(folder.path()).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json") && error.is_input(), "{error}");
}

/// A GGUF that holds metadata only.
fn gguf(folder: &Path, entries: &[(&str, Meta)]) -> PathBuf {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend(0u64.to_le_bytes());
    out.extend((entries.len() as u64).to_le_bytes());
    let text = |out: &mut Vec<u8>, s: &str| {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.as_bytes());
    };
    for (key, value) in entries {
        text(&mut out, key);
        match value {
            Meta::Text(s) => {
                out.extend(8u32.to_le_bytes());
                text(&mut out, s);
            }
            Meta::Number(n) => {
                out.extend(4u32.to_le_bytes());
                out.extend(n.to_le_bytes());
            }
            Meta::Texts(list) => {
                out.extend(9u32.to_le_bytes());
                out.extend(8u32.to_le_bytes());
                out.extend((list.len() as u64).to_le_bytes());
                list.iter().for_each(|s| text(&mut out, s));
            }
            Meta::Floats(list) => {
                out.extend(9u32.to_le_bytes());
                out.extend(6u32.to_le_bytes());
                out.extend((list.len() as u64).to_le_bytes());
                list.iter().for_each(|f| out.extend(f.to_le_bytes()));
            }
            Meta::Numbers(list) => {
                out.extend(9u32.to_le_bytes());
                out.extend(5u32.to_le_bytes());
                out.extend((list.len() as u64).to_le_bytes());
                list.iter().for_each(|n| out.extend(n.to_le_bytes()));
            }
        }
    }
    out.resize(out.len().next_multiple_of(32), 0);
    let path = folder.join("x.gguf");
    std::fs::write(&path, out).unwrap();
    path
}

#[derive(Clone)]
enum Meta {
    Text(&'static str),
    Number(u32),
    Texts(Vec<String>),
    Floats(Vec<f32>),
    Numbers(Vec<i32>),
}

/// The Llama-style fixture as a GGUF, by way of its pieces.
fn llama_entries() -> Vec<(&'static str, Meta)> {
    let t = Tokenizer::from_sentencepiece(&fixture("sp_llama.model"), &SideFiles::default()).unwrap();
    let ids = 0..t.vocab_size() as u32;
    let kinds = ids.clone().map(|id| match t.kind(id).unwrap() {
        TokenKind::Unknown => 2,
        TokenKind::Control => 3,
        TokenKind::Byte => 6,
        _ => 1,
    });
    // Merges come in order of rank; characters after them have the lowest scores.
    let first_merge = ids.clone().find(|id| t.kind(*id) == Some(TokenKind::Normal)).unwrap();
    vec![
        ("tokenizer.ggml.model", Meta::Text("llama")),
        ("tokenizer.ggml.tokens", Meta::Texts(ids.clone().map(|id| t.token(id).unwrap().to_owned()).collect())),
        ("tokenizer.ggml.scores", Meta::Floats(ids.map(|id| -(id.saturating_sub(first_merge) as f32)).collect())),
        ("tokenizer.ggml.token_type", Meta::Numbers(kinds.collect())),
        ("tokenizer.ggml.bos_token_id", Meta::Number(1)),
        ("tokenizer.ggml.eos_token_id", Meta::Number(2)),
    ]
}

#[test]
fn sentencepiece_inside_a_gguf() {
    let folder = tempfile::tempdir().unwrap();
    let read = |entries: &[(&str, Meta)]| Tokenizer::from_gguf(&Gguf::open(&gguf(folder.path(), entries)).unwrap());
    let tokenizer = read(&llama_entries()).unwrap();
    let reference = Tokenizer::from_sentencepiece(&fixture("sp_llama.model"), &SideFiles::default()).unwrap();
    for text in strings() {
        assert_eq!(tokenizer.encode(&text).unwrap(), reference.encode(&text).unwrap(), "{text:?}");
    }
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
    let copy = tempfile::tempdir().unwrap();
    tokenizer.save(copy.path()).unwrap();
    let again = Tokenizer::from_folder(copy.path()).unwrap();
    assert_eq!(again.encode_with_special("the</s>").unwrap(), tokenizer.encode_with_special("the</s>").unwrap());

    // One thing wrong at a time.
    let change = |key: &str, value: Meta| {
        let mut entries = llama_entries();
        entries.iter_mut().find(|(k, _)| k.ends_with(key)).unwrap().1 = value;
        read(&entries).unwrap_err()
    };
    for (error, says) in [
        (change("model", Meta::Text("t5")), "t5"),
        (change("scores", Meta::Floats(vec![0.0])), "scores"),
        (change("token_type", Meta::Numbers(vec![1])), "token_type"),
        (change("bos_token_id", Meta::Number(1 << 30)), "bos_token_id"),
        (change("tokens", Meta::Texts(Vec::new())), "tokens"),
    ] {
        assert!(error.is_input() && error.to_string().contains(says), "{error}");
    }
}

#[test]
fn byte_level_inside_a_gguf() {
    let file: serde_json::Value = serde_json::from_slice(&gunzip(&fixture("byte_level.json.gz"))).unwrap();
    let mut tokens: Vec<(String, u64)> =
        file["model"]["vocab"].as_object().unwrap().iter().map(|(t, id)| (t.clone(), id.as_u64().unwrap())).collect();
    tokens.sort_by_key(|(_, id)| *id);
    let merges: Vec<String> = file["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| {
            m.as_str().map_or_else(|| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap()), str::to_owned)
        })
        .collect();
    let kinds = (0..tokens.len()).map(|id| if id < 3 { 3 } else { 1 }).collect();
    let entries = |pre: &'static str| {
        vec![
            ("tokenizer.ggml.model", Meta::Text("gpt2")),
            ("tokenizer.ggml.pre", Meta::Text(pre)),
            ("tokenizer.ggml.tokens", Meta::Texts(tokens.iter().map(|(t, _)| t.clone()).collect())),
            ("tokenizer.ggml.merges", Meta::Texts(merges.clone())),
            ("tokenizer.ggml.token_type", Meta::Numbers(Clone::clone(&kinds))),
        ]
    };
    let folder = tempfile::tempdir().unwrap();
    let read = |pre| Tokenizer::from_gguf(&Gguf::open(&gguf(folder.path(), &entries(pre))).unwrap());
    // "smollm" cuts as the fixture does: single digits, then GPT-2's pattern.
    let tokenizer = read("smollm").unwrap();
    for (text, expected) in strings().iter().zip(tokenizer_support::reference("byte_level")) {
        if !text.contains("<sep>") && !text.contains("www.") {
            assert_eq!(tokenizer.encode_with_special(text).unwrap(), expected, "{text:?}");
        }
    }
    for pre in ["default", "gpt-2", "llama-bpe", "qwen2"] {
        let tokenizer = read(pre).unwrap();
        for text in strings() {
            assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()), text);
        }
    }
    let error = read("no-such-pre").unwrap_err();
    assert!(error.is_input() && error.to_string().contains("no-such-pre"), "{error}");
}

#[test]
fn smollm2() {
    let Some(path) = std::env::var_os("ERNIE_SMOLLM2_GGUF") else {
        return skipped("SmolLM2's tokenizer (set ERNIE_SMOLLM2_GGUF to SmolLM2-135M-Instruct.Q4_1.gguf)");
    };
    let path = PathBuf::from(path);
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos(), tokenizer.pad()), (49_152, Some(2), Some(2)));
    assert!(!tokenizer.adds_bos());
    let template = ChatTemplate::for_tokenizer(&tokenizer).unwrap();
    let question = Message::user("What is the capital of France?");
    let system = Message::system("S");
    let rendered = template.render(&[system, question.clone()], true, &tokenizer).unwrap();
    let turn = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(rendered.text(), format!("<|im_start|>system\nS<|im_end|>\n{turn}"));
    assert_eq!(rendered.encode(&tokenizer).unwrap(), tokenizer.encode_with_special(rendered.text()).unwrap());
    assert!(template.render(&[question], true, &tokenizer).unwrap().text().ends_with(turn));
    assert_eq!(
        tokenizer.encode_with_special(turn).unwrap(),
        [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
    );
    for text in strings() {
        let ids = tokenizer.encode(&text).unwrap();
        assert!(ids.iter().all(|id| !tokenizer.is_control(*id)));
        // This vocabulary lacks a few bytes (0x14 is one); as in the reference, they vanish.
        let has = |byte: &u8| *byte > 127 || !tokenizer.encode(&char::from(*byte).to_string()).unwrap().is_empty();
        let kept: Vec<u8> = text.bytes().filter(has).collect();
        assert_eq!(tokenizer.decode(&ids).as_bytes(), kept);
    }
}
