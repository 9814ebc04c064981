//! Refusals and failures as callers see them: a status and one clear sentence, in OpenAI's shape.
//!
//! ```json
//! {"error": {"message": "`top_p` is 2: expected …", "type": "invalid_request_error", "param": "top_p", "code": null}}
//! ```
//!
//! What went wrong inside stays in the log.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::limits::RETRY_AFTER_S;
use crate::{Error, ErrorKind};

/// Why a request was refused; the label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reason {
    Input,
    TooLarge,
    Key,
    Host,
    Rate,
    Concurrency,
    Queue,
    NotReady,
    Draining,
    Deadline,
    Route,
    Internal,
}

impl Reason {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::TooLarge => "too_large",
            Self::Key => "key",
            Self::Host => "host",
            Self::Rate => "rate",
            Self::Concurrency => "concurrency",
            Self::Queue => "queue",
            Self::NotReady => "not_ready",
            Self::Draining => "draining",
            Self::Deadline => "deadline",
            Self::Route => "route",
            Self::Internal => "internal",
        }
    }
}

/// An answer that says no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) reason: Reason,
    pub(super) message: String,
    pub(super) param: Option<String>,
    pub(super) code: Option<&'static str>,
    pub(super) retry_after_s: Option<u32>,
}

/// Shorthand for results of this room.
pub(super) type ApiResult<T> = std::result::Result<T, ApiError>;

impl ApiError {
    fn new(status: StatusCode, reason: Reason, message: impl Into<String>) -> Self {
        Self { status, reason, message: one_line(&message.into()), param: None, code: None, retry_after_s: None }
    }

    /// 400, about no field in particular.
    pub(super) fn input(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Reason::Input, message)
    }

    /// 400: a field is not what it may be.
    pub(super) fn field(name: &str, is: impl std::fmt::Display, expected: impl std::fmt::Display) -> Self {
        Self::input(format!("`{name}` is {is}: expected {expected}")).about(name)
    }

    /// 400: a field that would change the answer and is not honoured.
    pub(super) fn unsupported(name: &str, why: impl std::fmt::Display) -> Self {
        let mut error = Self::input(format!("`{name}` {why}")).about(name);
        error.code = Some("unsupported_parameter");
        error
    }

    /// 413.
    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Reason::TooLarge, message)
    }

    /// 415.
    pub(super) fn media_type(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Reason::Input, message)
    }

    /// 408: the body did not come in time.
    pub(super) fn slow_body() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, Reason::Deadline, "the request's body did not arrive in time")
    }

    /// 401.
    pub(super) fn key(message: &str) -> Self {
        let mut error = Self::new(StatusCode::UNAUTHORIZED, Reason::Key, message);
        error.code = Some("invalid_api_key");
        error
    }

    /// 403: a name that this server does not go by.
    pub(super) fn host() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            Reason::Host,
            "without API keys this server answers to loopback names only: give it keys, or list the page's origin",
        )
    }

    /// 404 for a path.
    pub(super) fn no_route(path: &str) -> Self {
        let path: String = path.chars().take(100).collect();
        Self::new(
            StatusCode::NOT_FOUND,
            Reason::Route,
            format!("there is nothing at {path}; /openapi.json lists what is"),
        )
    }

    /// 405.
    pub(super) fn method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, Reason::Route, "this path does not take that method")
    }

    /// 404 for a model.
    pub(super) fn no_model<'a>(asked: &str, served: impl Iterator<Item = &'a str>) -> Self {
        let asked: String = asked.chars().take(100).collect();
        let served: Vec<String> = served.map(|name| format!("`{name}`")).collect();
        let message = format!("the model `{asked}` is not here: this server has {}", served.join(", "));
        let mut error = Self::new(StatusCode::NOT_FOUND, Reason::Input, message).about("model");
        error.code = Some("model_not_found");
        error
    }

    /// 429, come again later.
    pub(super) fn busy(reason: Reason, message: impl Into<String>, retry_after_s: u32) -> Self {
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, reason, message);
        error.code = Some("rate_limit_exceeded");
        error.retry_after_s = Some(retry_after_s);
        error
    }

    /// 429: the queue is full.
    pub(super) fn queue_full() -> Self {
        Self::busy(Reason::Queue, "the queue is full: try again later", RETRY_AFTER_S)
    }

    /// 503 while the model is loaded, or not coming.
    pub(super) fn not_ready() -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, Reason::NotReady, "the model is being loaded");
        error.retry_after_s = Some(RETRY_AFTER_S);
        error
    }

    /// 503 while the server stops.
    pub(super) fn draining() -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, Reason::Draining, "the server is stopping");
        error.retry_after_s = Some(RETRY_AFTER_S);
        error
    }

    /// 503: bodies of other requests fill what may be held.
    pub(super) fn bodies_full() -> Self {
        let message = "too many large requests are being read: try again later";
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, Reason::Queue, message);
        error.retry_after_s = Some(RETRY_AFTER_S);
        error
    }

    /// 504.
    pub(super) fn deadline() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, Reason::Deadline, "the request's deadline has passed")
    }

    /// 500: says that it is ours, and nothing else.
    pub(super) fn internal(what: impl std::fmt::Display) -> Self {
        tracing::error!(%what, "a defect");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Reason::Internal, "the server failed at this request")
    }

    /// 500 whose message is meant for callers.
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Reason::Internal, message)
    }

    /// Names the field at fault.
    #[must_use]
    pub(super) fn about(mut self, param: &str) -> Self {
        self.param = Some(param.to_owned());
        self
    }

    /// The kind, as OpenAI spells it.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500..=599 => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body, and the data of an error event in a stream.
    pub(super) fn json(&self) -> serde_json::Value {
        json!({"error": {
            "message": self.message, "type": self.kind(), "param": self.param, "code": self.code,
        }})
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match &error {
            Error::QueueFull { .. } => Self::queue_full(),
            Error::Refused { at, what } => {
                // Schemas and patterns stand in the format of the answer, whatever route they came by.
                let field = at.split(['.', '[', ' ', ':']).next().unwrap_or_default();
                let field = if matches!(field, "schema" | "pattern" | "regex") { "response_format" } else { field };
                Self::input(format!("`{}`: {what}", short(at))).about(field)
            }
            Error::Parameter { name, value, expected } => Self::field(name, value, expected),
            // It can never run here, so asking again does not help.
            Error::TooLarge { .. } => Self::input(error.to_string()),
            Error::Failed(message) => Self::failed(message.clone()),
            _ => match error.kind() {
                ErrorKind::Input => Self::input(error.to_string()),
                ErrorKind::Environment | ErrorKind::Internal => Self::internal(error),
            },
        }
    }
}

impl From<ernie_data::Error> for ApiError {
    fn from(error: ernie_data::Error) -> Self {
        Error::from(error).into()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.json().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self.reason);
        response
    }
}

/// A path in a schema may be as deep as the schema; its two ends say where.
fn short(path: &str) -> String {
    const END: usize = 60;
    let count = path.chars().count();
    if count <= 2 * END {
        return path.to_owned();
    }
    let ends = |skip: usize| path.chars().skip(skip).take(END).collect::<String>();
    format!("{}…{}", ends(0), ends(count - END))
}

/// Whatever a message quotes, it is one line of a readable length.
fn one_line(text: &str) -> String {
    const LONGEST: usize = 400;
    let mut flat: String = text.chars().take(LONGEST + 1).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if flat.chars().count() > LONGEST {
        flat.pop();
        flat.push('…');
    }
    flat
}
