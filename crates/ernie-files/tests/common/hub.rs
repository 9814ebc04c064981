//! A small hub on the loopback, which answers as the real one does and misbehaves on request.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// A file that the hub serves.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// In large-file storage: known by SHA-256 and served by another host.
    pub(crate) lfs: bool,
    /// What to name instead of the right hash.
    pub(crate) etag: Option<String>,
}

pub(crate) fn served(name: &str, bytes: impl Into<Vec<u8>>, lfs: bool) -> Served {
    Served { name: name.into(), bytes: bytes.into(), lfs, etag: None }
}

/// How the hub behaves.
#[derive(Clone)]
pub(crate) struct Spec {
    pub(crate) commit: String,
    pub(crate) files: Vec<Served>,
    /// Names that are listed beside the files.
    pub(crate) listed: Vec<String>,
    /// What every question about the model is answered with, if not the truth.
    pub(crate) status: Option<u16>,
    /// How many downloads break off in the middle.
    pub(crate) drops: usize,
    /// Whether ranges are ignored, as some proxies do.
    pub(crate) whole: bool,
    /// The token without which nothing is told.
    pub(crate) token: Option<String>,
    /// The model was renamed: questions under its name are sent on to this one.
    pub(crate) renamed: Option<String>,
}

pub(crate) const NAME: &str = "org/model";
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl Spec {
    pub(crate) fn new(files: Vec<Served>) -> Self {
        Self {
            commit: COMMIT.into(),
            files,
            listed: vec![".gitattributes".into(), "pytorch_model.bin".into(), "onnx/model.onnx".into()],
            status: None,
            drops: 0,
            whole: false,
            token: None,
            renamed: None,
        }
    }
}

/// A running hub. Its threads end with the process.
pub(crate) struct Hub {
    pub(crate) endpoint: String,
    spec: Arc<Mutex<Spec>>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    pub(crate) fn start(spec: Spec) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let hub = Self {
            endpoint: format!("http://127.0.0.1:{port}"),
            spec: Arc::new(Mutex::new(spec)),
            log: Arc::default(),
        };
        let (spec, log) = (Arc::clone(&hub.spec), Arc::clone(&hub.log));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (spec, log) = (Arc::clone(&spec), Arc::clone(&log));
                // A client that hangs up is no concern of the hub's.
                std::thread::spawn(move || drop(answer(stream, port, &spec, &log)));
            }
        });
        hub
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Spec)) {
        change(&mut self.spec.lock().unwrap());
    }

    /// Requests so far, as `PATH range=… auth=…`, and forgets them.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn git_sha1(bytes: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn answer(mut stream: TcpStream, port: u16, spec: &Mutex<Spec>, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut range, mut auth) = (String::new(), String::new(), String::new());
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        let (key, value) = line.trim_end().split_once(": ").unwrap_or_default();
        match key.to_ascii_lowercase().as_str() {
            "range" => range = value.into(),
            "authorization" => auth = value.into(),
            _ => {}
        }
    }
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    log.lock().unwrap().push(format!("{path} range={range} auth={auth}"));
    let spec_now = spec.lock().unwrap().clone();
    let mut head = |status: u16, headers: &[String], body: &[u8]| {
        let mut text = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
        for header in headers {
            text += &format!("{header}\r\n");
        }
        stream.write_all(format!("{text}\r\n").as_bytes())?;
        stream.write_all(body)?;
        stream.flush()
    };
    let told = format!("Bearer {}", spec_now.token.clone().unwrap_or_default());
    let cdn = path.starts_with("/cdn/");
    let refused = if cdn { None } else { spec_now.status };
    let refused = refused.or((!cdn && spec_now.token.is_some() && auth != told).then_some(401));
    if let Some(status) = refused {
        return head(status, &["Content-Length: 0".into()], b"");
    }
    if let Some(rest) = path.strip_prefix(&format!("/{NAME}/"))
        && let Some(new) = &spec_now.renamed
    {
        return head(307, &[format!("Location: /{new}/{rest}"), "Content-Length: 0".into()], b"");
    }
    if path.starts_with(&format!("/api/models/{NAME}/revision/")) {
        let names = spec_now.files.iter().map(|file| &file.name).chain(&spec_now.listed);
        let siblings: Vec<_> = names.map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "sha": spec_now.commit, "siblings": siblings }).to_string();
        return head(200, &[format!("Content-Length: {}", body.len())], body.as_bytes());
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    let Some(file) = spec_now.files.iter().find(|file| file.name == name) else {
        return head(404, &["Content-Length: 0".into()], b"");
    };
    let (etag, total) = (file.etag.clone(), file.bytes.len());
    let mut headers = vec![format!("X-Repo-Commit: {}", spec_now.commit)];
    if file.lfs && !cdn {
        // Another host name for the same machine: the token must not follow.
        headers.push(format!("Location: http://localhost:{port}/cdn/{name}"));
        headers.push("ETag: \"of-the-redirect\"".into());
        headers.push(format!("X-Linked-ETag: \"{}\"", etag.unwrap_or_else(|| sha256(&file.bytes))));
        headers.push(format!("X-Linked-Size: {total}"));
        headers.push("Content-Length: 0".into());
        return head(302, &headers, b"");
    }
    headers.push(format!("ETag: W/\"{}\"", etag.unwrap_or_else(|| git_sha1(&file.bytes))));
    let asked = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')).filter(|_| !spec_now.whole);
    let (status, start, end) = match asked {
        Some((start, end)) => {
            let start: usize = start.parse().unwrap();
            if start >= total {
                headers.push(format!("Content-Range: bytes */{total}"));
                headers.push("Content-Length: 0".into());
                return head(416, &headers, b"");
            }
            let end = end.parse().map_or(total, |end: usize| (end + 1).min(total));
            headers.push(format!("Content-Range: bytes {start}-{}/{total}", end - 1));
            (206, start, end)
        }
        None => (200, 0, total),
    };
    headers.push(format!("Content-Length: {}", end - start));
    let mut body = &file.bytes[start..end];
    if body.len() > 1 {
        let mut spec = spec.lock().unwrap();
        if spec.drops > 0 {
            spec.drops -= 1;
            body = &body[..body.len() / 2];
        }
    }
    head(status, &headers, body)
}
