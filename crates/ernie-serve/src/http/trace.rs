//! What happened to a request as spans, for a collector of traces; without one they cost next to nothing.
//!
//! A request is a span from its head to the last byte of its answer. Each text that the engine makes for it is a span inside, and the
//! wait for its first token and the writing after that are spans inside that one. Names and fields are OpenTelemetry's semantic
//! conventions where there are any. Never a prompt, an answer or a key.

use axum::http::StatusCode;
use tracing::Span;
use tracing::field::Empty;

use crate::engine::{FinishReason, Usage};

/// The target of all spans, by which they are asked for; their level is debug.
pub const TARGET: &str = "ernie_serve::trace";

/// The span of a request.
pub(super) fn request(method: &str, route: &str, name: &str) -> Span {
    tracing::debug_span!(
        target: TARGET, "request",
        otel.name = format!("{method} {route}"), otel.kind = "server", otel.status_code = Empty,
        http.request.method = method, http.route = route, http.response.status_code = Empty,
        request.id = name,
    )
}

/// Notes how it was answered.
pub(super) fn answered(span: &Span, status: StatusCode) {
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
}

/// The spans of a text that the engine makes.
pub(super) struct Generation {
    whole: Span,
    part: Span,
}

impl Generation {
    /// Begins inside the span of its request.
    pub(super) fn begin(request: &Span) -> Self {
        let whole = tracing::debug_span!(
            target: TARGET, parent: request, "generate",
            gen_ai.usage.input_tokens = Empty, gen_ai.usage.output_tokens = Empty, gen_ai.response.finish_reasons = Empty,
            queued_s = Empty, otel.status_code = Empty,
        );
        let part = tracing::debug_span!(target: TARGET, parent: &whole, "first token");
        Self { whole, part }
    }

    /// The first token is there.
    pub(super) fn first_token(&mut self) {
        self.part = tracing::debug_span!(target: TARGET, parent: &self.whole, "decode");
    }

    /// It is over.
    pub(super) fn end(&self, reason: &FinishReason, usage: Option<&Usage>) {
        if let Some(usage) = usage {
            self.whole.record("gen_ai.usage.input_tokens", usage.prompt_tokens);
            self.whole.record("gen_ai.usage.output_tokens", usage.completion_tokens);
            self.whole.record("queued_s", usage.queued_s);
        }
        self.whole.record("gen_ai.response.finish_reasons", reason.name());
        if let FinishReason::Error(_) = reason {
            self.whole.record("otel.status_code", "ERROR");
        }
    }
}
