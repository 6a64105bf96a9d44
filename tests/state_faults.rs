//! A failing state store loses no job. The daemon takes no job that it could not record, and it
//! continues by itself.

use std::{process::Command, time::Duration};

use groupcast::settle::result::Status;
use serde_json::json;
use tokio::time::sleep;

use crate::support::{
    broker::Broker,
    daemon::Daemon,
    eventually,
    producer::Producer,
    redis::Redis,
    scene::{Scene, configuration, job, sandbox, settings, unique_app},
};

const DOES_NOT_WORK: &str = "the state store does not work";
const WORKS: &str = "the state store works";

/// A scene whose daemon has this `[state]` URL. The daemon may not consume yet.
async fn scene_with(state_url: &str, app_lines: &str, start: impl FnOnce(&str) -> Daemon) -> Scene {
    let (app, sandbox) = (unique_app(), sandbox().await);
    let broker = Broker::shared().await;
    let lines = format!("{app_lines}\n[state]\nurl = \"{state_url}\"");
    let configuration = configuration(broker.url(), &app, &sandbox.endpoint(), &lines);
    let daemon = start(&configuration);
    let producer = Producer::connect(broker.url()).await;
    Scene::of(app, configuration, sandbox, daemon, producer).await
}

async fn publish(scene: &Scene, id: &str) {
    let properties = scene.producer.properties().with_message_id(id.into());
    scene.producer.publish(&scene.app, &serde_json::to_vec(&job(id, 1)).unwrap(), properties).await;
}

async fn is_sent(scene: &mut Scene, id: &str) {
    publish(scene, id).await;
    let result = scene.producer.result().await;
    assert_eq!((result.job_id.as_str(), result.status), (id, Status::Sent), "{result:?}");
}

async fn makes_no_call(scene: &Scene) {
    sleep(Duration::from_secs(1)).await;
    assert_eq!(scene.sandbox.stats().calls, 0);
}

#[tokio::test]
async fn a_folder_that_is_not_there_or_a_damaged_file_is_a_clear_error_and_a_paused_consumer() {
    let mut scene = scene_with("sqlite:state/groupcast.db", "", Daemon::spawn).await;
    scene.daemon.until_logged(DOES_NOT_WORK).await;
    assert!(scene.daemon.log().contains("state/groupcast.db"), "{}", scene.daemon.log());
    assert_eq!(scene.daemon.times_logged("consuming"), 0);
    std::fs::create_dir(scene.daemon.file("state")).unwrap();
    scene.daemon.until_consuming(1).await;
    is_sent(&mut scene, "first").await;

    scene.daemon.terminate().await;
    for name in ["groupcast.db-wal", "groupcast.db-shm"] {
        let _ = std::fs::remove_file(scene.daemon.file("state").join(name));
    }
    std::fs::write(scene.daemon.file("state/groupcast.db"), "this is no database, ".repeat(1000))
        .unwrap();
    publish(&scene, "second").await;
    let calls = scene.sandbox.stats().calls;
    scene.daemon.spawn_again();
    eventually("the error", async || (scene.daemon.times_logged(DOES_NOT_WORK) == 2).then_some(()))
        .await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(
        (scene.sandbox.stats().calls, scene.producer.depth(&scene.queue("jobs")).await),
        (calls, 1)
    );
    std::fs::remove_file(scene.daemon.file("state/groupcast.db")).unwrap();
    assert_eq!(scene.producer.result().await.job_id, "second");
}

#[tokio::test]
async fn a_place_that_cannot_be_written_to_is_named_and_no_job_is_lost() {
    // Not even root can write there.
    let mut scene = scene_with("sqlite:/proc/groupcast.db", "", Daemon::spawn).await;
    scene.daemon.until_logged(DOES_NOT_WORK).await;
    assert!(scene.daemon.log().contains("/proc/groupcast.db"), "{}", scene.daemon.log());
    scene.daemon.terminate().await;
    scene.daemon.reconfigure(&scene.configuration.replace("/proc/groupcast.db", "groupcast.db"));
    scene.daemon.start_again().await;
    is_sent(&mut scene, "first").await;
}

#[tokio::test]
async fn a_file_that_is_deleted_under_the_daemon_is_noticed_and_made_anew() {
    let mut scene = Scene::start().await;
    is_sent(&mut scene, "before").await;
    for name in ["groupcast.db", "groupcast.db-wal", "groupcast.db-shm"] {
        let _ = std::fs::remove_file(scene.daemon.file(name));
    }
    is_sent(&mut scene, "after").await;
    assert!(scene.daemon.log().contains("was removed"), "{}", scene.daemon.log());
    assert!(scene.daemon.file("groupcast.db").exists());
    scene.daemon.kill().await;
    scene.daemon.start_again().await;
    let calls = scene.sandbox.stats().calls;
    is_sent(&mut scene, "after").await;
    assert_eq!(scene.sandbox.stats().calls, calls, "it is remembered in the new file");
}

#[tokio::test]
async fn a_full_disk_pauses_the_work_and_when_there_is_room_every_job_is_answered() {
    // No file can grow beyond this limit. For the daemon this is a full disk.
    let limited = |configuration: &str| Daemon::spawn_with_files_up_to(64, configuration);
    let mut scene = scene_with("sqlite:groupcast.db", "batch_size = 1", limited).await;
    scene.daemon.until_consuming(1).await;
    for number in 0..300 {
        let properties =
            scene.producer.properties().with_message_id(format!("job-{number}").as_str().into());
        scene
            .producer
            .publish(&scene.app, &serde_json::to_vec(&job("g", 3)).unwrap(), properties)
            .await;
    }
    scene.daemon.until_logged(DOES_NOT_WORK).await;
    sleep(Duration::from_secs(2)).await;
    let calls = scene.sandbox.stats().calls;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(scene.sandbox.stats().calls, calls, "no call starts that could not be recorded");
    assert!(calls < 900);

    let pid = scene.daemon.pid().to_string();
    assert!(
        Command::new("prlimit")
            .args(["--pid", &pid, "--fsize=unlimited:"])
            .status()
            .unwrap()
            .success()
    );
    let mut open: std::collections::BTreeSet<String> =
        (0..300).map(|number| format!("job-{number}")).collect();
    let mut told = 0;
    while !open.is_empty() {
        let result = scene.producer.result().await;
        assert_eq!(result.status, Status::Sent, "{result:?}");
        told += if open.remove(&result.job_id) { result.calls } else { 0 };
    }
    let stats = scene.sandbox.stats();
    assert_eq!(
        (told, stats.accepted),
        (stats.calls, 900),
        "what was known when the disk was full is not called for again"
    );
    assert!(scene.daemon.log().contains("disk"), "it says what to do");
}

#[tokio::test]
async fn without_redis_no_job_is_taken_and_when_it_is_back_work_goes_on_by_itself() {
    let redis = Redis::start("").await;
    redis.kill().await;
    let mut scene = scene_with(redis.url(), "", Daemon::spawn).await;
    scene.daemon.until_logged(DOES_NOT_WORK).await;
    redis.restart().await;
    scene.daemon.until_consuming(1).await;
    is_sent(&mut scene, "first").await;
    // The daemon publishes the result before it records it.
    publish(&scene, "first").await;
    assert!(scene.producer.result().await.duplicate);

    scene.sandbox.reset();
    redis.kill().await;
    publish(&scene, "second").await;
    eventually("the error", async || (scene.daemon.times_logged(DOES_NOT_WORK) == 2).then_some(()))
        .await;
    makes_no_call(&scene).await;
    redis.restart().await;
    assert_eq!(scene.producer.result().await.job_id, "second");
    publish(&scene, "first").await;
    assert!(scene.producer.result().await.duplicate, "what was recorded is known");
}

#[tokio::test]
async fn while_redis_is_away_an_idle_and_a_standby_replica_are_not_ready() {
    let redis = Redis::start("").await;
    let mut scene = scene_with(redis.url(), "", Daemon::spawn).await;
    scene.daemon.until_consuming(1).await;
    is_sent(&mut scene, "first").await;
    let standby = Daemon::start(&scene.configuration).await;
    for daemon in [&scene.daemon, &standby] {
        assert_eq!(daemon.get("/readyz").await.0, 200);
    }
    redis.kill().await;
    for daemon in [&scene.daemon, &standby] {
        let told = eventually("/readyz to be 503", async || {
            let (status, told) = daemon.get("/readyz").await;
            (status == 503).then_some(told)
        })
        .await;
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        assert_eq!(told["state_store"]["state"], "down", "{told}");
    }
    redis.restart().await;
    for daemon in [&scene.daemon, &standby] {
        eventually("/readyz to be 200", async || {
            (daemon.get("/readyz").await.0 == 200).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_redis_that_comes_back_without_its_data_loses_no_job_and_is_noticed() {
    let redis = Redis::start("").await;
    let mut scene =
        scene_with(redis.url(), "batch_size = 1\ncalls_per_second = 20\nburst = 1", Daemon::spawn)
            .await;
    scene.daemon.until_consuming(1).await;
    scene.sandbox.change_settings(settings(json!({ "latency_ms": 20 })));
    let properties = scene.producer.properties().with_message_id("order-1".into());
    scene
        .producer
        .publish(&scene.app, &serde_json::to_vec(&job("g", 60)).unwrap(), properties)
        .await;
    eventually("some calls", async || (scene.sandbox.stats().accepted >= 20).then_some(())).await;
    redis.restart_empty().await;
    let result = scene.producer.result().await;
    assert_eq!((result.status, result.recipients.unwrap().sent), (Status::Sent, 60), "{result:?}");
    scene.daemon.until_logged("has lost its data").await;
    assert!(scene.daemon.times_logged(WORKS) >= 1);
    let properties = scene.producer.properties().with_message_id("order-1".into());
    scene
        .producer
        .publish(&scene.app, &serde_json::to_vec(&job("g", 60)).unwrap(), properties)
        .await;
    assert!(scene.producer.result().await.duplicate, "what has ended since is known");
}

#[tokio::test]
async fn a_record_that_cannot_be_read_rejects_its_job_and_no_other() {
    let mut scene = Scene::start().await;
    is_sent(&mut scene, "first").await;
    let state = rusqlite::Connection::open(scene.daemon.file("groupcast.db")).unwrap();
    eventually("the record", async || {
        let damaged = state
            .execute(
                "UPDATE jobs SET result = '{}' WHERE job_id = 'first' AND result IS NOT NULL",
                [],
            )
            .unwrap();
        (damaged == 1).then_some(())
    })
    .await;
    publish(&scene, "first").await;
    let result = scene.producer.result().await;
    assert_eq!(result.status, Status::Rejected);
    assert!(
        result.errors[0].info.starts_with("message_id: has a record that cannot be read"),
        "{result:?}"
    );
    is_sent(&mut scene, "second").await;
    assert_eq!(scene.daemon.times_logged("lost the subscription"), 0, "{}", scene.daemon.log());
    assert_eq!(scene.daemon.times_logged(DOES_NOT_WORK), 0);
}
