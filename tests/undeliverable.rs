//! The daemon still answers a job that the broker gives up, and sends none of its batches again.

use std::collections::BTreeMap;

use groupcast::{
    sandbox::FaultRule,
    settle::result::{ErrorKind, Status},
};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

use crate::support::{
    broker::Broker,
    eventually,
    producer::{header, publish, text},
    scene::{Scene, job, settings},
};

async fn set_policy(scene: &Scene, queue: &str, definition: &str) -> String {
    let (name, pattern) = (
        format!("p-{}-{queue}", scene.app),
        format!("^{}$", scene.queue(queue).replace('.', "\\.")),
    );
    Broker::shared()
        .await
        .ctl(&["set_policy", "--apply-to", "queues", &name, &pattern, definition])
        .await;
    name
}

#[tokio::test]
async fn a_job_that_the_broker_has_delivered_too_often_is_answered_as_undeliverable() {
    let mut scene = Scene::start().await;
    let policy = set_policy(&scene, "jobs", r#"{"delivery-limit":2}"#).await;
    scene.sandbox.change_settings(settings(json!({ "latency_ms": 60_000 })));
    scene.publish_with_id(&job("g", 2), "poison").await;
    for calls in 1..=3 {
        eventually("the call", async || (scene.sandbox.stats().calls == calls).then_some(())).await;
        scene.daemon.kill().await;
        scene.daemon.start_again().await;
    }
    let result = scene.producer.result().await;
    assert_eq!(
        (result.job_id.as_str(), result.status, result.duplicate),
        ("poison", Status::Failed, false)
    );
    assert_eq!(
        (result.errors[0].kind, result.errors[0].recipients),
        (ErrorKind::Undeliverable, Some(2))
    );
    assert!(result.errors[0].info.contains("too often"), "{}", result.errors[0].info);
    let letter = scene.dead_letter().await;
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&letter.data).unwrap(), job("g", 2));
    assert_eq!(header(&letter, "groupcast-error-kind").as_deref(), Some("undeliverable"));
    assert_eq!(header(&letter, "groupcast-attempt").as_deref(), Some("1"));
    Broker::shared().await.ctl(&["clear_policy", &policy]).await;
}

#[tokio::test]
async fn a_job_that_a_policy_removes_from_the_queue_is_answered_as_undeliverable() {
    let mut scene = Scene::start().await;
    scene.daemon.terminate().await;
    let policy = set_policy(&scene, "jobs", r#"{"message-ttl":200}"#).await;
    scene.publish_with_id(&job("g", 3), "too-late").await;
    scene.publish(&json!({ "GroupId": "g", "Contents": "x" })).await;
    let undeliverable = scene.queue("undeliverable");
    eventually("the broker to give them up", async || {
        (scene.producer.depth(&undeliverable).await == 2).then_some(())
    })
    .await;
    scene.daemon.start_again().await;
    let mut results = [scene.producer.result().await, scene.producer.result().await];
    results.sort_by_key(|result| result.status == Status::Rejected);
    let [first, second] = &results;
    assert_eq!(
        (first.status, first.errors[0].kind, first.calls),
        (Status::Failed, ErrorKind::Undeliverable, 0)
    );
    assert!(first.errors[0].info.contains("message TTL"), "{}", first.errors[0].info);
    assert_eq!(
        (second.status, second.errors[0].kind),
        (Status::Rejected, ErrorKind::Invalid),
        "what is wrong comes first"
    );
    assert_eq!(scene.producer.depth(&scene.queue("dead")).await, 2);
    Broker::shared().await.ctl(&["clear_policy", &policy]).await;
    // When an operator redrives the job, it starts anew.
    crate::dead_letters::printed(&scene, &["redrive"]).await;
    assert_eq!(scene.producer.result().await.status, Status::Sent);
    assert_eq!(scene.notified("g").len(), 3);
}

/// Publishes a job as the broker does when it gives the job up.
async fn give_up(scene: &Scene, id: &str, body: &serde_json::Value) {
    let death = FieldTable::from(BTreeMap::from([("reason".into(), text("delivery_limit"))]));
    let deaths = AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into());
    let headers = FieldTable::from(BTreeMap::from([("x-death".into(), deaths)]));
    let properties = scene.producer.properties().with_message_id(id.into()).with_headers(headers);
    let channel = scene.producer.channel().await;
    channel.confirm_select(Default::default()).await.unwrap();
    publish(
        &channel,
        &scene.queue("undeliverable"),
        &serde_json::to_vec(body).unwrap(),
        properties,
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn a_job_that_was_sent_and_not_yet_acknowledged_is_answered_from_its_record() {
    let mut scene = Scene::start().await;
    scene.publish_with_id(&job("g", 2), "sent").await;
    assert_eq!(scene.producer.result().await.status, Status::Sent);
    give_up(&scene, "sent", &job("g", 2)).await;
    let again = scene.producer.result().await;
    assert_eq!((again.status, again.duplicate, again.calls), (Status::Sent, true, 1));
    assert_eq!(
        (scene.notified("g").len(), scene.producer.depth(&scene.queue("dead")).await),
        (2, 0)
    );
}

#[tokio::test]
async fn of_a_job_that_was_partly_sent_only_the_rest_is_undeliverable() {
    let mut scene = Scene::with("batch_size = 2\nretry.hold = \"1s\"\nretry.park = [\"1h\"]").await;
    let down =
        json!({ "fault": { "error": { "code": 10002 } }, "matching": "user-3", "group": "g" });
    scene.sandbox.add_fault(serde_json::from_value::<FaultRule>(down).unwrap()).unwrap();
    scene.publish_with_id(&job("g", 6), "partly").await;
    let waiting = scene.queue("wait.3600");
    eventually("the job to be parked", async || {
        (scene.producer.depth(&waiting).await == 1).then_some(())
    })
    .await;
    give_up(&scene, "partly", &job("g", 6)).await;
    let result = scene.producer.result().await;
    let recipients = result.recipients.unwrap();
    assert_eq!((result.status, recipients.sent, recipients.failed), (Status::Partial, 4, 2));
    assert_eq!(result.errors[0].kind, ErrorKind::Undeliverable);
    let letter: serde_json::Value =
        serde_json::from_slice(&scene.dead_letter().await.data).unwrap();
    assert_eq!(letter["ToMembers_Account"], json!(["user-2", "user-3"]));
}
