//! `pull`, `list`, `remove` against a small hub on loopback.

mod common;

use common::{Answer, answer, ernie, parity};
use sha1::{Digest, Sha1};
use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub with one model, `tiny/moe`.
struct Hub {
    files: Vec<(String, Vec<u8>)>,
    /// Says another hash than the file's for this file.
    lie_about: Option<&'static str>,
    /// Breaks off the first answer with more bytes than this.
    break_after: Option<usize>,
    broken: AtomicUsize,
}

impl Hub {
    fn start(lie_about: Option<&'static str>, break_after: Option<usize>) -> String {
        let files = ["config.json", "model.safetensors"]
            .map(|name| (name.to_owned(), fs::read(parity("moe").join(name)).expect("a fixture")));
        let hub = Arc::new(Hub { files: files.into(), lie_about, break_after, broken: AtomicUsize::new(0) });
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let hub = Arc::clone(&hub);
                std::thread::spawn(move || hub.serve(stream));
            }
        });
        address
    }

    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
        let mut request = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
                break;
            }
            request.push(line.trim_end().to_owned());
        }
        let Some(path) = request.first().and_then(|l| l.split(' ').nth(1)) else { return };
        let range = request.iter().find_map(|l| {
            let (name, value) = l.split_once(':')?;
            let (a, b) = value.trim().strip_prefix("bytes=")?.split_once('-')?;
            name.eq_ignore_ascii_case("range").then(|| (a.parse().unwrap_or(0), b.parse().ok()))
        });
        self.reply(stream, path, range);
    }

    fn reply(&self, mut stream: TcpStream, path: &str, range: Option<(usize, Option<usize>)>) {
        if path.starts_with("/api/models/tiny/moe") {
            let siblings: Vec<_> =
                self.files.iter().map(|(name, _)| serde_json::json!({ "rfilename": name })).collect();
            let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
            let _ =
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            return;
        }
        let file = self.files.iter().find(|(name, _)| *path == format!("/tiny/moe/resolve/{COMMIT}/{name}"));
        let Some((name, bytes)) = file else {
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return;
        };
        let mut hash = git_hash(bytes);
        if self.lie_about == Some(name.as_str()) {
            hash = git_hash(b"something else");
        }
        let (first, last) = match range {
            Some((first, last)) => (first, last.unwrap_or(bytes.len() - 1).min(bytes.len() - 1)),
            None => (0, bytes.len() - 1),
        };
        let body = &bytes[first..=last];
        let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
        let _ = write!(
            stream,
            "HTTP/1.1 {status}\r\nETag: \"{hash}\"\r\nX-Repo-Commit: {COMMIT}\r\nAccept-Ranges: bytes\r\nContent-Range: bytes {first}-{last}/{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            bytes.len(),
            body.len()
        );
        match self.break_after {
            Some(most) if body.len() > most && self.broken.fetch_add(1, Ordering::SeqCst) == 0 => {
                let _ = stream.write_all(&body[..most]);
            }
            _ => {
                let _ = stream.write_all(body);
            }
        }
    }
}

fn git_hash(bytes: &[u8]) -> String {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hasher.finalize().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn with_hub(folder: &Path, hub: &str, args: &[&str]) -> Answer {
    answer(ernie(folder).env("HF_ENDPOINT", hub).env("NO_PROXY", "127.0.0.1").args(args))
}

#[test]
fn pulled_models_are_used_listed_and_removed() {
    let at = tempfile::tempdir().expect("a temporary folder");
    let hub = Hub::start(None, Some(50_000));
    let pulled = with_hub(at.path(), &hub, &["pull", "tiny/moe"]);
    assert_eq!(pulled.code, 0, "{}", pulled.err);
    assert_eq!(pulled.out, "");
    let again = with_hub(at.path(), &hub, &["pull", "tiny/moe", "--json", "--quiet"]);
    assert_eq!(again.code, 0, "{}", again.err);
    assert_eq!(again.json()["name"], "tiny/moe");

    let inspected = common::good(at.path(), &["inspect", "tiny/moe", "--json"]).json();
    assert!(inspected["params_total"].is_u64());
    common::good(at.path(), &["inspect", "tiny/moe@main", "--json"]);

    let list = common::good(at.path(), &["list", "--json"]).json();
    assert_eq!(list["models"][0]["name"], "tiny/moe");
    assert_eq!(list["models"][0]["revision"], COMMIT);
    assert!(common::good(at.path(), &["list"]).out.starts_with("tiny/moe"));

    common::good(at.path(), &["remove", "tiny/moe"]);
    common::bad(at.path(), &["inspect", "tiny/moe"], 3);
    common::bad(at.path(), &["remove", "tiny/moe"], 2);
}

#[test]
fn a_wrong_hash_is_refused_and_nothing_stays() {
    let at = tempfile::tempdir().expect("a temporary folder");
    let hub = Hub::start(Some("config.json"), None);
    let pulled = with_hub(at.path(), &hub, &["pull", "tiny/moe", "--quiet"]);
    assert_eq!(pulled.code, 3, "{}", pulled.err);
    assert!(pulled.err.contains("config.json"), "{}", pulled.err);
    common::bad(at.path(), &["inspect", "tiny/moe"], 3);
}

#[test]
fn a_hub_that_says_no() {
    let at = tempfile::tempdir().expect("a temporary folder");
    let hub = Hub::start(None, None);
    let missing = with_hub(at.path(), &hub, &["pull", "tiny/none"]);
    assert_eq!(missing.code, 3, "{}", missing.err);
    assert!(missing.err.contains("tiny/none"), "{}", missing.err);
    let wrong = with_hub(at.path(), &hub, &["pull", "../etc"]);
    assert_eq!(wrong.code, 2, "{}", wrong.err);
    let offline = answer(ernie(at.path()).env("HF_HUB_OFFLINE", "1").args(["pull", "tiny/moe"]));
    assert_eq!(offline.code, 3, "{}", offline.err);
    assert!(offline.err.contains("HF_HUB_OFFLINE"), "{}", offline.err);
}
