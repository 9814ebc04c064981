//! Answers of a given form, calls of tools, and reasoning told apart: through the API, whole and as streams.

use serde_json::{Value, json};

use crate::server::{Server, Setup};

const CHAT: &str = "/v1/chat/completions";

fn says(script: &str) -> Server {
    Server::start(Setup { script: Some(script.into()), ..Setup::default() })
}

fn ask(more: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "the fox"}], "max_tokens": 200, "seed": 3});
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

fn tool(name: &str) -> Value {
    let parameters = json!({
        "type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": false,
    });
    json!({"type": "function", "function": {"name": name, "description": "does it", "parameters": parameters}})
}

/// A message put together from a stream's deltas, in the shape of a whole one, and why it ended.
fn joined(events: &[Value]) -> (Value, String) {
    let (mut text, mut reasoning, mut finish) = (String::new(), String::new(), String::new());
    let mut calls: Vec<Value> = Vec::new();
    for event in events {
        let choice = &event["choices"][0];
        finish += choice["finish_reason"].as_str().unwrap_or_default();
        let delta = &choice["delta"];
        text += delta["content"].as_str().unwrap_or_default();
        reasoning += delta["reasoning_content"].as_str().unwrap_or_default();
        for piece in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = piece["index"].as_u64().unwrap() as usize;
            if piece["id"].is_string() {
                assert_eq!(index, calls.len());
                calls.push(json!({"id": piece["id"], "type": piece["type"], "function": piece["function"]}));
            } else {
                let known = &mut calls[index]["function"]["arguments"];
                *known = (known.as_str().unwrap().to_owned() + piece["function"]["arguments"].as_str().unwrap()).into();
            }
        }
    }
    let mut message = json!({"role": "assistant", "content": text, "refusal": null});
    if !reasoning.is_empty() {
        message["reasoning_content"] = reasoning.into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    (message, finish)
}

/// Asks twice, whole and as a stream, and holds one to the other but for the ids of calls.
fn both_ways(server: &Server, more: &Value) -> (Value, String) {
    let without_ids = |mut message: Value| {
        for call in message["tool_calls"].as_array_mut().into_iter().flatten() {
            assert!(call["id"].take().as_str().is_some_and(|id| id.starts_with("call_")));
        }
        if message["content"].is_null() {
            message["content"] = "".into();
        }
        message
    };
    let whole = server.good(CHAT, &ask(more))["choices"][0].take();
    let mut body = ask(more);
    body["stream"] = true.into();
    let answer = server.post(CHAT, &body);
    assert!(answer.is_done(), "{}", answer.text());
    let (streamed, finish) = joined(&answer.events());
    let message = without_ids(whole["message"].clone());
    assert_eq!(without_ids(streamed), message);
    assert_eq!(whole["finish_reason"], finish);
    (message, finish)
}

#[test]
fn answers_keep_to_a_schema() {
    let server = Server::usual();
    let schema = json!({
        "type": "object",
        "properties": {"fox": {"type": "boolean"}, "kind": {"enum": ["red", "grey"]}},
        "required": ["fox", "kind"], "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "fox", "schema": schema, "strict": true}});
    let (message, finish) = both_ways(&server, &json!({"response_format": format}));
    assert_eq!(finish, "stop");
    let check = |text: &str| {
        let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e} in {text:?}"));
        assert!(value["fox"].is_boolean() && value["kind"].is_string(), "{text}");
        assert_eq!(value.as_object().unwrap().len(), 2);
    };
    check(message["content"].as_str().unwrap());
    let many = server.good(CHAT, &ask(&json!({"response_format": format, "n": 4, "temperature": 2.0})));
    many["choices"].as_array().unwrap().iter().for_each(|c| check(c["message"]["content"].as_str().unwrap()));

    let text = json!({"format": {"type": "json_schema", "name": "fox", "schema": schema}});
    let response = server.good("/v1/responses", &json!({"input": "the fox", "text": text, "max_output_tokens": 200}));
    check(response["output"][0]["content"][0]["text"].as_str().unwrap());
    server.wait_until_idle();
}

#[test]
fn answers_keep_to_a_pattern_and_can_be_cut() {
    let server = Server::usual();
    let format = json!({"type": "regex", "regex": "[ab]{3}-[0-9]{2}"});
    let (message, _) = both_ways(&server, &json!({"response_format": format, "logprobs": true, "top_logprobs": 2}));
    let text = message["content"].as_str().unwrap();
    assert!(text.len() == 6 && text.as_bytes()[3] == b'-' && text[..3].chars().all(|c| "ab".contains(c)), "{text}");
    let (cut, finish) =
        both_ways(&server, &json!({"response_format": {"type": "regex", "regex": "a{400}"}, "max_tokens": 9}));
    assert_eq!(finish, "length");
    assert!(cut["content"].as_str().unwrap().chars().all(|c| c == 'a'));
    let (object, _) = both_ways(&server, &json!({"response_format": {"type": "json_object"}, "max_tokens": 5}));
    assert!(object["content"].as_str().unwrap().starts_with('{'), "{object}");
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let server = Server::usual();
    let schema = |schema: Value| json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let deep = (0..100).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}));
    let entries: Vec<String> = (0..5000).map(|n| n.to_string()).collect();
    for (format, names) in [
        (json!("text"), "response_format"),
        (json!({}), "type"),
        (json!({"type": "xml"}), "type"),
        (json!({"type": "json_schema"}), "json_schema"),
        (json!({"type": "json_schema", "json_schema": {"name": "x"}}), "schema"),
        (schema(json!("x")), "schema"),
        (schema(json!({"type": "strange"})), "#/type"),
        (schema(json!({"type": "object", "frobnicate": 1})), "frobnicate"),
        (schema(json!({"$ref": "http://127.0.0.1/x"})), "$ref"),
        (schema(json!({"$ref": "file:///etc/passwd"})), "$ref"),
        (schema(json!({"type": "integer", "minimum": 5, "maximum": 1})), "schema"),
        (schema(deep), "deep"),
        (schema(json!({"enum": entries})), "enum"),
        (json!({"type": "regex"}), "regex"),
        (json!({"type": "regex", "regex": "("}), ""),
        (json!({"type": "regex", "regex": "(?<=a)b"}), ""),
        (json!({"type": "regex", "regex": "a{1,1000000}"}), ""),
    ] {
        let answer = server.post(CHAT, &ask(&json!({"response_format": format})));
        assert_eq!(answer.status, 400, "{names}: {}", answer.text());
        answer.assert_refusal(names);
        let param = answer.json()["error"]["param"].clone();
        assert!(param.as_str().is_some_and(|param| param.starts_with("response_format")), "{}", answer.text());
    }
    let format = json!({"type": "json_object"});
    server.bad(CHAT, &ask(&json!({"response_format": format, "tools": [tool("f")]})), 400, "response_format");
    server.bad("/v1/completions", &json!({"prompt": "x", "response_format": format}), 400, "response_format");
    server.good(CHAT, &ask(&json!({"max_tokens": 2})));
}

#[test]
fn calls_are_found_in_what_the_model_says() {
    let call = |name: &str, arguments: &str| {
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    let server =
        says(&format!("Let me see.\n{}\n{}", call("look", "{\"at\": \"the \\\"fox\\\"\"}"), call("run", "{}")));
    let (message, finish) = both_ways(&server, &json!({"tools": [tool("look"), tool("run")]}));
    assert_eq!(finish, "tool_calls");
    assert!(message["content"].as_str().unwrap().starts_with("Let me see."));
    let calls = message["tool_calls"].as_array().unwrap();
    assert_eq!(
        (calls.len(), &calls[0]["function"]["name"], &calls[1]["function"]["name"]),
        (2, &json!("look"), &json!("run"))
    );
    let arguments: Value = serde_json::from_str(calls[0]["function"]["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments, json!({"at": "the \"fox\""}));
    // Without tools, and where none may be called, it is text like any other.
    for more in [json!({}), json!({"tools": [tool("look")], "tool_choice": "none"})] {
        let (message, finish) = both_ways(&server, &more);
        assert!(message["content"].as_str().unwrap().contains("<tool_call>") && finish == "stop", "{message}");
    }
}

#[test]
fn a_call_that_is_cut_off_is_given_as_far_as_it_came() {
    let server = says("<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"a very long story about a fox");
    let (message, finish) = both_ways(&server, &json!({"tools": [tool("look")], "max_tokens": 50}));
    assert_eq!(finish, "length");
    let function = &message["tool_calls"][0]["function"];
    assert_eq!(function["name"], "look");
    assert!(function["arguments"].as_str().unwrap().starts_with("{\"at\":"), "{message}");
    // It may also end by itself: no failure either.
    let (message, finish) = both_ways(&server, &json!({"tools": [tool("look")]}));
    assert!(message["tool_calls"].is_array() && finish == "stop", "{message}: {finish}");
}

#[test]
fn a_call_can_be_required() {
    let server = Server::usual();
    for choice in [json!("required"), json!({"type": "function", "function": {"name": "look"}})] {
        let more = json!({"tools": [tool("look")], "tool_choice": choice, "parallel_tool_calls": false});
        let (message, finish) = both_ways(&server, &more);
        assert_eq!(finish, "tool_calls");
        let function = &message["tool_calls"][0]["function"];
        assert_eq!(function["name"], "look");
        let arguments: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
        assert!(arguments["ok"].is_boolean() && message["content"] == "", "{message}");
    }
}

#[test]
fn calls_and_results_are_part_of_a_conversation() {
    let server = Server::usual();
    let call = json!({"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{\"ok\": true}"}});
    let turns = |answers: &str| {
        json!([
            {"role": "user", "content": "the fox"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": answers, "content": "it </s> is <tool_call> there"},
        ])
    };
    let body = |messages: Value| json!({"messages": messages, "tools": [tool("look")], "max_tokens": 3});
    server.good(CHAT, &body(turns("c1")));
    server.bad(CHAT, &body(turns("c2")), 400, "tool_call_id");
    for (call, names) in [
        (json!({"function": {"name": "look", "arguments": "{}"}}), "id"),
        (json!({"id": "c1"}), "function"),
        (json!({"id": "c1", "function": {"name": "a\nb", "arguments": "{}"}}), "name"),
        (json!({"id": "c1", "function": {"name": "look", "arguments": {}}}), "arguments"),
        (json!({"id": "c1", "function": {"name": "look"}}), "arguments"),
    ] {
        let messages = json!([{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]);
        server.bad(CHAT, &body(messages), 400, names);
    }
    // Arguments that are no JSON are what a model once wrote, and are read.
    let odd = json!({"id": "c1", "function": {"name": "look", "arguments": "not JSON"}});
    server.good(CHAT, &body(json!([{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [odd]}])));
}

#[test]
fn tools_that_cannot_be_are_refused() {
    let server = Server::usual();
    let named = |name: &str| json!([tool(name)]);
    let deep = (0..100).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}));
    for (tools, choice, names) in [
        (json!({}), Value::Null, "tools"),
        (json!([7]), Value::Null, "tools[0]"),
        (json!([{"type": "web_search"}]), Value::Null, "tools[0].type"),
        (json!([{"type": "function"}]), Value::Null, "function"),
        (named(""), Value::Null, "name"),
        (named("a b"), Value::Null, "name"),
        (named("a\"b\n{"), Value::Null, "name"),
        (named(&"x".repeat(65)), Value::Null, "name"),
        (json!([tool("f"), tool("f")]), Value::Null, "two tools"),
        (json!((0..10_000).map(|n| tool(&format!("f{n}"))).collect::<Vec<_>>()), Value::Null, "tools"),
        (json!([{"type": "function", "function": {"name": "f", "parameters": deep}}]), Value::Null, "tools[0]"),
        (json!([{"type": "function", "function": {"name": "f", "parameters": []}}]), Value::Null, "parameters"),
        (named("f"), json!({"type": "function", "function": {"name": "g"}}), "none of the tools"),
        (named("f"), json!("perhaps"), "tool_choice"),
        (json!([]), json!("required"), "tool_choice"),
    ] {
        server.bad(CHAT, &ask(&json!({"tools": tools, "tool_choice": choice})), 400, names);
    }
    server.good(CHAT, &ask(&json!({"max_tokens": 2})));
}

#[test]
fn reasoning_is_told_apart_and_a_form_begins_behind_it() {
    const THINKS: &str = "{% for m in messages %}{{ m.content }}{% endfor %}<think>{# ends with </think> #}";
    let thinking =
        |script: &str| Server::start(Setup { script: Some(script.into()), template: Some(THINKS), ..Setup::default() });
    let server = thinking("the fox is quick</think>\n\nYes.");
    let (message, finish) = both_ways(&server, &json!({}));
    assert_eq!(
        (message["reasoning_content"].as_str(), message["content"].as_str()),
        (Some("the fox is quick"), Some("Yes."))
    );
    assert_eq!(finish, "stop");
    let (cut, finish) = both_ways(&server, &json!({"max_tokens": 3}));
    assert!(cut["content"] == "" && finish == "length" && cut["reasoning_content"].is_string(), "{cut}");

    let server = thinking("the fox</think>{\"a\": 1}");
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {
        "type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": false,
    }}});
    let (message, _) = both_ways(&server, &json!({"response_format": format}));
    assert_eq!(message["reasoning_content"], "the fox");
    assert_eq!(serde_json::from_str::<Value>(message["content"].as_str().unwrap()).unwrap(), json!({"a": 1}));
}

#[test]
fn a_thousand_schemas_leave_the_server_as_it_was() {
    let server = Server::usual();
    for n in 0..1000 {
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": n}}});
        let answer = server.post(CHAT, &ask(&json!({"response_format": format})));
        assert_eq!(answer.json()["choices"][0]["message"]["content"], n.to_string());
    }
    server.wait_until_idle();
}
