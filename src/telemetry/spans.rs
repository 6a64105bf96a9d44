//! Spans of jobs, batches and calls, to follow one message through several services. A job's span
//! continues the trace that its producer began. The daemon exports spans by OTLP if
//! `telemetry.otlp_endpoint` is set. Otherwise it makes none, and the calls here cost almost
//! nothing.
//!
//! Spans have ids of jobs and groups, codes and counts. They never have content, recipients or
//! secrets.

use std::time::Duration;

use opentelemetry::{
    Context,
    trace::{
        SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
    },
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing::{Span, Subscriber, debug_span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};

use crate::{
    config::Telemetry,
    job::{Envelope, TraceContext},
};

/// The target of all spans, and of nothing else.
pub const TARGET: &str = "groupcast::spans";
/// The time limit for all addresses of the collector together. The client divides it among the
/// addresses of one family.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// The time limit for the last spans when the process ends.
const LAST_EXPORT: Duration = Duration::from_secs(5);

/// Exports spans in the background.
#[derive(Default)]
pub struct Exporter(Option<SdkTracerProvider>);

impl Exporter {
    pub fn start(telemetry: &Telemetry) -> Result<Self, String> {
        let Some(endpoint) = &telemetry.otlp_endpoint else { return Ok(Self(None)) };
        let failed = |error| format!("telemetry.otlp_endpoint: {error}");
        let traces = endpoint.join("/v1/traces").map_err(|error| failed(error.to_string()))?;
        let client = http_client().map_err(failed)?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(traces.as_str())
            .build();
        let exporter = exporter.map_err(|error| failed(error.to_string()))?;
        let resource = Resource::builder().with_service_name("groupcast").build();
        Ok(Self(Some(
            SdkTracerProvider::builder()
                .with_batch_exporter(exporter)
                .with_resource(resource)
                .build(),
        )))
    }

    pub fn layer<S: Subscriber + for<'span> LookupSpan<'span>>(
        &self,
    ) -> Option<impl Layer<S> + use<S>> {
        let tracer = self.0.as_ref()?.tracer("groupcast");
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false);
        Some(layer.with_filter(filter_fn(|span| span.target() == TARGET)))
    }

    /// Exports the spans that are left.
    pub async fn end(self) {
        if let Some(provider) = self.0 {
            let _ =
                tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST_EXPORT))
                    .await;
        }
    }
}

/// Unlike the exporter's own client, this one tries the next address of the collector in time if
/// one does not answer.
fn http_client() -> Result<reqwest::blocking::Client, String> {
    let build = || {
        reqwest::blocking::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(EXPORT_TIMEOUT)
            .build()
    };
    // A blocking client cannot be made on a thread of the runtime.
    let built = std::thread::spawn(build)
        .join()
        .map_err(|_| "the HTTP client cannot be made".to_owned())?;
    built.map_err(|error| error.to_string())
}

/// The span of a job, from its receipt until it is acknowledged, parked or given back.
pub fn of_job(app: &str, envelope: &Envelope) -> Span {
    let span = debug_span!(
        target: TARGET,
        "job",
        otel.kind = "consumer",
        messaging.system = "rabbitmq",
        groupcast.app = app,
        groupcast.job_id = envelope.job_id,
        groupcast.group_id = Empty,
        groupcast.batches = Empty,
        groupcast.calls = Empty,
        groupcast.status = Empty,
        otel.status_code = Empty,
    );
    if !span.is_disabled()
        && let Some(parent) = parent_of(&envelope.trace)
    {
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
    span
}

/// The span of a batch, from its first call to its outcome.
pub fn of_batch(job: &Span, batch: u32, recipients: Option<u32>) -> Span {
    debug_span!(
        target: TARGET,
        parent: job,
        "batch",
        groupcast.batch = batch,
        groupcast.recipients = recipients,
    )
}

/// The span of an attempt, including one that was withdrawn before anything was written.
pub fn of_call(batch: &Span, attempt: u32) -> Span {
    debug_span!(
        target: TARGET,
        parent: batch,
        "call",
        otel.kind = "client",
        groupcast.attempt = attempt,
        groupcast.code = Empty,
        groupcast.withdrawn = Empty,
        http.response.status_code = Empty,
        otel.status_code = Empty,
    )
}

/// The producer's span, as the W3C trace context names it.
fn parent_of(trace: &TraceContext) -> Option<SpanContext> {
    let mut parts = trace.traceparent.as_deref()?.split('-').skip(1);
    let trace_id = TraceId::from_hex(parts.next()?).ok()?;
    let span_id = SpanId::from_hex(parts.next()?).ok()?;
    let flags = TraceFlags::new(u8::from_str_radix(parts.next()?, 16).ok()?);
    let state = trace
        .tracestate
        .as_deref()
        .and_then(|state| state.parse::<TraceState>().ok())
        .unwrap_or_default();
    Some(SpanContext::new(trace_id, span_id, flags, true, state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_producers_span_is_read_from_its_header() {
        let trace = TraceContext {
            traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
            tracestate: Some("vendor=1".into()),
        };
        let parent = parent_of(&trace).unwrap();
        assert_eq!(parent.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(parent.span_id().to_string(), "00f067aa0ba902b7");
        assert!(parent.is_sampled() && parent.is_remote());
        assert_eq!(parent.trace_state().get("vendor"), Some("1"));
        assert!(parent_of(&TraceContext::default()).is_none());
    }
}
