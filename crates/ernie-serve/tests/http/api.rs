//! What the routes answer.

use serde_json::{Value, json};

use crate::model::{CONTEXT, END_ID, FAIL_ID, tokenizer};
use crate::server::{Server, Setup};

fn chat(more: Value) -> Value {
    merge(json!({"messages": [{"role": "user", "content": "the quick fox"}], "max_tokens": 24, "temperature": 0}), more)
}

fn merge(mut base: Value, more: Value) -> Value {
    for (name, value) in more.as_object().expect("an object") {
        base[name] = value.clone();
    }
    base
}

#[test]
fn a_chat_is_the_same_whole_and_as_a_stream() {
    let server = Server::usual();
    let whole = server.good("/v1/chat/completions", &chat(json!({})));
    assert_eq!((&whole["object"], &whole["model"]), (&json!("chat.completion"), &json!("told")));
    let choice = &whole["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["role"]), (&json!("length"), &json!("assistant")));
    assert_eq!(whole["usage"]["completion_tokens"], 24);
    let prompt = whole["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(whole["usage"]["total_tokens"], prompt + 24);

    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let answer = server.post("/v1/chat/completions", &chat(more));
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert!(answer.is_done());
    let events = answer.events();
    let deltas: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["delta"]).collect();
    assert_eq!(deltas[0], &json!({"role": "assistant", "content": ""}));
    let text: String = deltas.iter().filter_map(|delta| delta["content"].as_str()).collect();
    assert_eq!(choice["message"]["content"], text);
    assert_eq!(events[events.len() - 2]["choices"][0]["finish_reason"], "length");
    let last = events.last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
    assert!(events.iter().all(|event| event["id"] == events[0]["id"]));
}

#[test]
fn choices_differ_and_seeds_repeat_them() {
    let server = Server::usual();
    let ask = json!({"n": 3, "seed": 7, "temperature": 1.5});
    let texts = |value: &Value| -> Vec<String> {
        let choices = value["choices"].as_array().unwrap();
        choices.iter().map(|choice| choice["message"]["content"].as_str().unwrap().to_owned()).collect()
    };
    let first = texts(&server.good("/v1/chat/completions", &chat(ask.clone())));
    assert_eq!(first, texts(&server.good("/v1/chat/completions", &chat(ask.clone()))));
    assert!(first[0] != first[1] && first[1] != first[2]);
    let mut streamed = vec![String::new(); 3];
    for event in server.post("/v1/chat/completions", &chat(merge(ask, json!({"stream": true})))).events() {
        let choice = &event["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        streamed[index] += choice["delta"]["content"].as_str().unwrap_or_default();
    }
    assert_eq!(streamed, first);
    let one = server.good("/v1/chat/completions", &chat(json!({"seed": 7, "temperature": 1.5})));
    assert_eq!(texts(&one)[0], first[0]);
}

#[test]
fn stop_strings_end_an_answer_and_do_not_show() {
    let server = Server::usual();
    let text = server.good("/v1/chat/completions", &chat(json!({})))["choices"][0]["message"]["content"].clone();
    let text = text.as_str().unwrap();
    let middle: Vec<char> = text.chars().collect();
    let stop: String = middle[middle.len() / 2..middle.len() / 2 + 3].iter().collect();
    let shown = &text[..text.find(&stop).unwrap()];
    for stop in [json!(stop), json!([stop]), json!(["never there", stop])] {
        let value = server.good("/v1/chat/completions", &chat(json!({"stop": stop})));
        assert_eq!(value["choices"][0]["message"]["content"], shown);
        assert_eq!(value["choices"][0]["finish_reason"], "stop");
    }
}

#[test]
fn chats_give_log_probabilities() {
    let server = Server::usual();
    let ask = json!({"logprobs": true, "top_logprobs": 3, "max_tokens": 5});
    let value = server.good("/v1/chat/completions", &chat(ask.clone()));
    let content = value["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(content.len(), 5);
    for entry in &content {
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // Greedy: the token is the likeliest.
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&entry["token"], &entry["logprob"]));
        assert!(entry["logprob"].as_f64().unwrap() < 0.0 && entry["bytes"].is_array());
    }
    let events = server.post("/v1/chat/completions", &chat(merge(ask, json!({"stream": true})))).events();
    let streamed: Vec<Value> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(streamed, content);
    server.bad("/v1/chat/completions", &chat(json!({"top_logprobs": 3})), 400, "top_logprobs");
}

#[test]
fn bias_and_penalties_reach_the_sampler() {
    let server = Server::usual();
    let bias = json!({"logit_bias": {"300": 100}, "max_tokens": 4});
    let value = server.good(
        "/v1/completions",
        &json!({"prompt": [9], "temperature": 0, "return_token_ids": true,
        "logit_bias": bias["logit_bias"], "max_tokens": 4}),
    );
    assert_eq!(value["choices"][0]["token_ids"], json!([300, 300, 300, 300]));
    let value = server.good(
        "/v1/completions",
        &json!({"prompt": [9], "temperature": 0, "return_token_ids": true,
        "logit_bias": bias["logit_bias"], "max_tokens": 2, "presence_penalty": 100}),
    );
    assert_ne!(value["choices"][0]["token_ids"][1], 300);
}

#[test]
fn completions_take_text_ids_and_lists_of_either() {
    let server = Server::usual();
    let ask = |prompt: Value| {
        let body = json!({"prompt": prompt, "max_tokens": 6, "temperature": 0});
        let value = server.good("/v1/completions", &body);
        let choices = value["choices"].as_array().unwrap();
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let text = "the quick";
    let ids = tokenizer().encode(text).unwrap();
    let one = ask(json!(text));
    assert_eq!(one.len(), 1);
    assert_eq!(ask(json!(ids)), one);
    let both = ask(json!([text, "brown fox"]));
    assert_eq!((both.len(), &both[0]), (2, &one[0]));
    assert_eq!(ask(json!([ids, [9, 10]]))[0], one[0]);
}

#[test]
fn an_end_id_ends_an_answer_and_can_be_ignored() {
    let server = Server::usual();
    let body = json!({"prompt": [9, END_ID], "max_tokens": 5, "temperature": 0, "return_token_ids": true});
    let value = server.good("/v1/completions", &body);
    let choice = &value["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(""), &json!("stop")));
    assert_eq!(value["usage"]["completion_tokens"], 0);
    let value = server.good("/v1/completions", &merge(body, json!({"ignore_eos": true})));
    assert_eq!(value["choices"][0]["token_ids"].as_array().unwrap().len(), 5);
    let stop =
        json!({"prompt": [9], "max_tokens": 5, "temperature": 0, "logit_bias": {"300": 100}, "stop_token_ids": [300]});
    assert_eq!(server.good("/v1/completions", &stop)["choices"][0]["finish_reason"], "stop");
}

#[test]
fn text_of_callers_never_becomes_a_control_token() {
    let server = Server::usual();
    let count = |body: Value| {
        let value = server.good("/tokenize", &body);
        let ids = value["tokens"].as_array().unwrap().clone();
        ids.iter().filter(|id| tokenizer().is_control(id.as_u64().unwrap() as u32)).count()
    };
    assert_eq!(count(json!({"prompt": "</s> and <s><|end_of_sentence|>"})), 0);
    let said = |text: &str| json!({"messages": [{"role": "user", "content": text}]});
    assert_eq!(count(said("</s><|end_of_sentence|>hello<s>")), count(said("hello")));
    // Asking for one token by its name is how clients learn its id; see `tokenize`.
    assert_eq!(server.good("/tokenize", &json!({"prompt": "</s>"}))["tokens"], json!([2]));
    // Ids are the documented way to send them.
    server.good("/v1/completions", &json!({"prompt": [2, 9], "max_tokens": 1}));
}

#[test]
fn tokens_go_there_and_back() {
    let server = Server::usual();
    let text = "the quick brown fox: naïve 日本 😀";
    let value = server.good("/tokenize", &json!({"prompt": text, "return_token_strs": true}));
    assert_eq!(value["count"].as_u64().unwrap() as usize, value["tokens"].as_array().unwrap().len());
    assert_eq!(
        (value["token_strs"].as_array().unwrap().len(), &value["max_model_len"]),
        (value["tokens"].as_array().unwrap().len(), &json!(CONTEXT))
    );
    assert_eq!(server.good("/detokenize", &json!({"tokens": value["tokens"]}))["prompt"], text);
    let messages = json!({"messages": [{"role": "user", "content": "hi"}]});
    let with = server.good("/tokenize", &messages)["count"].as_u64().unwrap();
    let without =
        server.good("/tokenize", &merge(messages, json!({"add_generation_prompt": false})))["count"].as_u64().unwrap();
    assert!(with > without);
    let info = server.client().get("/tokenizer_info").json();
    assert_eq!((&info["eos_token"], &info["bos_token"]), (&json!("</s>"), &json!("<s>")));
    assert!(info["chat_template"].as_str().unwrap().contains("Assistant"));
}

#[test]
fn embeddings_are_means_or_last_and_of_length_one() {
    let server = Server::usual();
    // The model's hidden state is (id, position, 1).
    let near = |value: &Value, expect: [f64; 3]| {
        let length = expect.iter().map(|x| x * x).sum::<f64>().sqrt();
        for (got, want) in value["data"][0]["embedding"].as_array().unwrap().iter().zip(expect) {
            assert!((got.as_f64().unwrap() - want / length).abs() < 1e-6, "{value}");
        }
    };
    let ids: Vec<u32> = (10..110).collect();
    let mean = server.good("/v1/embeddings", &json!({"input": ids, "model": "told"}));
    near(&mean, [59.5, 49.5, 1.0]);
    assert_eq!(mean["usage"], json!({"prompt_tokens": 100, "total_tokens": 100}));
    near(&server.good("/v1/embeddings", &json!({"input": ids, "pooling": "last"})), [109.0, 99.0, 1.0]);
    let packed = server.good("/v1/embeddings", &json!({"input": ids, "encoding_format": "base64"}));
    // Three floats are twelve bytes, sixteen characters.
    assert_eq!(packed["data"][0]["embedding"].as_str().unwrap().len(), 16);
    let texts = server.good("/v1/embeddings", &json!({"input": ["the fox", "a line"]}));
    assert_eq!(texts["data"].as_array().unwrap().len(), 2);
    server.bad("/v1/embeddings", &json!({"input": [9], "dimensions": 2}), 400, "dimensions");
    server.bad("/v1/embeddings", &json!({"input": "x", "pooling": "max"}), 400, "pooling");
}

#[test]
fn responses_speak_the_newer_protocol() {
    let server = Server::usual();
    let ask = json!({"input": "the quick fox", "instructions": "be brief", "max_output_tokens": 9, "temperature": 0});
    let whole = server.good("/v1/responses", &ask);
    assert_eq!((&whole["object"], &whole["status"]), (&json!("response"), &json!("incomplete")));
    assert_eq!(whole["incomplete_details"]["reason"], "max_output_tokens");
    let text = whole["output"][0]["content"][0]["text"].as_str().unwrap();
    assert_eq!(whole["usage"]["output_tokens"], 9);

    let answer = server.post("/v1/responses", &merge(ask.clone(), json!({"stream": true})));
    let events = answer.events();
    let names: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(
        names[..4],
        ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    );
    assert_eq!(
        names[names.len() - 4..],
        ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete"]
    );
    assert!(events.iter().enumerate().all(|(at, event)| event["sequence_number"] == at));
    let said: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(
        (said.as_str(), &events.last().unwrap()["response"]["output"][0]["content"][0]["text"]),
        (text, &json!(text))
    );

    let parts = json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "the quick fox"}]}]});
    assert_eq!(server.good("/v1/responses", &merge(ask.clone(), parts))["output"][0]["content"][0]["text"], text);
    for (field, value) in
        [("previous_response_id", json!("resp_1")), ("tools", json!([{}])), ("truncation", json!("auto"))]
    {
        server.bad("/v1/responses", &merge(ask.clone(), json!({field: value})), 400, field);
    }
}

#[test]
fn models_are_listed_and_others_are_not_found() {
    let server = Server::usual();
    let list = server.client().get("/v1/models").json();
    assert_eq!(list["data"][0]["id"], "told");
    assert_eq!(server.client().get("/v1/models/told").json()["id"], "told");
    let missing = server.client().get("/v1/models/other");
    assert_eq!(missing.status, 404);
    missing.assert_refusal("other");
    server.bad("/v1/chat/completions", &chat(json!({"model": "other"})), 404, "other");
    server.good("/v1/chat/completions", &chat(json!({"model": "told"})));
}

#[test]
fn unknown_fields_are_ignored_and_dishonoured_ones_refused() {
    let server = Server::usual();
    server.good(
        "/v1/chat/completions",
        &chat(json!({
            "user": "me", "metadata": {"a": "b"}, "store": true, "service_tier": "auto", "parallel_tool_calls": true,
            "tools": [], "functions": null, "response_format": {"type": "text"}, "tool_choice": "none", "suffix": "",
            "something_of_tomorrow": [1, 2], "top_k": -1, "min_tokens": 0, "modalities": ["text"],
        })),
    );
    for (field, value) in [
        ("chat_template", json!("{{ messages }}")),
        ("chat_template_kwargs", json!({"tokenize": true})),
        ("best_of", json!(3)),
        ("functions", json!([{"name": "f"}])),
        ("guided_regex", json!("a+")),
        ("min_tokens", json!(3)),
        ("suffix", json!("x")),
        ("skip_special_tokens", json!(false)),
        ("modalities", json!(["text", "audio"])),
        ("use_beam_search", json!(true)),
        ("logits_processors", json!(["x"])),
        ("reasoning_effort", json!("high")),
    ] {
        server.bad("/v1/chat/completions", &chat(json!({field: value})), 400, field);
    }
}

#[test]
fn a_model_without_a_tokenizer_serves_ids() {
    let server = Server::start(Setup { with_tokenizer: false, ..Setup::default() });
    let body = json!({"prompt": [9, 10], "max_tokens": 3, "temperature": 0, "return_token_ids": true});
    let choice = &server.good("/v1/completions", &body)["choices"][0];
    assert_eq!((&choice["text"], choice["token_ids"].as_array().unwrap().len()), (&json!(""), 3));
    for (path, body) in [
        ("/v1/completions", json!({"prompt": "text"})),
        ("/v1/completions", json!({"prompt": [9], "stop": "x"})),
        ("/v1/chat/completions", chat(json!({}))),
        ("/tokenize", json!({"prompt": "text"})),
        ("/detokenize", json!({"tokens": [9]})),
    ] {
        server.bad(path, &body, 400, "no tokenizer");
    }
}

#[test]
fn a_model_that_fails_is_said_so_and_others_go_on() {
    let server = Server::usual();
    server.bad("/v1/completions", &json!({"prompt": [FAIL_ID], "max_tokens": 2}), 500, "told to fail");
    let answer = server.post("/v1/completions", &json!({"prompt": [FAIL_ID], "max_tokens": 2, "stream": true}));
    let error = answer.events().pop().unwrap();
    assert_eq!(error["error"]["type"], "server_error");
    assert!(!answer.is_done());
    server.good("/v1/completions", &json!({"prompt": [9], "max_tokens": 2}));
    server.wait_until_idle();
}

#[test]
fn every_route_is_described() {
    let server = Server::usual();
    let document = server.client().get("/openapi.json").json();
    for route in crate::safety::ROUTES {
        let (method, path) = route.split_once(' ').unwrap();
        assert!(document["paths"][path][method.to_lowercase()]["summary"].is_string(), "{route}");
    }
    let paths = document["paths"].as_object().unwrap();
    let described: usize = paths.values().map(|path| path.as_object().unwrap().len()).sum();
    assert_eq!(described, crate::safety::ROUTES.len(), "the list of the tests is that of the server");
}
