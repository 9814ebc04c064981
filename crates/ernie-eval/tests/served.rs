//! Load on a server, against one that is made up: it answers as each request's length asks for.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ernie_eval::load::Workload;
use ernie_eval::load::served::{Ended, Failure, Load, Pace, Sample, Target, run};
use serde_json::{Value, json};

/// What the server does with a completion of so many tokens.
type Manner = fn(usize, &mut TcpStream) -> std::io::Result<()>;

/// A server on a port of its own, and the bodies that it was sent.
fn server(manner: Manner) -> (String, Arc<Mutex<Vec<Value>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let seen = bodies.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let seen = seen.clone();
            thread::spawn(move || talk(stream, manner, &seen));
        }
    });
    (url, bodies)
}

fn talk(mut stream: TcpStream, manner: Manner, seen: &Mutex<Vec<Value>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        if first.starts_with("GET") {
            let models = json!({ "data": [{ "id": "made-up" }] }).to_string();
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{models}", models.len())?;
            continue;
        }
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let tokens = body["max_tokens"].as_u64().unwrap_or(0) as usize;
        seen.lock().unwrap().push(body);
        manner(tokens, &mut stream)?;
        return Ok(());
    }
}

fn begin(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
}

fn piece(stream: &mut TcpStream) -> std::io::Result<()> {
    thread::sleep(Duration::from_millis(2));
    stream.write_all(b"data: {\"choices\":[{\"text\":\"word \",\"index\":0,\"finish_reason\":null}]}\n\n")
}

fn well(tokens: usize, stream: &mut TcpStream) -> std::io::Result<()> {
    begin(stream)?;
    for _ in 0..tokens {
        piece(stream)?;
    }
    let usage = json!({ "choices": [], "usage": { "completion_tokens": tokens } });
    write!(stream, "data: {usage}\n\ndata: [DONE]\n\n")
}

/// Well, but it drops whoever asks again on the same connection, without having said that it would.
fn once(tokens: usize, stream: &mut TcpStream) -> std::io::Result<()> {
    let usage = json!({ "choices": [], "usage": { "completion_tokens": tokens } });
    let text = json!({ "choices": [{ "text": "words", "finish_reason": "length" }] });
    let body = format!("data: {text}\n\ndata: {usage}\n\ndata: [DONE]\n\n");
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    stream.read(&mut [0]).map(|_| ())
}

/// By the length that is asked for: every other end that there is.
fn badly(tokens: usize, stream: &mut TcpStream) -> std::io::Result<()> {
    match tokens % 5 {
        0 => stream.write_all(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"),
        1 => stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"),
        2 => {
            begin(stream)?;
            piece(stream)
        }
        3 => {
            begin(stream)?;
            stream.write_all(b"data: {\"error\":{\"message\":\"no\"}}\n\n")
        }
        _ => {
            begin(stream)?;
            piece(stream)?;
            thread::sleep(Duration::from_millis(1500));
            Ok(())
        }
    }
}

fn load(pace: Pace) -> Load {
    let workload = Workload {
        requests: 40,
        prompt_tokens: 8.0,
        answer_tokens: 5.0,
        spread: 0.4,
        most_tokens: 20,
        temperature: 0.0,
        seed: 7,
    };
    Load { workload, pace, vocab: 1000, most_s: f64::INFINITY, leave_share: 0.0 }
}

fn measure(url: &str, load: &Load) -> Vec<Sample> {
    let target = Target::connect(url, None, None, 0.5).unwrap();
    assert_eq!(target.model(), "made-up");
    run(&target, load).unwrap().0
}

#[test]
fn every_request_is_made_once_and_its_tokens_are_counted() {
    for pace in [Pace::Clients(4), Pace::RatePerS(400.0)] {
        let (url, bodies) = server(well);
        let samples = measure(&url, &load(pace));
        let bodies = bodies.lock().unwrap();
        assert_eq!((samples.len(), bodies.len()), (40, 40), "{pace:?}");
        let asked: u64 = bodies.iter().map(|body| body["max_tokens"].as_u64().unwrap()).sum();
        assert_eq!(samples.iter().map(|sample| sample.tokens as u64).sum::<u64>(), asked);
        for sample in &samples {
            assert_eq!(sample.ended, Ended::Answered);
            assert_eq!(sample.gaps_s.len() + 1, sample.tokens);
            let first = sample.first_token_s.unwrap();
            assert!(sample.due_s <= first && first <= sample.end_s, "{sample:?}");
        }
        let ids = bodies.iter().flat_map(|body| body["prompt"].as_array().unwrap());
        assert!(ids.map(|id| id.as_u64().unwrap()).all(|id| (300..1000).contains(&id)));
    }
}

#[test]
fn the_same_seed_asks_the_same() {
    let sorted = |pace| {
        let (url, bodies) = server(well);
        measure(&url, &load(pace));
        let mut bodies: Vec<String> = bodies.lock().unwrap().iter().map(Value::to_string).collect();
        bodies.sort();
        bodies
    };
    assert_eq!(sorted(Pace::Clients(3)), sorted(Pace::RatePerS(1000.0)));
}

#[test]
fn a_connection_that_the_server_gives_up_between_requests_is_no_failure() {
    let (url, _) = server(once);
    let target = Target::connect(&url, None, None, 5.0).unwrap();
    target.check(&[5]).unwrap();
    let (samples, _) = run(&target, &load(Pace::Clients(2))).unwrap();
    assert!(samples.iter().all(|sample| sample.ended == Ended::Answered), "{samples:?}");
}

/// Every server is told all that decides how tokens are picked, and each request has a seed of its own.
#[test]
fn answers_are_drawn_where_that_is_asked_for() {
    let seen = |temperature: f32| {
        let (url, bodies) = server(well);
        let mut load = load(Pace::Clients(4));
        load.workload.temperature = temperature;
        measure(&url, &load);
        std::mem::take(&mut *bodies.lock().unwrap())
    };
    let drawn = seen(1.0);
    assert!(drawn.iter().all(|body| body["temperature"] == 1.0 && body["top_k"] == 40), "{:?}", drawn[0]);
    assert!(drawn.iter().all(|body| body["top_p"] == 1.0 && body["min_p"] == 0.0), "{:?}", drawn[0]);
    let mut seeds: Vec<u64> = drawn.iter().map(|body| body["seed"].as_u64().unwrap()).collect();
    seeds.sort_unstable();
    assert_eq!(seeds, (0..40).collect::<Vec<_>>());
    assert!(seen(0.0).iter().all(|body| body["temperature"] == 0.0 && body["seed"].is_null()));
}

#[test]
fn every_bad_end_has_its_name() {
    let (url, _) = server(badly);
    let samples = measure(&url, &load(Pace::Clients(8)));
    assert_eq!(samples.len(), 40);
    for failure in [Failure::Status(429), Failure::Status(503), Failure::Cut, Failure::InStream, Failure::Timeout] {
        assert!(samples.iter().any(|sample| sample.ended == Ended::Failed(failure)), "no {failure:?}: {samples:?}");
    }
    assert!(samples.iter().all(|sample| matches!(sample.ended, Ended::Failed(_))));
}

#[test]
fn nobody_there_is_refused() {
    let (url, _) = server(well);
    let target = Target::connect(&url, Some("made-up"), None, 1.0).unwrap();
    // A port that nothing listens on any more.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = Target::connect(&format!("http://{free}"), Some("any"), None, 1.0).unwrap();
    assert!(run(&target, &load(Pace::Clients(2))).unwrap().0.iter().all(|s| s.ended == Ended::Answered));
    let samples = run(&gone, &load(Pace::Clients(2))).unwrap().0;
    assert!(samples.iter().all(|s| s.ended == Ended::Failed(Failure::Refused)), "{:?}", samples[0]);
    let error = gone.check(&[300]).unwrap_err();
    assert!(error.to_string().contains(&free.to_string()), "{error}");
}

#[test]
fn readers_who_leave_are_counted_apart() {
    let (url, _) = server(well);
    let half = Load { leave_share: 0.5, ..load(Pace::Clients(4)) };
    let samples = measure(&url, &half);
    let left = samples.iter().filter(|sample| sample.ended == Ended::Left).count();
    assert!((8..=32).contains(&left), "{left}");
    assert!(samples.iter().all(|sample| matches!(sample.ended, Ended::Left | Ended::Answered)));
}

#[test]
fn time_ends_a_run() {
    let (url, bodies) = server(well);
    let mut long = load(Pace::RatePerS(100.0));
    long.workload.requests = 10_000;
    long.most_s = 0.3;
    let samples = measure(&url, &long);
    assert_eq!(samples.len(), bodies.lock().unwrap().len());
    assert!((5..=100).contains(&samples.len()), "{}", samples.len());
}

#[test]
fn what_cannot_be_is_refused() {
    let (url, _) = server(well);
    let target = Target::connect(&url, None, None, 1.0).unwrap();
    for (load, name) in [
        (load(Pace::Clients(0)), "clients"),
        (load(Pace::Clients(100_000)), "clients"),
        (load(Pace::RatePerS(0.0)), "rate"),
        (Load { leave_share: 1.5, ..load(Pace::Clients(1)) }, "leave_share"),
        (Load { most_s: 0.0, ..load(Pace::Clients(1)) }, "most_s"),
    ] {
        let error = run(&target, &load).unwrap_err();
        assert!(error.is_input() && error.to_string().contains(name), "{error}");
    }
    for url in ["", "127.0.0.1:80", "ftp://x", "http://", "http:///v1"] {
        assert!(Target::connect(url, None, None, 1.0).is_err_and(|error| error.is_input()), "{url}");
    }
    assert!(Target::connect(&url, None, None, f64::NAN).is_err());
}
