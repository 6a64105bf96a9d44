//! What the daemon has done, as metrics for Prometheus.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    time::Duration,
};

use groupcast::{
    sandbox::FaultRule,
    settle::result::Status,
    telemetry::metrics::{ALL, Metric, MetricKind},
};
use lapin::{
    options::QueueDeclareOptions,
    types::{AMQPValue, FieldTable},
};
use serde_json::json;
use tokio::time::Instant;

use crate::support::{
    broker::Broker,
    daemon::Daemon,
    eventually,
    producer::{Producer, text},
    scene::{Scene, configuration, job, unique_app},
};

#[tokio::test]
async fn they_count_what_was_done() {
    let mut scene = Scene::start().await;
    let app = scene.app.clone();
    // Two calls of the job's two batches fail with a transient error.
    for fault in [json!({ "error": { "code": 10002 } }), json!({ "http_status": 502 })] {
        let rule = json!({ "fault": fault, "group": "retried", "calls": 1 });
        scene
            .sandbox
            .add_fault(serde_json::from_value::<FaultRule>(rule).expect("a rule"))
            .expect("room for it");
    }
    assert_eq!(scene.send(&job("retried", 600)).await.status, Status::Sent);
    assert_eq!(scene.send(&job("unknown-group", 3)).await.status, Status::Failed);
    assert_eq!(
        scene.send(&json!({ "GroupId": "g", "Contents": "x" })).await.status,
        Status::Rejected
    );
    assert_eq!(
        scene.send(&json!({ "GroupId": "g", "Content": "to all" })).await.status,
        Status::Sent
    );
    for _ in 0..2 {
        let properties = scene.producer.properties().with_message_id("order-1".into());
        scene.producer.publish(&app, &serde_json::to_vec(&job("g", 2)).unwrap(), properties).await;
        assert_eq!(scene.producer.result().await.status, Status::Sent);
    }

    let metrics = metrics_once_idle(&scene).await;
    let of_app = |name: &str, more: &[(&str, &str)]| {
        let mut labels = vec![("app", app.as_str())];
        labels.extend_from_slice(more);
        metrics.one(name, &labels)
    };
    let jobs = |status: &str| of_app("groupcast_jobs_total", &[("status", status)]);
    assert_eq!(
        ["sent", "failed", "rejected", "partial", "expired"].map(jobs),
        [3.0, 1.0, 1.0, 0.0, 0.0]
    );
    let recipients = |outcome: &str| of_app("groupcast_recipients_total", &[("outcome", outcome)]);
    assert_eq!(["sent", "failed", "unknown"].map(recipients), [602.0, 3.0, 0.0]);
    let calls = metrics.all("groupcast_calls_total", &["app", "outcome", "code"]);
    let expected = [
        (vec![app.as_str(), "failed", "10010"], 1.0),
        (vec![&app, "sent", "0"], 4.0),
        (vec![&app, "unknown", "10002"], 1.0),
        (vec![&app, "unknown", "http_502"], 1.0),
    ];
    assert_eq!(calls, expected);
    assert_eq!(of_app("groupcast_call_seconds_count", &[]), 7.0);
    assert_eq!(of_app("groupcast_call_seconds_bucket", &[("le", "+Inf")]), 7.0);
    assert_eq!(of_app("groupcast_call_seconds_bucket", &[("le", "15")]), 7.0);
    assert_eq!(of_app("groupcast_job_seconds_count", &[]), 5.0);
    assert_eq!(of_app("groupcast_job_seconds_bucket", &[("le", "86400")]), 5.0);
    assert!(of_app("groupcast_job_seconds_sum", &[]) > 0.0);
    for (name, expected) in [
        ("groupcast_jobs_held", 0.0),
        ("groupcast_calls_in_flight", 0.0),
        ("groupcast_groups_throttled", 0.0),
        ("groupcast_calls_per_second_limit", 200.0),
        ("groupcast_jobs_parked_total", 0.0),
    ] {
        assert_eq!(of_app(name, &[]), expected, "{name}");
    }
    assert!((1.0..=7.0).contains(&of_app("groupcast_calls_max_1s", &[])));
    assert_eq!(of_app("groupcast_app_paused", &[("reason", "none")]), 0.0);
    assert_eq!(metrics.one("groupcast_broker_connected", &[]), 1.0);
    assert_eq!(metrics.one("groupcast_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
}

#[tokio::test]
async fn they_count_how_often_jobs_were_parked() {
    let mut scene = Scene::with("retry.hold = \"1s\"\nretry.park = [\"1s\"]").await;
    let due = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(4);
    let header = AMQPValue::LongString(due.to_string().as_str().into());
    let headers = FieldTable::from(BTreeMap::from([("groupcast-not-before".into(), header)]));
    let body = serde_json::to_vec(&job("g", 1)).expect("JSON");
    scene
        .producer
        .publish(&scene.app, &body, scene.producer.properties().with_headers(headers))
        .await;
    assert_eq!(scene.producer.result().await.status, Status::Sent);
    let metrics = metrics_once_idle(&scene).await;
    let of_app = [("app", scene.app.as_str())];
    let parked = scene.daemon.times_logged("job parked");
    assert!(parked >= 1);
    assert_eq!(metrics.one("groupcast_jobs_parked_total", &of_app), parked as f64);
    assert_eq!(metrics.one("groupcast_job_seconds_count", &of_app), 1.0);
    assert!(metrics.one("groupcast_job_seconds_sum", &of_app) > 2.0, "waits are included");
}

#[tokio::test]
async fn what_waits_in_the_queues_is_counted_within_fifteen_seconds() {
    let mut scene = Scene::start().await;
    let tomorrow = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
    let headers = FieldTable::from(BTreeMap::from([(
        "groupcast-not-before".into(),
        text(&tomorrow.to_string()),
    )]));
    let body = serde_json::to_vec(&job("g", 1)).expect("JSON");
    for number in 0..3 {
        let id = format!("scheduled-{number}");
        let properties = scene
            .producer
            .properties()
            .with_headers(headers.clone())
            .with_message_id(id.as_str().into());
        scene.producer.publish(&scene.app, &body, properties).await;
    }
    scene
        .producer
        .publish(&scene.app, &body, scene.producer.properties().with_reply_to("nobodys".into()))
        .await;
    assert_eq!(scene.send(&job("unknown-group", 1)).await.status, Status::Failed);
    scene.daemon.until_logged("results went to .unrouted").await;
    let published = Instant::now();
    eventually("the queues to be counted", async || {
        let metrics = Metrics::of(&scene.daemon).await;
        let counted: Vec<(Vec<&str>, f64)> = metrics.all("groupcast_queue_messages", &["queue"]);
        let expected = [("dead", 1.0), ("jobs", 0.0), ("unrouted", 1.0), ("wait", 3.0)];
        (counted == expected.map(|(queue, messages)| (vec![queue], messages))).then_some(())
    })
    .await;
    assert!(published.elapsed() < Duration::from_secs(15), "{:?}", published.elapsed());
}

#[tokio::test]
async fn a_queue_that_vanishes_is_told_and_made_again() {
    let scene = Scene::start().await;
    let queue = scene.queue("unrouted");
    let vanished = async || {
        Metrics::of(&scene.daemon)
            .await
            .one("groupcast_queues_vanished_total", &[("app", &scene.app)])
    };
    eventually("a first look", async || {
        let metrics = Metrics::of(&scene.daemon).await;
        metrics
            .all("groupcast_queue_messages", &["queue"])
            .iter()
            .all(|(_, messages)| *messages == 0.0)
            .then_some(())
    })
    .await;
    let channel = scene.producer.channel().await;
    channel
        .queue_delete(queue.as_str().into(), Default::default())
        .await
        .expect("the queue is there");
    scene.daemon.until_logged("a queue has vanished").await;
    assert!(scene.daemon.log().contains(&queue));
    eventually("the queue", async || {
        let channel = scene.producer.channel().await;
        let look = QueueDeclareOptions { passive: true, ..Default::default() };
        channel.queue_declare(queue.as_str().into(), look, Default::default()).await.ok()
    })
    .await;
    assert_eq!(vanished().await, 1.0);
}

#[tokio::test]
async fn calls_that_cannot_be_sent_are_counted_as_such() {
    let nobody =
        TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address");
    let (app, broker) = (unique_app(), Broker::shared().await);
    let daemon =
        Daemon::start(&configuration(broker.url(), &app, &format!("http://{nobody}"), "")).await;
    let producer = Producer::connect(broker.url()).await;
    producer
        .publish(&app, &serde_json::to_vec(&job("g", 3)).expect("JSON"), producer.properties())
        .await;
    eventually("a call", async || {
        let metrics = Metrics::of(&daemon).await;
        let calls = metrics.all("groupcast_calls_total", &["outcome", "code"]);
        calls
            .iter()
            .any(|(labels, value)| labels == &["failed", "not_sent"] && *value >= 1.0)
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn every_metric_is_there_with_its_type_its_labels_and_what_it_means() {
    let mut scene = Scene::start().await;
    assert_eq!(scene.send(&job("g", 1)).await.status, Status::Sent);
    let (_, text) = scene.daemon.get("/metrics").await;
    let metrics = Metrics::read(&text);
    for Metric { name, kind, labels, unit, meaning } in ALL {
        assert!(text.contains(&format!("# TYPE {name} {}\n", kind.as_str())), "{name}: {}", text);
        assert!(
            text.contains(&format!("# HELP {name} {meaning}. Unit: {unit}.\n")),
            "{name}: {}",
            text
        );
        let (series, more) = match kind {
            MetricKind::Histogram(_) => (format!("{name}_bucket"), vec!["le"]),
            MetricKind::Counter | MetricKind::Gauge => ((*name).to_owned(), vec![]),
        };
        let expected: BTreeSet<&str> = labels.iter().copied().chain(more).collect();
        let found = metrics
            .0
            .iter()
            .find(|sample| sample.name == series)
            .unwrap_or_else(|| panic!("no {series}"));
        assert_eq!(
            found.labels.keys().map(String::as_str).collect::<BTreeSet<_>>(),
            expected,
            "{name}"
        );
    }
    let known = |sample: &Sample| ALL.iter().any(|metric| sample.name.starts_with(metric.name));
    assert!(metrics.0.iter().all(known), "{}", text);
}

/// The metrics when the daemon is idle. A result arrives before its job is acknowledged and
/// counted.
async fn metrics_once_idle(scene: &Scene) -> Metrics {
    eventually("the jobs to be acknowledged", async || {
        let metrics = Metrics::of(&scene.daemon).await;
        (metrics.one("groupcast_jobs_held", &[("app", &scene.app)]) == 0.0).then_some(metrics)
    })
    .await
}

struct Metrics(Vec<Sample>);

struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    async fn of(daemon: &Daemon) -> Metrics {
        Metrics::read(&daemon.get("/metrics").await.1)
    }

    fn read(text: &str) -> Metrics {
        Metrics(
            text.lines()
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(Sample::read)
                .collect(),
        )
    }

    /// The value of the only series with exactly these labels.
    fn one(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels =
            labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut found =
            self.0.iter().filter(|sample| sample.name == name && sample.labels == labels);
        match (found.next(), found.next()) {
            (Some(sample), None) => sample.value,
            (None, _) => panic!("no {name} {labels:?}"),
            (Some(_), Some(_)) => panic!("{name} {labels:?} is there twice"),
        }
    }

    /// All series of a metric by the values of these labels, sorted.
    fn all(&self, name: &str, labels: &[&str]) -> Vec<(Vec<&str>, f64)> {
        let mut found: Vec<(Vec<&str>, f64)> = self
            .0
            .iter()
            .filter(|sample| sample.name == name)
            .map(|sample| {
                (labels.iter().map(|label| sample.labels[*label].as_str()).collect(), sample.value)
            })
            .collect();
        found.sort_by(|one, other| one.0.cmp(&other.0));
        found
    }
}

impl Sample {
    fn read(line: &str) -> Sample {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = series
            .split_once('{')
            .map_or((series, ""), |(name, rest)| (name, rest.trim_end_matches('}')));
        let label = |text: &str| {
            let (name, value) = text.split_once('=').expect("a label");
            (name.to_owned(), value.trim_matches('"').to_owned())
        };
        let labels = labels.split(',').filter(|text| !text.is_empty()).map(label).collect();
        Sample { name: name.to_owned(), labels, value: value.parse().expect("a number") }
    }
}
