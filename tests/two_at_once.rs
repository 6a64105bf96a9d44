//! Two replicas both get an app's jobs. The one that got them later works, and the other one stops
//! within a second.

use std::{collections::BTreeMap, time::Duration};

use groupcast::settle::result::Status;
use serde_json::json;
use tokio::time::Instant;

use crate::support::{
    broker::Broker,
    daemon::Daemon,
    eventually, most_arrivals_in_1s,
    producer::Producer,
    redis::Redis,
    scene::{Scene, configuration, job, sandbox, settings, unique_app},
};

const CALLS_PER_SECOND: usize = 20;
/// The most calls in flight, on a busy machine too. The API answers after 20 ms.
const UNDER_WAY: usize = 5;
const BATCHES: usize = 200;
const DISPLACED: &str = "another replica has the app's jobs too";

fn lines(redis: &Redis) -> String {
    format!(
        "batch_size = 1\ncalls_per_second = {CALLS_PER_SECOND}\nburst = 5\nmax_in_flight = \
            {UNDER_WAY}\n[state]\nurl = \"{}\"",
        redis.url()
    )
}

fn repeats(scene: &Scene, group: &str) -> usize {
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for recipient in scene.notified(group) {
        *times.entry(recipient).or_default() += 1;
    }
    assert_eq!(times.len(), BATCHES, "everybody is reached");
    times.values().map(|times| times - 1).sum()
}

/// Two brokers with the same job represent the two sides of a partition.
#[tokio::test]
async fn of_two_replicas_on_both_sides_of_a_partition_one_calls() {
    let redis = Redis::start("").await;
    let (app, sandbox) = (unique_app(), sandbox().await);
    sandbox.change_settings(settings(json!({ "latency_ms": 20 })));
    let (side, other_side) = (Broker::shared().await, Broker::start("").await);
    let on =
        |broker: &Broker| configuration(broker.url(), &app, &sandbox.endpoint(), &lines(&redis));
    let (first, second) = (Daemon::start(&on(side)).await, Daemon::start(&on(&other_side)).await);
    let (producer, mut other_producer) =
        (Producer::connect(side.url()).await, Producer::connect(other_side.url()).await);
    let body = serde_json::to_vec(&job("g", BATCHES)).unwrap();
    let configuration = on(side);
    let mut scene = Scene::of(app, configuration, sandbox, first, producer).await;
    scene.publish_with_id(&job("g", BATCHES), "order-1").await;
    eventually("some calls", async || (scene.sandbox.stats().calls >= 40).then_some(())).await;

    let properties = other_producer.properties().with_message_id("order-1".into());
    other_producer.publish(&scene.app, &body, properties).await;
    scene.daemon.until_logged(DISPLACED).await;
    eventually("/readyz to say so", async || {
        let (status, readiness) = scene.daemon.get("/readyz").await;
        (status == 503 && readiness.contains(DISPLACED)).then_some(())
    })
    .await;

    // Both get the job again and again until it has ended. They must not take it from each other in
    // turn.
    let result = other_producer.result().await;
    assert_eq!(
        (result.status, result.recipients.unwrap().sent as usize),
        (Status::Sent, BATCHES),
        "{result:?}"
    );
    assert_eq!(scene.producer.result().await.status, Status::Sent);
    let (repeats, most) = (repeats(&scene, "g"), scene.sandbox.stats().max_in_1s);
    let displaced = scene.daemon.times_logged(DISPLACED) + second.times_logged(DISPLACED);
    println!(
        "{repeats} of {BATCHES} batches sent again, {most} calls at most in a second, displaced \
            {displaced} times"
    );
    assert!(repeats <= UNDER_WAY + CALLS_PER_SECOND, "{repeats} batches sent again");
    assert!(
        most <= most_arrivals_in_1s(CALLS_PER_SECOND),
        "{most} calls in a second over both replicas"
    );
    assert_eq!(
        second.times_logged(DISPLACED),
        0,
        "the one that got the jobs later keeps them: {}",
        second.log()
    );
}

#[tokio::test]
async fn a_replica_that_was_frozen_makes_no_call_once_another_has_its_jobs() {
    let redis = Redis::start("").await;
    let broker = Broker::shared().await;
    let (app, sandbox) = (unique_app(), sandbox().await);
    sandbox.change_settings(settings(json!({ "latency_ms": 20 })));
    let configuration = configuration(broker.url(), &app, &sandbox.endpoint(), &lines(&redis));
    let first = Daemon::start(&configuration).await;
    let second = Daemon::start(&configuration).await;
    let producer = Producer::connect(broker.url()).await;
    let mut scene = Scene::of(app, configuration, sandbox, first, producer).await;
    scene.publish_with_id(&job("g", BATCHES), "order-1").await;
    eventually("some calls", async || (scene.sandbox.stats().calls >= 40).then_some(())).await;
    scene.daemon.signal("STOP");
    let frozen_at = Instant::now();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = scene.sandbox.stats().calls;
    eventually("the other replica to call", async || {
        (scene.sandbox.stats().calls > before + 20).then_some(())
    })
    .await;
    scene.daemon.signal("CONT");
    let result = scene.producer.result().await;
    assert_eq!(
        (result.status, result.recipients.unwrap().sent as usize),
        (Status::Sent, BATCHES),
        "{result:?}"
    );
    let (repeats, most) = (repeats(&scene, "g"), scene.sandbox.stats().max_in_1s);
    println!(
        "frozen for {:?}: {repeats} of {BATCHES} batches sent again, {most} calls at most in a \
            second",
        frozen_at.elapsed()
    );
    assert!(repeats <= UNDER_WAY, "{repeats} batches sent again");
    assert!(
        most <= most_arrivals_in_1s(CALLS_PER_SECOND),
        "{most} calls in a second over both replicas"
    );
    drop(second);
}
