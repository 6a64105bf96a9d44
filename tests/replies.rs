//! Every result goes where the producer asked for it, or to a queue where an operator finds it.

use std::collections::BTreeSet;

use futures_util::StreamExt;
use groupcast::settle::result::{JobResult, Status};
use lapin::{
    BasicProperties,
    options::{BasicConsumeOptions, ConfirmSelectOptions},
    types::FieldTable,
};

use crate::support::{
    broker::Broker,
    eventually,
    producer::{Producer, header, publish, text},
    scene::{Scene, job},
};

fn body() -> Vec<u8> {
    serde_json::to_vec(&job("g", 1)).unwrap()
}

#[tokio::test]
async fn a_result_is_a_persistent_typed_message_that_belongs_to_its_job() {
    let mut scene = Scene::start().await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), text(parent));
    headers.insert("tracestate".into(), text("vendor=1"));
    headers.insert("x-of-the-producer".into(), text("kept from us"));
    let properties = scene
        .producer
        .properties()
        .with_message_id("job-1".into())
        .with_correlation_id("correlation".into())
        .with_headers(headers);
    scene.producer.publish(&scene.app, &body(), properties).await;
    let reply = scene.producer.reply().await;
    let of = |property: &Option<lapin::types::ShortString>| {
        property.as_ref().map(|text| text.as_str().to_owned())
    };
    assert_eq!(of(reply.properties.message_id()).as_deref(), Some("job-1.result"));
    assert_eq!(of(reply.properties.correlation_id()).as_deref(), Some("correlation"));
    assert_eq!(of(reply.properties.kind()).as_deref(), Some("groupcast.result"));
    assert_eq!(of(reply.properties.content_type()).as_deref(), Some("application/json"));
    assert_eq!(*reply.properties.delivery_mode(), Some(2));
    assert_eq!(header(&reply, "groupcast-status").as_deref(), Some("sent"));
    assert_eq!(header(&reply, "traceparent").as_deref(), Some(parent));
    assert_eq!(header(&reply, "tracestate").as_deref(), Some("vendor=1"));
}

#[tokio::test]
async fn a_result_for_a_queue_that_does_not_exist_is_kept_as_unrouted() {
    let scene = Scene::start().await;
    let properties = BasicProperties::default()
        .with_reply_to("nobody-declared-this".into())
        .with_message_id("job-1".into());
    scene.producer.publish(&scene.app, &body(), properties).await;
    let unrouted = scene.producer.take(&scene.queue("unrouted")).await;
    let result: JobResult = serde_json::from_slice(&unrouted.data).unwrap();
    assert_eq!((result.job_id.as_str(), result.status), ("job-1", Status::Sent));
}

#[tokio::test]
async fn a_direct_reply_to_gets_its_result_while_the_requester_is_there() {
    let scene = Scene::start().await;
    let requester = scene.producer.channel().await;
    requester.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let no_ack = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let mut replies = requester
        .basic_consume("amq.rabbitmq.reply-to".into(), "r".into(), no_ack, FieldTable::default())
        .await
        .unwrap();
    let properties = BasicProperties::default().with_reply_to("amq.rabbitmq.reply-to".into());
    publish(&requester, &scene.queue("jobs"), &body(), properties).await.unwrap();
    let reply = replies.next().await.unwrap().unwrap();
    assert_eq!(serde_json::from_slice::<JobResult>(&reply.data).unwrap().status, Status::Sent);
    assert_eq!(scene.producer.depth(&scene.queue("unrouted")).await, 0);
}

#[tokio::test]
async fn a_direct_reply_to_whose_requester_is_gone_is_kept_as_unrouted() {
    let scene = Scene::start().await;
    scene
        .sandbox
        .change_settings(serde_json::from_value(serde_json::json!({ "latency_ms": 700 })).unwrap());
    let gone = Producer::connect(Broker::shared().await.url()).await;
    let requester = gone.channel().await;
    requester.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let no_ack = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let replies = requester
        .basic_consume("amq.rabbitmq.reply-to".into(), "r".into(), no_ack, FieldTable::default())
        .await;
    let properties = BasicProperties::default()
        .with_reply_to("amq.rabbitmq.reply-to".into())
        .with_message_id("job-1".into());
    publish(&requester, &scene.queue("jobs"), &body(), properties).await.unwrap();
    drop(replies);
    gone.close().await;
    let unrouted = scene.producer.take(&scene.queue("unrouted")).await;
    assert_eq!(serde_json::from_slice::<JobResult>(&unrouted.data).unwrap().job_id, "job-1");
}

#[tokio::test]
async fn no_producer_can_make_the_daemon_write_into_its_own_queues() {
    let scene = Scene::start().await;
    for refused in [scene.queue("jobs"), scene.queue("dead"), "groupcast.another.jobs".to_owned()] {
        let properties = BasicProperties::default().with_reply_to(refused.as_str().into());
        scene.producer.publish(&scene.app, &body(), properties).await;
        let unrouted = scene.producer.take(&scene.queue("unrouted")).await;
        let result: JobResult = serde_json::from_slice(&unrouted.data).unwrap();
        assert_eq!(result.status, Status::Rejected);
        assert!(result.errors[0].info.starts_with("reply_to: "), "{:?}", result.errors);
        assert_eq!(scene.dead_letter().await.data, body());
    }
    assert_eq!(scene.sandbox.stats().calls, 0);
}

#[tokio::test]
async fn results_go_only_where_the_configuration_allows() {
    let mut scene = Scene::with("replies.allow = [\"replies-*\"]").await;
    assert_eq!(scene.send(&job("g", 1)).await.status, Status::Sent, "its queue is named replies-…");
    let properties =
        BasicProperties::default().with_reply_to("billing".into()).with_message_id("job-1".into());
    scene.producer.publish(&scene.app, &body(), properties).await;
    let unrouted = scene.producer.take(&scene.queue("unrouted")).await;
    let result: JobResult = serde_json::from_slice(&unrouted.data).unwrap();
    assert!(
        result.errors[0].info.contains("`billing`")
            && result.errors[0].info.contains("replies.allow"),
        "{:?}",
        result.errors
    );
    let requester = scene.producer.channel().await;
    requester.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let no_ack = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let mut replies = requester
        .basic_consume("amq.rabbitmq.reply-to".into(), "r".into(), no_ack, FieldTable::default())
        .await
        .unwrap();
    let properties = BasicProperties::default().with_reply_to("amq.rabbitmq.reply-to".into());
    publish(&requester, &scene.queue("jobs"), &body(), properties).await.unwrap();
    assert!(replies.next().await.unwrap().is_ok(), "a direct reply-to leads to nobody else");
}

/// Both messages make the broker close the whole connection.
#[tokio::test]
async fn a_message_that_upsets_the_broker_is_settled_and_holds_up_nobody() {
    let mut scene = Scene::start().await;
    // The broker creates such addresses, but it cannot read this one.
    let junk = BasicProperties::default()
        .with_reply_to("amq.rabbitmq.reply-to.AAAA.eA==".into())
        .with_message_id("junk".into());
    scene.producer.publish(&scene.app, &body(), junk).await;
    // With the headers of a dead letter, these headers no longer fit into a frame.
    let mut headers = FieldTable::default();
    headers.insert("x-large".into(), text(&"x".repeat(130_800)));
    let large = scene.producer.properties().with_headers(headers).with_message_id("large".into());
    scene.producer.publish(&scene.app, b"not a job", large).await;
    scene
        .producer
        .publish(
            &scene.app,
            &body(),
            scene.producer.properties().with_message_id("innocent".into()),
        )
        .await;

    // Messages in flight when the broker closed the connection are published again.
    let mut answered = BTreeSet::new();
    while answered.len() < 2 {
        answered.insert(scene.producer.result().await.job_id);
    }
    assert_eq!(answered, BTreeSet::from(["innocent".to_owned(), "large".to_owned()]));
    let letter = scene.dead_letter().await;
    assert_eq!(
        (letter.data.as_slice(), header(&letter, "groupcast-job-id").as_deref()),
        (&b"not a job"[..], Some("large"))
    );
    let unrouted = scene.producer.take(&scene.queue("unrouted")).await;
    assert_eq!(serde_json::from_slice::<JobResult>(&unrouted.data).unwrap().job_id, "junk");
    eventually("all to be acknowledged", async || {
        (scene.producer.depth(&scene.queue("jobs")).await == 0).then_some(())
    })
    .await;
    assert_eq!(scene.notified("g").len(), 2);
}

#[tokio::test]
async fn without_a_reply_to_the_result_goes_to_the_configured_queue_or_nowhere() {
    let nowhere = Scene::start().await;
    nowhere.producer.publish(&nowhere.app, &body(), BasicProperties::default()).await;
    eventually("the job to be done", async || {
        (nowhere.sandbox.stats().accepted == 1).then_some(())
    })
    .await;
    eventually("the job to be acknowledged", async || {
        (nowhere.producer.depth(&nowhere.queue("jobs")).await == 0).then_some(())
    })
    .await;
    assert_eq!(nowhere.producer.depth(&nowhere.queue("unrouted")).await, 0);

    let app = crate::support::scene::unique_app();
    let sandbox = crate::support::scene::sandbox().await;
    let broker = Broker::shared().await;
    let results = format!("results_queue = \"groupcast.{app}.results\"");
    let configuration =
        crate::support::scene::configuration(broker.url(), &app, &sandbox.endpoint(), &results);
    let _daemon = crate::support::daemon::Daemon::start(&configuration).await;
    let producer = Producer::connect(broker.url()).await;
    producer.publish(&app, &body(), BasicProperties::default()).await;
    let result = producer.take(&format!("groupcast.{app}.results")).await;
    assert_eq!(serde_json::from_slice::<JobResult>(&result.data).unwrap().status, Status::Sent);
}
