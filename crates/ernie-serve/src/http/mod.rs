//! The HTTP server: the OpenAI API over an engine, safe by default.
//!
//! ```text
//! connection ─► guard (id, key, rate) ─► route ─► params ─► admit ─► encode ─┐
//!    ▲                                                                       ▼
//!    └────────────── text, JSON, events ◄── Answer ◄── updates ◄── engine's thread
//! ```
//!
//! One thread owns the engine (`thread.rs`); tokio lives in this module only. A handler parses and checks a request field
//! by field, takes a place in the queue or says that there is none, encodes text aside, and submits ids. What comes back
//! is pulled by the connection, so nothing piles up for a reader that does not read, and a reader that goes away ends
//! its request at the engine's next step.
//!
//! The server listens before the model is loaded, drains when it is told to stop, and keeps no conversation.

mod answer;
mod body;
mod connection;
mod error;
mod fields;
mod guard;
mod keys;
mod limits;
mod logprobs;
mod manner;
mod messages;
mod metrics;
mod params;
mod places;
mod routes;
mod sse;
mod state;
mod thread;
mod tls;
mod trace;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use ernie_data::chat::ChatTemplate;
use ernie_data::tokenizer::Tokenizer;
use tokio::sync::{oneshot, watch};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

pub use keys::Keys;
pub use limits::Limits;
pub use thread::EngineMaker;
pub use tls::Tls;
pub use trace::TARGET as TRACE_TARGET;

use crate::session::{CallForm, GrammarCache, GrammarVocab, ReasoningForm};
use crate::{Error, Result};
use error::ApiError;
use state::{App, Model, Phase};

/// How a server behaves.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The name by which the model is asked for.
    pub model: String,
    /// The names by which its adapters are asked for, in the order of their numbers; all different, and none the model's.
    pub adapters: Vec<String>,
    /// The program's version, as it is told to callers.
    pub version: String,
    /// What may be used.
    pub limits: Limits,
    /// Who may come in; without keys, everybody.
    pub keys: Keys,
    /// Without keys: answers only to `localhost`, addresses and the names of listed origins, so that no stranger's name
    /// that was pointed at this machine works.
    pub loopback_names_only: bool,
    /// Origins whose pages may call, such as `https://example.org`.
    pub cors_origins: Vec<String>,
    /// Speaks TLS.
    pub tls: Option<Tls>,
    /// Makes the span of a request part of the trace that its headers name ([`TRACE_TARGET`]).
    pub continue_trace: Option<fn(&tracing::Span, &axum::http::HeaderMap)>,
}

/// What is served, once it is loaded.
pub struct Served {
    /// Makes the engine, now and after a defect.
    pub make_engine: EngineMaker,
    /// Without one only token ids are served.
    pub tokenizer: Option<Tokenizer>,
    /// The checkpoint's template.
    pub template: ChatTemplate,
}

/// Why a server ended before it was told to.
#[derive(Debug)]
pub enum Failure<E> {
    /// The model could not be loaded.
    Load(E),
    /// The server itself failed.
    Serve(Error),
}

impl<E> From<Error> for Failure<E> {
    fn from(error: Error) -> Self {
        Self::Serve(error)
    }
}

/// How often the flag to stop and the requests in flight are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Compiled grammars that are kept, and their bytes.
const KEPT_GRAMMARS: usize = 256;
const KEPT_GRAMMAR_BYTES: usize = 64 << 20;

/// How long cut answers have to say so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves until `stop` is raised and what was admitted is finished, or the grace is over.
///
/// It answers at once; until `load` is done, requests for the model are answered 503. `load` runs on a thread of its
/// own.
///
/// # Errors
/// [`Failure::Load`] with the loader's own error; [`Failure::Serve`] for a config that cannot be, a system that gives no
/// threads, or an engine that failed too often.
pub fn serve<E: Send + 'static>(
    listener: TcpListener,
    config: Config,
    load: impl FnOnce() -> std::result::Result<Served, E> + Send + 'static,
    stop: Arc<AtomicBool>,
) -> std::result::Result<(), Failure<E>> {
    let app = Arc::new(App::new(config));
    let router = router(&app)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .thread_name("http")
        .on_thread_start(ernie_nn::catch_panics)
        .enable_io()
        .enable_time()
        .build()
        .map_err(|e| Error::System(e.to_string()))?;
    let outcome = runtime.block_on(run(listener, app, router, load, &stop));
    // Nothing that still hangs on a slow peer keeps the process.
    runtime.shutdown_background();
    outcome
}

/// The routes behind the guard.
fn router(app: &Arc<App>) -> Result<Router> {
    let answer_for_panic = |_| ApiError::internal("a handler panicked").into_response();
    let router = routes::router()
        .layer(CatchPanicLayer::custom(answer_for_panic))
        .layer(from_fn_with_state(app.clone(), guard::guard));
    let origins: Result<Vec<HeaderValue>> = app.config.cors_origins.iter().map(|origin| parse_origin(origin)).collect();
    let origins = origins?;
    let router = if origins.is_empty() {
        router
    } else {
        router.layer(
            CorsLayer::new()
                .allow_origin(AllowOrigin::list(origins))
                .allow_methods([Method::GET, Method::POST])
                .allow_headers(AllowHeaders::mirror_request())
                .expose_headers(["x-request-id", "retry-after"].map(HeaderName::from_static))
                .max_age(Duration::from_secs(600)),
        )
    };
    Ok(router.with_state(app.clone()))
}

/// Checks an origin: a scheme and a host, nothing behind it, and no wildcard.
fn parse_origin(origin: &str) -> Result<HeaderValue> {
    let wrong = || Error::parameter("a CORS origin", format!("{origin:?}"), "such as https://example.org");
    let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://")).ok_or_else(wrong)?;
    if host.is_empty() || host.contains(['/', '*', ' ', '?', '#', '@']) {
        return Err(wrong());
    }
    HeaderValue::from_str(origin).map_err(|_| wrong())
}

async fn run<E: Send + 'static>(
    listener: TcpListener,
    app: Arc<App>,
    router: Router,
    load: impl FnOnce() -> std::result::Result<Served, E> + Send + 'static,
    stop: &AtomicBool,
) -> std::result::Result<(), Failure<E>> {
    let system = |e: std::io::Error| Error::System(e.to_string());
    listener.set_nonblocking(true).map_err(system)?;
    socket2::SockRef::from(&listener).listen(connection::BACKLOG).map_err(system)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(system)?;
    let tls = app.config.tls.as_ref().map(Tls::acceptor);
    let accept = tokio::spawn(connection::accept(listener, router, tls, app.clone()));
    let (broken_sender, mut broken) = watch::channel(false);
    let (loaded, loading) = oneshot::channel();
    let loader = app.clone();
    std::thread::Builder::new()
        .name("load".into())
        .spawn(move || _ = loaded.send(open(load, &loader, broken_sender)))
        .map_err(no_thread)?;

    tokio::pin!(loading);
    let mut is_open = false;
    loop {
        tokio::select! {
            outcome = loading.as_mut(), if !is_open => match outcome {
                Ok(Ok(())) => is_open = true,
                Ok(Err(failure)) => return Err(failure),
                Err(_) => return Err(Error::Internal("loading broke off".into()).into()),
            },
            Ok(_) = broken.wait_for(|&broken| broken) => {
                return Err(Error::Internal("the engine failed again and again".into()).into());
            }
            () = tokio::time::sleep(LOOK) => if stop.load(Ordering::SeqCst) { break },
        }
    }
    drain(&app).await;
    accept.abort();
    Ok(())
}

fn no_thread(error: std::io::Error) -> Error {
    Error::System(format!("no thread could be started ({error})"))
}

/// Loads the model and opens the server.
fn open<E>(
    load: impl FnOnce() -> std::result::Result<Served, E>,
    app: &App,
    broken: watch::Sender<bool>,
) -> std::result::Result<(), Failure<E>> {
    let Served { mut make_engine, tokenizer, template } = load().map_err(Failure::Load)?;
    let engine = make_engine()?;
    let (vocab_size, context_length) = (engine.vocab_size(), engine.context_length());
    let running = engine.options().max_running;
    let end_ids: Vec<u32> =
        tokenizer.iter().flat_map(crate::session::end_ids).filter(|&id| (id as usize) < vocab_size).collect();
    let (calls, reasoning, grammars) = match &tokenizer {
        Some(tokenizer) => {
            let calls = CallForm::detect(tokenizer, template.source());
            let all_ends: Vec<u32> = engine.eos_ids().iter().chain(&end_ids).copied().collect();
            let vocab = GrammarVocab::new(tokenizer, vocab_size, &all_ends, &calls.tags());
            let cache = vocab.map(|vocab| GrammarCache::new(vocab, KEPT_GRAMMARS, KEPT_GRAMMAR_BYTES));
            let cache = cache.inspect_err(|error| tracing::warn!(%error, "answers of a given form are not to be had"));
            let reasoning = ReasoningForm::detect(tokenizer, template.source());
            (calls, reasoning, cache.ok())
        }
        None => (CallForm::tagged(), None, None),
    };
    let engine = thread::start(engine, make_engine, app.metrics.clone(), broken).map_err(no_thread)?;
    let model = Model { engine, tokenizer, template, end_ids, calls, reasoning, grammars, vocab_size, context_length };
    app.open(model, running);
    tracing::info!(target: "ernie_serve::http", model = app.config.model, context_length, running, "ready");
    Ok(())
}

/// Finishes what was admitted, within the grace, and refuses the rest.
async fn drain(app: &App) {
    tracing::info!(target: "ernie_serve::http", in_flight = app.in_flight(), "draining");
    app.enter(Phase::Draining);
    wait_until(app.config.limits.drain_grace, || app.in_flight() == 0).await;
    let cut = app.in_flight();
    if cut > 0 {
        tracing::warn!(target: "ernie_serve::http", cut, "the grace is over");
    }
    app.enter(Phase::Cut);
    // An answer that is made is on its way still.
    wait_until(LAST_WORDS, || app.in_flight() == 0 && app.metrics.connections.get() == 0).await;
}

async fn wait_until(longest: Duration, done: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + longest;
    while !done() && tokio::time::Instant::now() < end {
        tokio::time::sleep(LOOK).await;
    }
}
