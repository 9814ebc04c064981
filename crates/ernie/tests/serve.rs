//! `ernie serve` from outside: what it refuses to start, how it lives and leaves, and the commands of its documentation.
#![cfg(feature = "http")]

mod common;

use common::serving::{Serving, ask, completion, get};
use common::{bad, good, parity, tiny_run, write_lora_recipe};
use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// A completion that runs until somebody ends it, as far as its tokens go: the connection, after the first piece has come.
fn long_answer(address: &str) -> TcpStream {
    let body = r#"{"prompt": "The fox", "max_tokens": 4000, "ignore_eos": true, "stream": true}"#;
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json";
    stream.write_all(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes()).expect("sent");
    let (mut seen, mut some) = (String::new(), [0; 512]);
    while !seen.contains("data:") {
        let read = stream.read(&mut some).expect("an answer");
        assert!(read > 0, "{seen}");
        seen += &String::from_utf8_lossy(&some[..read]);
    }
    assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
    stream
}

#[test]
fn a_server_that_was_stopped_goes_on() {
    let at = tempfile::tempdir().expect("a folder");
    let model = tiny_run();
    let server = Serving::start(at.path(), &[model.to_str().expect("a path")]);
    server.wait_until_ready();
    let mut running = long_answer(&server.address);
    server.signal("-STOP");
    std::thread::sleep(Duration::from_millis(300));
    server.signal("-CONT");
    // What ran before still comes, and what is new is answered.
    let mut some = [0; 64];
    assert!(running.read(&mut some).is_ok_and(|read| read > 0));
    drop(running);
    let answer = completion(&server.address, r#"{"prompt": "The fox", "max_tokens": 2}"#);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn a_second_signal_does_not_wait_for_answers() {
    let at = tempfile::tempdir().expect("a folder");
    let model = tiny_run();
    let args = [model.to_str().expect("a path"), "--drain-grace", "600"];
    let server = Serving::start(at.path(), &args);
    server.wait_until_ready();
    // A reader that takes nothing keeps its answer from ending.
    let running: Vec<TcpStream> = (0..4).map(|_| long_answer(&server.address)).collect();
    server.signal("-TERM");
    std::thread::sleep(Duration::from_millis(100));
    let begin = Instant::now();
    server.signal("-TERM");
    let (code, said) = server.end();
    assert!(begin.elapsed() < Duration::from_secs(20), "it took {:?}", begin.elapsed());
    assert!(code.is_some(), "{said}");
    drop(running);
}

#[test]
fn the_log_can_be_json() {
    let at = tempfile::tempdir().expect("a folder");
    let model = tiny_run();
    let server = Serving::start(at.path(), &[model.to_str().expect("a path"), "--log-format", "json"]);
    server.wait_until_ready();
    let answer = completion(&server.address, r#"{"prompt": "The fox", "max_tokens": 2}"#);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server.signal("-TERM");
    let (code, said) = server.end();
    assert_eq!(code, Some(0));
    let lines: Vec<serde_json::Value> = said
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let request = lines.iter().find(|line| line["route"] == "/v1/completions").expect("a line of the request");
    assert_eq!((&request["status"], &request["message"]), (&200.into(), &"answered".into()), "{request}");
    assert!(request["request"].as_str().is_some_and(|id| id.starts_with("req_")), "{request}");
    assert!(!said.contains("fox"), "a prompt is in the log");
}

/// Two servers under load: every field that scripts read, and the page.
#[test]
fn a_server_is_put_under_load() {
    let at = tempfile::tempdir().expect("a folder");
    let model = tiny_run();
    let model = model.to_str().expect("a path");
    let servers = [Serving::start(at.path(), &[model]), Serving::start(at.path(), &[model])];
    servers.iter().for_each(Serving::wait_until_ready);
    let [first, second] = servers.each_ref().map(|server| format!("http://{}", server.address));
    let work =
        ["--vocab", "300", "--requests", "12", "--prompt-tokens", "8", "--gen-tokens", "4", "--cancel-share", "0.2"];
    let mut args = vec!["bench", "serve", &first, "--compare", &second, "--clients", "1,3", "--rate", "50"];
    args.extend(["--saturation", "0.5", "--engine", model, "--report", "load.html", "--json"]);
    args.extend(work);
    let answer = good(at.path(), &args).json();
    let levels = answer["levels"].as_array().expect("levels");
    assert_eq!(levels.len(), 4);
    for level in levels {
        assert_eq!(level["servers"].as_array().expect("servers").len(), 2);
        assert!(level["ratio"]["tokens_per_s"].as_f64().expect("a ratio") > 0.0);
        for server in level["servers"].as_array().expect("servers") {
            assert_eq!(server["requests"], 12, "{server}");
            assert_eq!(
                server["answered"].as_u64().zip(server["left"].as_u64()).map(|(a, b)| a + b),
                Some(12),
                "{server}"
            );
            for times in ["ttft_ms", "itl_ms", "e2e_ms"] {
                let [p50, p99] = ["p50", "p99"].map(|q| server[times][q].as_f64().expect("a time"));
                assert!(0.0 <= p50 && p50 <= p99, "{server}");
            }
        }
    }
    assert_eq!(answer["engine"].as_array().expect("the engine").len(), 2);
    let page = fs::read_to_string(at.path().join("load.html")).expect("a page");
    assert!(page.contains("Time to the first token") && page.contains("3 readers"));
    // People see the same.
    let mut args = vec!["bench", "serve", &first, "--clients", "2"];
    args.extend(work);
    let said = good(at.path(), &args);
    assert!(said.out.contains("2 readers") && said.out.contains("tokens/s"), "{}", said.out);
}

#[test]
fn what_cannot_be_served_is_one_line_and_the_right_code() {
    let at = tempfile::tempdir().expect("a folder");
    let model = parity("dense");
    let model = model.to_str().expect("a path");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address").to_string();
    fs::write(at.path().join("short"), "good-enough-key\nshort\n").expect("a file");
    fs::write(at.path().join("empty"), "# nobody\n").expect("a file");
    for (args, code, names) in [
        (vec![model, "--listen", &taken], 3, "another program listens"),
        (vec![model, "--listen", "0.0.0.0:0"], 2, "no API keys"),
        (vec![model, "--listen", "[::]:0"], 2, "no API keys"),
        (vec![model, "--listen", "8080"], 2, "an address and a port"),
        (vec![model, "--listen", "192.0.2.1:1"], 2, "no API keys"),
        (vec![model, "--listen", "192.0.2.1:1", "--no-auth"], 3, "does not have that address"),
        (vec![model, "--api-key-file", "nowhere"], 2, "nowhere"),
        (vec![model, "--api-key-file", "short"], 2, "line 2"),
        (vec![model, "--api-key-file", "empty"], 2, "at least one key"),
        (vec![model, "--api-key-file", "short", "--no-auth"], 2, "--no-auth"),
        (vec![model, "--tls-cert", "short"], 2, "--tls-key"),
        (vec![model, "--tls-cert", "short", "--tls-key", "short"], 2, "short"),
        (vec![model, "--cors-origin", "*", "--listen", "127.0.0.1:0"], 2, "CORS origin"),
        (vec![model, "--max-n", "0"], 2, "--max-n"),
        (vec!["nowhere"], 2, "nowhere"),
        (vec!["someone/some-model"], 3, "not in the store"),
    ] {
        let mut all = vec!["serve"];
        all.extend(args);
        let answer = bad_after_talk(at.path(), &all, code);
        assert!(answer.contains(names), "{all:?}: {answer}");
        assert!(!answer.contains("short\n") || names == "short", "keys are not quoted: {answer}");
    }
}

#[test]
fn without_a_model_it_serves_the_bundled_one() {
    let at = tempfile::tempdir().expect("a folder");
    let server = Serving::start(at.path(), &[]);
    server.wait_until_ready();
    assert!(get(&server.address, "/v1/models").contains("\"id\":\"nano\""));
    assert!(completion(&server.address, r#"{"prompt": "Once upon a time", "max_tokens": 4}"#).contains("\"text\""));
}

/// As [`bad`]; a server may have said where it listens before it failed.
fn bad_after_talk(folder: &Path, args: &[&str], code: i32) -> String {
    bad(folder, args, code).err
}

#[test]
fn a_broken_model_ends_the_server_as_it_ends_other_commands() {
    let at = tempfile::tempdir().expect("a folder");
    let model = at.path().join("model");
    fs::create_dir(&model).expect("a folder");
    fs::copy(parity("dense").join("config.json"), model.join("config.json")).expect("a copy");
    fs::write(model.join("model.safetensors"), b"broken").expect("a file");
    let answer = bad_after_talk(at.path(), &["serve", "model", "--listen", "127.0.0.1:0"], 2);
    assert!(answer.contains("model.safetensors"), "{answer}");
}

#[test]
fn it_serves_drains_and_leaves_with_zero() {
    let at = tempfile::tempdir().expect("a folder");
    let run = tiny_run();
    let server = Serving::start(at.path(), &[run.to_str().expect("a path")]);
    server.wait_until_ready();
    let secret = "the fox and a secret";
    let answer = completion(&server.address, &format!("{{\"prompt\": \"{secret}\", \"max_tokens\": 8}}"));
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"model\":\"run\""), "{answer}");
    // A second one on the same port says so.
    let second = bad_after_talk(at.path(), &["serve", run.to_str().expect("a path"), "--listen", &server.address], 3);
    assert!(second.contains("another program listens"), "{second}");
    let body = "{\"prompt\": \"the fox\", \"max_tokens\": 200, \"stream\": true, \"ignore_eos\": true}";
    let address = server.address.clone();
    let running = std::thread::spawn(move || completion(&address, body));
    std::thread::sleep(Duration::from_millis(30));
    server.signal("-TERM");
    let (code, said) = server.end();
    assert_eq!(code, Some(0), "{said}");
    let answer = running.join().expect("the caller");
    assert!(answer.contains("[DONE]") || answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(said.contains("request=") && said.contains("status=200"), "{said}");
    assert!(!said.contains("secret"), "a prompt in the log: {said}");
}

#[test]
fn keys_from_a_file_open_it_and_nothing_else_does() {
    let at = tempfile::tempdir().expect("a folder");
    fs::write(at.path().join("keys"), "# ours\nkey-of-a-test\n").expect("a file");
    let model = parity("dense");
    let server = Serving::start(at.path(), &[model.to_str().expect("a path"), "--api-key-file", "keys", "--name", "m"]);
    server.wait_until_ready();
    assert!(get(&server.address, "/v1/models").starts_with("HTTP/1.1 401"));
    let request = |key: &str| {
        format!("GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n")
    };
    let open = ask(&server.address, &request("key-of-a-test"));
    assert!(open.starts_with("HTTP/1.1 200") && open.contains("\"id\":\"m\""), "{open}");
    assert!(ask(&server.address, &request("key-of-a-tesu")).starts_with("HTTP/1.1 401"));
    server.signal("-INT");
    let (code, said) = server.end();
    assert_eq!(code, Some(0));
    assert!(!said.contains("key-of"), "a key in the log: {said}");
}

#[test]
fn adapters_are_served_beside_their_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let (at, run) = (folder.path(), tiny_run());
    let base = run.to_str().expect("a path");
    write_lora_recipe(at, base);
    good(at, &["train", "lora.toml", "--out", "lora", "--quiet"]);
    let set = ["--set", "adapter.experts=true", "--set", "adapter.rslora=true", "--seed", "9"];
    good(at, &[&["train", "lora.toml", "--out", "other", "--quiet"][..], &set].concat());
    let (first, second) = ("lora/checkpoint-6/adapter", "other/checkpoint-6/adapter=brief");
    let weights = ["--weights", "int8"];

    // Alone, each beside the weights.
    let alone = |args: &[&str]| {
        let ask = ["generate", base, "--ids", "5,6,7", "--max-tokens", "12", "--temperature", "0", "--ignore-eos"];
        good(at, &[&ask[..], &weights, &["--json"], args].concat()).json()["ids"].clone()
    };
    let alone = [("run", alone(&[])), ("lora", alone(&["--adapter", first])), ("brief", alone(&["--adapter", second]))];
    assert!(alone[0].1 != alone[1].1 && alone[1].1 != alone[2].1 && alone[0].1 != alone[2].1, "{alone:?}");

    // Together in one server, all at once.
    let server = Serving::start(at, &[&[base, "--adapter", first, "--adapter", second][..], &weights].concat());
    server.wait_until_ready();
    let models = get(&server.address, "/v1/models");
    for (name, _) in &alone {
        assert!(models.contains(&format!("\"id\":\"{name}\"")), "{models}");
    }
    assert!(models.contains("\"parent\":\"run\"") && !models.contains("checkpoint-6"), "{models}");
    std::thread::scope(|scope| {
        for (name, ids) in alone.iter().cycle().take(12) {
            let address = &server.address;
            scope.spawn(move || {
                let ask = format!(
                    "{{\"model\": \"{name}\", \"prompt\": [5,6,7], \"max_tokens\": 12, \"temperature\": 0, \
                     \"ignore_eos\": true, \"return_token_ids\": true}}"
                );
                let answer = completion(address, &ask);
                assert!(answer.contains(&format!("\"token_ids\":{ids}")), "{name} is {ids} alone: {answer}");
                assert!(answer.contains(&format!("\"model\":\"{name}\"")), "{answer}");
            });
        }
    });
    let nobody = completion(&server.address, r#"{"model": "checkpoint-6", "prompt": [5], "max_tokens": 1}"#);
    assert!(nobody.starts_with("HTTP/1.1 404") && nobody.contains("`run`, `lora`, `brief`"), "{nobody}");

    // What cannot be told apart or does not fit is one line.
    let parity = parity("moe");
    let parity = parity.to_str().expect("a path");
    for (args, names) in [
        (vec![base, "--adapter", first, "--adapter", "other/checkpoint-6/adapter=lora"], "the name of another adapter"),
        (vec![base, "--adapter", first, "--name", "lora"], "the model's name"),
        (vec![base, "--adapter", "lora/checkpoint-6/adapter="], "a name of visible characters"),
        (vec![base, "--adapter", first, "--adapter", "nowhere"], "nowhere"),
        (vec![base, "--adapter", first, "--adapter", "other"], "adapter_config.json"),
        (vec![parity, "--adapter", first], "adapter_model.safetensors"),
    ] {
        let all = [&["serve", "--listen", "127.0.0.1:0"][..], &args].concat();
        let answer = bad_after_talk(at, &all, 2);
        assert!(answer.contains(names), "{all:?}: {answer}");
    }
}

#[test]
#[allow(clippy::print_stdout)]
fn the_commands_of_the_documentation_work() {
    let Ok(curl) = Command::new("curl").arg("--version").output() else {
        println!("skipped: there is no curl here");
        return;
    };
    assert!(curl.status.success());
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/serving.md")).expect("the page");
    let commands: Vec<&str> = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(commands.len() > 5, "the page has commands to try");
    let at = tempfile::tempdir().expect("a folder");
    let server = Serving::start(at.path(), &[tiny_run().to_str().expect("a path")]);
    server.wait_until_ready();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/client.sh");
    let example = format!("{} http://127.0.0.1:8080", example.display());
    for command in commands.into_iter().chain([example.as_str()]) {
        let command = command.replace("127.0.0.1:8080", &server.address);
        let output = Command::new("sh").args(["-c", &command]).output().expect("sh");
        let out = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && !out.is_empty(), "{command}: {out}");
        assert!(!out.contains("\"error\":{"), "{command}: {out}");
    }
}

/// A collector of traces: keeps all that is sent to it and accepts it.
#[cfg(feature = "otel")]
fn collector() -> (String, std::sync::Arc<std::sync::Mutex<Vec<u8>>>) {
    use std::io::{BufRead, BufReader};

    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let kept = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let keep = kept.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.expect("a connection"));
            let (mut length, mut line) = (0, String::new());
            while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                let lower = line.to_ascii_lowercase();
                if let Some(bytes) = lower.strip_prefix("content-length:") {
                    length = bytes.trim().parse().expect("a length");
                }
                keep.lock().expect("nobody panicked").extend(std::mem::take(&mut line).into_bytes());
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).expect("the body");
            keep.lock().expect("nobody panicked").extend(body);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = reader.get_mut().write_all(answer);
        }
    });
    (address, kept)
}

#[cfg(feature = "otel")]
#[test]
fn traces_reach_a_collector() {
    let (collector, kept) = collector();
    let folder = tempfile::tempdir().expect("a folder");
    let model = tiny_run();
    let before = format!("export OTEL_EXPORTER_OTLP_ENDPOINT=http://{collector}");
    let server = Serving::start_after(&before, folder.path(), &[model.to_str().expect("a path")]);
    server.wait_until_ready();
    let body = r#"{"prompt":[5,6,7],"max_tokens":4,"temperature":0,"ignore_eos":true,"stream":true}"#;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntraceparent: 00-{trace}-b7ad6b7169203331-01\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let answer = ask(&server.address, &request);
    assert!(answer.contains("[DONE]"), "{answer}");
    server.signal("-TERM");
    let (code, said) = server.end();
    assert_eq!(code, Some(0), "{said}");
    let kept = kept.lock().expect("nobody panicked");
    let has = |what: &[u8]| kept.windows(what.len()).any(|window| window == what);
    for what in [
        "POST /v1/traces",
        "POST /v1/completions",
        "http.route",
        "generate",
        "first token",
        "decode",
        "service.name",
        "gen_ai.usage.output_tokens",
    ] {
        assert!(has(what.as_bytes()), "no {what:?} in {:?}", String::from_utf8_lossy(&kept));
    }
    // The caller's trace goes on: its id is in every span.
    let id: Vec<u8> = (0..16).map(|i| u8::from_str_radix(&trace[2 * i..2 * i + 2], 16).expect("hex")).collect();
    assert!(kept.windows(16).filter(|window| **window == *id).count() >= 4, "the trace of the caller is lost");
}
