//! Who may come in, how often, and with what.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use ernie_serve::http::{Keys, Tls};
use serde_json::json;

use crate::client::{Client, read};
use crate::server::{Server, Setup, eventually};

/// All routes; a test holds this list against `/openapi.json`.
pub(crate) const ROUTES: [&str; 16] = [
    "GET /",
    "GET /page.css",
    "GET /page.js",
    "GET /health",
    "GET /ready",
    "GET /metrics",
    "GET /openapi.json",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/responses",
    "POST /v1/embeddings",
    "POST /tokenize",
    "POST /detokenize",
    "GET /tokenizer_info",
];

/// What the contract leaves open.
const OPEN: [&str; 5] = ["/", "/page.css", "/page.js", "/health", "/ready"];

const KEY: &str = "the-first-key";

fn with_keys(change: impl FnOnce(&mut Setup)) -> Server {
    let mut setup = Setup::default();
    setup.config.keys = Keys::parse(&format!("{KEY}\nthe-second-key\n")).expect("keys");
    change(&mut setup);
    Server::start(setup)
}

#[test]
fn every_route_but_the_open_ones_needs_a_key() {
    let server = with_keys(|_| {});
    let mut walked: Vec<String> = ROUTES.iter().map(|route| route.replace("{model}", "told")).collect();
    // What is not there is not told apart from what is, and no method or spelling is a way around.
    walked.extend(
        [
            "GET /v1/nothing",
            "PUT /v1/models",
            "OPTIONS /v1/models",
            "GET //metrics",
            "GET /v1/../metrics",
            "GET /METRICS",
            "GET /health/../metrics",
            "GET /metrics?x=/health",
            "HEAD /metrics",
            "GET /%6detrics",
        ]
        .map(str::to_owned),
    );
    for route in &walked {
        let (method, path) = route.split_once(' ').unwrap();
        let send = |client: Client| {
            client.send(client.head(method, path, "content-length: 0\r\nconnection: close\r\n").as_bytes())
        };
        let status = send(server.client()).status;
        if OPEN.contains(&path) {
            assert_eq!(status, 200, "{route}");
        } else {
            assert_eq!(status, 401, "{route}");
            assert_ne!(send(server.client().key(KEY)).status, 401, "{route}");
        }
    }
}

#[test]
fn only_the_right_key_opens_and_it_must_come_once() {
    let server = with_keys(|_| {});
    let status = |client: Client| client.get("/v1/models").status;
    assert_eq!(status(server.client().key(KEY)), 200);
    assert_eq!(status(server.client().key("the-second-key")), 200);
    assert_eq!(status(server.client().with("Authorization", &format!("bearer {KEY} "))), 200);
    for wrong in ["the-first-kez", "the-first-ke", "the-first-key2", "", " ", "the-first-key the-first-key"] {
        let answer = server.client().key(wrong).get("/v1/models");
        assert_eq!(answer.status, 401, "{wrong:?}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        answer.assert_refusal("API key");
    }
    assert_eq!(status(server.client().with("authorization", KEY)), 401);
    assert_eq!(status(server.client().with("authorization", &format!("Basic {KEY}"))), 401);
    assert_eq!(status(server.client().with("authorization", "Bearer schl\u{fc}ssel")), 401);
    assert_eq!(status(server.client().key(KEY).key(KEY)), 401);
    assert_eq!(status(server.client().key("nothing-here").key(KEY)), 401);
}

#[test]
fn each_key_has_its_own_rate() {
    let server = with_keys(|setup| setup.config.limits.rate_per_minute = 3);
    let statuses: Vec<u16> = (0..5).map(|_| server.client().key(KEY).get("/v1/models").status).collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    let refused = server.client().key(KEY).get("/v1/models");
    let wait: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    refused.assert_refusal("too fast");
    assert_eq!(server.client().key("the-second-key").get("/v1/models").status, 200);
    // A wrong key costs nobody's rate.
    assert_eq!(server.client().key("wrong-wrong").get("/v1/models").status, 401);
    assert_eq!(server.client().get("/health").status, 200);
}

#[test]
fn each_key_has_its_own_share_of_what_runs() {
    let server = with_keys(|setup| {
        setup.config.limits.concurrency = 1;
        setup.step = Duration::from_millis(20);
    });
    let body = json!({"prompt": [9], "max_tokens": 200, "stream": true});
    let first = server.client().key(KEY);
    let mut stream = first.begin("/v1/completions", &body);
    let mut some = [0; 64];
    assert!(stream.read(&mut some).unwrap() > 0, "it runs");
    let refused = first.post("/v1/completions", &body);
    assert_eq!(refused.status, 429);
    refused.assert_refusal("this key");
    let short = json!({"prompt": [9], "max_tokens": 1});
    assert_eq!(server.client().key("the-second-key").post("/v1/completions", &short).status, 200);
    drop(stream);
    // Who leaves gives the place back.
    eventually("the place is free", || first.post("/v1/completions", &short).status == 200);
}

#[test]
fn strangers_names_and_origins_are_not_answered() {
    let mut setup = Setup::default();
    setup.config.loopback_names_only = true;
    setup.config.cors_origins = vec!["https://chat.example.org".into()];
    let server = Server::start(setup);
    let host = |host: &str| server.client().with("host", host).get("/v1/models").status;
    for fine in ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:80", "LOCALHOST", "chat.example.org"] {
        assert_eq!(host(fine), 200, "{fine}");
    }
    for evil in ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", ""] {
        assert_eq!(host(evil), 403, "{evil}");
    }
    let ask = |origin: &str| {
        let client = server.client().with("origin", origin).with("access-control-request-method", "POST");
        client.send(client.head("OPTIONS", "/v1/chat/completions", "connection: close\r\n").as_bytes())
    };
    let allowed = ask("https://chat.example.org");
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://chat.example.org"));
    assert_eq!(ask("https://evil.example").header("access-control-allow-origin"), None);
    // Without a list nobody is allowed, and a pre-flight is a request like any other.
    let server = Server::usual();
    let client =
        server.client().with("origin", "https://chat.example.org").with("access-control-request-method", "POST");
    let answer = client.send(client.head("OPTIONS", "/v1/chat/completions", "connection: close\r\n").as_bytes());
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (405, None));
}

#[test]
fn wrong_origins_and_certificates_are_refused_at_the_start() {
    let listener = || std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    for origin in ["*", "example.org", "https://", "https://a.org/path", "ftp://a.org"] {
        let mut config = Setup::default().config;
        config.cors_origins = vec![origin.into()];
        let load = || -> Result<_, String> { Err("never asked".into()) };
        let outcome = ernie_serve::http::serve(listener(), config, load, Arc::default());
        assert!(matches!(outcome, Err(ernie_serve::http::Failure::Serve(e)) if e.is_input()), "{origin}");
    }
    assert!(Tls::from_pem(b"", b"").unwrap_err().is_input());
    assert!(
        Tls::from_pem(b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", b"x").unwrap_err().is_input()
    );
}

#[test]
fn the_page_lets_nothing_else_in() {
    let server = Server::usual();
    for (path, kind) in [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")] {
        let answer = server.client().get(path);
        assert!(answer.header("content-type").unwrap().starts_with(kind), "{path}");
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
}

#[test]
fn request_ids_go_there_and_back_when_they_are_harmless() {
    let server = Server::usual();
    let id = |given: &str| {
        server.client().with("x-request-id", given).get("/health").header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id("job-7_a.b"), "job-7_a.b");
    for odd in ["", "a b", "x\u{e9}", &"a".repeat(65), "a\"b", "<script>"] {
        let new = id(odd);
        assert!(new.starts_with("req_") && new.len() < 40, "{odd:?} became {new:?}");
    }
    assert_ne!(id(""), id(""));
}

#[test]
fn tls_is_spoken_where_a_certificate_is_given() {
    use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring};
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let mut setup = Setup::default();
    let key = made.signing_key.serialize_pem();
    setup.config.tls = Some(Tls::from_pem(made.cert.pem().as_bytes(), key.as_bytes()).expect("TLS"));
    setup.config.limits.header_timeout = Duration::from_millis(500);
    let server = Server::start(setup);
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a root");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    let get = |path: &str| {
        let connection =
            ClientConnection::new(config.clone(), "localhost".try_into().expect("a name")).expect("a client");
        let mut stream = StreamOwned::new(connection, server.client().connect());
        stream.write_all(server.client().head("GET", path, "connection: close\r\n").as_bytes()).expect("sent");
        read(&mut stream)
    };
    eventually("ready by TLS", || get("/ready").status == 200);
    assert_eq!(get("/v1/models").json()["data"][0]["id"], "told");
    // Who speaks no TLS, or nothing at all, is let go.
    assert_eq!(server.client().get("/health").status, 0);
    let mut silent = server.client().connect();
    assert_eq!(silent.read(&mut [0; 8]).unwrap_or(0), 0);
}
