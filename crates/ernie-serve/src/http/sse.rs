//! Server-sent events: an answer as a stream.
//!
//! The stream is pulled by the connection. Nothing is made while a reader does not read, and what has come meanwhile goes
//! out together. Where nothing comes for a while a comment keeps the way open.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream;

use super::answer::{Answer, Delta, Tokens};
use super::error::ApiError;

/// Without news for this long, a comment is sent.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How one kind of answer becomes events.
pub(super) trait Speaker: Send + 'static {
    /// The first events.
    fn open(&mut self, out: &mut Events);
    /// Events of what is new.
    fn say(&mut self, deltas: Vec<Delta>, out: &mut Events);
    /// The last events of an answer that is complete.
    fn close(&mut self, tokens: Tokens, out: &mut Events);
    /// The last event of an answer that broke off.
    fn fail(&mut self, error: &ApiError, out: &mut Events) {
        out.data(&error.json());
    }
}

/// Events on their way out.
#[derive(Debug, Default)]
pub(super) struct Events(String);

impl Events {
    /// One event without a name.
    pub(super) fn data(&mut self, value: &serde_json::Value) {
        self.0 += "data: ";
        self.0 += &value.to_string();
        self.0 += "\n\n";
    }

    /// One event with a name.
    pub(super) fn named(&mut self, name: &str, value: &serde_json::Value) {
        self.0 += "event: ";
        self.0 += name;
        self.0 += "\n";
        self.data(value);
    }

    /// The end, as OpenAI marks it.
    pub(super) fn done(&mut self) {
        self.0 += "data: [DONE]\n\n";
    }
}

enum Stage {
    Open,
    Run,
    Over,
}

/// The response that streams an answer.
pub(super) fn respond(answer: Answer, speaker: impl Speaker) -> Response {
    let stream = stream::unfold((Stage::Open, answer, speaker), |(stage, mut answer, mut speaker)| async move {
        let mut out = Events::default();
        let stage = match stage {
            Stage::Open => {
                speaker.open(&mut out);
                Stage::Run
            }
            Stage::Run => match tokio::time::timeout(KEEP_ALIVE, answer.next()).await {
                Err(_) => {
                    out.0 += ": waiting\n\n";
                    Stage::Run
                }
                Ok(Ok(Some(deltas))) => {
                    speaker.say(deltas, &mut out);
                    Stage::Run
                }
                Ok(Ok(None)) => {
                    speaker.close(answer.tokens(), &mut out);
                    Stage::Over
                }
                Ok(Err(error)) => {
                    tracing::warn!(reason = error.reason.name(), "a stream broke off");
                    speaker.fail(&error, &mut out);
                    Stage::Over
                }
            },
            Stage::Over => return None,
        };
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(out.0)), (stage, answer, speaker)))
    });
    event_stream(Body::from_stream(stream))
}

/// The response of a stream that is over before it begins.
pub(super) fn finished(events: Events) -> Response {
    event_stream(Body::from(events.0))
}

fn event_stream(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    // A proxy that collects answers would make a stream arrive all at once.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
