//! Stops, crashes and faults of the broker: every job is answered or still queued.

use std::{collections::BTreeSet, time::Duration};

use groupcast::settle::result::Status;
use tokio::time::sleep;

use crate::support::{
    broker::Broker,
    daemon::Daemon,
    eventually, most_arrivals_in_1s,
    producer::Producer,
    scene::{Scene, configuration, job, sandbox, unique_app},
};

async fn publish_numbered(scene: &Scene, jobs: std::ops::Range<usize>, recipients: usize) {
    for number in jobs {
        let properties =
            scene.producer.properties().with_message_id(format!("job-{number}").as_str().into());
        scene
            .producer
            .publish(&scene.app, &serde_json::to_vec(&job("g", recipients)).unwrap(), properties)
            .await;
    }
}

/// Waits until the jobs with these ids are answered. A repeated result is allowed.
async fn until_answered(scene: &mut Scene, mut open: BTreeSet<String>) {
    while !open.is_empty() {
        let result = scene.producer.result().await;
        assert_eq!(result.status, Status::Sent, "{result:?}");
        open.remove(&result.job_id);
    }
}

fn ids(jobs: std::ops::Range<usize>) -> BTreeSet<String> {
    jobs.map(|number| format!("job-{number}")).collect()
}

#[tokio::test]
async fn on_sigterm_calls_in_flight_finish_and_other_jobs_go_back_to_the_queue() {
    let mut scene = Scene::start().await;
    scene
        .sandbox
        .change_settings(serde_json::from_value(serde_json::json!({ "latency_ms": 300 })).unwrap());
    publish_numbered(&scene, 0..400, 1).await;
    eventually("some calls", async || (scene.sandbox.stats().accepted > 60).then_some(())).await;

    let stopping = tokio::time::Instant::now();
    let status = scene.daemon.terminate().await;
    assert_eq!(status.code(), Some(0), "{}", scene.daemon.log());
    assert!(stopping.elapsed() < Duration::from_secs(10), "{:?}", stopping.elapsed());

    let mut answered = BTreeSet::new();
    let accepted = scene.sandbox.stats().accepted as usize;
    while answered.len() < accepted {
        assert!(answered.insert(scene.producer.result().await.job_id), "answered twice");
    }
    assert!(scene.producer.hears_nothing().await, "a result without a call");
    let queued = eventually("the rest to be back", async || {
        let depth = scene.producer.depth(&scene.queue("jobs")).await as usize;
        (depth == 400 - answered.len()).then_some(depth)
    })
    .await;
    assert!(queued > 0);

    scene.daemon.start_again().await;
    until_answered(&mut scene, &ids(0..400) - &answered).await;
    assert_eq!(scene.notified("g").len(), 400, "each recipient of each job once");
}

#[tokio::test]
async fn a_broker_that_is_killed_under_load_loses_no_job() {
    let broker = Broker::start("").await;
    let mut scene = Scene::on(&broker, "").await;
    publish_numbered(&scene, 0..300, 1).await;
    eventually("some calls", async || (scene.sandbox.stats().accepted > 50).then_some(())).await;
    broker.kill().await;
    scene.daemon.until_logged("trying again").await;
    broker.restart().await;
    scene.daemon.until_consuming(2).await;
    scene.producer.reconnect(broker.url()).await;
    until_answered(&mut scene, ids(0..300)).await;
    eventually("all to be acknowledged", async || {
        (scene.producer.depth(&scene.queue("jobs")).await == 0).then_some(())
    })
    .await;
    assert!(scene.sandbox.stats().max_in_1s <= most_arrivals_in_1s(200));
}

#[tokio::test]
async fn a_daemon_without_a_broker_says_so_and_starts_when_it_comes() {
    let broker = Broker::start("").await;
    broker.kill().await;
    let (app, sandbox) = (unique_app(), sandbox().await);
    let configuration = configuration(broker.url(), &app, &sandbox.endpoint(), "");
    let daemon = Daemon::spawn(&configuration);
    daemon.until_logged("cannot consume yet; trying again").await;
    // The first attempt may still reach the port of the killed broker and be reset.
    daemon.until_logged("Connection refused").await;
    broker.restart().await;
    daemon.until_consuming(1).await;
    let producer = Producer::connect(broker.url()).await;
    let mut scene = Scene::of(app, configuration, sandbox, daemon, producer).await;
    assert_eq!(scene.send(&job("g", 3)).await.status, Status::Sent);
}

#[tokio::test]
async fn while_the_broker_blocks_publishing_no_call_starts_and_nothing_is_lost() {
    let broker = Broker::start("").await;
    let mut scene = Scene::on(&broker, "max_in_flight = 1").await;
    scene
        .sandbox
        .change_settings(serde_json::from_value(serde_json::json!({ "latency_ms": 800 })).unwrap());
    publish_numbered(&scene, 0..20, 1).await;
    eventually("the first call", async || (scene.sandbox.stats().calls >= 1).then_some(())).await;
    broker.ctl(&["set_vm_memory_high_watermark", "0.0000001"]).await;
    scene.daemon.until_logged("the broker blocks publishing").await;
    // A call may still be in flight. After it no call may start.
    sleep(Duration::from_millis(1500)).await;
    let calls = scene.sandbox.stats().calls;
    sleep(Duration::from_millis(3000)).await;
    assert_eq!(
        scene.sandbox.stats().calls,
        calls,
        "a call started whose outcome could not be told"
    );
    assert!(calls < 20);

    broker.ctl(&["set_vm_memory_high_watermark", "0.6"]).await;
    scene
        .sandbox
        .change_settings(serde_json::from_value(serde_json::json!({ "latency_ms": 0 })).unwrap());
    until_answered(&mut scene, ids(0..20)).await;
    assert_eq!(scene.notified("g").len(), 20);
}

#[tokio::test]
async fn closed_connections_are_opened_again_and_no_job_is_lost() {
    let broker = Broker::start("").await;
    let mut scene = Scene::on(&broker, "").await;
    publish_numbered(&scene, 0..200, 1).await;
    eventually("some calls", async || (scene.sandbox.stats().accepted > 30).then_some(())).await;
    broker.ctl(&["close_all_connections", "test"]).await;
    scene.daemon.until_consuming(2).await;
    scene.producer.reconnect(broker.url()).await;
    until_answered(&mut scene, ids(0..200)).await;
}

#[tokio::test]
async fn queues_that_are_deleted_under_the_daemon_are_declared_again() {
    let mut scene = Scene::start().await;
    let administrator = scene.producer.channel().await;
    administrator
        .queue_delete(scene.queue("jobs").as_str().into(), Default::default())
        .await
        .unwrap();
    scene.daemon.until_consuming(2).await;
    assert_eq!(scene.send(&job("g", 1)).await.status, Status::Sent);

    administrator
        .queue_delete(scene.queue("dead").as_str().into(), Default::default())
        .await
        .unwrap();
    assert_eq!(scene.send(&job("unknown", 1)).await.status, Status::Failed);
    assert_eq!(
        scene.daemon.times_logged("lost the subscription"),
        1,
        "no other job was let go for that"
    );
    assert!(!scene.dead_letter().await.data.is_empty());
}

#[tokio::test]
async fn a_second_replica_stands_by_and_takes_over_when_the_first_one_ends() {
    let mut scene = Scene::start().await;
    let standby = Daemon::start(&scene.configuration).await;
    publish_numbered(&scene, 0..100, 1).await;
    eventually("some calls", async || (scene.sandbox.stats().accepted > 20).then_some(())).await;
    scene.daemon.kill().await;
    until_answered(&mut scene, ids(0..100)).await;
    assert!(scene.sandbox.stats().max_in_1s <= most_arrivals_in_1s(200));
    drop(standby);
}
