//! A server in this process.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ernie_data::chat::ChatTemplate;
use ernie_serve::engine::{Engine, EngineOptions};
use ernie_serve::http::{Config, Failure, Limits, Served, serve};
use serde_json::Value;

use crate::client::{Answer, Client};
use crate::model::{CONTEXT, Told, tokenizer};

/// How a server is set up.
pub(crate) struct Setup {
    pub(crate) config: Config,
    /// Time of one step of the model.
    pub(crate) step: Duration,
    /// Requests that run at once.
    pub(crate) running: usize,
    pub(crate) with_tokenizer: bool,
    /// What the model says; noise without it.
    pub(crate) script: Option<String>,
    /// The chat template; ERNIE's without it.
    pub(crate) template: Option<&'static str>,
    /// The model is loaded when this is raised.
    pub(crate) loads_when: Arc<AtomicBool>,
    /// Loading fails.
    pub(crate) broken_model: bool,
}

impl Default for Setup {
    fn default() -> Self {
        let limits = Limits { rate_per_minute: 0, output_tokens: 256, ..Limits::default() };
        Self {
            config: Config { model: "told".into(), version: "0".into(), limits, ..Config::default() },
            step: Duration::ZERO,
            running: 8,
            with_tokenizer: true,
            script: None,
            template: None,
            loads_when: Arc::new(AtomicBool::new(true)),
            broken_model: false,
        }
    }
}

/// A server that runs until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), Failure<String>>>>,
}

impl Server {
    /// The usual server, ready.
    pub(crate) fn usual() -> Self {
        Self::start(Setup::default())
    }

    /// A server with other limits, ready.
    pub(crate) fn limited(change: impl FnOnce(&mut Limits)) -> Self {
        let mut setup = Setup::default();
        change(&mut setup.config.limits);
        Self::start(setup)
    }

    /// A server, ready unless it is not meant to be.
    pub(crate) fn start(setup: Setup) -> Self {
        let waits = setup.loads_when.load(Ordering::SeqCst) && !setup.broken_model;
        let tls = setup.config.tls.is_some();
        let server = Self::begin(setup);
        if waits && !tls {
            server.wait_for("/ready", 200);
        }
        server
    }

    fn begin(setup: Setup) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let Setup { config, step, running, with_tokenizer, script, template, loads_when, broken_model } = setup;
        let load = move || {
            while !loads_when.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            if broken_model {
                return Err("the model is broken".to_owned());
            }
            let options = EngineOptions {
                max_running: running,
                max_waiting: 100_000,
                step_tokens: 64.max(running),
                cache_tokens: Some(running * CONTEXT),
                prefix_cache_bytes: 64 << 10,
                ..EngineOptions::default()
            };
            let script = script.map(|text| tokenizer().encode(&text).expect("ids"));
            let make = move || Engine::with_model(Box::new(Told::new(step, script.clone())), options.clone());
            let tokenizer = with_tokenizer.then(tokenizer);
            let template = template.map(|source| ChatTemplate::from_source(source).expect("a template"));
            let template = template.unwrap_or_else(ChatTemplate::default_ernie);
            Ok(Served { make_engine: Box::new(make), tokenizer, template })
        };
        let thread = std::thread::spawn(move || serve(listener, config, load, flag));
        Self { address, stop, thread: Some(thread) }
    }

    /// A client of this server.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// Asks until a path has a status.
    pub(crate) fn wait_for(&self, path: &str, status: u16) {
        eventually(&format!("{path} is {status}"), || self.client().get(path).status == status);
    }

    /// One number of `/metrics`; labels belong to the name.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.client().get("/metrics").text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or("0").parse().unwrap_or_else(|e| panic!("{name}: {e} in {text}"))
    }

    /// Waits until nothing waits, runs or holds blocks.
    pub(crate) fn wait_until_idle(&self) {
        for name in ["ernie_engine_waiting", "ernie_engine_running", "ernie_kv_blocks_held"] {
            eventually(name, || self.metric(name) == 0.0);
        }
    }

    /// Posts JSON.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.client().post(path, body)
    }

    /// Posts JSON and expects 200.
    pub(crate) fn good(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.text());
        answer.json()
    }

    /// Posts JSON and expects a refusal in the API's shape, with one line that says what `names` says.
    pub(crate) fn bad(&self, path: &str, body: &Value, status: u16, names: &str) {
        let answer = self.post(path, body);
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
        answer.assert_refusal(names);
    }

    /// Tells it to stop and waits for its end.
    pub(crate) fn end(mut self) -> Result<(), Failure<String>> {
        self.stop.store(true, Ordering::SeqCst);
        self.join()
    }

    /// Waits for its end.
    pub(crate) fn join(&mut self) -> Result<(), Failure<String>> {
        self.thread.take().expect("a running server").join().expect("the server does not panic")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(std::thread::panicking() || ended.is_ok(), "the server panicked");
        }
    }
}

/// Waits for something that must come soon, with room for a slow machine.
pub(crate) fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
