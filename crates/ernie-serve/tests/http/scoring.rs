//! `echo` with log-probabilities, as evaluation harnesses use it, against the model's own numbers.

use serde_json::{Value, json};

use crate::model::{END_ID, EOS, logits_after, tokenizer};
use crate::server::Server;

/// ln p(next) after `id` at `position`.
fn logprob(id: u32, position: usize, next: u32) -> f64 {
    let logits = logits_after(id, position);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    f64::from(logits[next as usize]) - sum.ln()
}

fn ask(server: &Server, prompt: &Value, max_tokens: usize) -> Vec<Value> {
    let body = json!({"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "logprobs": 1, "echo": true, "seed": 1234});
    server.good("/v1/completions", &body)["choices"].as_array().unwrap().iter().map(|c| c["logprobs"].clone()).collect()
}

fn check(logprobs: &Value, prompt: &[u32], generated: usize) {
    let values = logprobs["token_logprobs"].as_array().unwrap();
    assert_eq!(values.len(), prompt.len() + generated);
    for name in ["tokens", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[name].as_array().unwrap().len(), values.len(), "{name}");
    }
    assert!(values[0].is_null() && logprobs["top_logprobs"][0].is_null());
    for (at, pair) in prompt.windows(2).enumerate() {
        let (got, want) = (values[at + 1].as_f64().unwrap(), logprob(pair[0], at, pair[1]));
        assert!((got - want).abs() < 1e-4, "{at}: {got} for {want}");
        // The likeliest token and the one at hand are both listed, so a greedy token shows as the largest. Of tokens that
        // look alike (parts of characters) the likelier is.
        let top = logprobs["top_logprobs"][at + 1].as_object().unwrap();
        assert!(top.contains_key(logprobs["tokens"][at + 1].as_str().unwrap()));
        assert!(top.values().all(|value| value.as_f64() >= Some(got)));
    }
}

#[test]
fn prompts_are_scored_exactly() {
    let server = Server::usual();
    let prompts: Vec<Vec<u32>> = vec![(10..60).collect(), vec![77], (200..333).rev().collect()];
    for max_tokens in [0, 1, 3] {
        let scored = ask(&server, &json!(prompts), max_tokens);
        for (logprobs, prompt) in scored.iter().zip(&prompts) {
            check(logprobs, prompt, max_tokens);
        }
    }
}

#[test]
fn the_token_that_ends_an_answer_is_counted() {
    // A harness takes the last entry for the one generated token and drops it.
    let server = Server::usual();
    let prompt = [10, 11, END_ID];
    let logprobs = &ask(&server, &json!(prompt), 1)[0];
    check(logprobs, &prompt, 1);
    assert_eq!(logprobs["tokens"][3], tokenizer().token(EOS).unwrap());
}

#[test]
fn an_echo_is_the_prompt_s_text() {
    let server = Server::usual();
    let text = "the quick brown fox";
    let body = |stream| json!({"prompt": text, "max_tokens": 4, "temperature": 0, "logprobs": 0, "echo": true, "stream": stream});
    let whole = server.good("/v1/completions", &body(false));
    let shown = whole["choices"][0]["text"].as_str().unwrap();
    assert!(shown.starts_with(text) && shown.len() > text.len());
    let logprobs = &whole["choices"][0]["logprobs"];
    let pieces: Vec<&str> = logprobs["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    let offsets: Vec<u64> = logprobs["text_offset"].as_array().unwrap().iter().map(|o| o.as_u64().unwrap()).collect();
    let mut offset = 0;
    for (piece, &at) in pieces.iter().zip(&offsets) {
        assert_eq!(at, offset);
        offset += piece.chars().count() as u64;
    }
    let answer = server.post("/v1/completions", &body(true));
    let events = answer.events();
    let streamed: String = events.iter().filter_map(|e| e["choices"][0]["text"].as_str()).collect();
    assert_eq!(streamed, shown);
    let values: Vec<Value> = events
        .iter()
        .filter_map(|e| e["choices"][0]["logprobs"]["token_logprobs"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(&values, logprobs["token_logprobs"].as_array().unwrap());
    let only = server.post("/v1/completions", &json!({"prompt": text, "max_tokens": 0, "echo": true, "stream": true}));
    assert!(only.is_done() && only.events()[0]["choices"][0]["text"] == text);
}
