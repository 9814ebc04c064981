//! Ids compared one by one with the Python packages `sentencepiece` and `tokenizers`, recorded by
//! `fixtures/tokenizer/make_fixtures.py` on more than 2,000 strings: prose, Chinese, code, emoji, and hostile ones.

mod tokenizer_support;

use ernie_data::tokenizer::{DecodeStream, SideFiles, Tokenizer};
use tokenizer_support::{fixture, gunzip, reference, strings, test_data};

fn sentencepiece(name: &str) -> Tokenizer {
    Tokenizer::from_sentencepiece(&fixture(&format!("{name}.model")), &SideFiles::default()).unwrap()
}

fn json(name: &str) -> Tokenizer {
    Tokenizer::from_json_bytes(&gunzip(&fixture(&format!("{name}.json.gz")))).unwrap()
}

/// Compares every string; `with_special` says which encoder is the counterpart of the reference.
fn compare(name: &str, tokenizer: &Tokenizer, with_special: bool, skip: impl Fn(&str) -> bool) {
    let mut compared = 0;
    let mut wrong = Vec::new();
    for (text, expected) in strings().iter().zip(reference(name)) {
        if skip(text) {
            continue;
        }
        let ids = if with_special { tokenizer.encode_with_special(text) } else { tokenizer.encode(text) }.unwrap();
        compared += 1;
        if ids != expected {
            wrong.push(format!("{text:?}\n  got      {ids:?}\n  expected {expected:?}"));
        }
        stream_agrees(tokenizer, &ids);
    }
    assert!(
        wrong.is_empty(),
        "{name}: {} of {compared} differ:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(12)].join("\n")
    );
    assert!(compared >= 2_000, "{name}: only {compared} strings compared");
}

/// What arrives piece by piece is what comes at once, and every piece is whole characters.
fn stream_agrees(tokenizer: &Tokenizer, ids: &[u32]) {
    let mut stream: DecodeStream = tokenizer.stream_with_special();
    let mut text = String::new();
    for id in ids {
        text.extend(stream.push(*id));
    }
    text.extend(stream.finish());
    assert_eq!(text, tokenizer.decode_continuation(ids));
}

#[test]
fn sentencepiece_as_ernie_and_as_llama() {
    for name in ["sp_ernie", "sp_llama"] {
        let tokenizer = sentencepiece(name);
        compare(name, &tokenizer, false, |_| false);
        for text in strings() {
            // The mark itself cannot be told from a space, in SentencePiece either.
            let lossy = text.contains('▁') || (name == "sp_llama" && text.is_empty());
            if !lossy {
                assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()), text);
            }
        }
    }
}

#[test]
fn sentencepiece_with_nfkc_and_user_defined_symbols() {
    compare("sp_nmt_nfkc", &sentencepiece("sp_nmt_nfkc"), false, |_| false);
}

#[test]
fn sentencepiece_with_suffix_space_folded_case_and_control_like_symbols() {
    // The reference never takes "<s>" for the control piece; an encoder that trusts the text does.
    let control = |text: &str| ["<s>", "</s>", "<pad>", "<mask:1>"].iter().any(|c| text.contains(c));
    let tokenizer = sentencepiece("sp_suffix");
    compare("sp_suffix", &tokenizer, true, control);
    for text in strings() {
        assert!(tokenizer.encode(&text).unwrap().iter().all(|id| !tokenizer.is_control(*id)), "{text:?}");
    }
}

#[test]
fn byte_level_json() {
    for name in ["byte_level", "modern"] {
        let tokenizer = json(name);
        compare(name, &tokenizer, true, |_| false);
        for text in strings() {
            let ids = tokenizer.encode(&text).unwrap();
            assert!(ids.iter().all(|id| !tokenizer.is_control(*id)), "{text:?}");
            if name == "byte_level" {
                assert_eq!(tokenizer.decode(&ids), text);
            }
        }
    }
}

#[test]
fn converted_sentencepiece_json() {
    for name in ["llama_style", "ernie_style", "metaspace"] {
        let tokenizer = json(name);
        compare(name, &tokenizer, true, |_| false);
        for text in strings() {
            let ids = tokenizer.encode(&text).unwrap();
            assert!(ids.iter().all(|id| !tokenizer.is_control(*id)), "{text:?}");
        }
    }
}

#[test]
fn gpt2() {
    let Some(folder) = test_data("GPT-2's tokenizer") else { return };
    let vocab: serde_json::Value =
        serde_json::from_slice(&gunzip(&std::fs::read(folder.join("tokenizers/gpt2_vocab.json.gz")).unwrap())).unwrap();
    let merges =
        String::from_utf8(gunzip(&std::fs::read(folder.join("tokenizers/gpt2_merges.txt.gz")).unwrap())).unwrap();
    let merges: Vec<&str> = merges.lines().filter(|l| !l.starts_with("#version") && !l.is_empty()).collect();
    let byte_level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false});
    let file = serde_json::json!({
        "added_tokens": [{"id": 50256, "content": "<|endoftext|>", "special": true}],
        "pre_tokenizer": byte_level, "decoder": byte_level, "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    let tokenizer = Tokenizer::from_json_bytes(&serde_json::to_vec(&file).unwrap()).unwrap();
    compare("gpt2", &tokenizer, false, |_| false);
    for text in strings() {
        assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()), text);
    }
    assert_eq!(tokenizer.encode_with_special("a<|endoftext|>").unwrap(), [64, 50256]);
}

#[test]
fn unigram_is_refused_by_name() {
    let mut models = vec![fixture("unigram.model")];
    models.extend(
        test_data("a large Unigram model")
            .map(|f| std::fs::read(f.join("tokenizers/chinese_llama_sp20k.model")).unwrap()),
    );
    for model in models {
        let error = Tokenizer::from_sentencepiece(&model, &SideFiles::default()).unwrap_err();
        assert!(error.is_input());
        assert!(error.to_string().contains("Unigram"), "{error}");
    }
}
