//! A client of bare sockets: it sends what it is told to, byte by byte if need be.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Longer than anything here should take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where requests go, and what stands in each.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    address: SocketAddr,
    headers: Vec<(String, String)>,
}

/// What came back. Status 0 is a connection that was closed without an answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, headers: Vec::new() }
    }

    /// The same client with one more header in each request.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same client with a key.
    pub(crate) fn key(self, key: &str) -> Self {
        self.with("authorization", &format!("Bearer {key}"))
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the server accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    /// The text of a request up to its body.
    pub(crate) fn head(&self, method: &str, path: &str, more: &str) -> String {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !self.headers.iter().any(|(name, _)| name == "host") {
            head += "host: localhost\r\n";
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head + more + "\r\n"
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send(self.head("GET", path, "connection: close\r\n").as_bytes())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_bytes(path, body.to_string().as_bytes())
    }

    pub(crate) fn post_bytes(&self, path: &str, body: &[u8]) -> Answer {
        let more = format!("content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
        let mut request = self.head("POST", path, &more).into_bytes();
        request.extend_from_slice(body);
        self.send(&request)
    }

    /// Sends bytes on a connection of their own and reads what comes until its end.
    pub(crate) fn send(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        // The server may refuse and close before it has read all.
        let _ = stream.write_all(bytes);
        read(&mut stream)
    }

    /// Begins a request and leaves its answer to the caller.
    pub(crate) fn begin(&self, path: &str, body: &Value) -> TcpStream {
        let body = body.to_string();
        let more = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        let mut stream = self.connect();
        stream.write_all((self.head("POST", path, &more) + &body).as_bytes()).expect("the request is sent");
        stream
    }
}

/// Reads one answer to the end of the connection.
pub(crate) fn read(stream: &mut impl Read) -> Answer {
    let mut bytes = Vec::new();
    // A connection that is reset has said all it will.
    let _ = stream.read_to_end(&mut bytes);
    Answer::parse(&bytes)
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Self { status: 0, headers: Vec::new(), body: Vec::new() };
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|s| s.parse().ok()).unwrap_or(0);
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let rest = &bytes[end + 4..];
        if status == 100 {
            return Self::parse(rest);
        }
        let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        let body = if chunked { dechunk(rest) } else { rest.to_vec() };
        Self { status, headers, body }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {}", self.text()))
    }

    /// The data of all events. `[DONE]` must be the last where there is one.
    pub(crate) fn events(&self) -> Vec<Value> {
        let text = self.text();
        let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let done = data.iter().position(|&line| line == "[DONE]");
        assert!(done.is_none_or(|at| at + 1 == data.len()), "{text}");
        let parse = |line: &&str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line}"));
        data.iter().filter(|&&line| line != "[DONE]").map(parse).collect()
    }

    /// Whether a stream came to its end.
    pub(crate) fn is_done(&self) -> bool {
        self.text().ends_with("data: [DONE]\n\n")
    }

    /// A refusal in the API's shape: one clear line that says what `names` says, and nothing of the inside.
    pub(crate) fn assert_refusal(&self, names: &str) {
        let error = &self.json()["error"];
        let message = error["message"].as_str().unwrap_or_else(|| panic!("no message in {}", self.text()));
        assert!(message.contains(names), "{message:?} does not say {names:?}");
        assert!(!message.contains('\n') && message.len() < 500, "{message:?}");
        for inside in [".rs", "panicked", "0x", "/root", "/home", "serde", "usize", "u64"] {
            assert!(!message.contains(inside), "{message:?} tells of {inside:?}");
        }
        assert!(error["type"].is_string(), "{}", self.text());
    }
}

fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = std::str::from_utf8(&rest[..end]).ok().and_then(|hex| usize::from_str_radix(hex, 16).ok());
        let Some(size) = size.filter(|&size| size > 0) else { break };
        let chunk = &rest[end + 2..];
        body.extend_from_slice(&chunk[..size.min(chunk.len())]);
        rest = chunk.get(size + 2..).unwrap_or_default();
    }
    body
}
