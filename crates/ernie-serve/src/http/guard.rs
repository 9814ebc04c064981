//! The guard at the door: every request passes it, and what is not listed as open needs a key.
//!
//! In order: a request id, the host's name, the key, the key's rate, the key's share of what runs. What was let in is
//! counted until the last byte of its answer is out, then one line is logged: never a prompt, an answer or a key.

use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{Instrument, Span};

use super::Config;
use super::error::{ApiError, ApiResult, Reason};
use super::metrics::Answered;
use super::state::{App, InFlight};
use super::trace;

/// What is open to everybody: it holds no data and costs nothing.
pub(super) const OPEN: [&str; 5] = ["/health", "/ready", "/", "/page.css", "/page.js"];

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Characters of a request id that a caller may choose.
const MAX_REQUEST_ID: usize = 64;

/// When a request must be over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(pub(super) tokio::time::Instant);

/// What each key may do now.
pub(super) struct Callers {
    /// One for each key; one for everybody where there are no keys.
    shares: Vec<Share>,
}

struct Share {
    rate: Option<DefaultDirectRateLimiter>,
    running: Arc<Semaphore>,
}

impl Callers {
    pub(super) fn new(config: &Config) -> Self {
        let rate = NonZeroU32::new(config.limits.rate_per_minute).map(Quota::per_minute);
        let share = || Share {
            rate: rate.map(RateLimiter::direct),
            running: Arc::new(Semaphore::new(config.limits.concurrency.clamp(1, Semaphore::MAX_PERMITS))),
        };
        Self { shares: (0..config.keys.len().max(1)).map(|_| share()).collect() }
    }

    /// Lets one more request of a key in.
    fn admit(&self, key: usize) -> ApiResult<OwnedSemaphorePermit> {
        let share = self.shares.get(key).ok_or_else(|| ApiError::internal("a key without a share"))?;
        if let Some(Err(wait)) = share.rate.as_ref().map(RateLimiter::check) {
            let wait = wait.wait_time_from(DefaultClock::default().now());
            let seconds = u32::try_from(wait.as_secs_f64().ceil() as u64).unwrap_or(60).max(1);
            return Err(ApiError::busy(Reason::Rate, "this key's requests come too fast", seconds));
        }
        let full = |_| ApiError::busy(Reason::Concurrency, "too many requests of this key are being answered", 1);
        share.running.clone().try_acquire_owned().map_err(full)
    }
}

/// The middleware.
pub(super) async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let name = request_name(&app, request.headers());
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let open = path.as_deref().is_some_and(|path| OPEN.contains(&path));
    let route = path.unwrap_or_else(|| "other".to_owned());
    let span = trace::request(request.method().as_str(), &route, &name);
    if let Some(continue_trace) = app.config.continue_trace {
        continue_trace(&span, request.headers());
    }
    let log = Log {
        app: app.clone(),
        name: name.clone(),
        route,
        method: request.method().to_string(),
        started,
        span: span.clone(),
    };
    let permit = if open { Ok(None) } else { admit(&app, request.headers()).map(Some) };
    let (held, mut response) = match permit {
        Ok(permit) => {
            let in_flight = (!open).then(|| app.count());
            request.extensions_mut().insert(Deadline(tokio::time::Instant::now() + app.config.limits.deadline));
            (Some((in_flight, permit)), next.run(request).instrument(span).await)
        }
        Err(error) => (None, error.into_response()),
    };
    if let Some(&reason) = response.extensions().get::<Reason>() {
        app.refused(reason);
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&name) {
        headers.insert(REQUEST_ID, value);
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let status = response.status();
    response.map(|inner| Body::new(Watched { inner, status, log, _held: held }))
}

fn admit(app: &App, headers: &HeaderMap) -> ApiResult<OwnedSemaphorePermit> {
    let keys = &app.config.keys;
    if keys.is_empty() {
        if app.config.loopback_names_only && !headers.get(header::HOST).is_none_or(|host| is_ours(app, host)) {
            return Err(ApiError::host());
        }
        return app.callers.admit(0);
    }
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let key = match (given.next(), given.next()) {
        (Some(value), None) => value.as_bytes(),
        (Some(_), Some(_)) => return Err(ApiError::key("more than one Authorization header was sent")),
        _ => return Err(ApiError::key("an API key is needed: send the header `Authorization: Bearer KEY`")),
    };
    let scheme = key.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "));
    let key = if scheme { key[7..].trim_ascii() } else { b"" };
    let known = keys.find(key).ok_or_else(|| ApiError::key("the API key is not valid"))?;
    app.callers.admit(known)
}

/// Whether a Host header names this machine, so that no web page of a stranger whose name was pointed here is answered.
fn is_ours(app: &App, host: &HeaderValue) -> bool {
    let Ok(host) = host.to_str() else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let listed = |origin: &String| origin.split("://").nth(1).is_some_and(|rest| rest.eq_ignore_ascii_case(host));
    name.parse::<std::net::IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || app.config.cors_origins.iter().any(listed)
}

/// The caller's own request id where it is harmless, else a new one.
fn request_name(app: &App, headers: &HeaderMap) -> String {
    let harmless = |id: &&str| {
        (1..=MAX_REQUEST_ID).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
    };
    let given = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(harmless);
    given.map_or_else(|| app.name("req_"), str::to_owned)
}

/// An answer's body, with what must live until it is out.
struct Watched {
    inner: Body,
    status: StatusCode,
    log: Log,
    _held: Option<(Option<InFlight>, Option<OwnedSemaphorePermit>)>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { inner, log, .. } = &mut *self;
        let _inside = log.span.enter();
        Pin::new(inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.log.end(self.status);
    }
}

struct Log {
    app: Arc<App>,
    name: String,
    route: String,
    method: String,
    started: Instant,
    span: Span,
}

impl Log {
    fn end(&self, status: StatusCode) {
        trace::answered(&self.span, status);
        let took: Duration = self.started.elapsed();
        let metrics = &self.app.metrics;
        metrics.request_s.observe(took.as_secs_f64());
        metrics.requests.get_or_create(&Answered { route: self.route.clone(), status: status.as_u16() }).inc();
        tracing::info!(
            target: "ernie_serve::http",
            request = self.name, method = self.method, route = self.route, status = status.as_u16(),
            ms = took.as_millis() as u64, "answered"
        );
    }
}
