//! A job that must wait for long waits in a queue of the broker, and keeps its progress.

use std::time::Duration;

use groupcast::{
    sandbox::{FaultRule, InjectedFault},
    settle::result::{ErrorKind, JobResult, Status},
};
use jiff::{SignedDuration, Timestamp};
use lapin::{BasicProperties, types::FieldTable};
use tokio::time::sleep;

use crate::support::{
    broker::Broker,
    eventually,
    producer::{header, text},
    scene::{Scene, job},
};

/// The broker takes a delivery away after this time. Its default is half an hour.
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(10);
const OUTAGE: Duration = Duration::from_secs(25);

async fn publish(scene: &Scene, group: &str, recipients: usize, properties: BasicProperties) {
    scene
        .producer
        .publish(&scene.app, &serde_json::to_vec(&job(group, recipients)).unwrap(), properties)
        .await;
}

fn with_header(properties: BasicProperties, name: &str, value: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert(name.into(), text(value));
    properties.with_headers(headers)
}

fn bad_gateway(matching: &str) -> FaultRule {
    FaultRule { matching: Some(matching.into()), ..FaultRule::from(InjectedFault::HttpStatus(502)) }
}

#[tokio::test]
async fn in_an_outage_longer_than_the_brokers_patience_jobs_are_parked_and_then_sent_without_repeating()
 {
    let broker = Broker::start("").await;
    let milliseconds = CONSUMER_TIMEOUT.as_millis();
    let impatient = format!(
        "application:set_env(rabbit, consumer_timeout, {milliseconds}), \
            application:set_env(rabbit, channel_tick_interval, 2000)."
    );
    broker.ctl(&["eval", &impatient]).await;
    let lines = "batch_size = 1\nretry.hold = \"3s\"\nretry.park = [\"2s\", \"3s\"]";
    let mut scene = Scene::on(&broker, lines).await;
    // The second of each job's three batches cannot be sent.
    scene.sandbox.add_fault(bad_gateway("user-1")).unwrap();
    for number in 0..5 {
        let properties =
            scene.producer.properties().with_message_id(format!("job-{number}").as_str().into());
        publish(&scene, &format!("g{number}"), 3, properties.with_correlation_id("c".into())).await;
    }
    publish(&scene, "without-id", 3, scene.producer.properties().with_correlation_id("c".into()))
        .await;
    sleep(OUTAGE).await;
    assert!(scene.producer.hears_nothing().await, "no job has ended");
    scene.sandbox.clear_faults();

    let ended = Timestamp::now();
    for _ in 0..6 {
        let reply = scene.producer.reply().await;
        assert_eq!(reply.properties.correlation_id().as_ref().unwrap().as_str(), "c");
        let result: JobResult = serde_json::from_slice(&reply.data).unwrap();
        assert_eq!((result.status, result.duplicate), (Status::Sent, false), "{result:?}");
        assert!(result.calls > 4, "the calls from before are counted: {result:?}");
        let received: Timestamp = result.received_at.parse().unwrap();
        assert!(
            ended.duration_since(received).as_secs() >= OUTAGE.as_secs() as i64 - 1,
            "{result:?}"
        );
    }
    for group in ["g0", "g1", "g2", "g3", "g4", "without-id"] {
        let mut notified = scene.notified(group);
        notified.sort();
        assert_eq!(notified, ["user-0", "user-1", "user-2"], "each once");
    }
    assert_eq!(scene.daemon.times_logged("lost the subscription"), 0, "{}", scene.daemon.log());
    let parked = scene.daemon.times_logged("job parked");
    println!(
        "outage of {OUTAGE:?}, consumer timeout {CONSUMER_TIMEOUT:?}: 6 jobs parked {parked} times"
    );
    assert!(parked >= 18, "{parked}");
}

#[tokio::test]
async fn a_job_is_given_up_in_the_end_and_its_dead_letter_can_be_redriven() {
    let mut scene =
        Scene::with("retry.hold = \"1s\"\nretry.park = [\"1s\"]\nretry.give_up_after = \"4s\"")
            .await;
    scene.sandbox.add_fault(bad_gateway("user-1")).unwrap();
    publish(&scene, "g", 2, scene.producer.properties().with_message_id("order-1".into())).await;
    let result = scene.producer.result().await;
    let error = &result.errors[0];
    assert_eq!(
        (result.status, error.kind, error.http_status),
        (Status::Failed, ErrorKind::Transient, Some(502))
    );
    assert!(error.attempts >= 6 && scene.daemon.times_logged("job parked") >= 1, "{result:?}");
    let letter = scene.dead_letter().await;
    assert_eq!(header(&letter, "groupcast-parked"), None, "a redriven job starts anew");
    assert!(!letter.properties.headers().as_ref().unwrap().inner().contains_key("x-death"));

    scene.sandbox.clear_faults();
    scene.producer.publish(&scene.app, &letter.data, letter.properties.clone()).await;
    assert_eq!(scene.producer.result().await.status, Status::Sent);
}

#[tokio::test]
async fn a_job_whose_time_is_far_ahead_waits_in_a_queue_and_is_sent_when_it_comes() {
    let mut scene = Scene::with("retry.hold = \"1s\"\nretry.park = [\"1s\", \"2s\"]").await;
    let due = Timestamp::now() + SignedDuration::from_secs(6);
    let properties =
        with_header(scene.producer.properties(), "groupcast-not-before", &due.to_string());
    publish(&scene, "g", 1, properties).await;
    eventually("it to wait", async || {
        (scene.producer.depth(&scene.queue("wait.2")).await == 1).then_some(())
    })
    .await;
    let result = scene.producer.result().await;
    assert_eq!((result.status, result.calls), (Status::Sent, 1));
    let at = scene.sandbox.received(Some("g"))[0].at;
    assert!(at >= due && at.duration_since(due).as_secs() < 2, "due {due}, sent {at}");
}

#[tokio::test]
async fn a_deadline_that_passes_while_a_job_waits_ends_it_as_expired() {
    let mut scene = Scene::with("retry.hold = \"1s\"\nretry.park = [\"1s\"]").await;
    scene.sandbox.add_fault(bad_gateway("user-1")).unwrap();
    let deadline = Timestamp::now() + SignedDuration::from_secs(4);
    let properties =
        with_header(scene.producer.properties(), "groupcast-deadline", &deadline.to_string());
    publish(&scene, "g", 2, properties.with_message_id("order-2".into())).await;
    let result = scene.producer.result().await;
    assert_eq!(
        (result.status, result.errors[0].kind),
        (Status::Expired, ErrorKind::Expired),
        "{result:?}"
    );
    assert!(result.errors[0].attempts >= 2 && scene.daemon.times_logged("job parked") >= 1);
    assert_eq!(header(&scene.dead_letter().await, "groupcast-status").as_deref(), Some("expired"));
}

#[tokio::test]
async fn a_copy_does_not_wait_unacknowledged_for_a_job_that_takes_long() {
    let lines = "batch_size = 1\ncalls_per_second = 5\nburst = 1\nretry.hold = \"2s\"\nretry.park \
        = [\"3s\"]";
    let mut scene = Scene::with(lines).await;
    for correlation_id in ["first", "second"] {
        let properties = scene.producer.properties().with_message_id("order-3".into());
        publish(&scene, "g", 40, properties.with_correlation_id(correlation_id.into())).await;
    }
    eventually("the copy to be parked", async || {
        (scene.producer.depth(&scene.queue("wait.3")).await == 1).then_some(())
    })
    .await;
    assert!(scene.sandbox.stats().accepted < 30, "the first one still runs");
    let mut told = Vec::new();
    for _ in 0..2 {
        let reply = scene.producer.reply().await;
        let result: JobResult = serde_json::from_slice(&reply.data).unwrap();
        assert_eq!(result.status, Status::Sent);
        told.push((
            reply.properties.correlation_id().as_ref().unwrap().to_string(),
            result.duplicate,
        ));
    }
    assert_eq!(told, [("first".to_owned(), false), ("second".to_owned(), true)]);
    assert_eq!(scene.sandbox.stats().calls, 40);
}

#[tokio::test]
async fn a_parked_job_keeps_its_progress_for_longer_than_records_of_ended_jobs_are_kept() {
    let lines =
        "batch_size = 1\nretry.hold = \"1s\"\nretry.park = [\"4s\"]\n[state]\nretention = \"1s\"";
    let mut scene = Scene::with(lines).await;
    scene.sandbox.add_fault(bad_gateway("user-1")).unwrap();
    let properties = scene.producer.properties().with_message_id("parked".into());
    publish(&scene, "g", 3, properties).await;
    // Each of these ends and expires in the meantime, and each new record looks for expired ones.
    for number in 0..10 {
        let id = format!("other-{number}");
        publish(&scene, "others", 1, scene.producer.properties().with_message_id(id.into())).await;
        assert_eq!(scene.producer.result().await.status, Status::Sent);
        sleep(Duration::from_millis(600)).await;
    }
    scene.sandbox.clear_faults();
    let result = scene.producer.result().await;
    assert_eq!((result.job_id.as_str(), result.status), ("parked", Status::Sent), "{result:?}");
    let mut notified = scene.notified("g");
    notified.retain(|recipient| recipient != "user-1");
    notified.sort();
    assert_eq!(notified, ["user-0", "user-2"], "no batch that was sent is sent again");
}
