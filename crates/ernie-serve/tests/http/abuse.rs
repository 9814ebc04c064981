//! What hostile and careless callers send: each case ends in its documented status, and the server is as before.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Client, read};
use crate::model::{CONTEXT, VOCAB};
use crate::server::{Server, Setup};

/// The server answers, and nothing runs, waits or holds blocks.
fn assert_well(server: &Server) {
    server.good("/v1/completions", &json!({"prompt": [9], "max_tokens": 2}));
    server.wait_until_idle();
}

#[test]
fn json() {
    let server = Server::limited(|limits| limits.body_bytes = 1 << 20);
    let deep = |open: &str, close: &str| format!("{{\"prompt\":{}1{}}}", open.repeat(100_000), close.repeat(100_000));
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("empty", b"".to_vec(), 400),
        ("no JSON", b"hello".to_vec(), 400),
        ("a list", b"[]".to_vec(), 400),
        ("null", b"null".to_vec(), 400),
        ("nesting in lists", deep("[", "]").into_bytes(), 400),
        ("nesting in objects", deep("{\"a\":", "}").into_bytes(), 400),
        ("a trailing comma", br#"{"prompt":[9],}"#.to_vec(), 400),
        ("two documents", br#"{"prompt":[9]}{"prompt":[9]}"#.to_vec(), 400),
        ("a byte order mark", b"\xef\xbb\xbf{\"prompt\":[9]}".to_vec(), 400),
        ("bad UTF-8", b"{\"prompt\":\"\xff\xfe\"}".to_vec(), 400),
        ("a lone surrogate", br#"{"prompt":"\ud800"}"#.to_vec(), 400),
        ("NaN", br#"{"prompt":[9],"temperature":NaN}"#.to_vec(), 400),
        ("Infinity", br#"{"prompt":[9],"temperature":Infinity}"#.to_vec(), 400),
        ("1e400", br#"{"prompt":[9],"temperature":1e400}"#.to_vec(), 400),
        ("a large integer", br#"{"prompt":[9],"seed":99999999999999999999999}"#.to_vec(), 400),
        ("a huge integer", format!("{{\"prompt\":[9],\"seed\":{}}}", "9".repeat(100_000)).into_bytes(), 400),
        ("duplicate keys, the last counts", br#"{"prompt":[9],"max_tokens":-1,"max_tokens":1}"#.to_vec(), 200),
        ("NUL in a string", br#"{"prompt":"a\u0000b","max_tokens":1}"#.to_vec(), 200),
        ("a million keys", format!("{{{}\"prompt\":[9]}}", "\"k\":1,".repeat(100_000)).into_bytes(), 200),
        ("a body above the limit", vec![b' '; (1 << 20) + 1], 413),
        ("spaces up to the limit", vec![b' '; 1 << 20], 400),
    ];
    for (name, body, status) in cases {
        let answer = server.client().post_bytes("/v1/completions", &body);
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        if status != 200 {
            answer.assert_refusal("");
        }
    }
    assert_well(&server);
}

#[test]
fn parameters() {
    let server = Server::usual();
    let many: serde_json::Map<String, Value> = (0..2000).map(|id| (id.to_string(), json!(1))).collect();
    let all_down: serde_json::Map<String, Value> = (0..VOCAB).map(|id| (id.to_string(), json!(-100))).collect();
    let cases: Vec<(&str, Value, u16)> = vec![
        ("max_tokens", json!(-1), 400),
        ("max_tokens", json!(0), 400),
        ("max_tokens", json!(1.5), 400),
        ("max_tokens", json!("7"), 400),
        ("max_tokens", json!(257), 400),
        ("max_tokens", json!(1u64 << 31), 400),
        ("max_tokens", json!(u64::MAX), 400),
        ("n", json!(0), 400),
        ("n", json!(-1), 400),
        ("n", json!(1_000_000_000), 400),
        ("temperature", json!(-1), 400),
        ("temperature", json!(0), 200),
        ("temperature", json!(1e38), 200),
        ("temperature", json!(1e39), 400),
        ("temperature", json!(1e-45), 200),
        ("temperature", json!("hot"), 400),
        ("top_p", json!(0), 400),
        ("top_p", json!(2), 400),
        ("top_p", json!(-1), 400),
        ("top_p", json!(1e-30), 200),
        ("top_k", json!(-5), 400),
        ("top_k", json!(1 << 20), 200),
        ("top_k", json!(0.5), 400),
        ("min_p", json!(2), 400),
        ("min_p", json!(-0.1), 400),
        ("seed", json!(-7), 200),
        ("seed", json!(0.5), 400),
        ("seed", json!(u64::MAX), 400),
        ("logprobs", json!(1_000_000), 400),
        ("logprobs", json!(-1), 400),
        ("logprobs", json!(true), 400),
        ("logit_bias", json!({"400": 1}), 400),
        ("logit_bias", json!({"-1": 1}), 400),
        ("logit_bias", json!({"x": 1}), 400),
        ("logit_bias", json!({"9": 101}), 400),
        ("logit_bias", json!({"9": "1"}), 400),
        ("logit_bias", json!([1, 2]), 400),
        ("logit_bias", many.into(), 400),
        ("logit_bias", all_down.into(), 200),
        ("stop", json!(""), 400),
        ("stop", json!([""]), 400),
        ("stop", json!([1]), 400),
        ("stop", json!(7), 400),
        ("stop", json!(vec!["x"; 10_000]), 400),
        ("stop", json!("x".repeat(100_000)), 400),
        ("stop", json!([]), 200),
        ("stop_token_ids", json!([400]), 400),
        ("stop_token_ids", json!(vec![9; 1000]), 400),
        ("frequency_penalty", json!(1e30), 400),
        ("presence_penalty", json!(-1e30), 400),
        ("repetition_penalty", json!(0), 400),
        ("repetition_penalty", json!(-1), 400),
        ("stream", json!("yes"), 400),
        ("stream_options", json!({"include_usage": true}), 400),
        ("echo", json!(1), 400),
        ("model", json!("other"), 404),
        ("model", json!(7), 400),
        ("best_of", json!(0), 400),
        ("best_of", json!(1), 200),
        ("best_of", json!(20), 400),
        ("user", json!({"odd": []}), 200),
        ("n_discard", json!(-5), 200),
    ];
    for (field, value, status) in cases {
        let mut body = json!({"prompt": [9, 10, 11], "max_tokens": 3});
        body[field] = value;
        let answer = server.post("/v1/completions", &body);
        let shown: String = body.to_string().chars().take(200).collect();
        assert_eq!(answer.status, status, "{shown}: {}", answer.text());
        if status != 200 {
            answer.assert_refusal(field);
            assert_eq!(answer.json()["error"]["param"], field, "{shown}");
        }
    }
    assert_well(&server);
}

#[test]
fn prompts() {
    let server = Server::limited(|limits| {
        limits.body_bytes = 8 << 20;
        limits.messages = 100;
    });
    let ids = |n: usize| json!(vec![9; n]);
    let cases: Vec<(&str, Value, u16)> = vec![
        ("missing", Value::Null, 400),
        ("empty text", json!(""), 400),
        ("no ids", json!([]), 400),
        ("an empty list in a list", json!([[]]), 400),
        ("white space", json!("   \n\t "), 200),
        ("a number", json!(7), 400),
        ("an object", json!({"a": 1}), 400),
        ("mixed", json!([9, "x"]), 400),
        ("mixed the other way", json!(["x", 9]), 400),
        ("negative ids", json!([-1]), 400),
        ("ids beyond the vocabulary", json!([VOCAB]), 400),
        ("the last id", json!([VOCAB - 1]), 200),
        ("fractions", json!([1.5]), 400),
        ("huge ids", json!([u64::MAX]), 400),
        ("one short of the context", ids(CONTEXT - 1), 200),
        ("the whole context", ids(CONTEXT), 400),
        ("one more", ids(CONTEXT + 1), 400),
        ("ten contexts", ids(10 * CONTEXT), 400),
        ("a million of one character", json!("a".repeat(1_000_000)), 400),
        ("a million combining marks", json!("e\u{301}".repeat(500_000)), 400),
        ("chains of emoji", json!("👨‍👩‍👧‍👦".repeat(20_000)), 400),
        ("right to left", json!("שלום \u{202e}abc"), 200),
        ("control tokens as text", json!("<|im_start|></s><s><|end_of_sentence|>"), 200),
        ("too many prompts", json!(vec!["x"; 1000]), 400),
    ];
    for (name, prompt, status) in cases {
        let answer = server.post("/v1/completions", &json!({"prompt": prompt, "max_tokens": 1}));
        assert_eq!(answer.status, status, "{name}: {}", answer.text().chars().take(300).collect::<String>());
        if status != 200 {
            answer.assert_refusal("");
        }
    }
    assert_well(&server);
}

#[test]
fn conversations() {
    let server = Server::limited(|limits| limits.messages = 100);
    let user = |content: Value| json!([{"role": "user", "content": content}]);
    let cases: Vec<(&str, Value, u16)> = vec![
        ("missing", Value::Null, 400),
        ("no messages", json!([]), 400),
        ("a text", json!("hello"), 400),
        ("no objects", json!(["hello"]), 400),
        ("an unknown role", json!([{"role": "root", "content": "x"}]), 400),
        ("a role like a control token", json!([{"role": "<|system|>", "content": "x"}]), 400),
        ("a role that is no text", json!([{"role": 7, "content": "x"}]), 400),
        ("no role", json!([{"content": "x"}]), 400),
        ("no content", json!([{"role": "user"}]), 400),
        ("null content", user(Value::Null), 400),
        ("a number as content", user(json!(7)), 400),
        ("parts", user(json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])), 200),
        ("a part without text", user(json!([{"type": "text"}])), 400),
        ("a part of no type", user(json!([{"text": "a"}])), 400),
        ("a picture", user(json!([{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}])), 400),
        ("a file", user(json!([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}])), 400),
        ("a placeholder typed out", user(json!("<|IMAGE_PLACEHOLDER|>")), 200),
        ("an answer begun", json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]), 200),
        ("developer", json!([{"role": "developer", "content": "x"}, {"role": "user", "content": "x"}]), 200),
        ("a tool's result without a call", json!([{"role": "tool", "content": "x"}]), 400),
        ("too many messages", json!(vec![json!({"role": "user", "content": "x"}); 101]), 400),
        ("too long", user(json!("the fox ".repeat(3000))), 400),
    ];
    for (name, messages, status) in cases {
        let answer = server.post("/v1/chat/completions", &json!({"messages": messages, "max_tokens": 1}));
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        if status != 200 {
            answer.assert_refusal("");
        }
    }
    assert_well(&server);
}

#[test]
fn transport() {
    let server = Server::limited(|limits| limits.body_bytes = 1 << 16);
    let client = server.client();
    let post = |more: &str, body: &str| {
        client.send((client.head("POST", "/v1/completions", &format!("{more}connection: close\r\n")) + body).as_bytes())
    };
    let fine = r#"{"prompt":[9],"max_tokens":1}"#;
    let json = "content-type: application/json\r\n";
    let length = |n: usize| format!("content-length: {n}\r\n");
    let chunked = format!("{json}transfer-encoding: chunked\r\n");
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let endless = chunk(&" ".repeat(1000)).repeat(200);
    let cases: Vec<(&str, u16, u16)> = vec![
        ("plain", post(&(json.to_owned() + &length(fine.len())), fine).status, 200),
        ("chunked", post(&chunked, &(chunk(&fine[..9]) + &chunk(&fine[9..]) + "0\r\n\r\n")).status, 200),
        (
            "with a charset",
            post(&("content-type: application/json; charset=utf-8\r\n".to_owned() + &length(fine.len())), fine).status,
            200,
        ),
        ("expecting 100", post(&(format!("{json}expect: 100-continue\r\n") + &length(fine.len())), fine).status, 200),
        ("no type", post(&length(fine.len()), fine).status, 415),
        ("a form", post(&("content-type: text/plain\r\n".to_owned() + &length(fine.len())), fine).status, 415),
        ("compressed", post(&(format!("{json}content-encoding: gzip\r\n") + &length(5)), "\x1f\u{8b}xyz").status, 415),
        ("too long, declared", post(&(json.to_owned() + &length(1 << 40)), fine).status, 413),
        ("too long, chunked", post(&chunked, &endless).status, 413),
        ("a broken chunk", post(&chunked, "zz\r\nhello").status, 400),
        ("two lengths", post(&(json.to_owned() + &length(29) + &length(30)), fine).status, 400),
        ("a negative length", post(&(json.to_owned() + "content-length: -1\r\n"), fine).status, 400),
        (
            "a wrong method",
            client.send(client.head("DELETE", "/v1/completions", "connection: close\r\n").as_bytes()).status,
            405,
        ),
        ("GET where POST is", client.get("/v1/chat/completions").status, 405),
        ("an unknown route", client.get("/v1/nothing").status, 404),
        ("a long unknown route", client.get(&format!("/{}", "x".repeat(5000))).status, 404),
        ("no HTTP", client.send(b"\x16\x03\x01\x02\x00\x01\x00hello").status, 400),
        ("garbage", client.send(b"hello\r\n\r\n").status, 400),
        ("HTTP/2 by force", client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").status, 400),
        ("a large header", client.with_large_header(10 << 20).get("/health").status, 431),
        ("many headers", client.with_headers(10_000).get("/health").status, 431),
        ("a large target", client.get(&format!("/{}", "x".repeat(1 << 20))).status, 431),
    ];
    for (name, got, expect) in cases {
        // hyper answers what is no HTTP by 400 or by closing; both leave the server as it was.
        let closed = got == 0 && matches!(expect, 400 | 431);
        assert!(got == expect || closed, "{name}: {got}, expected {expect}");
    }
    let pipelined =
        client.head("GET", "/health", "").repeat(999) + &client.head("GET", "/health", "connection: close\r\n");
    let mut stream = client.connect();
    let mut writer = stream.try_clone().expect("a second handle");
    let sender = std::thread::spawn(move || writer.write_all(pipelined.as_bytes()));
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let _ = sender.join();
    assert_eq!(String::from_utf8_lossy(&all).matches("HTTP/1.1 200 OK").count(), 1000);
    let twice = client.clone().with("x-request-id", "same");
    let both: Vec<_> =
        (0..2).map(|_| twice.begin("/v1/completions", &json!({"prompt": [9], "max_tokens": 3}))).collect();
    for mut stream in both {
        stream.shutdown(Shutdown::Write).ok();
        // A client that closes its sending half has left, as far as anybody can tell; no answer is no error.
        let status = read(&mut stream).status;
        assert!(status == 200 || status == 0, "{status}");
    }
    assert_well(&server);
}

#[test]
fn slow_writers_are_cut_off() {
    let server = Server::limited(|limits| {
        limits.header_timeout = Duration::from_millis(300);
        limits.body_timeout = Duration::from_millis(300);
    });
    let client = server.client();
    // Headers, byte by byte, for as long as the server listens.
    let mut stream = client.connect();
    stream.write_all(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx: ").expect("the beginning is sent");
    let begin = Instant::now();
    while stream.write_all(b"a").is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(20), "nobody cuts this off");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(read(&mut stream).status, 0, "cut off without an answer");
    // A body that does not come, or that never ends.
    for more in
        ["content-length: 1000\r\n", "transfer-encoding: chunked\r\n", "content-length: 10\r\nexpect: 100-continue\r\n"]
    {
        let mut stream = client.connect();
        let head = client.head(
            "POST",
            "/v1/completions",
            &format!("content-type: application/json\r\n{more}connection: close\r\n"),
        );
        stream.write_all(head.as_bytes()).expect("the head is sent");
        let answer = read(&mut stream);
        assert_eq!(answer.status, 408, "{more}: {}", answer.text());
    }
    // Connections without a request.
    let idle: Vec<_> = (0..200).map(|_| client.connect()).collect();
    for mut stream in idle {
        assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0, "an idle connection is closed");
    }
    assert_well(&server);
}

#[test]
fn slow_readers_are_cut_off() {
    let mut setup = Setup::default();
    setup.config.limits.write_timeout = Duration::from_millis(500);
    setup.config.limits.body_bytes = 16 << 20;
    let server = Server::start(setup);
    // An answer far larger than what sockets hold: log-probabilities of many prompts.
    let prompts: Vec<Vec<u32>> = (0..64).map(|at| vec![9 + at; 500]).collect();
    let body = json!({"prompt": prompts, "max_tokens": 0, "echo": true, "logprobs": 20});
    let mut stream = server.client().begin("/v1/completions", &body);
    assert!(stream.read(&mut [0; 1]).expect("it begins") == 1);
    std::thread::sleep(Duration::from_millis(1500));
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    let whole = server.post("/v1/completions", &body);
    assert_eq!(whole.status, 200);
    assert!(rest.len() < whole.body.len(), "{} of {} bytes", rest.len(), whole.body.len());
    assert_well(&server);
}

#[test]
fn connections_beyond_the_limit_are_closed() {
    let server = Server::limited(|limits| {
        limits.connections = 8;
        limits.header_timeout = Duration::from_secs(2);
    });
    let idle: Vec<_> = (0..50).map(|_| server.client().connect()).collect();
    crate::server::eventually("places come back", || server.client().get("/health").status == 200);
    drop(idle);
    // Asking for the count needs a place too.
    crate::server::eventually("they are counted", || server.metric("ernie_http_connections_refused_total") > 0.0);
    assert_well(&server);
}

impl Client {
    fn with_large_header(&self, bytes: usize) -> Self {
        self.clone().with("x-large", &"x".repeat(bytes))
    }

    fn with_headers(&self, count: usize) -> Self {
        (0..count).fold(self.clone(), |client, at| client.with(&format!("x-{at}"), "y"))
    }
}
