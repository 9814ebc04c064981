//! Traces of `ernie serve` for an OpenTelemetry collector, told where it is by OpenTelemetry's own variables.
//!
//! Spans go out in batches from a thread of their own, as protobuf over HTTP; a collector that does not answer costs no request
//! anything.

use std::pin::Pin;
use std::time::Duration;

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{Bytes, HeaderExtractor, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use crate::environment;

/// What is on its way to the collector. Dropped, it waits for that, for some seconds at most.
pub(crate) struct Traces(SdkTracerProvider);

impl Traces {
    /// Traces where the environment names a collector for them.
    ///
    /// # Errors
    /// One line when what it says cannot be used.
    pub(crate) fn wanted() -> Result<Option<Self>, String> {
        if !environment::collector_named() {
            return Ok(None);
        }
        let exporter = SpanExporter::builder().with_http().with_http_client(Client::new()).build();
        let exporter = exporter.map_err(|error| format!("traces cannot be sent: {error}"))?;
        let mut resource = Resource::builder();
        if !environment::service_named() {
            resource = resource.with_service_name("ernie");
        }
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build());
        Ok(Some(Self(provider.build())))
    }

    /// What makes traces of the server's spans.
    pub(crate) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> + use<S> {
        let spans = Targets::new().with_target(ernie_serve::http::TRACE_TARGET, Level::DEBUG);
        tracing_opentelemetry::layer().with_tracer(self.0.tracer("ernie")).with_filter(spans)
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(Duration::from_secs(5)) {
            tracing::warn!(%error, "some traces were lost");
        }
    }
}

/// Makes a request's span part of the trace that its header `traceparent` names (W3C Trace Context), if it does.
pub(crate) fn continue_trace(span: &Span, headers: &ureq::http::HeaderMap) {
    let _ = span.set_parent(TraceContextPropagator::new().extract(&HeaderExtractor(headers)));
}

/// How batches are sent: by the thread that makes them, which has nothing else to do.
#[derive(Debug)]
struct Client(ureq::Agent);

impl Client {
    fn new() -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(10)));
        Self(config.http_status_as_error(false).build().into())
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, mut body) = self.0.run(request.map(|body| body.to_vec()))?.into_parts();
        let body = body.with_config().limit(1 << 20).read_to_vec()?;
        Ok(Response::from_parts(head, body.into()))
    }
}

impl HttpClient for Client {
    fn send_bytes<'life0, 'async_trait>(
        &'life0 self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move { self.send(request) })
    }
}
