//! More connections than a server takes, and more than the system gives it descriptors for.
#![cfg(all(feature = "http", target_os = "linux"))]

mod common;

use common::serving::{Serving, completion, get};
use common::tiny_run;
use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    process::Command,
    time::{Duration, Instant},
};

/// Connections of the flood, and what the server takes of them by default.
const FLOOD: usize = 10_000;
const LIMIT: usize = 1024;

#[test]
#[allow(clippy::print_stderr)]
fn ten_thousand_idle_connections_cost_what_the_limit_allows() {
    if !may_open(FLOOD + 200) {
        return eprintln!("skipped: the system gives this process no {FLOOD} descriptors");
    }
    let at = tempfile::tempdir().expect("a folder");
    let model = tiny_run();
    // What the documentation says a server needs: some descriptors more than connections.
    let limit = format!("ulimit -n {}", LIMIT + 76);
    let server = Serving::start_after(&limit, at.path(), &[model.to_str().expect("a path")]);
    server.wait_until_ready();
    let before = Use::of(&server);
    let mut guest = Guest::connect(&server.address);

    let mut most = Use::default();
    let mut flood = Vec::with_capacity(FLOOD);
    for count in 0..FLOOD {
        flood.push(TcpStream::connect(&server.address).expect("the system takes it"));
        if count % 500 == 0 {
            // Who has spoken keeps his place, and who comes to speak has one.
            guest.asks();
            assert!(get(&server.address, "/health").starts_with("HTTP/1.1 200"), "after {count}");
            most = most.max(Use::of(&server));
        }
    }
    most = most.max(Use::of(&server));
    assert!(most.descriptors <= before.descriptors + LIMIT + 8, "{before:?} became {most:?}");
    assert!(most.resident_kb < before.resident_kb + (64 << 10), "{before:?} became {most:?}");
    // The system takes connections ahead of the server, which may be some behind when the last is made.
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let held = flood.iter().filter(|stream| is_open(stream)).count();
        if held <= LIMIT {
            break;
        }
        assert!(Instant::now() < end, "{held} of {FLOOD} are open");
        std::thread::sleep(Duration::from_millis(50));
    }

    let answer = completion(&server.address, r#"{"prompt": "The fox", "max_tokens": 2}"#);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let refused = metric(&server.address, "ernie_http_connections_refused_total");
    assert!(refused as usize >= FLOOD - LIMIT, "{refused} were closed for want of a place");

    drop((flood, guest));
    let end = Instant::now() + Duration::from_secs(30);
    while Use::of(&server).descriptors > before.descriptors + 1 {
        assert!(Instant::now() < end, "descriptors do not come back: {before:?}, now {:?}", Use::of(&server));
        std::thread::sleep(Duration::from_millis(50));
    }
    server.signal("-TERM");
    let (code, said) = server.end();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn without_descriptors_it_waits_and_goes_on() {
    let at = tempfile::tempdir().expect("a folder");
    let model = tiny_run();
    let server = Serving::start_after("ulimit -n 64", at.path(), &[model.to_str().expect("a path")]);
    server.wait_until_ready();
    let idle: Vec<TcpStream> = (0..100).filter_map(|_| TcpStream::connect(&server.address).ok()).collect();
    assert!(idle.len() > 64, "the system itself takes connections for a while");
    let spent = processor_ticks(server.id());
    std::thread::sleep(Duration::from_secs(1));
    let spent = processor_ticks(server.id()) - spent;
    assert!(spent < 50, "waiting for descriptors took {spent} of 100 ticks");
    drop(idle);
    let answer = completion(&server.address, r#"{"prompt": "The fox", "max_tokens": 2}"#);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server.signal("-TERM");
    let (code, said) = server.end();
    assert_eq!(code, Some(0), "{said}");
    let told = said.lines().filter(|line| line.contains("could not be accepted")).count();
    assert!((1..=3).contains(&told), "said once, not for every try: {said}");
}

/// A caller who keeps his connection.
struct Guest(TcpStream);

impl Guest {
    fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        let mut guest = Self(stream);
        guest.asks();
        guest
    }

    fn asks(&mut self) {
        self.0.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("sent");
        let mut some = [0; 2048];
        let read = self.0.read(&mut some).expect("an answer");
        let answer = String::from_utf8_lossy(&some[..read]);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    }
}

/// What a server holds of the machine.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    descriptors: usize,
    resident_kb: u64,
}

impl Use {
    fn of(server: &Serving) -> Self {
        let folder = format!("/proc/{}", server.id());
        let status = fs::read_to_string(format!("{folder}/status")).expect("the server lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        let resident_kb = line.trim().trim_end_matches(" kB").parse().expect("a number");
        let descriptors = fs::read_dir(format!("{folder}/fd")).expect("its descriptors").count();
        Self { descriptors, resident_kb }
    }

    fn max(self, other: Self) -> Self {
        Self {
            descriptors: self.descriptors.max(other.descriptors),
            resident_kb: self.resident_kb.max(other.resident_kb),
        }
    }
}

/// Hundredths of a second that a process has computed.
fn processor_ticks(process: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).expect("it lives");
    // The name, in brackets, may hold anything; user and system time are the 12th and 13th number behind it.
    let numbers: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    numbers[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}

/// One number of `/metrics`.
fn metric(address: &str, name: &str) -> f64 {
    let text = get(address, "/metrics");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// Whether the server has left a connection open.
fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a socket");
    let mut stream = stream;
    matches!(stream.read(&mut [0; 1]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// Asks the system for so many descriptors.
fn may_open(descriptors: usize) -> bool {
    let process = std::process::id().to_string();
    let raised = Command::new("prlimit").args(["--pid", &process, &format!("--nofile={descriptors}:")]).output();
    raised.is_ok_and(|output| output.status.success())
}
