//! Traces show the path of a job. Its span continues its producer's, and contains its batches and
//! calls.

use std::convert::Infallible;

use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, body::Bytes, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use lapin::types::FieldTable;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    trace::v1::{Span, span::SpanKind},
};
use prost::Message;
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::mpsc::{Receiver, Sender, channel},
};

use crate::support::{
    producer::text,
    scene::{Scene, job},
};

/// A collector: its URL, and the requests that it receives.
async fn collector() -> (String, Receiver<Bytes>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, received) = channel(64);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let sender = sender.clone();
            let service = service_fn(move |request| collect(request, sender.clone()));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (url, received)
}

async fn collect(
    request: Request<Incoming>,
    sender: Sender<Bytes>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.uri().path(), "/v1/traces");
    sender.send(request.into_body().collect().await.unwrap().to_bytes()).await.unwrap();
    Ok(Response::new(Full::default()))
}

fn spans(export: &Bytes) -> Vec<Span> {
    let request = ExportTraceServiceRequest::decode(export.clone()).expect("OTLP");
    request
        .resource_spans
        .into_iter()
        .flat_map(|resource| resource.scope_spans)
        .flat_map(|scope| scope.spans)
        .collect()
}

#[tokio::test]
async fn a_jobs_span_continues_its_producers_trace_and_has_its_batches_and_calls() {
    let (url, mut received) = collector().await;
    let mut scene = Scene::with(&format!("[telemetry]\notlp_endpoint = \"{url}\"")).await;
    let fault = json!({ "fault": { "error": { "code": 10002 } }, "group": "g", "calls": 1 });
    scene
        .sandbox
        .add_fault(serde_json::from_value::<groupcast::sandbox::FaultRule>(fault).unwrap())
        .unwrap();
    let mut headers = FieldTable::default();
    headers.insert(
        "traceparent".into(),
        text("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    );
    let properties =
        scene.producer.properties().with_headers(headers).with_message_id("followed".into());
    scene
        .producer
        .publish(&scene.app, &serde_json::to_vec(&job("g", 600)).unwrap(), properties)
        .await;
    scene.producer.result().await;
    // The daemon sends the remaining spans when it stops.
    assert!(scene.daemon.terminate().await.success());

    let mut exports = Vec::new();
    while let Ok(export) = received.try_recv() {
        exports.push(export);
    }
    let all: Vec<Span> = exports.iter().flat_map(spans).collect();
    let named = |name: &str| all.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let [job] = named("job")[..] else { panic!("{all:?}") };
    assert_eq!(hex(&job.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(hex(&job.parent_span_id), "00f067aa0ba902b7");
    assert_eq!(job.kind, SpanKind::Consumer as i32);
    let (batches, calls) = (named("batch"), named("call"));
    assert_eq!((batches.len(), calls.len()), (2, 3), "one batch was tried twice");
    assert!(
        batches
            .iter()
            .all(|batch| batch.parent_span_id == job.span_id && batch.trace_id == job.trace_id)
    );
    assert!(
        calls.iter().all(|call| batches.iter().any(|batch| call.parent_span_id == batch.span_id))
    );
    assert!(calls.iter().all(|call| call.kind == SpanKind::Client as i32));
    let told = format!("{all:?}");
    for secret in ["user-1", "hello", "usersig"] {
        assert!(!told.contains(secret), "{secret} in {told}");
    }
    assert!(told.contains("followed") && told.contains("10002"));
}

#[tokio::test]
async fn a_collector_that_is_away_holds_up_no_job() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut scene = Scene::with(&format!("[telemetry]\notlp_endpoint = \"http://{nobody}\"")).await;
    for _ in 0..20 {
        assert_eq!(scene.send(&job("g", 1)).await.errors, []);
    }
    assert!(scene.daemon.terminate().await.success());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
