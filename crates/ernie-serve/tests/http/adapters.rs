//! A model and its adapters, asked for by name.

use ernie_serve::http::Config;
use serde_json::{Value, json};

use crate::model::{APART, logits_after};
use crate::server::{Server, Setup};

fn server() -> Server {
    let usual = Setup::default();
    let config = Config { adapters: vec!["formal".into(), "brief".into()], ..usual.config };
    Server::start(Setup { config, ..usual })
}

/// The names, and the positions that each one's answers begin at.
const ALL: [(&str, usize); 3] = [("told", 0), ("formal", APART), ("brief", 2 * APART)];

/// The greedy answer to ids.
fn greedy(prompt: &[u32], first: usize, tokens: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..tokens {
        let logits = logits_after(ids[ids.len() - 1], first + ids.len() - 1);
        let best = (0..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best });
        ids.push(best as u32);
    }
    ids.split_off(prompt.len())
}

#[test]
fn the_model_and_its_adapters_are_listed() {
    let server = server();
    let list = server.client().get("/v1/models").json();
    let cards = list["data"].as_array().unwrap();
    let ids: Vec<&Value> = cards.iter().map(|card| &card["id"]).collect();
    assert_eq!(ids, ["told", "formal", "brief"], "the model first");
    for (at, card) in cards.iter().enumerate() {
        let parent = if at == 0 { Value::Null } else { json!("told") };
        assert_eq!((&card["root"], &card["parent"], &card["object"]), (&json!("told"), &parent, &json!("model")));
        let name = card["id"].as_str().unwrap();
        assert_eq!(server.client().get(&format!("/v1/models/{name}")).json(), *card);
    }
    let missing = server.client().get("/v1/models/other");
    assert_eq!(missing.status, 404);
    missing.assert_refusal("this server has `told`, `formal`, `brief`");
}

#[test]
fn a_request_names_whom_it_asks() {
    let server = server();
    let prompt = [10, 11, 12];
    let ask = |name: &str, more: Value| {
        let mut body = json!({"model": name, "prompt": prompt, "temperature": 0, "ignore_eos": true, "max_tokens": 6,
            "return_token_ids": true});
        more.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        body
    };
    // All at once, so that they share steps.
    std::thread::scope(|scope| {
        for (name, first) in ALL.repeat(4) {
            let (server, ask) = (&server, &ask);
            scope.spawn(move || {
                let answer = server.good("/v1/completions", &ask(name, json!({})));
                assert_eq!(answer["model"], name);
                assert_eq!(answer["choices"][0]["token_ids"], json!(greedy(&prompt, first, 6)), "{name}");
            });
        }
    });
    // Nobody in particular is the model.
    let anybody = server.good("/v1/completions", &ask("told", json!({"model": null})));
    assert_eq!(
        (&anybody["model"], &anybody["choices"][0]["token_ids"]),
        (&json!("told"), &json!(greedy(&prompt, 0, 6)))
    );
    // Prompts are scored through it, too.
    for (name, first) in ALL {
        let scored = server.good("/v1/completions", &ask(name, json!({"echo": true, "logprobs": 0, "max_tokens": 0})));
        let logits = logits_after(10, first);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let got = scored["choices"][0]["logprobs"]["token_logprobs"][1].as_f64().unwrap();
        assert!((got - (f64::from(logits[11]) - sum.ln())).abs() < 1e-4, "{name}: {got}");
    }
}

#[test]
fn every_route_takes_the_name_and_repeats_it() {
    let server = server();
    let messages = json!([{"role": "user", "content": "the quick fox"}]);
    let texts: Vec<String> = ALL
        .iter()
        .map(|(name, _)| {
            let body = json!({"model": name, "messages": messages, "max_tokens": 12, "temperature": 0});
            let whole = server.good("/v1/chat/completions", &body);
            assert_eq!(whole["model"], *name);
            let mut stream = body.clone();
            stream["stream"] = true.into();
            let events = server.post("/v1/chat/completions", &stream).events();
            assert!(events.iter().all(|event| event["model"] == *name));
            let text = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
            let streamed: String =
                events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
            assert_eq!(streamed, text);
            let ask = json!({"model": name, "input": "the quick fox", "max_output_tokens": 4, "temperature": 0});
            assert_eq!(server.good("/v1/responses", &ask)["model"], *name);
            let count = server.good("/tokenize", &json!({"model": name, "prompt": "the fox"}))["count"].clone();
            assert_eq!(count, server.good("/tokenize", &json!({"prompt": "the fox"}))["count"]);
            text
        })
        .collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
    // The hidden state is (id, position, 1), brought to length 1.
    for (name, first) in ALL {
        let vector = server.good("/v1/embeddings", &json!({"model": name, "input": [9, 9], "pooling": "last"}));
        assert_eq!(vector["model"], name);
        let numbers: Vec<f64> =
            vector["data"][0]["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        assert!(
            (numbers[1] / numbers[2] - (first + 1) as f64).abs() < 1e-2 * (first + 1) as f64,
            "{name}: {numbers:?}"
        );
    }
    for (route, body) in [
        ("/v1/chat/completions", json!({"model": "other", "messages": messages})),
        ("/v1/completions", json!({"model": "other", "prompt": "x"})),
        ("/v1/responses", json!({"model": "other", "input": "x"})),
        ("/v1/embeddings", json!({"model": "other", "input": "x"})),
        ("/tokenize", json!({"model": "other", "prompt": "x"})),
        ("/detokenize", json!({"model": "other", "tokens": [9]})),
    ] {
        server.bad(route, &body, 404, "the model `other` is not here");
    }
}
